"""Bits for mixture-of-experts language models, allocated from the weights alone.

From a checkpoint to a smaller one (chapter 68 walks through it):

    from alphaq.checkpoint import open_checkpoint
    from alphaq.scores import score
    from alphaq.noise import measured_noise
    from alphaq.allocation import allocate
    from alphaq.methods import Settings
    from alphaq.plans import make_plan
    from alphaq.rounding import Job, quantize

    checkpoint = open_checkpoint('pocket')
    scores = score(checkpoint, measure=lambda W: measured_noise(W, 128))
    chosen = allocate(scores, Settings(bits=2.5))
    quantize(Job(checkpoint, make_plan(scores, chosen, 'pocket')), 'OUT')

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained('OUT')

A module is loaded when it is first named, so that `import alphaq` costs nothing.
"""
__version__ = "0.1.0"
from alphaq.hook import install as _install
_install()  # transformers learns to read quantized folders when it is imported, before us or after; loads neither it nor torch

def __dir__():
    from pkgutil import iter_modules
    return sorted({'__doc__', '__version__', *(m.name for m in iter_modules(__path__) if not m.name.startswith('_'))})

def __getattr__(name):
    from importlib import import_module
    if name.startswith('_') or name not in __dir__(): raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return import_module(f'{__name__}.{name}')
