"""Data sets as uint8 pixels in memory, and sampling that needs no state to resume.

`load("digits", None, binarization="fixed")` works offline; other sets read files in `data.root`.
A further data set is one module with a function under `@register(name)`, imported here.
"""

from steinvae.data import binarized_mnist, digits, mnist
from steinvae.data.binarize import BINARIZATION_SEED
from steinvae.data.dataset import Binarization, Dataset, Examples, Split
from steinvae.data.registry import load, names, register
from steinvae.data.sampling import BatchSampler, step_generator

__all__ = [
    "BINARIZATION_SEED",
    "BatchSampler",
    "Binarization",
    "Dataset",
    "Examples",
    "Split",
    "binarized_mnist",
    "digits",
    "load",
    "mnist",
    "names",
    "register",
    "step_generator",
]
