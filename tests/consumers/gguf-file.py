"""Finished GGUF files, loaded and computed with by ik_llama.cpp or llama.cpp, built for packages of others: `python tests/consumers/gguf-file.py [ik_llama.cpp|llama.cpp|refused|blas [FOLDER with the package]]`.

`blas` builds llama.cpp with OpenBLAS (libopenblas-dev, cmake and a compiler; half an hour on one core). Of a prompt of 32 tokens or more it then decodes a coded matrix to float32 and multiplies by sgemm, so activations
stay as they are, and the logits are those of the file. Experts (mul_mat_id) do not take this way: theirs are rounded to eight bits as everywhere.
"""
import importlib.metadata, json, os, subprocess, sys, tempfile
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:] = [p for p in sys.path if Path(p).resolve() != HERE.parent]  # scripts here have the names of packages
# program -> its package, the file of rows
PROGRAMS = {'ik_llama.cpp': ('ik-llama-cpp-python==0.1.5', 'gguf-file'), 'llama.cpp': ('@node-llama-cpp/linux-x64@3.22.1', 'gguf-file-llama.cpp'),
            'blas': ('llama-cpp-python==0.3.36', 'gguf-file-blas'),
            'refused': ('@node-llama-cpp/linux-x64@3.22.1', 'gguf-file-refused')}  # llama.cpp again, on files that are not written otherwise
TEXT = 'The library reads the file once, and the numbers that it finds there are compared with those of the model it was made from. If they differ, nothing is written. '

def opened(home, program):
    "The program's functions, and whether they are llama.cpp's own."
    if program == 'ik_llama.cpp':
        sys.path.insert(0, str(home))
        import ik_llama_cpp._ctypes_api as C
        C.llama_backend_init()
        return C
    if program == 'blas':
        sys.path.insert(0, str(home))
        import llama_cpp.llama_cpp as C
        C.llama_backend_init()
        return C
    import ctypes as c
    class Parameters(c.Structure): _fields_ = [('words', c.c_uint32 * 256)]  # longer than any version's; the defaults are filled in there
    class Batch(c.Structure): _fields_ = [('n_tokens', c.c_int32), ('token', c.POINTER(c.c_int32)), ('embd', c.c_void_p), ('pos', c.POINTER(c.c_int32)), ('n_seq_id', c.POINTER(c.c_int32)),
                                          ('seq_id', c.POINTER(c.POINTER(c.c_int32))), ('logits', c.POINTER(c.c_int8))]
    at, number = c.c_void_p, c.c_int32
    c.CDLL(next(Path(home).glob('libggml.*so'))).ggml_backend_load_all_from_path(str(home).encode())
    C = c.CDLL(next(Path(home).glob('libllama.*so')))
    for name, result, *arguments in (
            ('model_default_params', Parameters), ('context_default_params', Parameters), ('model_quantize_default_params', Parameters), ('model_load_from_file', at, c.c_char_p, Parameters),
            ('init_from_model', at, at, Parameters), ('set_n_threads', None, at, number, number), ('model_get_vocab', at, at), ('vocab_n_tokens', number, at), ('batch_init', Batch, number, number, number),
            ('decode', number, at, Batch), ('get_logits_ith', c.POINTER(c.c_float), at, number), ('tokenize', number, at, c.c_char_p, number, at, number, c.c_bool, c.c_bool),
            ('model_quantize', number, c.c_char_p, c.c_char_p, at)):
        f = getattr(C, f'llama_{name}')
        f.restype, f.argtypes = result, arguments
    return C

