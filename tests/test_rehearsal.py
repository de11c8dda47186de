"`--dry-run` writes nothing and foretells what the run then writes; `--json-lines` is JSON, line by line."
import json
import os
import shutil
from collections import defaultdict
from inspect import signature

import pytest
from typer.testing import CliRunner

from alphaq import cli
from alphaq.lab.toys import toy_checkpoint

VERBS = {  # verb -> its runs; `{}` is the folder that everything lies in
    'score': ['{}/toy -o {}/new/s.csv', '{}/toy -o {}/new/part.csv --shard 1/2'],
    'merge': ['{}/part2.csv {}/part1.csv -o {}/new/m.csv'],
    'allocate': ['{}/s.csv --bits 2.5 -o {}/new/p.json', '{}/s.csv --size 130KB --model {}/toy -o {}/new/p2.json'],
    'frontier': ['{}/s.csv -o {}/new/f.csv', '{}/s.csv -o {}/new/f.html'],
    'export': ['{}/plan.json --to gptqmodel -o {}/new/r.json', '{}/toy --plan {}/four.json --to gguf --pre none -o {}/new/m.gguf', '{}/toy --plan {}/four.json --to gguf --pre none -o {}/new/n.gguf --modelfile',
               '{}/toy --plan {}/four.json --to compressed-tensors -o {}/new/packed', '{}/q4 --to compressed-tensors -o {}/new/repacked'],
    'collect': ['{}/s.csv {}/toy --calibration arithmetic --samples 2 --window 32 -o {}/new/c.csv'],
    'quantize': ['{}/toy --plan {}/plan.json -o {}/new/q', '{}/toy --bits 2.5 -o {}/new/deep/q2', '{}/toy --bits 2 --quantizer rtn --head-bits 4 -o {}/new/q3',
                 '{}/toy --plan {}/plan.json --quantizer gptq --calibration arithmetic --samples 2 --window 32 -o {}/new/q4'],
    'tune': ['{}/q {}/toy --calibration arithmetic --samples 8 --window 32 -o {}/new/tuned'],
    'dequantize': ['{}/q -o {}/new/plain', '{}/q -o {}/new/plain32 --dtype float32'],
    'report': ['{}/plan.json -o {}/new/r.html --scores {}/s.csv --figures {}/new/figures', '{}/q -o {}/new/r2.html --against {}/toy --text arithmetic --tokens 200 --window 32'],
}
UNKNOWN = ('collect', 'report --text')  # only the work can tell how long these files are
READERS = {'info': '{}/toy', 'verify': '{}/q --against {}/toy', 'eval': '{}/q --text arithmetic --tokens 300 --window 32', 'doctor': '{}/toy',
           'diff': '{}/plan.json {}/plan.json', 'generate': '{}/q ab --tokens 2', 'bench': '{}/q --tokens 2'}


def run(home, *args, **env):
    "A command as a shell would call it; what it says on both streams."
    env = {'ALPHAQ_QUIET': '1', 'XDG_CACHE_HOME': str(home.with_name('cache'))} | env
    done = CliRunner().invoke(cli.app, [a.replace('{}', str(home)) for a in args], env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert 'ALPHAQ_JSON_LINES' not in os.environ
    return done


def timed(verb, line):
    "Whether a run is long enough to be told before how long it will be."
    return verb in ('score', 'quantize', 'collect', 'tune', 'dequantize', 'eval') or any(w in line for w in ('gguf', 'compressed', '--text'))


def files(home): return {str(p.relative_to(home)): (p.lstat().st_mtime_ns, p.lstat().st_ino) for p in home.rglob('*')}


def nbytes(path):
    "What a file weighs, or the weight files of a folder."
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.glob('*.safetensors'))


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "A toy and what the verbs make of it."
    home = tmp_path_factory.mktemp('rehearsal')
    toy_checkpoint(home/'toy')
    for line in ('score {}/toy -o {}/s.csv', *(f'score {{}}/toy -o {{}}/part{i}.csv --shard {i}/2' for i in (1, 2)), 'allocate {}/s.csv --bits 2.5 -o {}/plan.json',
                 'allocate {}/s.csv --bits 4 --choices 4 --model {}/toy -o {}/four.json', 'quantize {}/toy --plan {}/plan.json -o {}/q',
                 'quantize {}/toy --plan {}/four.json -o {}/q4'):
        assert run(home, *line.split()).exit_code == 0, line
    return home


