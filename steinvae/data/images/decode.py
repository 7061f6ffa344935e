"""From the bytes of a file to a square of uint8 pixels, or to the reason why there is none.

The content decides what a file is, never its name. Pillow decodes; where simplejpeg is installed
(the extra `jpeg`) it decodes what it finds without fault, to the same pixels, in two thirds
to three quarters of the time.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from steinvae.data.images.faults import DAMAGED, EMPTY, FOREIGN, HUGE, BadImage

decode_jpeg: Callable[..., np.ndarray] | None
try:
    from simplejpeg import decode_jpeg  # type: ignore[import-not-found,no-redef]
except ImportError:
    decode_jpeg = None

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
"""What is opened. Not all that Pillow knows: it hands EPS to an interpreter, for one."""

PIXELS = 89_478_485
"""Pixels of the largest image, Pillow's own limit: a quarter of a gigabyte as RGB."""

_GAP = 2  # a JPEG is decoded at 1/2, 1/4 or 1/8 only where this many times the side remains
_ORIENTATION = 0x0112  # the EXIF tag


def square(data: bytes, side: int) -> np.ndarray:
    """The central square of an image whose short side has become `side` pixels.

    Krizhevsky et al. 2012, section 2, whom the paper follows (section 5.3, ImageNet): the shorter
    side is rescaled to `side`, the longer one in proportion (rounded down), and of that the middle
    is kept. The filter is antialiased bilinear.

    Shapes: -> (side, side, 3) uint8, RGB. Errors: `BadImage`.
    """
    pixels = decode(data, side)
    height, width = pixels.shape[:2]
    short = min(height, width)
    tall, wide = side * height // short, side * width // short
    if tall * wide > PIXELS:
        raise BadImage(HUGE, f"{width} x {height}, so {wide} x {tall} at a short side of {side}")
    if (tall, wide) != (height, width):
        # torch, on uint8: a third of the time of Pillow's filter, from which it differs by one
        # grey level in 3 pixels of 1,000
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        planes = F.interpolate(planes, size=(tall, wide), mode="bilinear", antialias=True)
        pixels = planes[0].permute(1, 2, 0).numpy()
    top, left = (tall - side) // 2, (wide - side) // 2
    return pixels[top : top + side, left : left + side]


def decode(data: bytes, side: int = PIXELS) -> np.ndarray:
    """All pixels of an image, upright, as RGB.

    Grey levels are repeated, 16 bits scaled to 8 by 255/65535, CMYK converted, transparency laid
    on white, an EXIF orientation carried out, the first of several frames taken. A JPEG much larger
    than `side` is decoded at a half, a quarter or an eighth of its size, no smaller than 2 `side`.

    Shapes: -> (H, W, 3) uint8. Errors: `BadImage`.
    """
    if not data:
        raise BadImage(EMPTY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on EXIF blocks and sizes: decided here
        try:
            return _decode(data, side)
        except (BadImage, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise BadImage(HUGE, str(error)) from error
        except Image.UnidentifiedImageError as error:
            raise BadImage(FOREIGN) from error
        except Exception as error:  # damaged bytes make Pillow raise nearly anything
            raise BadImage(DAMAGED, f"{type(error).__name__}: {error}") from error


def _decode(data: bytes, side: int) -> np.ndarray:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > PIXELS:
        raise BadImage(HUGE, f"{image.width} x {image.height}")
    turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    size = image.size
    if image.format == "JPEG":
        image.draft("", (_GAP * side, _GAP * side))
    plain = image.mode in ("RGB", "L") and image.size == size and not turned
    if decode_jpeg is not None and plain and image.format == "JPEG":
        try:
            return decode_jpeg(data, strict=True)
        except ValueError:
            plain = False  # Pillow decides, so that both find the same images bad
    image.load()
    if turned:
        image = ImageOps.exif_transpose(image)
    return _rgb(image)


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise BadImage(DAMAGED, f"levels {deep.min()}..{deep.max()} where 16 bits are expected")
        return np.repeat(((deep + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    image = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(image)  # a copy: torch wants writable memory