def ask(home, program, file, tokens, more):
    "In a process of its own: logits of a file, what it generates, and how its own tokenizer cuts a text."
    import ctypes
    import numpy as np
    C, ik = opened(home, program), program == 'ik_llama.cpp'
    how, p = C.llama_model_default_params(), C.llama_context_default_params()
    if program == 'blas': how.use_extra_bufts = False  # what is rearranged as it loads cannot be decoded
    model = C.llama_model_load_from_file(str(file).encode(), how)
    assert model, 'the file does not load'
    if ik: p.n_ctx, p.n_threads, p.n_threads_batch, p.flash_attn, p.mla_attn = 512, 1, 1, False, 0
    elif program == 'blas': p.n_ctx, p.n_threads, p.n_threads_batch = 512, 1, 1
    else: p.words[0] = 512
    ctx, vocab = C.llama_init_from_model(model, p), C.llama_model_get_vocab(model)
    if program == 'llama.cpp': C.llama_set_n_threads(ctx, 1, 1)
    many = C.llama_vocab_n_tokens(vocab)
    def decode(ids, at):
        b = C.llama_batch_init(len(ids), 0, 1)
        b.n_tokens = len(ids)
        for i, t in enumerate(ids): b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0], b.logits[i] = t, at + i, 1, 0, 1
        assert C.llama_decode(ctx, b) == 0
        return np.stack([np.ctypeslib.as_array(C.llama_get_logits_ith(ctx, i), (many,)).copy() for i in range(len(ids))])
    def cut(text):
        out, text = (ctypes.c_int32 * len(text))(), text.encode()
        return out[:C.llama_tokenize(model if ik else vocab, text, len(text), out, len(out), False, False)]
    out, ids = decode(tokens, 0), list(tokens)
    np.save(more['out'], out)
    for _ in range(8):
        ids.append(int(out[-1].argmax()))
        out = decode(ids[-1:], len(ids) - 1)
    print(json.dumps(dict(generated=ids[len(tokens):], cut=cut(more['text']) if more.get('text') else None)))

def decode_file(home, program, file, out):
    "In a process of its own: a file with its codes turned into float32 by llama.cpp."
    import ctypes
    C = opened(home, program)
    p = C.llama_model_quantize_default_params()
    if program == 'blas': p.nthread, p.ftype, p.allow_requantize = 1, 0, True
    else:
        p.words[0], p.words[1] = 1, 0  # threads, kind of file
        p.words[4] |= 1                # what is coded may be coded again
    assert C.llama_model_quantize(str(file).encode(), str(out).encode(), ctypes.byref(p)) == 0

class Consumer:
    def __init__(self, home, program, room): self.home, self.program, self.room = home, program, room

    def run(self, verb, *more): return subprocess.run([sys.executable, HERE, verb, json.dumps([str(self.home), self.program, *more])], capture_output=True, text=True)

    def __call__(self, file, tokens, text=None):
        import numpy as np, torch
        done = self.run('--ask', str(file), tokens, dict(out=str(self.room/'out.npy'), text=text))
        if done.returncode: return None, done.stderr
        return torch.from_numpy(np.load(self.room/'out.npy')).double(), json.loads(done.stdout.splitlines()[-1])

    def decoded(self, file, out):
        "The file with its codes turned into float32 by the consumer's own functions."
        if self.program != 'ik_llama.cpp':
            done = self.run('--decode', str(file), str(out))
            assert not done.returncode, done.stderr
            return out
        program = self.home/'ik_llama_cpp'/'bin'/'llama-quantize'
        program.chmod(0o755)
        libraries = f'{self.home/"ik_llama_cpp"/"lib"}:{self.home/"ik_llama_cpp_python.libs"}'
        subprocess.run([program, '--allow-requantize', file, out, 'F32', '1'], check=True, capture_output=True, env=os.environ | {'LD_LIBRARY_PATH': libraries})
        return out

def logits(model, tokens):
    import torch
    with torch.no_grad(): return model(torch.tensor([tokens])).logits[0].double()

def apart(a, b):
    "Divergence of b from a per token, nats."
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    kl = (a.exp() * (a - b)).sum(-1)
    return dict(kl=float(kl.mean()), kl_median=float(kl.median()), kl_most=float(kl.max()), top1=float((a.argmax(-1) == b.argmax(-1)).double().mean()))

