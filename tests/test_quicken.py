"What is not packed runs by the kernel, too: which norms and attentions are taken, and that models stay what they were."
import copy, pickle

import torch
from torch import nn

from alphaq import cpu
from alphaq.lab.toys import tiny_model
from alphaq.runtime import AskingConfig, QuickNorm, is_plain_norm, only_looks_up, quicken

def test_norms_of_families():
    "Those that round twice are taken, others stay; copies and pickles are the same."
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
    from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm
    torch.manual_seed(0)
    for kind, taken in ((OlmoeRMSNorm, True), (GptOssRMSNorm, False), (Gemma3RMSNorm, False)):
        norms = nn.ModuleList(kind(256).bfloat16() for _ in 'ab')
        for m in norms: m.weight.data.normal_()
        x = torch.randn(3, 5, 256).bfloat16()
        with torch.no_grad(): meant = [m(x) for m in norms]
        quicken(norms)
        assert all(isinstance(m, QuickNorm) == taken and isinstance(m, kind) for m in norms)
        assert type(norms[0]) is type(norms[1]) and {*norms[0].state_dict()} == {'weight'}
        kinds = [*map(type, norms)]
        quicken(norms)
        for again in (norms, copy.deepcopy(norms), pickle.loads(pickle.dumps(norms))):
            assert [*map(type, again)] == kinds and torch.equal(again[1].weight, norms[1].weight)
        with torch.no_grad(), cpu.using('fast'):
            assert all((m(x) != y).float().mean() < .01 for m, y in zip(norms, meant))
            with cpu.using('spec'): assert all(torch.equal(m(x), y) for m, y in zip(norms, meant))
            if taken: assert torch.equal(norms[0](hidden_states=x), meant[0])
            half = norms.half()[0](x.half())
            assert half.dtype == torch.float16 and half.isfinite().all()
        with cpu.using('fast'): assert norms[0](x.half()).requires_grad
    assert not any(map(is_plain_norm, (nn.LayerNorm(8), nn.Linear(8, 8), OlmoeRMSNorm(8).to('meta'))))

def test_a_model_keeps_its_configuration():
    "It says sdpa, obeys when told to take another function, and generates what it did."
    from transformers.models.deepseek_v32.modeling_deepseek_v32 import DeepseekV32Attention
    from transformers.models.mixtral.modeling_mixtral import MixtralAttention
    assert only_looks_up(MixtralAttention)
    assert not any(map(only_looks_up, (DeepseekV32Attention, nn.Linear, AskingConfig)))
    model = tiny_model('olmoe')
    with torch.no_grad(), cpu.using('fast'):
        meant = model.generate(prompt_tokens := torch.tensor([[1, 2, 3]]), max_new_tokens=5)
        quicken(model); quicken(model)
        for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            attentions = [m for m in again.modules()
                          if isinstance(getattr(m, 'config', None), AskingConfig)]
            assert len(attentions) == 2 and all(m.config.config is again.config for m in attentions)
            assert again.config._attn_implementation == 'sdpa'
            assert attentions[0].config._attn_implementation == 'alphaq_sdpa'
            assert attentions[0].config.hidden_size == again.config.hidden_size
            assert torch.equal(again.generate(prompt_tokens, max_new_tokens=5), meant)
            assert torch.equal(again.generate(prompt_tokens, max_new_tokens=5,
                                              cache_implementation='static'), meant)
            again.set_attn_implementation('eager')
            assert attentions[0].config._attn_implementation == 'eager'
            assert torch.equal(again.generate(prompt_tokens, max_new_tokens=5), meant)
            again.set_attn_implementation('sdpa')
