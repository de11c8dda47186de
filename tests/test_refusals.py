"""Bad input and bad weather through the command line: one line that says what to do, the exit code of its kind, and nothing half-written."""
import errno
import json
import os
import shutil

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from alphaq import making, rounding
from alphaq.lab.toys import toy_checkpoint
from alphaq.cli import app
from alphaq.core import check_sums

GPTQ = ('--quantizer', 'gptq', '--calibration', 'arithmetic', '--samples', '2', '--window', '32')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A toy model, and others that each lack or spoil one thing."
    home = tmp_path_factory.mktemp('refusals')
    toy_checkpoint(home/'toy')
    toy_checkpoint(home/'deep', num_hidden_layers=3)
    toy_checkpoint(home/'twin', seed=5)
    for name in ('mute', 'garbled', 'loud', 'broken'): shutil.copytree(home/'toy', home/name)
    for file in (home/'mute').glob('tokenizer*'): file.unlink()
    (home/'garbled'/'tokenizer.json').write_text('{"version": 1}')
    for name, key, value in (('loud', 'model.layers.1.self_attn.v_proj.weight', 1e38), ('broken', 'model.layers.1.mlp.experts.2.up_proj.weight', float('nan'))):
        tensors = load_file(home/name/'model.safetensors')
        tensors[key].fill_(value)
        save_file(tensors, home/name/'model.safetensors', metadata={'format': 'pt'})
    (home/'short.txt').write_text('two words')
    (home/'empty.txt').write_text('')
    assert run(home, 'quantize', 'toy', '--bits', '2', '-o', 'done')[0] == 0
    shutil.copy(home/'done'/'plan.json', home/'plan.json')
    plan = json.loads((home/'plan.json').read_text())
    plan['layers'].popitem()
    kept = [int(b) for roles in plan['layers'].values() for digits in roles.values() for b in digits]
    plan['average'] = dict(modules=sum(kept) / len(kept), params=None, stored=None)
    plan |= dict(objective=None, lower_bound=None, gap=None)  # as an edit has to say it
    (home/'lacking.json').write_text(json.dumps(plan))
    return home


def run(home, *args):
    "Exit code and stderr of a command, called in the folder `home`, without the word that toys are untrained."
    before = os.getcwd()
    os.chdir(home)
    try: done = CliRunner().invoke(app, args, env={'ALPHAQ_QUIET': '1', 'XDG_CACHE_HOME': str(home.with_name('cache'))})
    finally: os.chdir(before)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, ''.join(line for line in done.stderr.splitlines(True) if 'look untrained' not in line)


def files(home): return {str(p.relative_to(home)): p.stat().st_mtime_ns for p in home.rglob('*')}


def refused(home, words, *args, code=1):
    "A command that fails with those words in one line and leaves every file as it was."
    before = files(home)
    got, said = run(home, *args)
    assert got == code and words in said and len(said.strip().splitlines()) == 1, (args, got, said)
    assert files(home) == before, files(home).keys() ^ before.keys()