def test_every_verb_that_writes_is_rehearsed():
    def options(verb): return signature(next(c.callback for c in cli.app.registered_commands if c.name == verb)).parameters
    names = {c.name for c in cli.app.registered_commands}
    assert names == {*VERBS, *READERS} and {n for n in names if 'dry_run' in options(n)} == {*VERBS}
    assert all('json_lines' in options(n) for n in names)


@pytest.mark.parametrize('verb, line', [(v, line) for v, lines in VERBS.items() for line in lines])
def test_nothing_is_written_and_the_bytes_come_true(home, verb, line):
    shutil.rmtree(home/'new', ignore_errors=True)
    before = files(home)
    dry = run(home, verb, *line.split(), '--dry-run', '--json')
    assert dry.exit_code == 0, dry.output
    assert files(home) == before
    said = json.loads(dry.stdout)  # one object
    foretold = {f['path']: f['bytes'] for f in said['would_write']}
    assert said['dry_run'] and foretold and files(home) == before
    check_events(home, verb, line, run(home, verb, *line.split(), '--json', '--json-lines'))
    made = {str(home/name) for name in files(home).keys() - before.keys()}
    for path, n in foretold.items():
        made -= {p for p in made if p == path or p.startswith(f'{path}/')}
        real = nbytes(home/path)
        if n is None: assert verb == 'collect' or '--text' in line
        elif verb == 'score': assert abs(n / real - 1) < .05, (n, real)
        else: assert n == real, (path, n, real)
    assert all((home/p).is_dir() for p in made), f'{made} were not foretold'
    assert ('takes' in said) == timed(verb, line)
    if timed(verb, line):
        takes = said['takes']
        assert takes['memory'] > 2**24 and takes['free'] > 0 and 0 < takes['seconds'] < 600
        assert takes['disk'] == (None if None in foretold.values() else sum(n for p, n in foretold.items() if not p.endswith('.Modelfile')))


REFUSED = {  # `{}/new` is not there, `{}/q` is
    'quantize {}/toy --plan {}/plan.json -o {}/q': 'exists',
    'quantize {}/toy --bits 5 -o {}/new': 'reach 1 to 4',
    'quantize {}/toy --bits 2 --quantizer gptq -o {}/new': 'needs calibration',
    'quantize {}/toy --bits 2 -o {}/s.csv/x': 'Not a directory',
    'quantize {}/toy --bits 2 -o {}/toy --overwrite': 'holds',
    'score {}/toy -o {}/s.csv': 'exists',
    'score {}/toy -o {}/toy --overwrite': 'is a folder',
    'score {}/toy -o {}/new --tail peek': 'tail rules are',
    'score {}/toy -o {}/new --shard 3': 'for example 2/8',
    'merge {}/part1.csv -o {}/new': '1 of 2 parts missing',
    'allocate {}/s.csv --bits 9 -o {}/new': 'reach 1 to 4',
    'allocate {}/s.csv --bits 2 -o {}/s.csv': 'exists',
    'frontier {}/plan.json -o {}/new': '',
    'export {}/plan.json --to gptq -o {}/new': 'did you mean gptqmodel',
    'export {}/toy --plan {}/plan.json --to compressed-tensors -o {}/new': 'the nearest with --nearest',
    'export {}/toy --plan {}/four.json --to gguf -o {}/new': 'no merges',
    'collect {}/s.csv pocket -o {}/new': 'table of another model',
    'tune {}/q {}/toy --calibration arithmetic --samples 7 --window 32 -o {}/new': 'at least 8 windows',
    'dequantize {}/toy -o {}/new': 'only quantized folders',
    'report {}/toy -o {}/new': 'not a folder that',
    'report {}/q -o {}/new --against {}/toy --text nothing.txt': "no text or file 'nothing.txt'",
    'report {}/q -o {}/s.csv': 'exists',
}


@pytest.mark.parametrize('line', REFUSED)
def test_a_rehearsal_refuses_what_the_run_refuses(home, line):
    shutil.rmtree(home/'new', ignore_errors=True)
    before = files(home)
    dry, real = run(home, *line.split(), '--dry-run'), run(home, *line.split())
    assert dry.exit_code == real.exit_code != 0 and dry.stderr == real.stderr and REFUSED[line] in dry.stderr
    assert dry.stdout == '' and len(dry.stderr.strip().splitlines()) == 1 and files(home) == before
    lines = run(home, *line.split(), '--json-lines')
    assert [*events(lines)][-1] == dict(event='error', text=dry.stderr.strip().split(': ', 1)[1], exit_code=dry.exit_code)


