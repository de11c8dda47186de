"Every verb of the command on a random model of toy size: what it says, and that verbs agree with each other."
import csv, importlib.util, json, math, re
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from alphaq import cpu, tasks, texts
from alphaq.allocation import PRESETS
from alphaq.cli import app
from alphaq.lab.toys import toy_checkpoint
from alphaq.methods import METHODS
from alphaq.plans import read_plan

runner = CliRunner()
WORDS = '--text', 'arithmetic', '--tokens', 300, '--window', 64
USE = '--context', '1k', '--batch', 2, '--runs-on', 'cpu'

def reading(samples=2, window=32): return '--calibration', 'arithmetic', '--samples', samples, '--window', window

@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A folder with the toy; texts as short as toys need them."
    made = tmp_path_factory.mktemp('cli')
    toy_checkpoint(made/'toy')
    cpu.kernel()  # compiled where this machine keeps it, not once more in the cache of these tests
    with pytest.MonkeyPatch.context() as few:
        few.setattr(texts, 'arithmetic', partial(texts.arithmetic, problems=600))
        yield made

@pytest.fixture(scope='module')
def run(home):
    "The command, as a shell calls it."
    return lambda *args: runner.invoke(app, [str(a) for a in args], env={'ALPHAQ_QUIET': '1', 'XDG_CACHE_HOME': str(home/'cache')})

@pytest.fixture(scope='module')
def ok(run):
    "The command, which succeeds; what it says as JSON."
    def called(*args):
        done = run(*args, '--json')
        assert done.exit_code == 0, (args, done.output, done.exception)
        return json.loads(done.stdout.splitlines()[-1])
    return called

@pytest.fixture(scope='module')
def scores(home, ok):
    assert ok('score', home/'toy', '-o', home/'s.csv')['coverage'] == '24 of 24 expert projections, 0 skipped'
    return home/'s.csv'

@pytest.fixture(scope='module')
def plans(home, ok, scores):
    "By preset, what allocating said; the plans lie beside."
    return {p: ok('allocate', scores, '--bits', 2.5, '--preset', p, '-o', home/f'{p}.json') for p in ('best', 'paper', 'uniform')}

@pytest.fixture(scope='module')
def made(home, ok, plans): return ok('quantize', home/'toy', '--plan', home/'best.json', '-o', home/'q')

@pytest.fixture(scope='module')
def four(home, ok, scores):
    ok('allocate', scores, '--bits', 4, '--choices', 4, '-o', home/'four.json')
    return home/'four.json'

def test_scores(home, ok, scores):
    "In shards as in one piece; other matrices are scored where asked, and left out of a plan of experts."
    seen = ok('info', home/'toy')
    assert (seen['projections'], seen['family'], seen['layout'], seen['stored_as']) == (24, 'olmoe', 'one tensor per expert', 'BF16')
    assert seen['coverage'] == '24 of 24 expert projections, 0 skipped'
    for i in (1, 2): ok('score', home/'toy', '-o', home/f'part{i}.csv', '--shard', f'{i}/2')
    assert ok('merge', home/'part2.csv', home/'part1.csv', '-o', home/'merged.csv')['projections'] == 24
    assert (home/'merged.csv').read_bytes() == scores.read_bytes()
    wide = ok('score', home/'toy', '-o', home/'wide.csv', '--include', 'attention,router')
    assert wide['coverage'] == '24 of 24 expert projections, 10 of 10 other matrices, 0 skipped'
    narrow = ok('allocate', home/'wide.csv', '--bits', 2.5, '-o', home/'wide.json')
    assert len(narrow['left_out']) == 10
    assert ok('allocate', scores, '--bits', 2.5, '-o', home/'narrow.json')['left_out'] == []
    assert json.loads((home/'wide.json').read_text())['layers'] == json.loads((home/'narrow.json').read_text())['layers']

