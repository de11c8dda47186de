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
    assert len(text.split()) <= 500
    targets = re.findall(r'^([a-z]+):', (ROOT/'Makefile').read_text(), re.M)
    missing = [t for t in re.findall(r'\bmake ([a-z]+)', text) if t not in targets]
    assert not missing, f'README.md names targets that do not exist: {missing}'
    broken = [link for link in re.findall(r'\]\((?!http)([^)#]+)\)', text) if not (ROOT/link).exists()]
    assert not broken, f'README.md links to nothing: {broken}'