@pytest.mark.parametrize('line', ['quantize {}/toy --plan {}/plan.json', 'quantize {}/toy --bits 2.5', 'export {}/toy --plan {}/four.json --to gguf --pre none',
                                  'export {}/toy --plan {}/four.json --to compressed-tensors', 'dequantize {}/q', 'tune {}/q {}/toy --calibration arithmetic --samples 8 --window 32'])
def test_a_small_disk_is_told_before_any_work(home, line, monkeypatch):
    shutil.rmtree(home/'new', ignore_errors=True)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(2**30, 2**30, 1000))
    monkeypatch.setattr('alphaq.pipeline.score_all', None)  # would be called
    monkeypatch.setattr('alphaq.rounding._stream', None)
    before = files(home)
    for more in ((), ('--dry-run',)):
        done = run(home, *line.split(), '-o', '{}/new/x', *more)
        assert done.exit_code == 1 and 'are needed and 1000 B are free' in done.stderr and len(done.stderr.splitlines()) == 1
        assert files(home).keys() - before.keys() <= {'new'}


def events(done):
    "What a program reads on stderr."
    for line in done.stderr.splitlines():
        found = json.loads(line)
        assert found['event'] in ('progress', 'estimate', 'note', 'error'), line
        yield found


def check_events(home, verb, line, done):
    "Every line on stderr is an event; what is counted begins at nothing and reaches its total; what is foretold comes true."
    assert done.exit_code == 0 and json.loads(done.stdout)
    found = [*events(done)]
    counts = defaultdict(list)
    for e in found:
        if e['event'] != 'progress': continue
        if e['done'] == 0: counts[e['what']].append([])
        counts[e['what']][-1].append(e)
    for steps in (steps for runs in counts.values() for steps in runs):
        at = [s['done'] for s in steps]
        assert at == sorted({*at}) and {s['total'] for s in steps} == {at[-1]}
        assert all(s['seconds'] >= 0 for s in steps) and (steps[-1]['left'] == 0 or not at[-1])
    wanted = dict(score='scoring', quantize='quantizing', dequantize='dequantizing', verify='verifying', tune='tuning', eval='perplexity', collect='gradients', generate='writing').get(verb)
    wanted = 'divergence' if '--text' in line and verb == 'report' else wanted
    wanted = 'writing' if 'gguf' in line else 'packing' if 'compressed' in line else wanted
    assert not wanted or counts[wanted], [*counts]
    told = [e for e in found if e['event'] == 'estimate']
    assert len(told) == timed(verb, line)
    if told: assert told[0]['seconds'] is not None and 'why' not in told[0]
    if told and told[0]['disk'] and verb != 'score': assert told[0]['disk'] == nbytes(home/told[0]['out'])


@pytest.mark.parametrize('verb', READERS)
def test_lines_are_json_and_count_to_their_total(home, verb):
    check_events(home, verb, READERS[verb], run(home, verb, *READERS[verb].split(), '--json', '--json-lines'))


def test_a_run_that_was_stopped_is_rehearsed_too(home, monkeypatch):
    "What it left stays as it is, and is continued."
    shutil.rmtree(home/'new', ignore_errors=True)
    from alphaq import jobs, rounding
    def stopped(*args): raise KeyboardInterrupt
    for line, out, room in ((f'quantize {{}}/toy --bits 2.5', 'q', (rounding, '_write_shard')), ('score {}/toy', 's.csv', (jobs.Journal, 'add'))):
        with monkeypatch.context() as m:
            m.setattr(*room, stopped)
            assert run(home, *line.split(), '-o', f'{{}}/new/{out}').exit_code == 130
        before = files(home)
        assert f'new/{out}.partial' in before
        dry = run(home, *line.split(), '-o', f'{{}}/new/{out}', '--dry-run')
        assert dry.exit_code == 0 and files(home) == before, dry.output
        other = line.replace('2.5', '2') if '2.5' in line else f'{line} --tail median'
        dry = run(home, *other.split(), '-o', f'{{}}/new/{out}', '--dry-run')
        assert dry.exit_code == 1 and 'left from another run' in dry.stderr and files(home) == before
        assert run(home, *line.split(), '-o', f'{{}}/new/{out}').exit_code == 0
