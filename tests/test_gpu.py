"All jobs of `make gpu` at toy size, in Triton's interpreter: each makes its rows, none is made twice, and none begins that would not end in time."
import os, subprocess, sys
from importlib.util import find_spec
from itertools import product

import pytest

from alphaq.core import read_rows
from alphaq.lab.gpu import ASKING, COMPILED, IN_PARTS, STEPPED, WATCH
from conftest import ROOT

THRICE = 'import sys; from alphaq.lab.gpu import main; *a, n = sys.argv[1:]; [main(a + [s]) for s in (n, "540", "540")]'
# they run what they should watch, and see nothing
STAND_INS = {'compute-sanitizer': '#!/bin/sh\nshift 2; "$@" && echo "ERROR SUMMARY: 0 errors"\n',
             'ncu': f'#!/bin/sh\nshift {len(WATCH)}; "$@" && echo "==WARNING== No kernels were profiled."\n'}

@pytest.fixture(scope='module')
def rehearsal(tmp_path_factory):
    "What three calls said, the first without time, and job -> rows."
    if not find_spec('triton'): pytest.skip("Triton is not installed: pip install 'alphaq[gpu]'")
    folder, tools = tmp_path_factory.mktemp('rows'), tmp_path_factory.mktemp('tools')
    for name, text in STAND_INS.items():
        (tools/name).write_text(text)
        (tools/name).chmod(0o755)
    env = os.environ | dict(TRITON_INTERPRET='1', ALPHAQ_DATA='', PATH=f'{tools}:{os.environ["PATH"]}')
    done = subprocess.run([sys.executable, '-c', THRICE, '--toy', '--out', folder, '--seconds', '1'], cwd=ROOT,
                          capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, {p.stem: read_rows(p)[1] for p in folder.iterdir()}

def test_each_job_is_made_once_and_in_its_time(rehearsal):
    said, made = rehearsal
    assert said.count('no time') == said.count('made') == said.count('there') == len(made) == 12
    assert {n for n, rows in made.items() if any('failed' in r for r in rows)} == {'pocket', 'counters'}  # no texts, no counters

def test_the_kernels_are_right(rehearsal):
    rows = rehearsal[1]['correctness']
    assert [r['what'] for r in rows] == ['linears', *['experts'] * 5]
    assert all(r['error'] < 1e-2 and r['repeats'] for r in rows)

def test_layers_and_their_peers(rehearsal):
    made = rehearsal[1]
    assert [r['what'] for r in made['moe-layer-toy']] == ['roof', 'fused', 'fused'] and made['moe-layer-toy'][1]['share'] > 0
    assert [(r['what'], r['captured']) for r in made['peers']] == [
        *product(('fused',), (True, False)), *product(ASKING, (False,)),
        *product(('bf16_grouped', 'dequantize_batched', 'bf16_batched'), (True, False))]
    assert [r['what'] for r in made['shared']] == ['slots', 'apart']
    assert {r['what'] for r in made['prefill']} == {'registers', 'dequantize', 'decode', 'bf16_grouped'}
    assert [r['rule'] for r in made['tiles']] == [True, False, False, True, False, False, False]
    assert made['memcheck'][0]['errors'] == 0
    assert made['counters'][0]['failed'] == '==WARNING== No kernels were profiled.'

def test_whole_models_agree(rehearsal):
    made = rehearsal[1]
    *speeds, last = made['whole']
    assert [r['what'] for r in speeds] == ['slots', 'apart'] and last['error'] < 5e-2
    for job, ways in (('end-to-end', STEPPED), ('compiled', COMPILED | IN_PARTS)):
        assert [(r['what'], r['sampled']) for r in made[job]] == [*product(ways, (False, True))]
        assert all(r['error'] < 5e-2 and r['bytes'] > 0 for r in made[job])