def in_eights(model, file):
    "The twin, with what goes into each coded matrix rounded to eight bits per block, as ggml does before it multiplies."
    import torch
    from alphaq.folder import open_folder
    from alphaq.kquants import block_of
    kinds = {n: t.dtype for n, t in open_folder(file).tensors.items()}
    def rounded(width):
        def hook(module, args):
            x = args[0].reshape(*args[0].shape[:-1], -1, width)
            d = x.abs().amax(-1, keepdim=True) / 127
            return (torch.where(d > 0, (x / d).round() * d, x).reshape(args[0].shape),)
        return hook
    for name, module in model.named_modules():
        kind = kinds.get(f'{name}.weight', kinds['model.embed_tokens.weight'])
        if isinstance(module, torch.nn.Linear) and kind != 'F32': module.register_forward_pre_hook(rounded(block_of(kind)[0]))
    return model

def same_numbers(file, decoded):
    "How many tensors the consumer decodes to the library's numbers, bit for bit."
    import gguf, numpy as np
    there = {t.name: t for t in gguf.GGUFReader(decoded).tensors}
    def value(t): return gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1)
    tensors = gguf.GGUFReader(file).tensors
    return dict(tensors=len(tensors), equal=sum(np.array_equal(value(t), value(there[t.name])) for t in tensors))

def real(consumer, name, checkpoint, plan, tokenizer, room):
    "Rows of a trained network: in float32, and with the plan's types."
    from alphaq.activations import load_weights
    from alphaq.ggufout import write_gguf
    tokens = tokenizer(TEXT * 4)['input_ids'][:160]
    exact, file = room/f'{name}-exact.gguf', room/f'{name}.gguf'
    write_gguf(checkpoint, exact, rest=32)
    told = write_gguf(checkpoint, file, plan)
    twin = logits(load_weights(exact), tokens)
    theirs, said = consumer(exact, tokens, TEXT)
    yield dict(model=name, file='all float32', check='logits beside our twin', **apart(twin, theirs), generated=tokenizer.decode(said['generated']),
               tokens_cut_alike=said['cut'] == tokenizer(TEXT)['input_ids'])
    coded = logits(load_weights(file), tokens)
    theirs, said = consumer(file, tokens)
    yield dict(model=name, file='the plan', check='logits beside our twin, activations in eight bits there', **apart(coded, theirs),
               generated=tokenizer.decode(said['generated']), **{k: v for k, v in told.items() if k != 'bytes'}, bytes=told['bytes'])
    yield dict(model=name, file='the plan', check='our twin with activations in eight bits beside itself without', **apart(coded, logits(in_eights(load_weights(file), file), tokens)))
    back = consumer.decoded(file, room/'back.gguf')
    yield dict(model=name, file='the plan', check='their dequantizer gives the library\'s numbers', **same_numbers(file, back))
    theirs, _ = consumer(back, tokens)
    yield dict(model=name, file='the plan, decoded by their program to float32', check='logits beside our twin', **apart(coded, theirs))
    yield dict(model=name, file='the plan', check='what the plan costs: our twin beside the network', **apart(twin, coded))

def cut(source, folder, experts):
    "A llama as a Qwen2-MoE that computes the same: every token takes all experts, each a slice of the hidden units."
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CONFIG_MAPPING
    c = json.loads((source/'config.json').read_text())
    kept = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads', 'head_dim', 'max_position_embeddings', 'rms_norm_eps',
            'rope_parameters', 'tie_word_embeddings', 'bos_token_id', 'eos_token_id', 'pad_token_id')
    made = CONFIG_MAPPING['qwen2_moe'](**{k: c[k] for k in kept}, intermediate_size=c['intermediate_size'], moe_intermediate_size=c['intermediate_size'] // experts,
                                       num_experts=experts, num_experts_per_tok=experts, shared_expert_intermediate_size=32, mlp_only_layers=[], norm_topk_prob=False)
    made.architectures = ['Qwen2MoeForCausalLM']
    out, hidden = {}, c['hidden_size']
    for n, W in load_file(source/'model.safetensors').items():
        block, _, role = n.removesuffix('.weight').rpartition('.')
        if role in ('q_proj', 'k_proj', 'v_proj'): out[f'{block}.{role}.bias'] = torch.zeros(len(W), dtype=W.dtype)
        if not block.endswith('.mlp'): out[n] = W; continue
        down = role == 'down_proj'
        for e, part in enumerate(W.chunk(experts, 1 if down else 0)): out[f'{block}.experts.{e}.{role}.weight'] = (part * experts if down else part).contiguous()
        out[f'{block}.shared_expert.{role}.weight'] = torch.zeros((hidden, 32) if down else (32, hidden), dtype=W.dtype)
        out |= {f'{block}.gate.weight': torch.zeros(experts, hidden, dtype=W.dtype), f'{block}.shared_expert_gate.weight': torch.full((1, hidden), .001, dtype=W.dtype)}  # of an expert that says nothing; they make NaN of a gate of zeros
    made.save_pretrained(folder)
    save_file(out, folder/'model.safetensors', metadata={'format': 'pt'})
    for file in ('tokenizer.json', 'tokenizer_config.json'): (folder/file).write_bytes((source/file).read_bytes())
    return folder

