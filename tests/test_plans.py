"Equal scores and settings give equal plans, to the byte, whatever the process, its hash seed or its threads."
import os
import subprocess
import sys

from conftest import ROOT

CODE = '''
import hashlib, json
import numpy as np
from alphaq.allocators import METHODS, Settings, allocate
from alphaq.checkpoint import ROLES
from alphaq.core import AlphaqError
from alphaq.plan import make_plan, to_json
from alphaq.score import Score
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
