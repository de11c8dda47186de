"The kernels for many tokens against float64 in Triton's interpreter: random layers, planted faults. In a process of its own, as tests/test_kernel.py."
import json, os, subprocess, sys
from functools import cache
from importlib.util import find_spec

import pytest

from test_kernel import faults, packed, routing

CASES = 24

def case(seed, fault=None):
    "What was tried, and the relative errors of both launches against float64."
    import random, torch
    from alphaq import kernel as k, prefill as p
    from alphaq.pack import unpack
    pick, g = random.Random(seed), torch.Generator().manual_seed(seed)
    hidden, inner = {3: (64, 1408), 8: (1408, 64), 13: (64, 2048), 18: (64, 768)}.get(seed % 40) or (pick.choice((64, 128, 192, 256, 512)), pick.choice((64, 128, 192)))
    experts = pick.randint(1, 5)
    top, size = pick.randint(1, min(experts, 2)), pick.choice((32, 64))
    tokens = pick.choice((1, 5, 31, 33, 70)) if max(hidden, inner) < 1000 else 33
    kind = pick.choice(('uniform', 'skewed', 'lost'))
    widths = [[pick.randint(1, 4) for _ in range(experts)] for _ in range(3)]
    if fault: hidden, inner, experts, top, size, tokens, kind, widths = 256, 64, 4, 2, 32, 40, 'uniform', [[1, 2, 3, 4], [2, 1, 4, 3], [4, 3, 2, 1]]
    shapes = (inner, hidden), (inner, hidden), (hidden, inner)
    matrices = [[packed(s, b, g) for b in some] for s, some in zip(shapes, widths)]
    gate, up, down = (k.arena_of(some) for some in matrices)
    if fault: gate, down = fault(gate), fault(down)
    x, weight = torch.randn(tokens, hidden, generator=g).bfloat16(), torch.rand(tokens * top, generator=g)
    chosen = routing(tokens, top, experts, kind, g)
    blocks, tile = p.sorted_blocks(chosen, sum(torch.tensor(w) for w in widths), size), p.wide_tile(size)
    def run():
        h = p.wide_gate_up(x.float(), gate, up, blocks, top, tile)
        return h, p.wide_down(h, down, blocks, weight, tile)
    h, y = run()
    if seed % 10 == 0: assert all(map(torch.equal, run(), (h, y))), 'two runs differ'
    lost = (chosen == experts).flatten()
    assert not h[lost].any() and not y[lost].any(), 'a pair without an expert has a result'
    dense = [[unpack(m).dequantize(torch.float64) for m in some] for some in matrices]
    worst = [0., 0.]
    its = [(j, e) for j, e in enumerate(chosen.flatten().tolist()) if e < experts]
    if its:
        j = [j for j, _ in its]
        def one(i, e): return torch.nn.functional.silu(dense[0][e] @ x[i].double()) * (dense[1][e] @ x[i].double())
        meant = torch.stack([one(i // top, e) for i, e in its]), torch.stack([dense[2][e] @ h[i].double() * weight[i].double() for i, e in its])
        worst = [((a[j] - b).norm() / b.norm()).item() for a, b in zip((h, y), meant)]
    return f'hidden {hidden}, inner {inner}, {experts} experts, top {top}, {tokens} tokens {kind}, blocks of {size}, widths {widths}', worst

def long_rows():
    "The error of one matrix with rows of 10944 inputs, groups of 64 and slices of 4 to 16 words, at each width."
    import torch
    from alphaq import kernel as k, launch
    from alphaq.pack import unpack
    g, found = torch.Generator().manual_seed(0), {}
    for bits in (1, 2, 3, 4):
        m, x = packed((64, 10944), bits, g), torch.randn(2, 10944, generator=g).bfloat16()
        y, truth = launch.prefill_linear(x.float(), k.arena_of([m])), x.double() @ unpack(m).dequantize(torch.float64).T
        found[bits] = ((y - truth).norm() / truth.norm()).item()
    return found

@cache
def child():
    "Run this file in the interpreter, read what it prints."
    if find_spec('triton') is None: pytest.skip("Triton is not installed (pip install 'alphaq[gpu]')")
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=os.environ | dict(TRITON_INTERPRET='1', OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)

def test_random_layers_equal_float64():
    found = child()['cases']
    assert len(found) == CASES
    far = [line for line in found if not max(line[1]) < 1e-5]
    assert not far, far

def test_planted_faults_are_caught():
    found = child()['faults']
    assert found.keys() == {'shift', 'zero', 'descriptor', 'tile', 'none'}
    assert max(found.pop('none')) < 1e-5 and all(min(errors) > .05 for errors in found.values()), found

def test_rows_of_short_slices():
    assert max(child()['long'].values()) < 1e-5, child()['long']

def test_a_group_that_a_slice_leaves_is_refused():
    "Slices of 128 inputs in groups of 64: the loops of every kernel end a group with a slice."
    import torch
    from dataclasses import replace
    from alphaq import kernel as k, launch
    from alphaq.core import AlphaqError
    from alphaq.pack import slice_width
    good = launch.checked(k.arena_of([packed((64, 512), 4, torch.Generator().manual_seed(0))]))
    halves = replace(good, scale=good.scale.repeat_interleave(2, 2), zero=good.zero.repeat_interleave(2, 2))
    with pytest.raises(AlphaqError, match='slices of 128 inputs in groups of 64'): launch.checked(halves)
    for inputs in range(64, 4097, 64):
        whole = max(slice_width(inputs, b) for b in (1, 2, 3, 4)) <= 64
        assert bool(launch.unfit((64, inputs), 64)) != whole

if __name__ == '__main__':
    made = {name: case(10, fault)[1] for name, fault in faults().items()} | dict(none=case(10, lambda a: a)[1])
    print(json.dumps(dict(cases=[case(seed) for seed in range(CASES)], faults=made, long=long_rows())))