def drawn(c):
    "A plan with a width of two to four bits drawn for each stack."
    import random
    from dataclasses import replace
    from alphaq.plans import uniform_plan
    r, plan = random.Random(0), uniform_plan(c, 4)
    layers = {m: {role: str(r.randint(2, 4)) * len(d) for role, d in roles.items()} for m, roles in plan.layers.items()}
    return replace(plan, layers=layers, modules={n: r.randint(2, 4) for n in plan.modules})

def toys(consumer, room):
    "A row for each architecture, random and tiny, in float32; with OpenBLAS also with types of two to four bits."
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from alphaq.activations import load_weights
    from alphaq.checkpoint import open_dense, open_either
    from alphaq.ggufout import write_gguf
    from alphaq.lab.toys import tiny_model
    big, group = dict(hidden_size=256, intermediate_size=256, moe_intermediate_size=256, initializer_range=.05), dict(n_group=1, topk_group=1)
    def dense(kind, **more):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**dict(vocab_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=64, num_hidden_layers=2,
            max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=2) | big | more), trust_remote_code=False).eval()
    long = dict(rope_type='llama3', rope_theta=5e5, factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=8192)
    models = {
        'llama': lambda: dense('llama', tie_word_embeddings=True), 'llama, rule of 3.1': lambda: dense('llama', rope_parameters=long),
        'gemma3': lambda: dense('gemma3_text', query_pre_attn_scalar=64, sliding_window=8, num_hidden_layers=6, layer_types=['sliding_attention'] * 5 + ['full_attention']),
        'llama with experts (Mixtral)': lambda: tiny_model('mixtral', head_dim=64, **big), 'qwen2moe': lambda: tiny_model('qwen2_moe', mlp_only_layers=[], head_dim=64, **big),
        'qwen3moe': lambda: tiny_model('qwen3_moe', norm_topk_prob=True, decoder_sparse_step=1, **big), 'olmoe': lambda: tiny_model('olmoe', head_dim=64, num_key_value_heads=4, **big),
        'gpt-oss': lambda: tiny_model('gpt_oss', head_dim=64, **big), 'deepseek2 (V2)': lambda: tiny_model('deepseek_v2', **group, **big),
        'deepseek2 (V3)': lambda: tiny_model('deepseek_v3', **group, **big)}
    blas = consumer.program == 'blas'
    tokens = torch.randint(64, (40 if blas else 18,), generator=torch.Generator().manual_seed(0)).tolist()
    for name, build in models.items():
        folder, file = room/f'toy-{len(os.listdir(room))}', room/'toy.gguf'
        build().save_pretrained(folder)
        c = open_either(folder)
        c = open_dense(folder) if c.dense else c
        if blas:
            told = write_gguf(c, file, drawn(c), overwrite=True)
            yield from by_file(consumer, dict(model=f'random {name}', file='types of two to four bits drawn', types=told['types']), file, c.dense, tokens)
        write_gguf(c, file, rest=32, overwrite=True)
        twin = logits(load_weights(file), tokens)
        theirs, said = consumer(file, tokens)
        row = dict(model=f'random {name}', file='all float32', check='logits beside our twin')
        if theirs is None:
            why = next((line for line in said.splitlines() if 'error loading model' in line), said.splitlines()[-1])
            yield row | dict(loads=False, why=why.split('error loading model')[-1].strip(': '))
        else: yield row | apart(twin, theirs)
        if 'Mixtral' in name and consumer.program == 'ik_llama.cpp':  # its graph adds the normed input of the experts to their output, not the input: the same change in the twin
            model = load_weights(file)
            def theirs_forward(self, hidden_states, **more):
                h = hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **more)[0]
                n = self.post_attention_layernorm(h)
                return n + self.mlp(n)
            kind = type(model.model.layers[0])
            kept, kind.forward = kind.forward, theirs_forward
            yield row | dict(check='logits beside a twin that lacks the residual stream around the experts, as build_llama.cpp there does') | apart(logits(model, tokens), theirs)
            kind.forward = kept

