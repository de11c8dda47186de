"GPTQModel quantizes a small mixture on a CPU: `python tests/consumers/gptqmodel.py`."
import json, os, sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import answer, asked, consult, shapes

def inside(folder):
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from safetensors import safe_open
    wanted, config = asked(folder), QuantizeConfig(**json.loads(Path(folder, 'export').read_text()))
    def width(c, name): return None if (found := c.dynamic_get(name, 'bits', c.bits)) is False else int(found)
    answer('QuantizeConfig.dynamic_get gives each module its width', wanted, {n: width(config, n) for n in wanted})
    again = QuantizeConfig.from_quant_config(json.loads(json.dumps(config.to_dict())))
    answer('so it does after a save and a load', wanted, {n: width(again, n) for n in wanted})
    model = GPTQModel.load(f'{folder}/model', config, device='cpu')
    text = torch.randint(255, (16, 1, 64), generator=torch.Generator().manual_seed(0))
    model.quantize([dict(input_ids=rows, attention_mask=torch.ones_like(rows)) for rows in text], batch_size=1)
    model.save(f'{folder}/made')
    with safe_open(f'{folder}/made/model.safetensors', 'pt') as file:
        packed = {k.removesuffix('.qweight'): 32 * file.get_slice(k).get_shape()[0] for k in file.keys() if k.endswith('.qweight')}  # bits of a column
    answer('quantize packs each module at its width', wanted, {n: packed[n] // shapes()[n][1] for n in packed})
    loaded = GPTQModel.load(f'{folder}/made', device='cpu', backend=BACKEND.TORCH)
    found = {n: m.bits for n, m in loaded.model.named_modules() if hasattr(m, 'qweight')}
    finite = bool(loaded.model(text[0]).logits.isfinite().all())
    answer('GPTQModel.load finds the same widths, the logits are finite', wanted | {'finite': True}, found | {'finite': finite})

if __name__ == '__main__':
    os.environ['GPTQMODEL_CPU_WORKERS'] = '2'  # its pool wants two, whatever the machine has
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'gptqmodel', ['setuptools>=84.2.1 wheel', '--no-deps --no-build-isolation gptqmodel==7.7.0',
        'accelerate threadpoolctl packaging device-smi protobuf pillow requests pypcre tokenicer logbar jinja2 ninja datasets torchao defuser'],
        {'torch', 'gptqmodel', 'transformers', 'pypcre', 'defuser'})