def test_plans(home, ok, scores, plans):
    assert all(p['average']['params'] == 2.5 for p in plans.values()) and plans['uniform']['differs_from_uniform'] == '0 of 24'
    assert 'alpha moves costs by' in plans['paper']['alpha'] and 'alpha' not in plans['best']
    assert ok('diff', home/'uniform.json', home/'paper.json')['differ'] > 0
    assert ok('diff', home/'best.json', home/'best.json')['differ'] == 0
    bounded = ok('allocate', scores, '--bits', 2.5, '--method', 'kurtosis', '--granularity', 'expert', '--bound', '*.experts.0.*=4', '-o', home/'bounded.json')
    assert bounded['method'] == 'kurtosis'
    assert all(v[0] == '4' for roles in json.loads((home/'bounded.json').read_text())['layers'].values() for v in roles.values())
    fine = home/'fine.json'
    ok('allocate', scores, '--bits', 2.5, '--model', home/'toy', '--also', '*.q_proj=16', '-o', fine)
    assert json.loads(fine.read_text())['modules'] == {f'model.layers.{l}.self_attn.q_proj': 16 for l in (0, 1)}

def test_frontier(home, run, ok, scores, plans):
    "Through every move; a budget for every layer can only cost."
    every = ok('frontier', scores, '-o', home/'f.csv')
    ok('frontier', scores, '-o', home/'f.html')
    shown = (home/'f.html').read_text()
    assert shown.startswith('<!doctype html>') and 'experts.0.up_proj' in shown
    at = next(r for r in every['at'] if r['bits'] == 2.5)
    best = json.loads((home/'best.json').read_text())
    assert every['moves'] == 72 and every['reach'] == [1, 4]
    assert at['lower_bound'] * (1 - 1e-9) <= best['objective'] <= at['objective'] * (1 + 1e-9)
    rows = list(csv.DictReader((home/'f.csv').open()))
    assert len(rows) == 73 and rows[0]['name'] == '' and rows[1]['narrow'] == '1'
    assert 'gap at most' in run('frontier', scores, '-o', home/'f2.csv', '--method', 'alphaq').stdout
    layered = ok('frontier', scores, '-o', home/'f3.csv', '--scope', 'block')
    assert layered['moves'] == 72
    assert all(b['lower_bound'] >= w['lower_bound'] * (1 - 1e-9) for b, w in zip(layered['at'], every['at']))

def test_a_folder_weighs_what_was_foretold(home, run, ok, made):
    foretold = ok('info', home/'toy', '--plan', home/'best.json')['plan']
    assert made['tensor_bytes'] == made['predicted_bytes'] == foretold['total']
    assert made['report'] == str(home/'q'/'report.html') and (home/'q'/'report.html').is_file()
    assert made['file_bytes'] == made['predicted_file_bytes'] == foretold['files']
    held = ok('info', home/'q')
    assert held['projections'] == 24 == sum(sum(at.values()) for at in held['experts_at'].values())
    assert held['linears_at'] == {'4': 8} and held['group_size'] == 128
    assert held['bytes'] == made['tensor_bytes'] and 'gate_proj' in run('info', home/'q').stdout
    assert ok('verify', home/'q')['verified'] and ok('verify', home/'q', '--against', home/'toy')['unchecked'] == []

def test_what_fits(home, run, ok, scores):
    told = ok('info', home/'toy', '--fits', '1GiB', *USE)
    assert list(told['ledger']) == ['as it is', '4 bits', '3 bits', '2 bits', '1 bit']
    totals = [l['total'] for l in told['ledger'].values()]
    assert totals == sorted(totals, reverse=True) and max(totals) <= told['fits'] == 2**30
    assert min(told['largest_context'].values()) > 1024
    fitted = ok('allocate', scores, '--fits', totals[2], *USE, '--model', home/'toy', '-o', home/'fitted.json')
    assert totals[3] < fitted['ledger']['total'] <= totals[2]
    assert ok('info', home/'toy', '--plan', home/'fitted.json', *USE)['ledger']['plan'] == fitted['ledger']
    fitted = ok('quantize', home/'toy', '--fits', totals[2], *USE, '-o', home/'fitted')
    assert ok('info', home/'fitted', *USE)['ledger']['the folder'] == fitted['ledger']
    for what in ('toy', 'fitted'):
        seen = run('info', home/what, *USE, '--fits', '1KB').stdout
        assert 'does not fit' in seen and 'keys and values' in seen and 'assumed' not in seen
    filled = ok('allocate', scores, '--size', '130KB', '--model', home/'toy', '-o', home/'filled.json')
    assert filled['file_bytes'] <= 130_000 < filled['file_bytes'] + 2 * 64 * 64 / 8
    assert filled['average']['stored'] > filled['average']['params']

