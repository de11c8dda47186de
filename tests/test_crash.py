"""A real kill -9 while a folder is being written: nothing looks finished, and the next run ends with the same bytes."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from alphaq.benchmarks import toy_checkpoint

quantize = [sys.executable, '-c', 'from alphaq.cli import main; main()', 'quantize', '--bits', '2', '--quiet']


def start(model, out): return subprocess.Popen([*quantize, str(model), '-o', str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err


def test_kill_and_resume(tmp_path):
    model, killed, whole = tmp_path/'toy', tmp_path/'killed', tmp_path/'whole'
    toy_checkpoint(model, num_hidden_layers=12, num_experts=8)
    finish(start(model, whole))
    process = start(model, killed)
    partial = killed.with_name('killed.partial')
    while process.poll() is None and not list(partial.glob('*.safetensors')): time.sleep(.005)
    os.kill(process.pid, signal.SIGKILL); process.communicate()
    assert process.returncode == -signal.SIGKILL, 'the run ended before it could be killed; make the toy larger'
    assert not killed.exists() and (partial/'UNFINISHED').exists() and not (partial/'config.json').exists()
    kept = {p.name: p.stat().st_mtime_ns for p in partial.glob('model-*.safetensors')}
    finish(start(model, killed))
    assert (killed/'SHA256SUMS').read_bytes() == (whole/'SHA256SUMS').read_bytes() and not partial.exists()
    assert all((killed/name).stat().st_mtime_ns == at for name, at in kept.items()), 'a finished shard was written again'
