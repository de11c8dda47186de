"The compiled kernels, executed without a GPU: every launch of the package against float64, and what is taken out of the compiled text is missed."
import re

import pytest, torch

from alphaq import runtime
from alphaq.batched import bisected, bisected_on_gpu, times_on_gpu
from alphaq.kernel import INTERPRETED
from alphaq.lab.gpu import TOY_MODELS, LayerShape, apart, exact_layer, random_arena, routed, whole_model
from alphaq.lab.offline import no_compiler
from alphaq.lab.ptx import PtxFault, every_width, executed
from alphaq.launch import decode_layer, decode_linear, dense, one_under_another, prefill_layer, prefill_linear, spec_dense

@pytest.fixture(autouse=True)
def compiler():
    "Memory that nobody writes is no number."
    if why := no_compiler(): pytest.skip(why)
    if INTERPRETED: pytest.skip('the kernels of this process are interpreted')
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)

def error_of(way, layer, inputs, capability, change=lambda ptx: ptx):
    "Of a layer, and what its launches counted."
    kept = [layer.gate.words.clone(), inputs[0].clone()]
    with executed(capability, change) as launches: y = way(*inputs, layer)
    assert torch.equal(kept[0], layer.gate.words) and torch.equal(kept[1], inputs[0]), 'an input was written'
    return apart(y, exact_layer(layer, *inputs)), [counts for _, counts in launches]

# slices of 128 and of 4 words; of 8 to 32, blocks of 16 pairs; of 64; of 8 to 32 and of 16 to 64, many tokens
@pytest.mark.parametrize('way, capability, shape, batch', [
    (decode_layer, 90, (2048, 64, 4, 2), 3), (decode_layer, 80, (128, 1408, 4, 2), 9), (decode_layer, 80, (1024, 64, 4, 2), 3),
    (prefill_layer, 90, (256, 1408, 4, 2), 20), (prefill_layer, 80, (768, 64, 4, 2), 70)])
def test_layers_equal_float64(way, capability, shape, batch):
    shape = LayerShape(*shape)
    error, counts = error_of(way, every_width(shape), routed(shape, batch, 'skewed', 'cpu'), capability)
    assert error < 5e-3
    for c in counts: assert c['executed'] > .95 * c['written'] and c['turns'] < 1.5 * c['least'], c

def test_a_whole_model_steps(monkeypatch):
    "The plug-in's own call of the launches, told that they run where the tensors are."
    family, sizes = TOY_MODELS['toy']
    model, ids = whole_model(family, sizes, 2.5, 'cpu'), torch.arange(5)[None]
    with torch.no_grad(): truth = model(ids).logits.double()
    monkeypatch.setattr(runtime, 'INTERPRETED', True)
    monkeypatch.setattr(runtime, 'no_kernels', lambda device: '')
    with torch.no_grad(), executed(90) as launches: logits = model(ids).logits.double()
    assert apart(logits, truth) < 2e-2
    linear, experts = ['_prepare_kernel', '_down_kernel'], ['_prepare_kernel', '_gate_up_kernel', '_down_kernel']
    # query, key and value; output; then the experts, the shared one among them
    assert [name for name, _ in launches] == [*linear, *linear, *experts] * sizes['num_hidden_layers']

def test_shared_experts_and_pairs_without_one():
    "The last expert is everybody's; one pair's expert lies elsewhere."
    shape, layer = LayerShape(128, 128, 4, 2), every_width(LayerShape(128, 128, 5, 2))
    x, top, weight = routed(shape, 3, 'uniform', 'cpu')
    top[1, 0] = 9
    both = torch.nn.functional.pad(weight, (0, 1), value=1.)
    with executed(90) as launches: y = decode_layer(x, top, both, layer)
    known, its = torch.cat([top, torch.full((3, 1), 4)], 1), both.clone()
    known[1, 0], its[1, 0] = 0, 0
    assert apart(y, exact_layer(layer, x, known, its)) < 5e-3 and len(launches) == 3

@pytest.mark.parametrize('run, tokens', [(decode_linear, 3), (prefill_linear, 40)])
def test_packed_linear_layers(run, tokens):
    g = torch.Generator().manual_seed(0)
    arena = random_arena((128, 192), [4], 'cpu', g)
    x = torch.randn(tokens, 192, generator=g).bfloat16()
    with executed(80) as launches: y = run(x, arena)
    assert launches
    truth = x.double() @ spec_dense(arena, torch.tensor([0]), torch.float64)[0].T
    assert apart(y, truth) < 3e-3