def test_recipes(home, run, ok, scores):
    held = ok('allocate', scores, '--bits', 2.5, '--target', 'vllm', '-o', home/'vllm.json')
    assert held['target'] == 'vllm' and held['price'] >= 1
    said = ok('export', home/'vllm.json', '--to', 'llm-compressor', '-o', home/'recipe.yaml')
    assert said['bytes'] == (home/'recipe.yaml').stat().st_size
    ok('allocate', scores, '--bits', 2.5, '--target', 'mlx', '-o', home/'mlx.json')
    assert 'names suit most' in run('export', home/'mlx.json', '--to', 'mlx', '-o', home/'block.json').stderr
    assert run('export', home/'mlx.json', '--to', 'mlx', '-o', home/'block.json', '--model', home/'toy', '--overwrite').stderr == ''
    asked = 'allocate', scores, '--bits', 2.5, '--target', 'vllm', '--model', home/'toy', '--measure', 'arithmetic'
    measured = ok(*asked, '-o', home/'vllm.json', '--overwrite')
    assert re.fullmatch(r'[+-]0\.\d{4} ± 0\.\d{4} nats per token of arithmetic above .*', measured['measured'])
    assert measured['price'] == held['price']
    foretold = ok(*asked, '-o', home/'later.json', '--dry-run')
    assert 0 < foretold['takes']['seconds'] < 600 and not (home/'later.json').exists()

def test_folders_of_compressed_tensors(home, ok):
    ok('score', home/'toy', '--group-size', 32, '-o', home/'s32.csv')
    for name, more in (('grouped', ['--target', 'vllm']), ('free', [])):
        ok('allocate', home/'s32.csv', '--bits', 2.5, *more, '-o', home/f'{name}.json')
    packed = ok('export', home/'toy', '--plan', home/'grouped.json', '--to', 'compressed-tensors', '-o', home/'packed')
    assert packed['opens_in'].startswith('vLLM') and packed['over_our_grid'] > 1
    near = ok('export', home/'toy', '--plan', home/'free.json', '--nearest', '--to', 'compressed-tensors', '-o', home/'near')
    assert near['matrices'] == packed['matrices'] == 24 + 8

def test_gguf(home, run, ok, four):
    filed = ok('export', home/'toy', '--plan', four, '--to', 'gguf', '--pre', 'none', '-o', home/'toy.gguf', '--modelfile')
    assert (home/'toy.Modelfile').read_text().startswith('FROM "./toy.gguf"') and filed['modelfile']
    assert filed['bytes'] == (home/'toy.gguf').stat().st_size and filed['changed'] == '0 of 24 matrices'
    said = run('export', four, '--model', home/'toy', '--to', 'gguf', '--pre', 'none', '-o', home/'toy.gguf', '--overwrite')
    assert 'has no vocabulary' in said.stderr and 'bits stored' in said.stdout
    assert ok('info', home/'toy.gguf')['rounded_before'].startswith('Q4_0')

