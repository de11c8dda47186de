"The compiled kernels, executed without a GPU: every launch of the package against float64, and what is taken out of the compiled text is missed."
import re

import pytest, torch

from alphaq.batched import bisected, bisected_on_gpu, times_on_gpu
from alphaq.kernel import INTERPRETED
from alphaq.lab.gpu import LayerShape, random_arena, routed
from alphaq.lab.offline import no_compiler
from alphaq.lab.ptx import PtxFault, every_width, exact_layer, executed
from alphaq.launch import decode_layer, decode_linear, dense, prefill_layer, prefill_linear, spec_dense

@pytest.fixture(autouse=True)
def compiler():
    "Memory that nobody writes is no number."
    if why := no_compiler(): pytest.skip(why)
    if INTERPRETED: pytest.skip('the kernels of this process are interpreted')
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)

def error_of(way, layer, inputs, capability, change=lambda ptx: ptx):
    kept = [layer.gate.words.clone(), inputs[0].clone()]
    with executed(capability, change): y = way(*inputs, layer).double()
    assert torch.equal(kept[0], layer.gate.words) and torch.equal(kept[1], inputs[0]), 'an input was written'
    return ((y - (truth := exact_layer(layer, *inputs))).norm() / truth.norm()).item()

# slices of 128 and of 4 words; of 8 to 64, blocks of 16 pairs; of 16 and 32, many tokens
@pytest.mark.parametrize('way, capability, shape, batch', [
    (decode_layer, 90, (2048, 64, 4, 2), 3), (decode_layer, 80, (128, 1408, 4, 2), 9),
    (prefill_layer, 90, (256, 1408, 4, 2), 20), (prefill_layer, 80, (768, 64, 4, 2), 70)])
def test_layers_equal_float64(way, capability, shape, batch):
    shape = LayerShape(*shape)
    assert error_of(way, every_width(shape), routed(shape, batch, 'skewed', 'cpu'), capability) < 5e-3

def test_shared_experts_and_pairs_without_one():
    "The last expert is everybody's; one pair's expert lies elsewhere."
    shape, layer = LayerShape(128, 128, 4, 2), every_width(LayerShape(128, 128, 5, 2))
    x, top, weight = routed(shape, 3, 'uniform', 'cpu')
    top[1, 0] = 9
    both = torch.nn.functional.pad(weight, (0, 1), value=1.)
    with executed(90) as launches: y = decode_layer(x, top, both, layer)
    known, its = torch.cat([top, torch.full((3, 1), 4)], 1), both.clone()
    known[1, 0], its[1, 0] = 0, 0
    truth = exact_layer(layer, x, known, its)
    assert ((y.double() - truth).norm() / truth.norm()).item() < 5e-3 and len(launches) == 3

@pytest.mark.parametrize('run, tokens', [(decode_linear, 3), (prefill_linear, 40)])
def test_packed_linear_layers(run, tokens):
    g = torch.Generator().manual_seed(0)
    arena = random_arena((128, 192), [4], 'cpu', g)
    x = torch.randn(tokens, 192, generator=g).bfloat16()
    with executed(80): y = run(x, arena)
    truth = x.double() @ spec_dense(arena, torch.tensor([0]), torch.float64)[0].T
    assert ((y.double() - truth).norm() / truth.norm()).item() < 3e-3

def test_dequantizing_and_eigenvalues():
    g = torch.Generator().manual_seed(0)
    arena, chosen = random_arena((64, 384), [1, 2, 3, 4], 'cpu', g), torch.tensor([2, 0, 3, 1], dtype=torch.int32)
    A, v = torch.randn(2, 70, 70, generator=g).double(), torch.randn(2, 70, 1, generator=g).double()
    d, e = torch.randn(2, 2, 12, generator=g).double()
    e[:, 0] = 0
    with executed(90):
        assert torch.equal(dense(arena, chosen), spec_dense(arena, chosen))
        assert (times_on_gpu(A, v) - A @ v).abs().max() < 1e-13
        assert torch.equal(bisected_on_gpu(d, e), bisected(d, e))

PLANTED = {  # each in the text of every kernel
    'no barriers': lambda ptx: re.sub(r'bar\.sync \t0;', '', ptx),
    'copies not waited for': lambda ptx: re.sub(r'cp\.async\.wait_group \t\d+;', '', ptx),
    'one copy too few waited for': lambda ptx: re.sub(r'cp\.async\.wait_group \t0;', 'cp.async.wait_group \t1;', ptx),
    'or instead of and': lambda ptx: ptx.replace('0xEA;', '0xFA;'),
    'a mask too wide': lambda ptx: ptx.replace('0x30003', '0x70007'),
    'another shift': lambda ptx: re.sub(r'shr\.u32 t, (%r\d+), 8;', r'shr.u32 t, \1, 7;', ptx),
    'a power of two': lambda ptx: ptx.replace('0x43004300', '0x43804380')}

@pytest.mark.parametrize('fault', PLANTED)
def test_what_is_planted_is_noticed(fault):
    shape, changed = LayerShape(256, 128, 4, 2), []
    def change(ptx):
        changed.append(PLANTED[fault](ptx) != ptx)
        return PLANTED[fault](ptx)
    try: assert not error_of(decode_layer, every_width(shape), routed(shape, 3, 'uniform', 'cpu'), 90, change) < .05
    except PtxFault as e: assert 'race' in str(e) or 'under way' in str(e), e
    assert any(changed)
