"""Images in files, as ImageNet is kept: decoded when they are asked for, or packed once.

`load_image_folder(root)` reads a tree of folders or tars, `load_packed(out)` what
`python -m steinvae.data.pack ROOT OUT` made of it; both give an `ImageDataset`, whose training
split an `ImageLoader` turns into uint8 batches; `load_images` is what `data.name image_folder`
of a training run means.
"""

from steinvae.data.images.faults import BadRecords
from steinvae.data.images.load import load_image_folder
from steinvae.data.images.loader import ImageBatch, ImageLoader
from steinvae.data.images.packed import load_images, load_packed
from steinvae.data.images.split import IMAGENET_MEAN, ImageDataset, ImageSplit, centred

__all__ = [
    "IMAGENET_MEAN",
    "BadRecords",
    "ImageBatch",
    "ImageDataset",
    "ImageLoader",
    "ImageSplit",
    "centred",
    "load_image_folder",
    "load_images",
    "load_packed",
]
