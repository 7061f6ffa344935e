"""Data sets in memory, images as uint8 pixels and documents as compressed rows of counts, and
sampling that needs no state to resume.

`load("digits", None, binarization="fixed")` works offline; other sets read files in `data.root`.
A further data set is one module with a function under `@register(name)`, imported here.
"""

from steinvae.data import bag_of_words, binarized_mnist, digits, mnist
from steinvae.data.binarize import BINARIZATION_SEED
from steinvae.data.dataset import Binarization, Dataset, Examples, Split
from steinvae.data.documents import CountDataset, Documents
from steinvae.data.labelled import LabelledSampler, choose_labelled
from steinvae.data.registry import load, names, register, register_counts
from steinvae.data.sampling import BatchSampler, step_generator

__all__ = [
    "BINARIZATION_SEED",
    "BatchSampler",
    "Binarization",
    "CountDataset",
    "Dataset",
    "Documents",
    "Examples",
    "LabelledSampler",
    "Split",
    "bag_of_words",
    "binarized_mnist",
    "choose_labelled",
    "digits",
    "load",
    "mnist",
    "names",
    "register",
    "register_counts",
    "step_generator",
]
