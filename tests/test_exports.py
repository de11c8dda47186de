"Each exporter writes the file that was written by hand from its reader's documentation."
import pytest

from alphaq.core import read_rows
from alphaq.exports import EXPORTERS, TARGETS, export
from alphaq.plans import read_plan
from conftest import ROOT

GOLDEN = ROOT/'tests/golden'
KIND = {'projection': 'free', 'role': 'role', 'layer': 'layer'}  # which of the three plans a reader can load

@pytest.mark.parametrize('to', EXPORTERS)
def test_golden(to):
    plan = read_plan(GOLDEN/f'{KIND[TARGETS[EXPORTERS[to].target].finest]}.plan.json')
    (wanted,) = (p for p in GOLDEN.glob(f'{to}.*') if '.plan.' not in p.name)
    assert export(plan, to) == wanted.read_text()

SCRIPTS = {to: (to,) for to in EXPORTERS} | {'llm-compressor': ('llmcompressor', 'compressed_tensors', 'compressed-folder'), 'llama.cpp': ('llama_quantize', 'gguf'), 'mlx': ('mlx_lm',)}
ANSWERS = sorted((ROOT/'results/consumers').glob('*.jsonl'))

@pytest.mark.parametrize('to', EXPORTERS)
def test_every_reader_can_be_asked(to):
    assert all((ROOT/f'tests/consumers/{name}.py').is_file() for name in SCRIPTS[to])

@pytest.mark.parametrize('path', ANSWERS, ids=lambda p: p.stem)
def test_what_readers_answered(path):
    rows = read_rows(path)[1]
    assert any(path.stem in names for names in SCRIPTS.values()) and rows and all(r['modules'] == r['equal'] > 0 for r in rows)
