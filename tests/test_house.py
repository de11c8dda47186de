"What is said in two places is the same in both."
import importlib.metadata, re
from configparser import ConfigParser

import yaml
from packaging.requirements import Requirement

import alphaq
from conftest import ROOT

ini = ConfigParser(delimiters=['='])
ini.read(ROOT/'settings.ini')
CFG = ini['DEFAULT']

def test_one_version():
    said = {CFG['version'], alphaq.__version__, importlib.metadata.version('alphaq'), yaml.safe_load((ROOT/'CITATION.cff').read_text())['version']}
    assert len(said) == 1, f'versions differ: {said}; settings.ini leads'

def test_pins_lie_in_the_ranges():
    wanted = [Requirement(r) for key in CFG if key.endswith('requirements') for r in CFG[key].split()]
    pins = [Requirement(line) for line in (ROOT/'constraints.txt').read_text().splitlines() if line and not line.startswith('#')]
    for pin in pins:
        (exact,) = pin.specifier
        outside = [str(w) for w in wanted if w.name == pin.name and not w.specifier.contains(exact.version)]
        assert exact.operator == '==' and not outside, f'constraints.txt: {pin} against {outside}'
    assert {'torch', 'transformers', 'nbdev'} <= {pin.name for pin in pins}

def test_what_the_package_carries():
    assert (ROOT/'alphaq/py.typed').is_file() and 'Apache License' in (ROOT/'LICENSE').read_text()
    assert [e.value for e in importlib.metadata.distribution('alphaq').entry_points if e.name == 'alphaq' and e.group == 'console_scripts'] == ['alphaq.cli:main']

def test_readme_is_short_and_names_what_exists():
    text = (ROOT/'README.md').read_text()
    assert sum(bool(re.search(r'\w', word)) for word in text.split()) <= 500
    targets = re.findall(r'^([a-z]+):', (ROOT/'Makefile').read_text(), re.M)
    missing = [t for t in re.findall(r'\bmake ([a-z]+)', text) if t not in targets]
    assert not missing, f'README.md names targets that do not exist: {missing}'
    broken = [link for link in re.findall(r'\]\((?!http)([^)#]+)\)', text) if not (ROOT/link).exists()]
    assert not broken, f'README.md links to nothing: {broken}'

def foreign_calls(source):
    "Calls that could run a model's own code, with whether they forbid it."
    import ast
    for node in ast.walk(ast.parse(source)):
        name = getattr(getattr(node, 'func', None), 'attr', None) or getattr(getattr(node, 'func', None), 'id', None)
        if name in ('from_pretrained', 'from_config', 'HFLM', 'pipeline'):
            said = {k.arg: getattr(k.value, 'value', None) for k in node.keywords}
            shared = any(k.arg is None for k in node.keywords)  # `**ours`: looked for in the text
            yield node.lineno, said.get('trust_remote_code') is False or shared and 'trust_remote_code=False' in source

def test_no_code_of_a_folder_runs():
    trusting = [f'{p.name}:{line}' for p in (ROOT/'alphaq').rglob('*.py') for line, safe in foreign_calls(p.read_text()) if not safe]
    assert not trusting, f'{trusting}: say trust_remote_code=False; a folder may hold programs of strangers'
    assert [safe for _, safe in foreign_calls('A.from_pretrained(f)\nB.from_config(c, trust_remote_code=True)\nHFLM(m, trust_remote_code=False)')] == [False, False, True]
