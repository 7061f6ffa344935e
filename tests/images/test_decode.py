"""Every kind of file becomes upright RGB, or is refused by its reason."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from steinvae.data.images import decode as decoding
from steinvae.data.images.decode import PIXELS, decode, square
from steinvae.data.images.faults import DAMAGED, EMPTY, FOREIGN, HUGE, BadImage
from tests.images.trees import encode, png, smooth

PHOTO = smooth(40, 60)


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "WEBP"])
def test_the_content_decides_what_an_image_is(form):
    data = encode(PHOTO, form)
    assert np.array_equal(decode(data), pillow(data))


def test_grey_levels_are_repeated():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for form in ("PNG", "BMP"):
        assert np.array_equal(decode(encode(levels, form)), np.repeat(levels[..., None], 3, 2))
    grey = encode(PHOTO[..., 0].copy(), "JPEG")
    assert np.array_equal(decode(grey), pillow(grey))


def test_sixteen_bits_are_scaled_and_not_clipped():
    levels = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    exact = np.round(levels / 257).astype(np.uint8)
    assert np.array_equal(decode(file.getvalue())[..., 1], exact)


def test_cmyk_becomes_rgb():
    """Pillow's own files and Adobe's, whose inks are inverted, say so in their header."""
    file = io.BytesIO()
    Image.fromarray(PHOTO).convert("CMYK").save(file, "JPEG", quality=95)
    assert Image.open(io.BytesIO(file.getvalue())).mode == "CMYK"
    assert np.abs(decode(file.getvalue()).astype(int) - PHOTO).mean() < 3  # of JPEG


def test_what_is_transparent_is_white():
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[0, 0, 3] = 255
    out = decode(encode(pixels))
    assert out[0, 0].tolist() == [200, 0, 0]
    assert (out[1] == 255).all()
    palette = Image.fromarray(PHOTO).quantize(8)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=bytes([0, *[255] * 7]))
    index = np.asarray(palette)
    out = decode(file.getvalue())
    assert (out[index == 0] == 255).all()
    assert np.array_equal(out[index != 0], np.asarray(palette.convert("RGB"))[index != 0])


ACROSS = PHOTO.transpose(1, 0, 2)
UPRIGHT = {  # EXIF 2.3: where the first row and the first column of the file belong
    1: PHOTO,  # top, left
    2: PHOTO[:, ::-1],  # top, right
    3: PHOTO[::-1, ::-1],  # bottom, right
    4: PHOTO[::-1],  # bottom, left
    5: ACROSS,  # left, top
    6: ACROSS[:, ::-1],  # right, top
    7: ACROSS[::-1, ::-1],  # right, bottom
    8: ACROSS[::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_an_exif_orientation_is_carried_out(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG", exif=exif)
    assert np.array_equal(decode(file.getvalue()), UPRIGHT[orientation])


def test_a_large_jpeg_is_decoded_at_a_half_quarter_or_eighth_and_stays_sharp_enough():
    large = encode(smooth(900, 1200), "JPEG", quality=95)
    assert decode(large, 225).shape == (450, 600, 3)
    assert decode(large, 226).shape == (900, 1200, 3)
    assert decode(large, 30).shape == (113, 150, 3)
    shown = np.asarray(Image.fromarray(pillow(large)).resize((300, 225), Image.Resampling.BILINEAR))
    assert np.abs(square(large, 225).astype(int) - shown[:, 37:262]).max() <= 3


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (31, 97), (20, 20), (7, 9)])
def test_the_square_is_the_middle_of_pillows_resized_image(size):
    height, width = size
    pixels = smooth(height, width, seed=1)
    side, short = 20, min(size)
    tall, wide = side * height // short, side * width // short
    whole = Image.fromarray(pixels).resize((wide, tall), Image.Resampling.BILINEAR)
    top, left = (tall - side) // 2, (wide - side) // 2
    expected = np.asarray(whole)[top : top + side, left : left + side].astype(int)
    found = square(encode(pixels), side)
    assert found.shape == (side, side, 3)
    assert np.abs(found - expected).max() <= 1  # both filters round once to 8 bits a direction


def test_an_image_of_the_size_asked_for_is_untouched():
    assert np.array_equal(square(encode(PHOTO[:, :40].copy()), 40), PHOTO[:, :40])


WHOLE = encode(PHOTO, "JPEG")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", EMPTY),
        (b"no image", FOREIGN),
        (b"\x00" * 500, FOREIGN),
        (encode(PHOTO, "GIF"), FOREIGN),
        (encode(PHOTO, "TIFF"), FOREIGN),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", FOREIGN),
        (WHOLE[: len(WHOLE) // 2], DAMAGED),
        (encode(PHOTO)[:-80], DAMAGED),
        (png(30_000, 30_000), HUGE),
        (png(9_460, 9_460), HUGE),
        (png(1_000, 1_000), DAMAGED),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_what_is_no_image_is_refused_by_its_reason(data, reason):
    with pytest.raises(BadImage) as caught:
        decode(data)
    assert caught.value.reason == reason


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for side in (9_460, 30_000):  # Pillow warns at the first and raises at the second
        with pytest.raises(BadImage, match="pixels"):
            decode(png(side, side))


def test_an_image_so_thin_that_resizing_would_explode_is_refused():
    thin = encode(np.zeros((1, 60_000), dtype=np.uint8))
    assert PIXELS < 256 * 256 * 60_000
    with pytest.raises(BadImage, match="60000 x 1"):
        square(thin, 256)


@given(
    form=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_damage_gives_an_image_or_a_bad_image_and_nothing_else(form, changes, kept):
    data = bytearray(encode(PHOTO, form))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    if kept > 0.5:
        data = data[: int(kept * len(data))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels = decode(bytes(data))
        except BadImage:
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_running_out_of_memory_is_not_a_bad_image(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(decoding, "_decode", full)
    with pytest.raises(MemoryError):
        decode(WHOLE)


@pytest.mark.skipif(decoding.decode_jpeg is None, reason="simplejpeg is not installed")
@pytest.mark.parametrize("data", [WHOLE, encode(PHOTO[..., 0].copy(), "JPEG"), WHOLE[:-200]])
def test_simplejpeg_gives_what_pillow_gives(monkeypatch, data):
    def found() -> object:
        try:
            return decode(data).tolist()
        except BadImage as error:
            return error.reason

    fast = found()
    monkeypatch.setattr(decoding, "decode_jpeg", None)
    assert found() == fast


def test_without_simplejpeg_pillow_decodes(monkeypatch):
    monkeypatch.setattr(decoding, "decode_jpeg", None)
    assert np.array_equal(decode(WHOLE), pillow(WHOLE))


def test_a_complaint_of_simplejpeg_leaves_the_decision_to_pillow(monkeypatch):
    def complain(*_, **__):
        raise ValueError("extraneous bytes")

    monkeypatch.setattr(decoding, "decode_jpeg", complain)
    assert np.array_equal(decode(WHOLE), pillow(WHOLE))
