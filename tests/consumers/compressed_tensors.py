"compressed-tensors, the format behind llm-compressor, vLLM and SGLang: `python tests/consumers/compressed_tensors.py`."
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import answer, asked, consult, linears

def inside(folder):
    import torch, yaml
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    recipe = yaml.safe_load(Path(folder, 'export').read_text())
    modifier = recipe['quant_stage']['quant_modifiers']['QuantizationModifier']
    model, wanted = linears(), asked(folder)
    apply_quantization_config(model, QuantizationConfig(config_groups=modifier['config_groups'], quant_method='compressed-tensors'))
    schemes = {n: getattr(m, 'quantization_scheme', None) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    answer('apply_quantization_config gives each module its width', wanted, {n: s.weights.num_bits if s else None for n, s in schemes.items()})
    levels = {}
    for name, scheme in schemes.items():
        if scheme is None: levels[name] = None; continue
        W = dict(model.named_modules())[name].weight
        grouped = W.unflatten(1, (-1, scheme.weights.group_size))
        scale = grouped.abs().amax(-1) / (2 ** (scheme.weights.num_bits - 1) - .5)
        made = fake_quantize(W, scale, torch.zeros_like(scale), scheme.weights).unflatten(1, (-1, scheme.weights.group_size)) / scale[..., None]
        levels[name] = scheme.weights.num_bits if len(made.round().unique()) == 2 ** scheme.weights.num_bits else -1
    answer('fake_quantize leaves as many levels as the width has', wanted, levels)

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'llm-compressor', ['compressed-tensors==0.20.0'], {'torch', 'compressed-tensors', 'transformers'})