INPUTS = {
    'a text of nine tokens': ('9 tokens are not one window of 32; use a longer text', 'quantize', 'toy', '--bits', '2', '-o', 'out', *GPTQ, '--calibration', 'short.txt'),
    'one short text of two': ('short.txt: 9 tokens are not one window', 'quantize', 'toy', '--bits', '2', '-o', 'out', *GPTQ, '--calibration', 'arithmetic+short.txt'),
    'an empty text': ("'empty.txt' (train) is empty", 'quantize', 'toy', '--bits', '2', '-o', 'out', *GPTQ, '--calibration', 'empty.txt'),
    'no text': ("no text or file 'nothing.txt'", 'quantize', 'toy', '--bits', '2', '-o', 'out', *GPTQ, '--calibration', 'nothing.txt'),
    'a text to measure on': ('not one window of 256', 'eval', 'toy', '--text', 'short.txt'),
    'no tokenizer to calibrate': ('no tokenizer; copy tokenizer.json', 'quantize', 'mute', '--bits', '2', '-o', 'out', *GPTQ),
    'no tokenizer to measure': ('no tokenizer; copy tokenizer.json', 'eval', 'mute', '--text', 'arithmetic'),
    'no tokenizer to talk': ('no tokenizer; copy tokenizer.json', 'generate', 'mute', 'two plus two'),
    'a damaged tokenizer': ('the tokenizer cannot be read', 'quantize', 'garbled', '--bits', '2', '-o', 'out', *GPTQ),
    'the plan of a twin': ('made for another model', 'quantize', 'twin', '--plan', 'plan.json', '-o', 'out'),
    'the plan of a shallower model': ('does not fit deep', 'quantize', 'deep', '--plan', 'plan.json', '-o', 'out'),
    'a plan that lacks a layer': ('does not fit toy: it lacks', 'quantize', 'toy', '--plan', 'lacking.json', '-o', 'out'),
    'groups that divide nothing': ('no group of 7 to 7 weights divides a row of 64', 'quantize', 'toy', '--bits', '2', '--group-size', '7', '-o', 'out'),
    'activations that overflow': ('layer 1: activations are not finite', 'quantize', 'loud', '--bits', '2', '-o', 'out', *GPTQ),
    'weights that are no numbers': ('holds 4096 non-finite of 4096 values', 'quantize', 'broken', '--bits', '2', '-o', 'out'),
    'an output below a file': ('Not a directory', 'quantize', 'toy', '--bits', '2', '-o', 'short.txt/out'),
    'an output that exists': ('toy exists', 'quantize', 'toy', '--bits', '2', '-o', 'toy'),
    'the source to be replaced': ('holds the model that is to be read', 'quantize', 'toy', '--bits', '2', '-o', 'toy', '--overwrite'),
}


@pytest.mark.parametrize('what', INPUTS)
def test_bad_input(home, what): refused(home, *INPUTS[what])


def failing(error, after, then):
    "Stands in for a function that writes: raises from some call on."
    left = [after]
    def write(*args, **kwargs):
        if not left[0]: raise error
        left[0] -= 1
        return then(*args, **kwargs)
    return write


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES])
def test_output_that_cannot_be_written(home, monkeypatch, number):
    monkeypatch.setattr(making, 'write_text', failing(OSError(number, os.strerror(number)), 0, None))
    refused(home, f'cannot be written ({os.strerror(number)}); choose another folder', 'quantize', 'toy', '--bits', '2', '-o', 'out')


def test_disk_too_small(home, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(2**30, 2**30, 2**20))
    refused(home, 'are needed and 1.00 MiB are free; make room', 'quantize', 'toy', '--bits', '2', '-o', 'out')


@pytest.mark.parametrize('error', [OSError(errno.ENOSPC, 'No space left on device'), SafetensorError('I/O error: No space left on device (os error 28)')])
def test_disk_that_fills_up(home, monkeypatch, error):
    "What was written stays, under a name that nobody takes for finished, and the same command continues."
    command = ('quantize', 'toy', '--bits', '2', '-o', 'filled')
    with monkeypatch.context() as m:
        m.setattr(rounding, 'save_file', failing(error, 1, rounding.save_file))
        code, said = run(home, *command)
    assert code == 1 and 'the disk is full' in said and 'run the same command again' in said and len(said.strip().splitlines()) == 1, said
    assert not (home/'filled').exists() and (home/'filled.partial'/'UNFINISHED').exists() and not (home/'filled.partial'/'config.json').exists()
    assert run(home, *command)[0] == 0 and not list(check_sums(home/'filled')) and not (home/'filled.partial').exists()
    assert (home/'filled'/'SHA256SUMS').read_bytes() == (home/'done'/'SHA256SUMS').read_bytes()
    shutil.rmtree(home/'filled')