@pytest.mark.parametrize('capability, tokens', [(80, 2), (90, 11)])
def test_matrices_of_one_input(capability, tokens):
    "Nothing is sorted: every token visits all pieces, of the widths of their matrices."
    g = torch.Generator().manual_seed(0)
    arenas = [random_arena((rows, 192), [bits], 'cpu', g) for rows, bits in ((192, 4), (64, 3), (128, 1))]
    x = torch.randn(tokens, 192, generator=g).bfloat16()
    with executed(capability) as launches: y = decode_linear(x, one_under_another(arenas))
    truth = torch.cat([x.double() @ spec_dense(a, torch.tensor([0]), torch.float64)[0].T for a in arenas], 1)
    assert apart(y, truth) < 3e-3 and [name for name, _ in launches] == ['_prepare_kernel', '_down_kernel']

def test_dequantizing_and_eigenvalues():
    g = torch.Generator().manual_seed(0)
    arena, chosen = random_arena((64, 384), [1, 2, 3, 4], 'cpu', g), torch.tensor([2, 0, 3, 1], dtype=torch.int32)
    A, v = torch.randn(2, 70, 70, generator=g).double(), torch.randn(2, 70, 1, generator=g).double()
    d, e = torch.randn(2, 2, 12, generator=g).double()
    e[:, 0] = 0
    with executed(90) as launches:
        assert torch.equal(dense(arena, chosen), spec_dense(arena, chosen))
        assert (times_on_gpu(A, v) - A @ v).abs().max() < 1e-13
        assert torch.equal(bisected_on_gpu(d, e), bisected(d, e))
    assert [name for name, _ in launches] == ['_dense_kernel', '_times_kernel', '_count_kernel']

def without(pattern): return lambda ptx: re.sub(pattern, '', ptx)

def but_one(pattern, n):
    "Without the n-th that fits."
    def change(ptx):
        found = [*re.finditer(pattern, ptx)]
        return ptx if n >= len(found) else ptx[:found[n].start()] + ptx[found[n].end():]
    return change

BARRIER, WAIT = r'bar\.sync \t0;', r'cp\.async\.wait_group \t\d+;'
DECODE = {  # in the text of every kernel that decoding launches
    'no barriers': without(BARRIER), 'the first barrier': but_one(BARRIER, 0), 'the third barrier': but_one(BARRIER, 2),
    'copies not waited for': without(WAIT),
    'one copy too few waited for': lambda ptx: re.sub(r'(wait_group \t)0;', r'\g<1>1;', ptx),
    'half of the threads wait': lambda ptx: re.sub(f'({WAIT})', r'setp.lt.u32 %p1, %tid.x, 32; @%p1 \1', ptx),
    'or instead of and': lambda ptx: ptx.replace('0xEA;', '0xFA;'),
    'a mask too wide': lambda ptx: ptx.replace('0x30003', '0x70007'),
    'another shift': lambda ptx: re.sub(r'(shr\.u32 t, %r\d+), 8;', r'\1, 7;', ptx),
    'a power of two': lambda ptx: ptx.replace('0x43004300', '0x43804380')}
PREFILL = {  # where tensor cores read shared memory by themselves
    'no fences': without(r'fence\.proxy\.async\.shared::cta;'), 'products not waited for': without(r'wgmma\.wait_group\.sync\.aligned 0;'),
    'no barriers': without(BARRIER), 'another zero point': lambda ptx: ptx.replace('0fBD800000', '0fBE800000').replace('0xc300c300', '0xc308c308')}

@pytest.mark.parametrize('way, fault', [*((decode_layer, f) for f in DECODE), *((prefill_layer, f) for f in PREFILL)])
def test_what_is_planted_is_noticed(way, fault):
    shape, changed, plant = LayerShape(256, 128, 4, 2), [], (DECODE if way is decode_layer else PREFILL)[fault]
    def change(ptx):
        changed.append(plant(ptx) != ptx)
        return plant(ptx)
    try: assert not error_of(way, every_width(shape), routed(shape, 5, 'uniform', 'cpu'), 90, change)[0] < .05
    except PtxFault as e: assert re.search('race|under way|nobody waited|some threads|fence|tensor cores|two values', str(e)), e
    assert any(changed)
