"Finished folders, opened by compressed-tensors inside transformers: `python tests/consumers/compressed-folder.py`."
import json, shutil, subprocess, sys, tempfile, time
from pathlib import Path

sys.path.append(str(Path(__file__).parent/'shared'))
from common import ROOT, _environment

FAMILIES = ('olmoe', 'mixtral', 'qwen2_moe', 'qwen3_moe', 'qwen3_next', 'deepseek_v2', 'deepseek_v3')
LAYERS = ('pocket', 'olmoe', 'mixtral')  # of these a folder with a width for each layer, too

def plan_of(checkpoint, widths, group):
    "Widths given to layers in turn."
    from dataclasses import replace
    from alphaq.plans import uniform_plan
    plan = uniform_plan(checkpoint, widths[0], group)
    given = dict(zip(plan.layers, widths * len(plan.layers)))
    layers = {m: {r: str(given[m]) * len(d) for r, d in roles.items()} for m, roles in plan.layers.items()}
    mean = sum(given[m] for m in layers) / len(layers)
    return replace(plan, layers=layers, choices=(2, 3, 4), average=dict(modules=mean, params=mean, stored=None))

def made(home, name, widths, kind):
    "A folder for others, and beside it a plain one with the numbers that were rounded."
    from alphaq.checkpoint import open_checkpoint
    from alphaq.compressed import compress, origin_of, to_signed
    from alphaq.lab.toys import tiny_model
    from safetensors.torch import save_file
    source = 'pocket' if name == 'pocket' else home/f'{name}-source'
    if name != 'pocket' and not source.exists(): tiny_model(name).bfloat16().save_pretrained(source)
    checkpoint = open_checkpoint(source)
    group = 128 if name == 'pocket' else 16
    plan = plan_of(checkpoint, widths, group)
    done = compress(checkpoint, home/f'{name}-{kind}', plan)
    origin, twin = origin_of(checkpoint, plan), home/f'{name}-{kind}-twin'
    twin.mkdir()
    shutil.copyfile(checkpoint.path/'config.json', twin/'config.json')
    tensors = {n: checkpoint.tensor(n) for kept, _ in origin.parts for n in kept}
    tensors |= {f'{origin.stored(n)}.weight': to_signed(W, bits[n], group).dequantize() for _, bits in origin.parts for n, W in origin.matrices(bits)}
    save_file({n: t.contiguous() for n, t in tensors.items()}, twin/'model.safetensors', metadata={'format': 'pt'})
    return dict(name=f'{name}-{kind}', kind=kind, matrices=done.matrices, bytes=done.tensor_bytes, over_our_grid=round(done.price, 4))

def opened(folder):
    from transformers import AutoModelForCausalLM
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, round(time.perf_counter() - start, 2)

def beside(folder):
    "What transformers makes of a folder, beside its twin."
    import torch
    (model, seconds), (twin, _) = opened(folder), opened(f'{folder}-twin')
    tokens = torch.arange(48).view(2, 24) * 7 % model.config.vocab_size
    with torch.no_grad(): a, b = (m(tokens).logits.double() for m in (model, twin))
    kl = (b.softmax(-1) * (b.log_softmax(-1) - a.log_softmax(-1))).sum(-1).mean()
    say = lambda m: m.generate(tokens[:, :6], max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()
    held, truth = model.state_dict(), twin.state_dict()
    equal = sum(torch.equal(held[n], t) for n, t in truth.items())
    return dict(modules=len(truth), equal=equal, kl=abs(float(kl)), largest=float((a - b).abs().max()), tokens_equal=say(model) == say(twin), load_seconds=seconds)

def by_linears(folder):
    "What compressed-tensors makes of a folder in which every expert is a linear layer."
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from safetensors.torch import load_file
    files = {k: v for p in Path(folder).glob('*.safetensors') for k, v in load_file(p).items()}
    config = QuantizationConfig.model_validate(json.loads(Path(folder, 'config.json').read_text())['quantization_config'])
    stems, root = [n.removesuffix('.weight_packed') for n in files if n.endswith('.weight_packed')], torch.nn.Module()
    for stem in stems:
        at, (*path, last) = root, stem.split('.')
        for part in path:
            if part not in at._modules: at.add_module(part, torch.nn.Module())
            at = at._modules[part]
        out, cols = files[f'{stem}.weight_shape'].tolist()
        at.add_module(last, torch.nn.Linear(cols, out, bias=False, dtype=torch.bfloat16, device='meta'))
    apply_quantization_config(root, config, show_progress=False)
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(root)
    root.load_state_dict({n: files[n] for n in root.state_dict()}, assign=True)
    compressor.decompress_model(root)
    truth = load_file(f'{folder}-twin/model.safetensors')
    return dict(modules=len(stems), equal=sum(torch.equal(root.get_submodule(s).weight, truth[f'{s}.weight']) for s in stems))

def inside(home):
    from transformers.utils import logging
    logging.disable_progress_bar()
    for job in json.loads(Path(home, 'jobs.json').read_text()):
        folder = f'{home}/{job["name"]}'
        said = {k: job[k] for k in ('matrices', 'bytes', 'over_our_grid')}
        if job['kind'] == 'layers':
            print(json.dumps(dict(check=f'compressed-tensors unpacks {job["name"]}', **by_linears(folder), **said)), flush=True)
            try: opened(folder); stopped = False
            except Exception: stopped = True
            print(json.dumps(dict(check=f'transformers refuses {job["name"]}', modules=1, equal=int(stopped))), flush=True)
        else: print(json.dumps(dict(check=f'transformers opens {job["name"]}', **beside(folder), **said)), flush=True)

def outside():
    from alphaq.core import provenance, write_rows
    header, name = provenance('python tests/consumers/compressed-folder.py'), Path(__file__).stem
    env = _environment(name, ['compressed-tensors==0.20.0'])
    try:
        with tempfile.TemporaryDirectory() as home:
            home = Path(home)
            jobs = [made(home, n, (3,), 'one') for n in ('pocket', *FAMILIES)] + [made(home, n, (2, 4, 3), 'layers') for n in LAYERS]
            (home/'jobs.json').write_text(json.dumps(jobs))
            done = subprocess.run([env/'bin/python', Path(__file__).resolve(), home], stdout=subprocess.PIPE, text=True, cwd=home)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
        listed = json.loads(subprocess.run([env/'bin/pip', 'list', '--format', 'json'], capture_output=True, text=True, check=True).stdout)
    finally: shutil.rmtree(env, ignore_errors=True)
    print(done.stdout)
    if done.returncode or any(r['modules'] != r['equal'] for r in rows): sys.exit('not what was rounded')
    header['versions'] |= {p['name']: p['version'] for p in listed if p['name'] in ('compressed-tensors', 'transformers', 'torch')}
    write_rows(ROOT/'results'/'consumers'/f'{name}.jsonl', header, rows)

if __name__ == '__main__': inside(sys.argv[1]) if len(sys.argv) > 1 else outside()
