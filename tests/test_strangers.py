"Quantized folders, opened by interpreters that never heard of us, that import alphaq first, and where it is installed."
import os, subprocess, sys

import pytest
from transformers import AutoModelForCausalLM

import alphaq
from alphaq.families import FAMILIES
from alphaq.hook import CURE_KEY
from alphaq.lab.toys import tiny_model
from conftest import ROOT

STRANGER = """
import sys
from transformers import AutoModelForCausalLM
def load(folder, **options):
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
        print('loaded', *{type(m).__name__ for name, m in model.named_modules() if name.endswith('.experts')})
    except Exception as e: print(type(e).__name__, e)
    sys.stdout.flush()
for folder in sys.argv[1:]: load(folder); load(folder, experts_implementation='eager')
import alphaq
for folder in sys.argv[1:]: load(folder); load(folder, experts_implementation='eager')
"""
USER = """
import sys
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1]).model.layers[0].mlp.experts).__name__)
"""
FRIEND = 'import alphaq' + USER

@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "One of each family, as `quantize` writes it, and some as transformers saves them again, in one file and in several."
    home, made = tmp_path_factory.mktemp('folders'), []
    for family in FAMILIES:
        tiny_model(family).save_pretrained(home/f'{family}-plain')
        made.append(alphaq.quantize(home/f'{family}-plain', 2.5, home/family).path)
    for family, size in (('olmoe', '20KB'), ('mixtral', '5GB'), ('gpt_oss', '5GB')):
        AutoModelForCausalLM.from_pretrained(home/family).save_pretrained(home/f'{family}-again', max_shard_size=size)
        made.append(home/f'{family}-again')
        assert (len([*made[-1].glob('*.safetensors')]) > 1) == (family == 'olmoe')
    return [home/'olmoe-again', *made]  # the first is what a friend opens

@pytest.fixture(scope='module')
def started(folders, tmp_path_factory):
    "What each of the three printed, and said beside."
    installed = tmp_path_factory.mktemp('installed')  # what an installation leaves for other programs
    subprocess.run([sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', installed], cwd=ROOT, check=True, capture_output=True)
    alone = os.environ | {'TORCH_DEVICE_BACKEND_AUTOLOAD': '0'}
    there = os.environ | {'PYTHONPATH': f'{installed}{os.pathsep}{ROOT}'}
    asked = dict(stranger=(STRANGER, alone), friend=(FRIEND, alone), user=(USER, there))
    running = {who: subprocess.Popen([sys.executable, '-c', code, *folders], env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for who, (code, env) in asked.items()}
    return {who: p.communicate() for who, p in running.items()}

def test_strangers_are_told_the_cure_and_it_cures(folders, started):
    "Refused before a weight is read; who overrules that meets empty tensors, and the cure in the report; after the advice, in the same session, all open."
    said, report = started['stranger'][0].splitlines(), started['stranger'][1]
    assert len(said) == 4 * len(folders), started['stranger']
    refused, overruled = said[:2 * len(folders):2], said[1:2 * len(folders):2]
    assert all(line.startswith('ValueError') and 'import alphaq' in line for line in refused), (refused, report)
    assert all(line.startswith('RuntimeError') for line in overruled), (overruled, report)
    assert report.count(CURE_KEY) == len(folders), report
    assert said[2 * len(folders):] == ['loaded AlphaqExperts'] * 2 * len(folders), (said, report)

@pytest.mark.parametrize('who', ('friend', 'user'))
def test_friends_open_it_without_a_word(started, who):
    said, warned = started[who]
    assert said.strip() == 'AlphaqExperts' and 'LOAD REPORT' not in warned, warned
