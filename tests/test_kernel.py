"The kernels against float64 in Triton's interpreter: random layers, planted faults, bad input. In a process of its own, since interpreted and compiled kernels cannot share one."
import json, os, subprocess, sys
from functools import cache
from importlib.util import find_spec

import pytest

CASES, JOBS = 200, 4

def packed(shape, bits, generator):
    "Random codes, scales and zero points."
    import torch
    from alphaq.grid import group_of
    from alphaq.pack import PackedWeight, pack_codes
    group = group_of(shape[1], 128)
    grid = shape[0], shape[1] // group
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    zero = torch.randint(0, 16 * (2**bits - 1) + 1, grid, generator=generator).to(torch.uint8)
    return PackedWeight(pack_codes(codes, bits), (.01 + .02 * torch.rand(grid, generator=generator)).half(), zero, bits, shape, group)

def routing(tokens, top, experts, kind, generator):
    "`[tokens, top]`: uniform, skewed to the first experts, or with pairs of no expert; experts may stay empty."
    import torch
    if kind == 'skewed': noise = torch.rand(tokens, experts, generator=generator) + 2. * (torch.arange(experts) < top)
    else: noise = torch.rand(tokens, experts, generator=generator)
    chosen = noise.topk(top, 1).indices
    if kind == 'lost': chosen[torch.rand(tokens, top, generator=generator) < .3] = experts
    return chosen

def in_blocks(h, blocks):
    "Sums of pairs as `gate_up` leaves them: those of a block side by side."
    from alphaq.kernel import Prepared
    sums = h.sums[blocks.slots.long()].unflatten(3, (-1, 2))
    return Prepared(h.copies, sums.permute(0, 2, 3, 1, 4).contiguous())

