"What every law shares: where the checkout is, and its chapters."
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tests'))  # so that a test can import from its neighbours whatever pytest's import mode is
CHAPTERS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