def refused(consumer, room):
    "A row for each rule of chapter 38 that a model breaks, all else as it should be: its file is written all the same, in float32."
    import torch
    from alphaq import ggufout
    from alphaq.activations import load_weights
    from alphaq.checkpoint import open_checkpoint
    from alphaq.core import AlphaqError
    from alphaq.dialects import spoken
    from alphaq.lab.toys import tiny_model
    big, group, own = dict(hidden_size=256, intermediate_size=256, moe_intermediate_size=256, initializer_range=.05), dict(n_group=1, topk_group=1), dict(head_dim=64, num_key_value_heads=4)
    long = dict(rope_type='llama3', rope_theta=5e5, factor=8., low_freq_factor=1., high_freq_factor=4., original_max_position_embeddings=8192)
    models = [('olmoe', own | dict(num_key_value_heads=2)), ('olmoe', own | dict(head_dim=32)), ('olmoe', own | dict(clip_qkv=.5)), ('olmoe', own | dict(attention_bias=True)),
              ('qwen2_moe', dict(mlp_only_layers=[], head_dim=16)), ('qwen3_moe', dict(decoder_sparse_step=1, norm_topk_prob=True, attention_bias=True)),
              ('qwen3_moe', dict(decoder_sparse_step=1, norm_topk_prob=True, rope_parameters=long)), ('gpt_oss', dict(head_dim=64, attention_bias=False)), ('deepseek_v2', group | dict(q_lora_rank=None)),
              ('deepseek_v2', group | dict(num_hidden_layers=27)), ('deepseek_v2', dict(n_group=8, topk_group=3, n_routed_experts=32, num_experts_per_tok=6, topk_method='group_limited_greedy')),
              ('deepseek_v3', dict(n_group=2, topk_group=2)), ('deepseek_v3', dict(n_group=8, topk_group=3, n_routed_experts=32, num_experts_per_tok=6))]  # the last breaks none
    tokens = torch.randint(64, (18,), generator=torch.Generator().manual_seed(0)).tolist()
    kept, ggufout._check_loads = ggufout._check_loads, lambda *given: None
    for family, more in models:
        folder, file = room/f'odd-{len(os.listdir(room))}', room/'odd.gguf'
        model = tiny_model(family, **big | more)
        model.save_pretrained(folder)
        said = next(ggufout._odd(model.config.to_dict(), spoken(family)[0]), 'nothing')
        row = dict(model=f'random {family}', file='all float32', odd=said)
        try: ggufout.write_gguf(open_checkpoint(folder), file, rest=32, overwrite=True)
        except AlphaqError as e:
            yield row | dict(written=False, why=str(e).removeprefix(f'{folder}: ').replace(str(room), 'FOLDER')); continue
        theirs, said = consumer(file, tokens)
        if theirs is not None: yield row | dict(loads=True) | apart(logits(load_weights(file), tokens), theirs); continue
        why = next((line for line in said.splitlines() if 'error loading model' in line or 'GGML_ASSERT' in line), said.splitlines()[-1])
        yield row | dict(loads=False, why=why.split('error loading model')[-1].rpartition('GGML_ASSERT')[2].strip(': '))
    ggufout._check_loads = kept

