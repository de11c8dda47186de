"What every law shares: where the checkout is, and its chapters."
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT/'tests'))  # so that a test can import from its neighbours whatever pytest's import mode is
CHAPTERS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
LONGEST = 'test_book', 'test_demo', 'test_cpu', 'test_kernel', 'test_report', 'test_rehearsal', 'test_notebooks', 'test_crash'

def pytest_collection_modifyitems(items):
    "What takes long begins early, or one process runs it at the end while the other has nothing left."
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
