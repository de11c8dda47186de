"""A real kill -9 in the middle of writing a shard: nothing looks finished, the next run ends with the same bytes and verifies."""
import signal
import subprocess
import sys

from alphaq.benchmarks import toy_checkpoint
from alphaq.verify import verify

quantize = 'from alphaq.cli import main; main()'
# the process kills itself as kill -9 would, with the third shard half written under its temporary name
dying = """
import os, signal
from pathlib import Path
import alphaq.quantize as q
whole, calls = q.save_file, []
def save_file(tensors, path, **kwargs):
    calls.append(path)
    if len(calls) == 3: Path(path).write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)
    return whole(tensors, path, **kwargs)
q.save_file = save_file
""" + quantize


def run(code, model, out):
    arguments = ['quantize', str(model), '--bits', '2', '-o', str(out), '--quiet']
    return subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, timeout=300)


def test_kill_and_resume(tmp_path):
    model, killed, whole = tmp_path/'toy', tmp_path/'killed', tmp_path/'whole'
    toy_checkpoint(model, num_hidden_layers=4)
    assert run(quantize, model, whole).returncode == 0
    assert run(dying, model, killed).returncode == -signal.SIGKILL
    partial = killed.with_name('killed.partial')
    assert not killed.exists() and (partial/'UNFINISHED').exists() and not (partial/'config.json').exists()
    kept = {p.name: p.stat().st_mtime_ns for p in partial.glob('model-*.safetensors')}
    assert len(kept) == 2 and list(partial.glob('.*.tmp'))
    assert run(quantize, model, killed).returncode == 0
    assert (killed/'SHA256SUMS').read_bytes() == (whole/'SHA256SUMS').read_bytes() and not partial.exists()
    assert all((killed/name).stat().st_mtime_ns == at for name, at in kept.items()), 'a finished shard was written again'
    assert verify(killed).ok
