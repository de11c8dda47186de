"""A real kill -9 in the middle of writing a shard: nothing looks finished, the next run shows how far it is, ends with the same bytes, and verifies."""
import json
import os
import signal
import subprocess
import sys

import pytest

from conftest import ROOT

# One warm process forks the command line three times: undisturbed; killing itself, as kill -9 would, with the third shard half written under
# its temporary name; and resuming at a terminal. What they did is printed as one line of JSON.
DRIVER = """
import json, os, pty, signal, sys
from pathlib import Path
import alphaq.rounding as q
from alphaq.lab.toys import toy_checkpoint
from alphaq.cli import main
from alphaq.lab.endurance import start_child, warm
from alphaq.checks import verify

home = Path(sys.argv[1])
whole, killed, partial = home/'whole', home/'killed', home/'killed.partial'

def command(out):
    sys.argv = ['alphaq', 'quantize', str(home/'toy'), '--bits', '2', '-o', str(out)]
    main()

def dying():
    save, calls = q.save_file, []
    def save_file(tensors, path, **kwargs):
        calls.append(path)
        if len(calls) == 3: Path(path).write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)
        return save(tensors, path, **kwargs)
    q.save_file = save_file
    command(killed)

def at_a_terminal():
    os.dup2(terminal, 2)
    command(killed)

def status(function): return os.waitpid(start_child(function), 0)[1]
def stamps(folder): return {p.name: p.stat().st_mtime_ns for p in folder.glob('model-*.safetensors')}

warm()
toy_checkpoint(home/'toy', num_hidden_layers=4)
said = dict(whole=status(lambda: command(whole)), killed=status(dying), finished=killed.exists(), left=sorted(p.name for p in partial.iterdir()), kept=stamps(partial))
screen, terminal = pty.openpty()
pid = start_child(at_a_terminal)
os.close(terminal)
shown = b''
try:
    while piece := os.read(screen, 1 << 16): shown += piece
except OSError: pass  # that is how a terminal ends when nobody writes to it any more
said['resumed'] = os.waitpid(pid, 0)[1]
said |= dict(shown=shown.decode(errors='replace'), same=(killed/'SHA256SUMS').read_bytes() == (whole/'SHA256SUMS').read_bytes(), then=stamps(killed),
             partial=partial.exists(), sound=verify(killed, original=home/'toy').ok)
print(json.dumps(said))
"""


@pytest.fixture(scope='module')
def said(tmp_path_factory):
    env = {k: v for k, v in os.environ.items() if k not in ('ALPHAQ_QUIET', 'NO_COLOR')} | dict(TERM='xterm', COLUMNS='120')
    done = subprocess.run([sys.executable, '-c', DRIVER, str(tmp_path_factory.mktemp('crash'))], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_with_a_shard_half_written(said):
    assert said['whole'] == 0 and said['killed'] == signal.SIGKILL and not said['finished']
    assert 'UNFINISHED' in said['left'] and 'config.json' not in said['left']
    assert len(said['kept']) == 2 and any(name.startswith('.') and name.endswith('.tmp') for name in said['left'])


def test_resumed_to_the_same_bytes(said):
    assert said['resumed'] == 0 and said['same'] and not said['partial'] and said['sound']
    assert all(said['then'][name] == at for name, at in said['kept'].items()), 'a finished shard was written again'


def test_the_time_left_is_shown(said):
    assert 'quantizing' in said['shown'] and 'left' in said['shown'] and '/5' in said['shown'], said['shown'][-500:]