def case(seed, fault=None):
    "What was tried, and the relative error of a launch."
    import random, torch
    from alphaq import kernel as k
    from alphaq.pack import unpack
    pick, g = random.Random(seed), torch.Generator().manual_seed(seed)
    K = {7: 10944, 14: 2048, 23: 1408, 24: 1408, 35: 2048, 41: 1024}.get(seed % 50) or pick.choice((64, 128, 128, 192, 256, 320, 384, 768))
    N = 128 if seed % 9 == 0 else 64
    experts = pick.randint(1, 2 if K > 300 else 5)
    top = pick.randint(1, min(experts, 2))
    tokens = pick.choice((1, 2, 3, 7)) if K > 300 else pick.choice((1, 2, 5, 8, 9, 33, 64))
    if fault: K, N, experts, top, tokens = 256, 64, 4, 2, 5
    kind = 'uniform' if fault else pick.choice(('uniform', 'skewed', 'lost'))
    tile = k.Tile(pick.choice((32, 64)), pick.choice((8, 16)))
    group = 128 if K % 128 == 0 else 64
    part = pick.choice([p for p in (32, 64, 128) if group % p == 0])
    widths = [[pick.randint(1, 4) for _ in range(experts)] for _ in range(2)]
    if fault: widths = [[1, 2, 3, 4]] * 2
    matrices = [[packed((N, K), b, g) for b in some] for some in widths]
    arenas = [k.arena_of(some) for some in matrices]
    if fault: arenas[0], tile = fault(arenas[0]), k.Tile(64, 8)
    x = torch.randn(tokens, K, generator=g).bfloat16()
    chosen = routing(tokens, top, experts, kind, g)
    blocks = k.by_expert(chosen, sum(a.table[:, 0] for a in arenas), tile.tokens)
    dense = [[unpack(m).dequantize(torch.float64) for m in some] for some in matrices]
    def product(role, i, e): return dense[role][e] @ x[i].double()
    pairs = [(j, i // top, e) for j, (i, e) in enumerate(zip(range(tokens * top), chosen.flatten().tolist())) if e < experts]
    weight = torch.rand(tokens * top, generator=g)
    if seed % 2 and not fault:  # gate and up, compared before h is rounded
        if N % (2 * tile.rows): tile = k.Tile(32, tile.tokens)
        h = k.gate_up(k.prepared(x.float(), part), *arenas, blocks, top, tile)
        found = h.copies[:, 0]
        truth = [torch.nn.functional.silu(product(0, i, e)) * product(1, i, e) for _, i, e in pairs]
        def run(): return k.gate_up(k.prepared(x.float(), part), *arenas, blocks, top, tile).copies[:, 0]
    else:                       # down, whose pairs have activations of their own
        own = k.prepared(x.repeat_interleave(top, 0).float(), part)
        if seed % 4 and part < group: own = in_blocks(own, blocks)
        def run(): return k.down(own, arenas[0], blocks, weight, tile)
        found = run()
        truth = [product(0, i, e) * weight[j].double() for j, i, e in pairs]
    assert seed % 10 or torch.equal(found, run()), 'two runs differ'
    assert not found[(chosen == experts).flatten()].any(), 'a pair without an expert has a result'
    if not pairs: return 'no pair has an expert', 0.
    mine, truth = found[[j for j, _, _ in pairs]].double(), torch.stack(truth)
    worst = ((mine - truth).norm() / truth.norm()).item()
    return f'K {K}, N {N}, {experts} experts, top {top}, {tokens} tokens {kind}, {tile}, part {part}, widths {widths}', worst

def faults():
    "Each planted fault, by name."
    from dataclasses import replace
    import torch
    return dict(
        shift=lambda a: replace(a, words=(a.words >> 1).to(torch.int16)),
        zero=lambda a: replace(a, zero=a.zero.flip(0, 1, 2)),
        descriptor=lambda a: replace(a, table=a.table.roll(1, 0)),
        tile=lambda a: replace(a, words=a.words.roll(64)))

DIGITS = dict(gate_proj='1234', up_proj='3142', down_proj='2413')

def block_of(family, shared, bits, **more):
    "A tiny model and its second block, whose routed and shared experts are packed."
    import torch
    from alphaq.core import ROLES
    from alphaq.lab.toys import tiny_model
    from alphaq.runtime import AlphaqConfig, quantize_model
    linears = {f'model.layers.1.mlp.{shared}.{role}': b for role, b in zip(ROLES, bits)}
    torch.manual_seed(1)
    model = quantize_model(tiny_model(family, **more).bfloat16(), AlphaqConfig({'model.layers.1.mlp.experts': DIGITS}, linears))
    return model, model.model.layers[1].mlp

def by_float64(block, shared, gate, x, top, weight):
    "What the block means, its shared expert whole."
    import torch
    from alphaq.core import ROLES
    def expert(x, module, e=0):
        gate, up, down = (module.get_submodule(role).dense(e, torch.float64) for role in ROLES)
        return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    out = expert(x.double(), shared) * (1 if gate is None else torch.sigmoid(gate(x)).double())
    for row, mine, its, weights in zip(out, x.double(), top.tolist(), weight.double()):
        for e, w in zip(its, weights): row += w * expert(mine, block.experts, e)
    return out

def shared_experts():
    "Blocks with a packed shared expert: launches of a call and its error, without and with gradients recorded, and what was logged."
    import logging, torch
    from alphaq import launch
    said, made, found = [], [], {}
    logging.getLogger('alphaq').addFilter(lambda r: said.append(r.getMessage()) or False)
    def counting(name, run): return lambda *a, **k: (made.append(name), run(*a, **k))[1]
    for name in ('prepare_step', 'gate_up', 'down'): setattr(launch, name, counting(name, getattr(launch, name)))
    for what, family, name, bits, sizes in (
            ('weighed', 'qwen2_moe', 'shared_expert', (4, 2, 3), dict(moe_intermediate_size=64, shared_expert_intermediate_size=128)),
            ('odd', 'qwen2_moe', 'shared_expert', (4, 4, 4), dict(moe_intermediate_size=128, shared_expert_intermediate_size=192)),
            ('added', 'deepseek_v3', 'shared_experts', (3, 4, 1), dict(moe_intermediate_size=64))):
        _, block = block_of(family, name, bits, **sizes)
        saw, shared = [], block.get_submodule(name)
        block.experts.register_forward_pre_hook(lambda m, args: saw.extend(args))
        x = torch.randn(1, 1, 64).bfloat16()
        for recorded in (False, True)[:2 if what == 'weighed' else 1]:
            made.clear(); saw.clear()
            with torch.set_grad_enabled(recorded): y = block(x)[0].double()
            meant = by_float64(block, shared, getattr(block, 'shared_expert_gate', None), *saw)
            found[f'{what}, gradients' if recorded else what] = [list(made), ((y - meant).norm() / meant.norm()).item()]
    return dict(found=found, said=said)

def static_steps():
    "Graphs that `generate` has traced with a static cache, after one text, one that is sampled, and two. Not the launches, but what is around them."
    import torch
    from transformers import CompileConfig
    from alphaq import launch
    from alphaq.lab.toys import tiny_model
    from alphaq.runtime import AlphaqConfig, quantize_model
    def added(x, top, weight, layer):
        "Pairs, of which the first holds the sum."
        y = launch.grouped_layer(x, top, weight, layer, dequantized=launch.spec_dense).float()[:, None]
        return torch.nn.functional.pad(y, (0, 0, 0, weight.shape[1] - 1))
    launch.decode_pairs = added
    launch.decode_linear = lambda x, a: x @ launch.spec_dense(a, torch.arange(len(a.table))).flatten(0, 1).mT
    model = tiny_model('olmoe', num_hidden_layers=1, intermediate_size=64, num_key_value_heads=4).bfloat16()
    attention = {f'model.layers.0.self_attn.{p}_proj': 4 for p in 'qkvo'}
    model = quantize_model(model, AlphaqConfig({'model.layers.0.mlp.experts': DIGITS}, attention))
    model.generation_config.cache_implementation = 'static'
    graphs, counts = [], []
    step = CompileConfig(fullgraph=True, dynamic=False, mode='default', backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    step._compile_all_devices = True
    for texts, sample in ((1, False), (1, True), (2, True)):
        def write(**how):
            torch.manual_seed(texts)
            return model.generate(torch.arange(texts)[:, None], max_new_tokens=3, min_new_tokens=3, do_sample=sample, **how)
        assert torch.equal(write(compile_config=step), write(disable_compile=True))
        counts.append(len(graphs))
    called = [str(node.target) for node in graphs[0].graph.nodes]
    return dict(counts=counts, moe=called.count('alphaq.moe_pairs.default'), linear=called.count('alphaq.fused_linear.default'))

@cache
def child(*args):
    "Run this file in the interpreter, read what it prints."
    if find_spec('triton') is None: pytest.skip("Triton is not installed (pip install 'alphaq[gpu]')")
    done = subprocess.run([sys.executable, __file__, *map(str, args)], capture_output=True, text=True,
                          env=os.environ | dict(TRITON_INTERPRET='1', OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)

@pytest.mark.parametrize('job', range(JOBS))
def test_random_layers_equal_float64(job):
    found = child('cases', job)
    assert len(found) == CASES // JOBS
    far = [line for line in found if not line[1] < 1e-5]
    assert not far, far

def test_planted_faults_are_caught():
    found = child('faults')
    assert found.keys() == {'shift', 'zero', 'descriptor', 'tile', 'none'}
    assert found.pop('none') < 1e-5 and all(error > .05 for error in found.values()), found

def test_a_shared_expert_has_slots_of_the_same_launches():
    "Joined it costs no launch; where it cannot be cut, or gradients are recorded, it runs by itself, and is added once."
    made = child('models')['shared']
    ours, apart = ['prepare_step', 'gate_up', 'down'], 3 * ['prepare_step', 'down']
    launches, errors = ({what: case[i] for what, case in made['found'].items()} for i in range(2))
    assert launches == {'weighed': ours, 'weighed, gradients': apart, 'odd': apart + ours, 'added': ours}
    assert max(errors['weighed'], errors['added']) < 1e-2 and max(errors.values()) < 2e-2, errors
    gradients, odd = made['said']
    assert 'torch.no_grad()' in gradients and 'a shared expert has launches of its own: a matrix 192 x 64 ' in odd, made['said']

def test_a_step_with_a_static_cache_is_one_graph_for_each_number_of_texts():
    "In which query, key and value are one product, and the output is another."
    assert child('models')['static'] == dict(counts=[1, 1, 2], moe=1, linear=2)

def test_bad_input_is_refused():
    from dataclasses import replace
    import torch
    from alphaq import kernel as k, launch
    from alphaq.core import AlphaqError
    g = torch.Generator().manual_seed(0)
    good = k.arena_of([packed((64, 128), b, g) for b in (1, 4)])
    launch.checked(good)
    table = good.table
    for what, bad in dict(
        width=replace(good, table=table + torch.tensor([4, 0], dtype=torch.int32)),
        start=replace(good, table=table + torch.tensor([0, 1], dtype=torch.int32)),
        negative=replace(good, table=table - torch.tensor([0, 1], dtype=torch.int32)),
        short=replace(good, words=good.words[:-1]), kind=replace(good, zero=good.zero.short()),
        scale=replace(good, scale=good.scale.float()), rows=replace(good, scale=good.scale[:, :32]),
        experts=replace(good, zero=good.zero[:1]), shape=replace(good, shape=(64, 96)),
        outputs=replace(good, shape=(65, 128)), axes=replace(good, scale=good.scale[0])).items():
        with pytest.raises(AlphaqError): launch.checked(bad, what)
    with pytest.raises(AlphaqError, match='no layer'): launch.fused_layer(good, good, good)
    assert launch.no_kernels('mps') and launch.unfit((64, 100), 100)

if __name__ == '__main__':
    what, *rest = sys.argv[1:]
    from alphaq.batched import quick_interpreter
    quick_interpreter()
    if what == 'models': made = dict(shared=shared_experts(), static=static_steps())
    elif what == 'cases': made = [case(seed) for seed in range(int(rest[0]), CASES, JOBS)]
    else: made = {name: case(10, fault)[1] for name, fault in faults().items()} | dict(none=case(10, lambda a: a)[1])
    print(json.dumps(made))