def test_reports(home, run, ok, scores, made):
    told = ok('report', home/'q', '-o', home/'r.html', '--scores', scores, '--against', home/'toy', '--text', 'arithmetic',
              '--tokens', 200, '--window', 32, '--figures', home/'figures', '--card', home/'card.md')
    card = (home/'card.md').read_text()
    assert card.startswith((home/'q'/'README.md').read_text()) and '| arithmetic |' in card
    assert 'base_model: toy' in card and '--card' in card and 'widths drawn at random' in card
    assert len(told['figures']) == len([*(home/'figures').glob('*.svg')]) == 8
    shown = (home/'r.html').read_text()
    assert all(p.read_text() in shown for p in (home/'figures').glob('*.svg'))
    assert '24 of 24 expert projections' in shown and '--text arithmetic' in shown
    assert 'Nothing was measured' not in shown and 'Nothing is compared' not in shown
    lean = run('report', home/'best.json', '-o', home/'r2.html')
    assert lean.exit_code == 0
    assert lean.stdout.count('not measured') == len(ok('report', home/'best.json', '-o', home/'r2.html', '--overwrite')['unmeasured'])

def test_tuned_routers(home, run, ok, made):
    tuning = 'tune', home/'q', home/'toy', *reading(8)
    assert ok(*tuning, '-o', home/'tuned')['kept_back'] == 2
    assert ok('verify', home/'tuned', '--against', home/'toy')['unchecked'] == []
    assert 'the routers, which were tuned' in (home/'tuned'/'report.html').read_text()
    spoken = run(*tuning, '-o', home/'tuned', '--overwrite', '--method', 'ridge')
    assert 'other experts than the original' in spoken.stdout
    assert ('warning' in spoken.stderr) == (': better' not in spoken.stdout)
    assert len(spoken.stderr.strip().splitlines()) < 2

def test_a_packed_head_and_the_way_back(home, ok, made):
    headed = ok('quantize', home/'toy', '--plan', home/'best.json', '--head-bits', 4, '-o', home/'headed')
    assert headed['tensor_bytes'] == headed['predicted_bytes'] < made['tensor_bytes']
    assert ok('verify', home/'headed', '--against', home/'toy')['verified']
    assert ok('dequantize', home/'headed', '-o', home/'headed.plain')['matrices'] == 24 + 8 + 1
    assert ok('dequantize', home/'q', '-o', home/'plain')['matrices'] == 24 + 8
    assert ok('info', home/'plain')['projections'] == 24

def test_methods_that_read(home, ok, scores):
    "Collected and allocated apart, or by `quantize` at once: one plan, of what was read for the rounding that follows."
    ok('collect', scores, home/'toy', *reading(), '-o', home/'informed.csv')
    apart = ok('allocate', home/'informed.csv', '--bits', 2.5, '--method', 'pmq', '-o', home/'pmq.json')
    at_once = ok('quantize', home/'toy', '--bits', 2.5, '--method', 'pmq', *reading(), '-o', home/'pmq')
    assert at_once['projections'] == apart['projections'] and apart['method'] == 'pmq'
    assert json.loads((home/'pmq'/'plan.json').read_text())['layers'] == json.loads((home/'pmq.json').read_text())['layers']
    assert 'allocated from what 2 windows of 32 tokens of arithmetic' in (home/'pmq'/'README.md').read_text()
    told = {}
    for how in ('mse', 'gptq'):
        ok('collect', scores, home/'toy', '--quantizer', how, *reading(8), '-o', home/f'{how}.csv')
        ok('allocate', home/f'{how}.csv', '--bits', 2.5, '--method', 'mxmoe', '-o', home/f'{how}.json')
        told[how] = json.loads((home/f'{how}.json').read_text())['layers']
    ok('quantize', home/'toy', '--bits', 2.5, '--method', 'mxmoe', '--quantizer', 'gptq', *reading(8), '-o', home/'m')
    assert json.loads((home/'m'/'plan.json').read_text())['layers'] == told['gptq'] != told['mse']
    fed = ok('quantize', home/'toy', '--bits', 2, '-o', home/'g', '--quantizer', 'gptq', *reading(2, 64), '--routing', 'weighted')
    assert fed['average']['params'] == 2

