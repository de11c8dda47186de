"MLX-LM on a CPU: a small mixture is loaded, quantized by the block, saved and loaded again; names in every family: `python tests/consumers/mlx_lm.py`."
import json, re, sys, tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import ROLES, answer, asked, consult, mixture

def prepare(folder):
    "The mixture, and what a tiny model of each family that MLX-LM has would be told."
    from alphaq.exports import to_mlx
    from alphaq.families import FAMILIES
    from alphaq.lab.toys import tiny_model
    from alphaq.plans import Plan
    mixture(folder)
    cases = {}
    for family in (*FAMILIES, 'phimoe', 'granitemoe', 'jamba', 'glm4_moe'):
        layers = {'model.layers.1.mlp.experts': dict(zip(ROLES, ('2222', '3333', '4444')))}
        plan = Plan(family, None, 'by hand', None, 3., 'params', (2, 3, 4), 32, 4, None, None, None, {}, layers, {})
        cases[family] = dict(config=tiny_model(family).config.to_dict(), block=json.loads(to_mlx(plan, family)))
    Path(folder, 'families.json').write_text(json.dumps(cases))

def widths(model): return {n: getattr(m, 'bits', None) for n, m in model.named_modules()}

def quantized(model, config, block):
    from mlx_lm.utils import quantize_model
    return quantize_model(model, config, block['group_size'], block['bits'], quant_predicate=lambda path, module: block.get(path, '.self_attn.' in path))

def inside(folder):
    import mlx.core as mx
    from mlx_lm.utils import _get_classes, load_model, save_config, save_model
    block = json.loads(Path(folder, 'export').read_text())
    model, config = quantized(*load_model(Path(folder, 'model')), block)
    wanted = {re.sub(r'experts\.\d+\.', 'switch_mlp.', n): b for n, b in asked(folder).items()}
    answer('quantize_model gives each module its width', wanted, widths(model))
    answer('config.json holds our block', {n: v for n, v in block.items() if isinstance(v, dict)}, config['quantization'])
    with tempfile.TemporaryDirectory() as out:
        save_model(Path(out), model)
        save_config(config, Path(out)/'config.json')
        loaded, _ = load_model(Path(out))
        tokens = mx.array([[1, 2, 3]])
        same = bool(mx.allclose(loaded(tokens), model(tokens)))
        answer('load_model finds the same widths, the logits are the same', wanted | {'same': True}, widths(loaded) | {'same': same})
    wanted, found, cases = {}, {}, json.loads(Path(folder, 'model', 'families.json').read_text())
    for family, case in cases.items():
        stretch = dict(type='yarn', factor=1., original_max_position_embeddings=128) if family.startswith('deepseek') else None
        config = dict(rope_theta=1e4, partial_rotary_factor=1., num_experts=4) | case['config'] | dict(rope_scaling=stretch)  # as published config.json have them
        model_class, args = _get_classes(config)
        made, _ = quantized(model_class(args.from_dict(config)), config, case['block'])
        wanted |= {f'{family}: {n}': v['bits'] for n, v in case['block'].items() if isinstance(v, dict)}
        found |= {f'{family}: {n}': b for n, b in widths(made).items()}
    answer(f'experts have these names in {", ".join(cases)}', wanted, found)

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'mlx', ['mlx[cpu]==0.32.4 mlx-lm==0.32.2'], {'mlx', 'mlx-lm', 'mlx-cpu'}, prepare)
