__version__ = "0.1.0"
from alphaq.hook import install as _install
_install()  # transformers learns to read quantized folders when it is imported, before us or after; loads neither it nor torch
