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
ANSWERS = [p for p in sorted((ROOT/'results/consumers').glob('*.jsonl')) if not p.stem.startswith('gguf-file')]  # of recipes

@pytest.mark.parametrize('to', EXPORTERS)
def test_every_reader_can_be_asked(to):
    assert all((ROOT/f'tests/consumers/{name}.py').is_file() for name in SCRIPTS[to])

@pytest.mark.parametrize('path', ANSWERS, ids=lambda p: p.stem)
def test_what_readers_answered(path):
    rows = read_rows(path)[1]
    assert any(path.stem in names for names in SCRIPTS.values()) and rows and all(r['modules'] == r['equal'] > 0 for r in rows)

def test_what_the_reader_of_files_answered():
    "In float32 its logits are ours, but for an architecture that it does not know and one that it computes otherwise; codes it decodes as we do."
    rows = read_rows(ROOT/'results/consumers/gguf-file.jsonl')[1]
    exact = [r for r in rows if 'float32' in r['file'] and 'kl' in r]
    apart = [r['model'] for r in exact if not r['kl_most'] < 1e-3]
    assert len(exact) > 10 and apart == ['random llama with experts (Mixtral)'], apart
    assert {r['model'] for r in rows if r.get('loads') is False} == {'random olmoe', 'pocket'}
    decoded = [r for r in rows if 'tensors' in r]
    assert decoded and all(r['tensors'] == r['equal'] > 0 for r in decoded)

def test_what_llama_cpp_answered():
    "It loads every architecture and `pocket`; in float32 its logits are ours, codes it decodes as we do."
    rows = read_rows(ROOT/'results/consumers/gguf-file-llama.cpp.jsonl')[1]
    exact = [r for r in rows if 'float32' in r['file'] and 'kl' in r]
    assert len(exact) > 10 and all(r['kl_most'] < 1e-3 for r in exact) and all(r.get('loads', True) for r in rows)
    decoded = [r for r in rows if 'tensors' in r]
    assert decoded and all(r['tensors'] == r['equal'] > 0 for r in decoded)

def test_what_llama_cpp_makes_of_files_that_are_refused():
    "It does not load them, or computes something else; a model that breaks no rule it runs as we do."
    *odd, last = read_rows(ROOT/'results/consumers/gguf-file-refused.jsonl')[1]
    assert len({(r['model'], r['odd']) for r in odd}) == len(odd) == 12 and last['odd'] == 'nothing' and last['kl_most'] < 1e-5
    assert all(r['loads'] is False or r['kl'] > 1e-3 for r in odd) and sum(not r['loads'] for r in odd) == 10