def small(consumer, room):
    "`pocket`, an OLMoE, which ik_llama.cpp does not know."
    from alphaq.checkpoint import open_checkpoint
    from alphaq.evaluate import load_tokenizer
    from alphaq.ggufout import write_gguf
    from alphaq.plans import uniform_plan
    c, file = open_checkpoint('pocket'), room/'fused.gguf'
    plan = uniform_plan(c, 3)
    told = write_gguf(c, file, plan)
    theirs, said = consumer(file, [1, 2, 3])
    why = next((line for line in said.splitlines() if 'unknown model architecture' in line), '') if theirs is None else None
    yield dict(model='pocket', file='uniform 3 bits, fused', check='loads', loads=theirs is not None, why=why and why.split('error loading model: ')[-1], **told)
    if theirs is not None: yield from real(consumer, 'pocket', c, plan, load_tokenizer('pocket'), room)

def rows(consumer, room):
    from dataclasses import replace
    from alphaq.checkpoint import open_checkpoint, open_dense
    from alphaq.evaluate import load_tokenizer
    from alphaq.lab.trained import plain_folder
    from alphaq.plans import uniform_plan
    yield from toys(consumer, room)
    yield from small(consumer, room)
    folder = plain_folder('smollm2')
    c = open_dense(folder)
    plan = uniform_plan(c, 4)
    widths = {n: 2 + i // 3 % 2 if n.endswith('down_proj') else 4 for i, n in enumerate(plan.modules)}
    plan = replace(plan, modules=widths)
    yield from real(consumer, 'SmolLM2, dense', c, plan, load_tokenizer(folder), room)
    mixture = open_checkpoint(cut(folder, room/'cut', 6))
    plan = uniform_plan(mixture, 4)
    layers = {m: {r: str(2 + i % 2 if r == 'down_proj' else 4) * len(d) for r, d in roles.items()} for i, (m, roles) in enumerate(plan.layers.items())}
    yield from real(consumer, 'SmolLM2 cut into 6 experts, Qwen2-MoE', mixture, replace(plan, layers=layers), load_tokenizer(folder), room)

BY_BLAS = {True: 'all products in float32', False: 'experts with activations in eight bits, all other products in float32'}
FEW = 24  # tokens that are too few for OpenBLAS

def by_file(consumer, row, file, dense, tokens, tokenizer=None):
    "Rows of a file: a long prompt, one so short that activations are rounded, and, where experts are never multiplied in float32, with the codes decoded by the consumer before."
    from alphaq.activations import load_weights
    coded = logits(load_weights(file), tokens)
    theirs, said = consumer(file, tokens)
    more = dict(generated=tokenizer.decode(said['generated'])) if tokenizer else {}
    yield row | dict(check=f'logits beside our twin, {BY_BLAS[dense]}', tokens=len(tokens), **apart(coded, theirs), **more)
    row = {k: row[k] for k in ('model', 'file')}
    if tokenizer:
        theirs, _ = consumer(file, tokens[:FEW])
        yield row | dict(check='logits beside our twin, activations in eight bits: the prompt is too short for OpenBLAS', tokens=FEW, **apart(coded[:FEW], theirs))
    if dense: return
    back = consumer.decoded(file, consumer.room/'back.gguf')
    yield row | dict(check='their dequantizer gives the library\'s numbers', **same_numbers(file, back))
    theirs, _ = consumer(back, tokens)
    yield row | dict(check='logits beside our twin, all products in float32: decoded by their program before', tokens=len(tokens), **apart(coded, theirs))

def told_by_file(consumer, name, c, plan, tokenizer, room):
    "Rows of a trained network with a plan's types."
    from alphaq.ggufout import write_gguf
    file = room/f'{name}.gguf'
    told = write_gguf(c, file, plan, overwrite=True)
    row = dict(model=name, file=f'plan of {told["bits_held"]:.4g} bits', types=told['types'], bytes=told['bytes'])
    yield from by_file(consumer, row, file, c.dense, tokenizer(TEXT * 4)['input_ids'][:160], tokenizer)

def by_blas(consumer, room):
    import alphaq
    from dataclasses import replace
    from alphaq.checkpoint import open_checkpoint, open_dense
    from alphaq.core import BudgetError
    from alphaq.evaluate import load_tokenizer
    from alphaq.ggufout import write_gguf
    from alphaq.lab.trained import plain_folder
    from alphaq.plans import uniform_plan
    yield from toys(consumer, room)
    def planned(name, c, bounds, budgets, tokenizer):
        "Rows by budget; one below what its rows can have is refused."
        scores = alphaq.score(c, dense=c.dense)
        for bits in budgets:
            try: write_gguf(c, room/'none.gguf', alphaq.plan(scores, bits, model=c))
            except BudgetError as e: yield dict(model=name, file=f'plan of {bits} bits', check='written', written=False, why=str(e)); continue
            (room/'none.gguf').unlink()
            yield from told_by_file(consumer, name, c, alphaq.plan(scores, bits, target='gguf', model=c, bounds=[(f'*.{r}', 4, 4) for r in bounds]), tokenizer, room)
    yield from planned('pocket', open_checkpoint('pocket'), ['down_proj'], (2.5, 2.7, 3, 4), load_tokenizer('pocket'))  # rows of 384
    folder = plain_folder('smollm2')
    tokenizer = load_tokenizer(folder)
    yield from planned('SmolLM2, dense', open_dense(folder), ['gate_proj', 'up_proj'], (2.5, 3, 3.34, 3.5, 4), tokenizer)  # rows of 576
    mixture = open_checkpoint(cut(folder, room/'cut', 6))
    plan = uniform_plan(mixture, 4)
    layers = {m: {r: str(2 + i % 2 if r == 'down_proj' else 4) * len(d) for r, d in roles.items()} for i, (m, roles) in enumerate(plan.layers.items())}
    yield from told_by_file(consumer, 'SmolLM2 cut into 6 experts, Qwen2-MoE', mixture, replace(plan, layers=layers), tokenizer, room)

def fetch(package, home):
    "A package from pip, built where OpenBLAS is to be in it, or one from npm."
    home.mkdir()
    if package.startswith('llama-cpp-python'):
        return subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-binary', 'llama-cpp-python', '--target', home, package, 'diskcache==5.6.3'], check=True,
                              env=os.environ | dict(CMAKE_ARGS='-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS', CMAKE_BUILD_PARALLEL_LEVEL='2'))
    if not package.startswith('@'): return subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--target', home, package], check=True)
    subprocess.run(['npm', 'pack', '--silent', package], cwd=home, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(['tar', 'xzf', next(home.glob('*.tgz'))], cwd=home, check=True)

def backend(home):
    "The program and the library that multiplies, as they call themselves."
    import ctypes
    lib = home/'llama_cpp'/'lib'
    blas = ctypes.CDLL(str(lib/'libggml-blas.so')) and ctypes.CDLL('libopenblas.so.0')
    blas.openblas_get_config.restype = ctypes.c_char_p
    version = next(p.name for p in lib.glob('libllama.so.*.*')).removeprefix('libllama.so.')
    return f'llama.cpp {version}, {blas.openblas_get_config().decode()}'

def main(program='ik_llama.cpp', home=None):
    from alphaq.core import provenance, write_rows
    package, file = PROGRAMS[program]
    header = provenance('python tests/consumers/gguf-file.py' + (f' {program}' if program != 'ik_llama.cpp' else ''))
    with tempfile.TemporaryDirectory() as d:
        room = Path(d)
        if home is None:
            home = room/'package'
            fetch(package, home)
            if package.startswith('@'): home = home/'package'/'bins'/'linux-x64'
        found, run = [], dict(refused=refused, blas=by_blas).get(program, rows)
        for row in run(Consumer(Path(home), 'llama.cpp' if run is refused else program, room), room): found.append(row); print(json.dumps(row), flush=True)
    header['versions'] |= {'gguf': importlib.metadata.version('gguf'), **dict([package.rsplit('@' if package.startswith('@') else '==', 1)])}
    if program == 'blas': header |= dict(backend=backend(Path(home)))
    if package.startswith('@'): header['versions']['llama.cpp'] = json.loads((Path(home)/'_nlcBuildMetadata.json').read_text())['buildOptions']['llamaCpp']['release']
    write_rows(ROOT/'results'/'consumers'/f'{file}.jsonl', header, found)

if __name__ == '__main__':
    verbs = {'--ask': ask, '--decode': decode_file}
    if verb := verbs.get(sys.argv[1] if sys.argv[1:] else None): verb(*json.loads(sys.argv[2]))
    else: main(*sys.argv[1:3])
