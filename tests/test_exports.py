"Each exporter writes the file that was written by hand from its reader's documentation."
import pytest

from alphaq.export import EXPORTERS, TARGETS, export
from alphaq.plan import read_plan
from conftest import ROOT

GOLDEN = ROOT/'tests/golden'
KIND = {'projection': 'free', 'role': 'role', 'layer': 'layer'}  # which of the three plans a reader can load

@pytest.mark.parametrize('to', EXPORTERS)
def test_golden(to):
    plan = read_plan(GOLDEN/f'{KIND[TARGETS[EXPORTERS[to].target].finest]}.plan.json')
    (wanted,) = (p for p in GOLDEN.glob(f'{to}.*') if '.plan.' not in p.name)
    assert export(plan, to) == wanted.read_text()
