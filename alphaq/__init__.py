"""Bits for mixture-of-experts language models, allocated from the weights alone.

    import alphaq
    model  = alphaq.open('pocket')            # a folder, a GGUF file, a hub id, an address
    scores = alphaq.score(model)              # alpha, variance and rounding error of every expert matrix
    plan   = alphaq.plan(scores, bits=2.5)    # a width for each, under a budget
    alphaq.quantize(model, plan, 'OUT')       # a folder that transformers opens
    alphaq.verify('OUT', against=model)
    llm, tokenizer = alphaq.load('OUT')
"""
__version__ = "0.1.0"
from alphaq.hook import install as _install
_install()  # transformers learns to read quantized folders when it is imported, before us or after; loads neither it nor torch

_VERBS = ('open', 'score', 'plan', 'quantize', 'verify', 'load')  # of `alphaq.pipeline`; loaded when first named, like every module

def __dir__():
    from pkgutil import iter_modules
    return sorted({'__doc__', '__version__', *_VERBS, *(m.name for m in iter_modules(__path__) if not m.name.startswith('_'))})

def __getattr__(name):
    from importlib import import_module
    if name in _VERBS: return getattr(import_module(f'{__name__}.pipeline'), name)
    if name.startswith('_') or name not in __dir__(): raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return import_module(f'{__name__}.{name}')