def test_groups_that_do_not_divide(home, run, ok):
    "Groups of 48 are groups of 32 in rows of 64, from the scores to the folder."
    assert ok('score', home/'toy', '--group-size', 48, '-o', home/'s48.csv')['groups'] == '48; 32 in rows of 64'
    assert '32 in rows of 64' in run('info', home/'toy', '--group-size', 48).stdout
    ok('allocate', home/'s48.csv', '--bits', 2.5, '-o', home/'p48.json')
    plan = read_plan(home/'p48.json')
    assert plan.group_size == 48 and set(plan.groups.values()) == {32}
    assert ok('quantize', home/'toy', '--plan', home/'p48.json', '-o', home/'q48')['groups']
    assert ok('verify', home/'q48', '--against', home/'toy')['verified']

def test_eval_beside_the_original(home, run, ok, made):
    found = ok('eval', home/'q', *WORDS, '--against', home/'toy')
    rows, [one, every] = found['rows'], found['differences']
    plain = ok('eval', home/'toy', *WORDS)['rows']
    assert abs(one['difference'] - (rows[0]['nll'] - plain[0]['nll'])) < 1e-6 and one['stderr'] > 0
    assert one | {'text': 'all of them'} == every and rows[0]['ppl'] > 1
    assert one['kl'] > 0 < one['kl_worst'] and 0 <= one['agreement'] <= 1
    told = run('eval', home/'q', *WORDS, '--against', home/'toy').stdout
    assert 'same first choice' in told and 'KL' in told
    assert ok('bench', home/'q', '--tokens', 2, '--against', 'pocket')
    assert ok('generate', home/'q', 'two plus two is', '--tokens', 4)['text'].startswith('two plus two is')

@pytest.mark.skipif(importlib.util.find_spec('lm_eval') is None, reason="lm-eval is not installed (pip install 'alphaq[eval]')")
def test_tasks(home, run, ok, made):
    asked = ok('eval', home/'q', '--tasks', 'alphaq_arithmetic', '--questions', 12)
    assert asked['rows'] == []
    assert [(t['task'], t['questions'], t['chance'], len(t['right'])) for t in asked['tasks']] == [('alphaq_arithmetic', 12, .25, 12)]
    paged = ok('report', home/'q', '-o', home/'r3.html', '--tasks', 'alphaq_arithmetic', '--questions', 12)
    assert paged['tasks'] == asked['tasks'] and 'tasks' in (home/'r3.html').read_text()
    both = run('eval', home/'toy', *WORDS, '--tasks', 'alphaq_arithmetic', '--questions', 4).stdout
    assert 'perplexity per token' in both and 's.e. from chance' in both

def test_tasks_beside_the_original(home, ok, made, monkeypatch):
    "Whoever answers: a folder's accuracy stands beside its original's, on the same questions."
    def answered(right): return tasks.TaskScore('alphaq_arithmetic', 4, right.count('1') / 4, .2, 0., .5, right, '', '')
    answers = iter([[answered('0110')], [answered('1111')]])
    monkeypatch.setattr(tasks, 'run_tasks', lambda *given, limit: next(answers))
    monkeypatch.setattr(tasks, 'check_lm_eval', lambda: None)
    paged = ok('report', home/'q', '-o', home/'r4.html', '--tasks', 'alphaq_arithmetic', '--questions', 4, '--against', home/'toy')
    (row,) = paged['tasks']
    assert row['acc'] == .5 and row['original'] == dict(acc=1., stderr=.2) and row['chance'] == .25
    assert row['beside'] == dict(difference=-.5, stderr=row['beside']['stderr'], verdict='not shown')
    assert math.isclose(row['beside']['stderr'], (1 / 3)**.5 / 2, rel_tol=1e-6)
    assert any(l.startswith('Any task but alphaq_arithmetic') for l in paged['unmeasured'])
    assert '--tasks alphaq_arithmetic --questions 4' in (home/'r4.html').read_text()

def gaussians_as_the_authors_score_them(path):
    "A table as the authors' code writes it, of 200 Gaussian matrices and a router."
    g = np.random.default_rng(0)
    def line(W):
        lam = np.linalg.eigvalsh(W @ W.T)
        return f'{1 + 10 / np.log(lam[-10:] / lam[-11]).sum()},{W.var()}'
    path.write_text('layer_name,alpha,variance\n' + ''.join(f'experts.{i}.gate,{line(g.standard_normal((64, 128)))}\n' for i in range(200)) + 'router,,\n')
    return path

