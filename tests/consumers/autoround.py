"AutoRound: `python tests/consumers/autoround.py`."
import json, sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import answer, asked, consult, linears

def inside(folder):
    import torch
    from auto_round.compressors.utils import set_layer_config
    from auto_round.utils import INNER_SUPPORTED_LAYER_TYPES, SUPPORTED_LAYER_TYPES
    model, table, wanted = linears(), json.loads(Path(folder, 'export').read_text()), asked(folder)
    blocks = [[n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith(f'model.layers.{i}.')] for i in range(2)]
    for name, m in model.named_modules(): m.global_name = name
    resolved, *_ = set_layer_config(model, table, 'W4A16', 'fp16', SUPPORTED_LAYER_TYPES, INNER_SUPPORTED_LAYER_TYPES, quant_block_list=blocks)
    got = {n: resolved[n]['bits'] if n in resolved and resolved[n]['bits'] < 16 else None for n in wanted}
    answer('set_layer_config gives each module its width', wanted, got)
    answer('and its group size', {n: 64 for n, b in wanted.items() if b}, {n: resolved[n].get('group_size') for n in resolved})

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'autoround', ['auto-round==0.16.1'], {'torch', 'auto-round', 'transformers'})
