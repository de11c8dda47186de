"HQQ: `python tests/consumers/hqq.py`."
import json, re, sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import answer, asked, consult, linears

def inside(folder):
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    table, model, got, levels = json.loads(Path(folder, 'export').read_text()), linears(), {}, {}
    for name, linear in [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]:
        cell = table[name] if name in table else next((c for n, c in table.items() if re.fullmatch(n, name)), None)
        if cell is None: got[name] = levels[name] = None; continue
        layer = HQQLinear(linear, BaseQuantizeConfig(**cell), compute_dtype=torch.float32, device='cpu')
        groups = layer.dequantize().unflatten(1, (-1, cell['group_size'])).flatten(0, 1)
        most = max(len(g.unique()) for g in groups)
        got[name], levels[name] = layer.meta['nbits'], cell['nbits'] if 2 ** (cell['nbits'] - 1) < most <= 2 ** cell['nbits'] else -1
    answer('HQQLinear has the width of each module', asked(folder), got)
    answer('dequantized groups have as many levels as the width has', asked(folder), levels)

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'hqq', ['numpy tqdm einops accelerate huggingface_hub termcolor', '--no-deps hqq==0.2.8.post1'], {'torch', 'hqq', 'transformers'})
