"Packed models under torch.compile, traced by a backend that runs the graphs as they are."
import pytest
import torch
from torch._dynamo.utils import counters

from alphaq import cpu
from alphaq.lab.toys import tiny_model
from alphaq.runtime import AlphaqConfig, quantize_model

@pytest.fixture
def compiled():
    "A packed model of one layer, compiled; its logits of two texts by the specification; what its graphs will call."
    digits = dict(gate_proj='1234', up_proj='4321', down_proj='2413')
    config = AlphaqConfig({'model.layers.0.mlp.experts': digits}, {f'model.layers.0.self_attn.{p}_proj': 4 for p in 'qkvo'})
    torch.manual_seed(0)
    model = quantize_model(tiny_model('olmoe', num_hidden_layers=1), config)
    with cpu.using('spec'): plainly = [logits(model, seed) for seed in (1, 2)]
    torch.compiler.reset(); counters.clear()
    called = []
    def as_it_is(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward
    model.compile(backend=as_it_is)
    yield model, plainly, called
    torch.compiler.reset()

def logits(model, seed):
    tokens = torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(): return model(tokens).logits.float()

def test_experts_are_the_border(compiled):
    "The same bits; a second text, routed otherwise, makes no new graph."
    model, plainly, called = compiled
    with cpu.using('spec'):
        assert torch.equal(logits(model, 1), plainly[0])
        graphs = counters['stats']['unique_graphs']
        assert torch.equal(logits(model, 2), plainly[1]) and counters['stats']['unique_graphs'] == graphs
    border, = counters['graph_break']
    assert 'AlphaqExperts.routed' in border

def test_linears_are_one_operation_each(compiled):
    "By the kernel, or where there is none by the specification."
    model, plainly, called = compiled
    with cpu.using('exact'): assert torch.allclose(logits(model, 1), plainly[0], atol=1e-5)
    assert called.count('alphaq.packed_linear.default') == 4 * bool(cpu.kernel())
