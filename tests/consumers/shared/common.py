"Ask a tool, installed in an environment of its own, which width it gives to every module of an exported plan."
import json, shutil, subprocess, sys, sysconfig, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:] = [p for p in sys.path if Path(p).resolve() != ROOT/'tests'/'consumers']  # our scripts have the names of packages, and must not be found in their place
EXPERTS, LAYERS, HIDDEN, INNER, GROUP = 4, 2, 128, 64, 64  # the small mixture that every tool is shown
ROLES = ('gate_proj', 'up_proj', 'down_proj')

def shapes():
    "Linear layers of the mixture by name, `(out, in)`: as the checkpoint of any tool has them, one matrix per expert."
    found = {'lm_head': (256, HIDDEN)}
    for layer in (f'model.layers.{i}' for i in range(LAYERS)):
        found |= {f'{layer}.self_attn.{n}_proj': (HIDDEN, HIDDEN) for n in 'qkvo'} | {f'{layer}.mlp.gate': (EXPERTS, HIDDEN)}
        for place in ('shared_expert', *(f'experts.{e}' for e in range(EXPERTS))):
            found |= {f'{layer}.mlp.{place}.{r}': (HIDDEN, INNER) if r == 'down_proj' else (INNER, HIDDEN) for r in ROLES}
    return found

def linears():
    "The mixture as modules of torch, random, to be walked through by name."
    import torch
    torch.manual_seed(0)
    root = torch.nn.Module()
    for name, (out, cols) in shapes().items():
        at, *path = root, *name.split('.')
        for part in path[:-1]:
            if not hasattr(at, part): at.add_module(part, torch.nn.Module())
            at = getattr(at, part)
        at.add_module(path[-1], torch.nn.Linear(cols, out, bias=False))
    return root

def mixture(folder):
    "The mixture as a checkpoint of transformers, random, a tokenizer of letters beside it."
    from alphaq.lab.toys import tiny_model
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    tiny_model('qwen2_moe', vocab_size=256, hidden_size=HIDDEN, moe_intermediate_size=INNER, shared_expert_intermediate_size=INNER, num_hidden_layers=LAYERS,
               num_experts=EXPERTS, num_key_value_heads=4, head_dim=HIDDEN // 4, mlp_only_layers=[], tie_word_embeddings=False).bfloat16().save_pretrained(folder)
    letters = Tokenizer(models.BPE({chr(33 + i): i for i in range(256)}, []))
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token='!', pad_token='!').save_pretrained(folder)

def asked(folder):
    "Width that the plan gives to every linear layer; `None` for those it leaves alone."
    return json.loads((Path(folder)/'asked.json').read_text())

def answer(check, wanted, got, **more):
    "One row: how many modules got what the plan says; ends the script when one did not."
    wrong = {n: [b, got.get(n)] for n, b in wanted.items() if got.get(n) != b}
    print(json.dumps(dict(check=check, modules=len(wanted), equal=len(wanted) - len(wrong), **more)), flush=True)
    if wrong: sys.exit(f'{check}: asked and got {dict(list(wrong.items())[:5])}')

def _plan(to):
    "Random scores, solved within what the tool can load, as `alphaq allocate --target` does; a shared expert and an exception in attention beside them."
    import numpy as np
    from alphaq.methods import Settings
    from alphaq.exports import EXPORTERS, priced
    from alphaq.plans import make_plan
    from alphaq.scores import Score
    rng, scores = np.random.default_rng(0), []
    for l in range(LAYERS):
        for e in range(EXPERTS):
            for r in ROLES:
                shape = shapes()[f'model.layers.{l}.mlp.experts.{e}.{r}']
                scores.append(Score(f'model.layers.{l}.mlp.experts.{e}.{r}', l, e, r, *shape, shape[0] * shape[1], 3., 0., 0, 0, float(np.exp(2 * rng.normal() + 3 * l)), (), None))
    target = EXPORTERS[to].target
    held, price = priced(scores, Settings(3., 'noise-only', group_size=GROUP), target)
    modules = {'model.layers.1.mlp.shared_expert.up_proj': 4, 'model.layers.0.self_attn.q_proj': 16} if to != 'llama.cpp' else {}  # which has names of its own
    return make_plan(scores, held, 'mixture', target=target, price=price, modules=modules)

def _environment(name, steps):
    "A fresh virtual environment with the steps' packages, over those of the environment that runs this: torch alone is a gigabyte."
    home = ROOT/'.work'/'consumers'/name
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, '-m', 'venv', home], check=True)
    next(home.glob('lib/python*/site-packages')).joinpath('below.pth').write_text(sysconfig.get_path('purelib') + '\n')
    for step in steps: subprocess.run([home/'bin/pip', 'install', '--quiet', '--disable-pip-version-check', *step.split()], check=True)
    return home

def wanted_widths(plan):
    "What `asked` reads: the width of every linear layer of the mixture."
    from alphaq.plans import widths
    return {n: None if b == 16 else b for n in shapes() for b in [widths(plan).get(n, plan.other_bits if '.self_attn.' in n else None)]}

def consult(script, to, steps, packages, prepare=mixture):
    "Install, export, prepare a model, ask, keep the answer in `results/consumers/`, remove the environment."
    from alphaq.core import provenance, write_rows
    from alphaq.exports import export
    name, plan = Path(script).stem, _plan(to)
    header = provenance(f'python tests/consumers/{Path(script).name}')
    home = _environment(name, steps)
    try:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, 'asked.json').write_text(json.dumps(wanted_widths(plan)))
            Path(folder, 'export').write_text(export(plan, to))
            if prepare: prepare(Path(folder, 'model'))
            done = subprocess.run([home/'bin/python', Path(script).resolve(), folder], stdout=subprocess.PIPE, text=True, cwd=folder)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"check"')]
        print(done.stdout)
        if done.returncode or not rows: sys.exit(f'{name}: not what was asked for')
        listed = json.loads(subprocess.run([home/'bin/pip', 'list', '--format', 'json'], capture_output=True, text=True, check=True).stdout)
    finally: shutil.rmtree(home, ignore_errors=True)
    header['versions'] |= {p['name']: p['version'] for p in listed if p['name'].lower().replace('_', '-') in packages}
    write_rows(ROOT/'results'/'consumers'/f'{name}.jsonl', header, rows)
