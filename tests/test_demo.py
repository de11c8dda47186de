"""The demonstration's JSON obeys the laws that no honest run can break. It is made once, on the model that is at hand."""
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from alphaq.lab.demo import BUDGETS
from alphaq.checkpoint import open_checkpoint
from alphaq.core import AlphaqError

root = Path(__file__).resolve().parents[1]


def a_model():
    "The model in the package, else one beside the texts."
    beside = [Path(os.environ['ALPHAQ_DATA']).parent] if 'ALPHAQ_DATA' in os.environ else [root.parent/'shared']
    for name in ('pocket', *(str(folder/'models'/'pocket-v0') for folder in beside)):
        try: open_checkpoint(name)
        except AlphaqError: continue
        return name
    return None


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    model, out = a_model(), tmp_path_factory.mktemp('demo')
    if model is None: pytest.skip('no trained model: neither `pocket` in the package nor models/pocket-v0 beside ALPHAQ_DATA')
    done = subprocess.run([sys.executable, '-m', 'alphaq.lab.demo', 'demo', '--model', model, '--out', str(out), '--tokens', '4096', '--json'],
                          cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert result['rows'] == json.loads(next(out.rglob('demo.json')).read_text())['rows']
    return result


def table(demo): return {(r['method'], r['bits'], r['quantizer']): r for r in demo['rows']}


def test_files_weigh_what_the_plan_predicted(demo):
    for r in demo['rows'][1:]:
        assert r['tensor_bytes'] == r['predicted_bytes']
        assert r['file_bytes'] == r['predicted_file_bytes'], r


def test_methods_are_compared_at_equal_size(demo):
    for bits in {r['bits'] for r in demo['rows'][1:]}:
        files = [r['file_bytes'] for r in demo['rows'] if r['bits'] == bits]
        assert max(files) / min(files) < 1.005, (bits, files)


def test_fewer_bits_never_help(demo):
    rows, plain = table(demo), demo['rows'][0]
    for method in {r['method'] for r in demo['rows'][1:]}:
        rows[method, 16., 'mse'] = plain
        for high, low in pairwise((16., *BUDGETS)):
            for text in demo['header']['learned']:  # on a text it never learned, noise can make a model less wrong
                found = {bits: rows[method, bits, 'mse']['texts'][text]['ppl'] for bits in (high, low)}
                assert found[low] > .99 * found[high], (method, text, found)


def test_the_model_has_learned_something(demo): assert len(demo['header']['learned']) >= 2


def test_paper_is_no_uniform_in_disguise(demo):
    rows = [r for r in demo['rows'] if r['method'] == 'paper' and r['bits'] >= 1.5]  # at 1.25 three quarters have one bit whatever the method
    assert rows and all(r['differs_from_uniform'] >= .2 for r in rows)


def test_three_and_a_half_bits_with_error_feedback_stay_close(demo):
    rows, plain = table(demo), demo['rows'][0]['texts']
    for method in ('uniform', 'best'):
        for text, found in rows[method, 3.5, 'gptq']['texts'].items():
            assert found['ppl'] < 1.1 * plain[text]['ppl'], (method, text, found['ppl'], plain[text]['ppl'])
