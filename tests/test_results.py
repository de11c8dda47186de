"Every results file says how it was made, and all of them speak of the one model that ships."
import json
import re

import pytest

from alphaq.allocation import PRESETS
from alphaq.checkpoint import open_checkpoint
from alphaq.core import AlphaqError
from alphaq.lab.claims import REQUIRED, as_page, faults
from conftest import ROOT

FILES = sorted((ROOT/'results').rglob('*.jsonl'))
FIELDS = {'schema', 'command', 'commit', 'python', 'versions', 'device', 'seed', 'date'}

def header(path): return json.loads(path.open().readline())

def published():
    "Version and fingerprint of the model in the package."
    try: model = open_checkpoint('pocket')
    except AlphaqError as e: pytest.skip(str(e))
    return model.version, model.fingerprint()

def mixed(headers, version, sha256):
    "Names of files about `pocket` that were made with other weights."
    return [name for name, h in headers.items() if h.get('model') == 'pocket' and (h.get('model_version'), h.get('model_sha256')) != (version, sha256)]

@pytest.mark.parametrize('path', FILES, ids=lambda p: p.relative_to(ROOT/'results').as_posix())
def test_a_file_says_how_it_was_made(path):
    h, *rows = map(json.loads, path.read_text().splitlines())
    assert h['schema'] == 'alphaq-rows/1' and FIELDS <= h.keys() and rows
    assert h['command'].startswith(('python -m alphaq', 'alphaq ', 'python tests/consumers/')) and not re.search(r'(^|[ =~])/|\.\./|~', h['command']), 'a path outside the checkout'
    assert h['commit'], 'made outside a checkout; nobody can make it again'

def test_no_rows_of_other_weights():
    assert not mixed({p.name: header(p) for p in FILES}, *published()), 'remake them with `make results`'

def test_the_law_can_fail():
    rows = {'a': dict(model='pocket', model_version='1', model_sha256='x'), 'b': dict(model='other'), 'c': dict(model='pocket', model_version='1')}
    assert mixed(rows, '1', 'x') == ['c'] and mixed(rows, '2', 'x') == ['a', 'c'] and mixed(rows, '1', 'y') == ['a', 'c']

def change(file, name, bits):
    "What a rule adds to the divergence of uniform widths, the worse half, in per cent."
    rows = [r for r in map(json.loads, (ROOT/f'results/trained/{file}.jsonl').read_text().splitlines()[1:]) if (r['name'], r['bits']) == (name, bits)]
    assert len(rows) == 2, (file, name, bits)
    return round(100 * max(r['over_uniform'] / (r['kl'] - r['over_uniform']) for r in rows))

def test_the_landing_page_says_what_the_rows_say():
    said = {m[1]: [int(n) for n in re.findall(r'([+-]?\d+) %', m[2])] for m in re.finditer(r'^\| ([^|]+?) \|((?: [+-]?\d+ % \|){4})$', (ROOT/'README.md').read_text(), re.M)}
    cells = [(network, bits) for network in ('smollm2-split4', 'pocket') for bits in (2.5, 3.)]
    default = {'the paper\'s costs': 'alphaq', 'our default, from weights alone': PRESETS['best'].settings.method}
    found = {words: [change(f'{network}-default-windows3', name, bits) for network, bits in cells] for words, name in default.items()}
    text = PRESETS['text']
    found['`--preset text`, text of its kind'] = [change(f'{network}-windows13-wikitext2+stdlib', text.settings.method, bits) for network, bits in cells]
    for words, name in ((*default.items(), ('`--preset text`', text.fed))):
        found[words.split(',')[0] + ', GPTQ'] = [change(f'{network}-gptq-windows9-wikitext2+stdlib', name, bits) for network, bits in cells]
    assert said == found

def test_the_landing_page_says_how_much_is_lost():
    "What uniform widths diverge by, the mean of both halves."
    readme = (ROOT/'README.md').read_text()
    for words, file in (('uniform, nats a token', 'default-windows3'), ('uniform, GPTQ', 'gptq-windows9-wikitext2+stdlib')):
        said = [float(x) for x in re.search(rf'^\| {words} \|((?: [\d.]+ \|){{4}})$', readme, re.M)[1].split('|')[:-1]]
        for number, (network, bits) in zip(said, ((n, b) for n in ('smollm2-split4', 'pocket') for b in (2.5, 3.)), strict=True):
            rows = map(json.loads, (ROOT/f'results/trained/{network}-{file}.jsonl').read_text().splitlines()[1:])
            kl = [r['kl'] for r in rows if (r['name'], r['bits']) == ('uniform', bits)]
            assert len(kl) == 2 and float(f'{sum(kl) / 2:.{1 if number > .1 else 2}f}') == number, (words, network, bits, kl)

def test_the_landing_page_holds():
    fed = [r for r in map(json.loads, (ROOT/'results/allocators/gptq-pocket.jsonl').read_text().splitlines()[1:]) if r['name'] == 'alphaq']
    assert 'The paper\'s allocation loses, with error feedback (GPTQ) too' in ' '.join((ROOT/'README.md').read_text().split()) and len(fed) > 3 and all(r['over_uniform'] > 3 * r['stderr'] for r in fed)

def test_the_landing_page_says_how_fast():
    rows = {(r['model'], r['mode'], r['batch']): r['tokens_per_second'] for r in map(json.loads, (ROOT/'results/bench/decode.jsonl').read_text().splitlines()[1:])}
    said = float(re.search(r'\[([\d.]+) times\]\(nbs/66_layers.ipynb\)', (ROOT/'README.md').read_text())[1])
    assert said == round(rows['OLMoE, 2.5 bits, head 16', 'fast', 1] / rows['OLMoE, bfloat16', 'plain', 1], 1)

def index(): return json.loads((ROOT/'results/index.json').read_text())

def test_every_table_figure_and_claim_has_its_verdict():
    wrong = faults(index(), ROOT/'results')
    assert not wrong, '\n'.join(wrong)
    assert REQUIRED['table'] == 12 and REQUIRED['figure'] == 14 and REQUIRED['claim'] >= 13, 'the papers have not shrunk'

def test_the_page_of_verdicts_is_that_of_the_map():
    assert (ROOT/'results/findings.md').read_text() == as_page(index()), 'run `python -m alphaq.lab.claims`'

def test_a_wrong_map_is_noticed():
    "A missing entry, a page and a file that are not there, a verdict that rows do not give."
    right = index()
    def told(name, **changed): return [f for f in faults({name: right[name] | changed}, ROOT/'results') if not f.endswith(': missing')]
    assert {*faults({'claim 1': right['claim 1']}, ROOT/'results')} == {f'{n}: missing' for n in right if n != 'claim 1' and not n.startswith('ours')}
    assert told('claim 1') == [] and 'no page' in told('claim 1', page='nbs/00_none.ipynb')[0]
    assert 'not what rows give' in told('claim 1', verdict='mixed')[0]
    assert 'no such file' in told('claim 1', rows=[right['claim 1']['rows'][0] | {'file': 'allocators/none.jsonl'}])[0]

def test_what_is_not_measured_says_why():
    "A reason is a sentence, and nothing stands beside it that looks measured."
    for name, one in index().items():
        if 'because' in one: assert len(one['because'].split()) >= 4 and one['verdict'] == 'not measured' and not {'cases', 'said'} & one.keys(), name
