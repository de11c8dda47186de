"GGUF names, types and sizes, by the package that llama.cpp publishes: `python tests/consumers/gguf.py`."
import re, sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import LAYERS, ROLES, answer, asked, consult

BITS = {'Q2_K': 2, 'Q3_K': 3, 'Q4_K': 4, 'BF16': None}

def inside(folder):
    from gguf import GGML_QUANT_SIZES, MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
    rules = [line.rsplit('=', 1) for line in Path(folder, 'export').read_text().split()]
    types = {t: GGMLQuantizationType[t.upper()] for _, t in rules}
    wanted = asked(folder)
    for arch in (MODEL_ARCH.OLMOE, MODEL_ARCH.QWEN2MOE, MODEL_ARCH.QWEN3MOE, MODEL_ARCH.DEEPSEEK2):
        names, got, role = get_tensor_name_map(arch, LAYERS), {}, {}
        for n in wanted:
            stacked = re.sub(r'experts\.\d+\.', 'experts.', n)  # the converter stacks the experts of a layer before it looks the name up
            found = names.get_name(stacked, try_suffixes=('.weight',))
            if found is None: continue
            rule = next((t for p, t in rules if re.search(p, f'{found}.weight')), None)
            got[n], role[n] = BITS[types[rule].name] if rule else None, found
        known = {n: b for n, b in wanted.items() if n in got}
        experts = {role[n] for n in known if '.experts.' in n}
        answer(f'{arch.name}: the first rule found in a tensor name gives its type', known, got, expert_tensors=len(experts))
        if len(experts) != LAYERS * len(ROLES): sys.exit(f'{arch.name}: {sorted(experts)}')
    stored = {t.name: 8 * GGML_QUANT_SIZES[t][1] / GGML_QUANT_SIZES[t][0] for t in types.values() if BITS[t.name]}
    answer('bits per weight of the types', {n: {'Q2_K': 2.625, 'Q3_K': 3.4375, 'Q4_K': 4.5}[n] for n in stored}, stored)

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'llama.cpp', ['gguf==0.19.0'], {'gguf'})
