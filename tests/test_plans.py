"Equal scores and settings give equal plans, to the byte, whatever the process, its hash seed or its threads."
import os
import subprocess
import sys

from conftest import ROOT

CODE = '''
import hashlib, json
import numpy as np
from alphaq.allocation import allocate
from alphaq.methods import METHODS, Settings
from alphaq.core import ROLES
from alphaq.core import AlphaqError
from alphaq.plans import make_plan, to_json
from alphaq.scores import Score
rng = np.random.default_rng(0)
def score(l, e, r):
    shape, m = {'down_proj': (128, 384)}.get(r, (256, 128)), np.sort(rng.uniform(size=4).round(1))[::-1]  # unequal sizes, ties, no convexity
    return Score(f'model.layers.{l}.mlp.experts.{e}.{r}', l, e, r, *shape, shape[0] * shape[1], round(rng.uniform(2, 6), 1), .1, 10, 100, round(rng.uniform(1, 2), 1), tuple(m), 0.,
                 *rng.uniform(1, 3, 5).round(1))
scores = [score(l, e, r) for l in range(3) for e in range(8) for r in ROLES]
for name in METHODS:
    try: text = json.dumps(to_json(make_plan(scores, allocate(scores, Settings(2.3, name)), 'toy')))
    except AlphaqError: continue                                    # methods that need what these scores do not hold
    print(name, hashlib.sha256(text.encode()).hexdigest())
'''

def plans(**environment):
    done = subprocess.run([sys.executable, '-c', CODE], cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()

def test_plans_are_the_same_to_the_byte():
    first, second = plans(PYTHONHASHSEED='1', OMP_NUM_THREADS='1'), plans(PYTHONHASHSEED='2', OMP_NUM_THREADS='2')
    assert first == second and len(first) >= 10
    assert len({line.split()[1] for line in first}) == len(first)   # and a method's name is in its bytes

def test_many_spectra_at_once_lead_to_the_same_plan(monkeypatch):
    from dataclasses import replace
    from alphaq import esd
    from alphaq.allocation import allocate, preset_named
    from alphaq.batched import batched_eigenvalues
    from alphaq.checkpoint import open_checkpoint
    from alphaq.jobs import ScoreJob, score_all
    from alphaq.plans import make_plan, to_json
    preset, pocket = preset_named('paper'), open_checkpoint('pocket')
    checkpoint = replace(pocket, projections=tuple(p for p in pocket.projections if p.layer < 2))  # half a minute for all on one core, and no other answer
    def planned(device):
        scores = score_all(ScoreJob(checkpoint, preset.tail, preset.tile, device=device))
        return [s.alpha for s in scores], to_json(make_plan(scores, allocate(scores, replace(preset.settings, bits=2.5)), 'pocket'))
    alphas, plan = planned('cpu')
    asked = []
    def as_on_a_gpu(W): asked.append(len(W)); return batched_eigenvalues(W @ W.mT)
    monkeypatch.setattr(esd, '_spectra', as_on_a_gpu)
    other_alphas, other_plan = planned('cpu:0')
    assert sum(asked) == 6 * len(checkpoint.projections) and max(abs(a - b) for a, b in zip(alphas, other_alphas)) < 1e-3
    assert plan['layers'] == other_plan['layers'] and plan['modules'] == other_plan['modules']
