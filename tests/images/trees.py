"""Small trees of images in every form in which ImageNet is found, and files of every kind."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CLASSES = ("n01440764", "n02123045", "n04468005")
TRAIN, VAL = 10, 4  # images a class

Files = Mapping[str, bytes]  # by path below the root


def encode(pixels: np.ndarray, form: str = "PNG", **options: object) -> bytes:
    """(H, W[, 3]) uint8 as a file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3): a photograph's smoothness, so that JPEG keeps it."""
    stream = np.random.RandomState(seed)
    small = Image.fromarray(stream.randint(0, 256, (4, 5, 3)).astype(np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def coded(label: int, number: int, height: int = 9, width: int = 12) -> bytes:
    """A PNG whose red says its class and whose green which image of it it is."""
    return encode(np.full((height, width, 3), (50 + 60 * label, 10 * number, 7), dtype=np.uint8))


def codes(pixels: np.ndarray) -> tuple[int, int]:
    """Class and number of a coded image."""
    red, green, _ = (int(level) for level in pixels[0, 0])
    return (red - 50) // 60, green // 10


def images() -> tuple[dict[tuple[int, str], bytes], dict[tuple[int, str], bytes]]:
    """{(class, file name): content} of training and validation."""
    train = {
        (label, f"{name}_{i}.JPEG"): coded(label, i)
        for label, name in enumerate(CLASSES)
        for i in range(TRAIN)
    }
    order = [(label, i) for i in range(VAL) for label in (1, 0, 2)]
    val = {
        (label, f"ILSVRC2012_val_{number:08d}.JPEG"): coded(label, 15 + i)
        for number, (label, i) in enumerate(order, 1)
    }
    return train, val


def write(root: Path, files: Files) -> Path:
    """As files on the disk."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def as_tar(files: Files) -> bytes:
    """As the content of a tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def folders() -> dict[str, bytes]:
    """train/<class>/<image> and val/<class>/<image>."""
    train, val = images()
    return {
        **{f"train/{CLASSES[label]}/{name}": data for (label, name), data in train.items()},
        **{f"val/{CLASSES[label]}/{name}": data for (label, name), data in val.items()},
    }


def one_tar() -> dict[str, bytes]:
    """Everything in a tar, with the leading ./ that `tar cf x.tar .` writes."""
    return {"everything.tar": as_tar({f"./{name}": data for name, data in folders().items()})}


def shards() -> dict[str, bytes]:
    """Each split dealt out to three tars, classes mixed."""
    files = sorted(folders().items())
    parts: dict[str, dict[str, bytes]] = {}
    for number, (name, data) in enumerate(files):
        split, rest = name.split("/", 1)
        parts.setdefault(f"{split}/shard-{number % 3:04d}.tar", {})[rest] = data
    return {name: as_tar(part) for name, part in parts.items()}


def named_shards() -> dict[str, bytes]:
    """The same, the split in the name of the tar."""
    return {f"set-{name.replace('/', '-')}": data for name, data in shards().items()}


def _ilsvrc() -> tuple[dict[str, bytes], list[int]]:
    """The two archives of image-net.org: tars in a tar, and flat validation images."""
    train, val = images()
    inner = {
        f"{name}.tar": as_tar({file: data for (at, file), data in train.items() if at == label})
        for label, name in enumerate(CLASSES)
    }
    flat = {name: data for (_, name), data in sorted(val.items(), key=lambda item: item[0][1])}
    archives = {"ILSVRC2012_img_train.tar": as_tar(inner), "ILSVRC2012_img_val.tar": as_tar(flat)}
    return archives, [label for label, _ in sorted(val, key=lambda key: key[1])]


IDS = {2: 1, 0: 2, 1: 3}  # class -> ILSVRC2012_ID: another order than that of the names


def development_kit() -> dict[str, bytes]:
    """With numbers a line and meta.mat."""
    archives, labels = _ilsvrc()
    rows = [(IDS[label], name, "words") for label, name in enumerate(CLASSES)]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, dtype=kind)})
    kit = "ILSVRC2012_devkit_t12/data"
    numbers = "".join(f"{IDS[label]}\n" for label in labels)
    truth = {f"{kit}/ILSVRC2012_validation_ground_truth.txt": numbers.encode()}
    return {**archives, **truth, f"{kit}/meta.mat": file.getvalue()}


def kaggle() -> dict[str, bytes]:
    """Training in folders, validation flat, the classes in a CSV without endings."""
    train, val = images()
    lines = ["ImageId,PredictionString"]
    lines += [f"{name[:-5]},{CLASSES[label]} 1 2 3 4 " for label, name in sorted(val, reverse=True)]
    return {
        **{f"train/{CLASSES[label]}/{name}": data for (label, name), data in train.items()},
        **{f"val/{name}": data for (_, name), data in val.items()},
        "LOC_val_solution.csv": ("\n".join(lines) + "\n").encode(),
        "test/ILSVRC2012_test_00000001.JPEG": coded(0, 0),
    }


def tiny() -> dict[str, bytes]:
    """Tiny ImageNet's layout."""
    train, val = images()
    boxes = {f"train/{name}/{name}_boxes.txt": b"a\t0\t0\t1\t1\n" for name in CLASSES}
    lines = [f"{name}\t{CLASSES[label]}\t0\t0\t9\t9\n" for label, name in val]
    return {
        **{f"train/{CLASSES[label]}/images/{name}": data for (label, name), data in train.items()},
        **boxes,
        **{f"val/images/{name}": data for (_, name), data in val.items()},
        "val/val_annotations.txt": "".join(lines).encode(),
        "test/images/test_0.JPEG": coded(0, 0),
    }


FORMS = {
    form.__name__: form
    for form in (folders, one_tar, shards, named_shards, development_kit, kaggle, tiny)
}


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size, whatever its data are."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
