"llm-compressor follows the recipe on a small mixture: `python tests/consumers/llmcompressor.py`."
import json, sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import answer, asked, consult, shapes

def inside(folder):
    from llmcompressor import oneshot
    from llmcompressor.recipe import Recipe
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM
    recipe, wanted = str(Path(folder, 'export').rename(f'{folder}/recipe.yaml')), asked(folder)
    read = {t: (s.weights.num_bits, s.weights.group_size) for m in Recipe.create_instance(recipe).modifiers for s in m.config_groups.values() for t in s.targets}
    model = oneshot(model=AutoModelForCausalLM.from_pretrained(f'{folder}/model', dtype='bfloat16'), recipe=recipe, output_dir=f'{folder}/made')
    schemes = {n: s.weights for n, m in model.named_modules() if (s := getattr(m, 'quantization_scheme', None))}
    answer('oneshot gives each module its width', wanted, {n: w.num_bits for n, w in schemes.items()}, targets=len(read))
    if not {(w.num_bits, w.group_size) for w in schemes.values()} <= set(read.values()): sys.exit(f'the recipe says {read}')
    with safe_open(f'{folder}/made/model.safetensors', 'pt') as file:
        packed = {k.removesuffix('.weight_packed'): 32 * file.get_slice(k).get_shape()[1] for k in file.keys() if k.endswith('.weight_packed')}  # bits of a row
    answer('the folder it writes packs each module at its width', wanted, {n: packed[n] // shapes()[n][1] for n in packed})

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'llm-compressor', ['--no-deps llmcompressor==0.14.0.1 compressed-tensors==0.20.0', 'loguru accelerate datasets pillow pyyaml requests tqdm'],
        {'torch', 'llmcompressor', 'compressed-tensors', 'transformers'})