def test_doctor(home, run, ok, scores):
    "Random weights look untrained, and it says so; the model of the package does not."
    assert 'warning' in {f['level'] for f in ok('doctor', home/'toy')['findings']}
    # a machine without a compiler has no kernel
    assert {f['level'] for f in ok('doctor', 'pocket')['findings'] if 'kernel' not in f['text']} == {'ok'}
    plain = {f'model.layers.{i}.mlp.up_proj.weight': torch.randn(96, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    (home/'gaussian').mkdir()
    save_file(plain, home/'gaussian'/'model.safetensors')
    (home/'gaussian'/'config.json').write_text('{"model_type": "llama"}')
    assert ['4 spectra' in f['text'] and f['level'] for f in ok('doctor', home/'gaussian')['findings']][-1] == 'warning'
    told = run('allocate', scores, '--bits', 2.5, '-o', home/'told.json').stderr
    assert len(told.strip().splitlines()) == 1 and 'look untrained, and alpha says nothing' in told
    said = ok('doctor', gaussians_as_the_authors_score_them(home/'theirs.csv'))['findings']
    assert '200 of 200 rows are what Gaussian matrices give' in said[-1]['text'] and said[-1]['level'] == 'warning'
    assert 'without a value: 1' in said[-2]['text']

def test_matrices_that_are_alike_get_uniform_widths(home, run, ok):
    "Every way to a plan says so; a method that is named is used all the same."
    toy_checkpoint(home/'alike', num_experts=6)
    weights = load_file(home/'alike'/'model.safetensors')
    same = next(w for name, w in weights.items() if name.endswith('experts.0.up_proj.weight'))
    save_file({name: same.clone() if '.experts.' in name else w for name, w in weights.items()}, home/'alike'/'model.safetensors', {'format': 'pt'})
    ok('score', home/'alike', '-o', home/'alike.csv')
    said = 'costs by relative-alpha-outlier differ by only 0.0 % among 36 matrices'
    for bits in (2.5, 3):
        told = run('allocate', home/'alike.csv', '--bits', bits, '-o', home/f'alike{bits}.json')
        assert said in told.stderr and '--method relative-alpha-outlier uses them all the same' in told.stderr
        plan = read_plan(home/f'alike{bits}.json')
        assert (plan.preset, plan.method, plan.differs_from_uniform) == ('best', 'even', 0) and plan.gap < 1e-9
    insisted = 'allocate', home/'alike.csv', '--bits', 2.5, '--method', 'relative-alpha-outlier', '-o', home/'insisted.json'
    assert said not in run(*insisted).stderr and read_plan(home/'insisted.json').method == 'relative-alpha-outlier'
    assert said in run('allocate', home/'alike.csv', '--bits', 2.5, '--target', 'vllm', '-o', home/'alike-vllm.json').stderr
    assert read_plan(home/'alike-vllm.json').method == 'even' and read_plan(home/'alike-vllm.json').price < 1.2  # of one unit
    assert said in run('frontier', home/'alike.csv', '-o', home/'alike-every.csv').stderr
    # nothing to measure where nothing differs
    made = run('quantize', home/'alike', '--bits', 2.5, '--gate', 'arithmetic', '-o', home/'alike.q')
    assert made.exit_code == 0 and said in made.stderr and 'nothing to compare' in made.stderr
    assert read_plan(home/'alike.q'/'plan.json').layers == read_plan(home/'alike2.5.json').layers
    assert 'tell its matrices too little apart, so that every weight counts the same' in (home/'alike.q'/'README.md').read_text()

def test_help_knows_what_reads_text(run):
    helped = run('allocate', '--help').stdout
    parts = re.search('from weights.*(?=; all)', re.sub(r'(?<=-)\s+|\n', '', helped))[0].split(';')
    assert all(('from text' in part) == bool(METHODS[n.strip()].data) for part in parts for n in part.split(':')[1].split(','))
    assert all(p in helped for p in PRESETS)
