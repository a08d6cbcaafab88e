"""Labelled pictures: Fashion-MNIST, out of a Debian package."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.training.data.files import open_bytes
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import debian_package

_FASHION = "dataset-fashion-mnist"
_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_PREFIXES = {"train": "train", "test": "t10k"}


def _fetch_fashion(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    unpacked = folder / "package"
    unpacked.mkdir()
    version = debian_package(_FASHION, unpacked, progress)
    for prefix in _PREFIXES.values():
        for name in (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz"):
            found = unpacked / "usr/share/datasets/fashion-mnist" / name
            if not found.is_file():
                raise CorruptDownloadError(f"{_FASHION} holds no file {name}")
            found.rename(folder / name)
    shutil.rmtree(unpacked)
    return {_FASHION: version}


def _read_fashion(folder: Path) -> Iterator[Document]:
    for split, prefix in _PREFIXES.items():
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        if len(images) != len(labels):
            raise CorruptDownloadError(f"{folder}: {len(images)} pictures and {len(labels)} labels of {split}")
        for image, label in zip(images, labels):
            yield {"image": image, "label": int(label), "split": split}


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """An array of bytes in LeCun's format: two zeros, the kind (8: bytes), the number of axes, each axis, the data.

    Raises:
        CorruptDownloadError: it is something else, or cut off.
    """
    with open_bytes(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != b"\0\0\x08":
            raise CorruptDownloadError(f"{path} is no array of bytes in IDX format: remove it and fetch it again")
        shape = [int.from_bytes(file.read(4), "big") for _ in range(head[3])]
        data = file.read()
    if len(data) != int(np.prod(shape)):
        raise CorruptDownloadError(f"{path} holds {len(data):,} bytes and says {shape}: remove it and fetch it again")
    return np.frombuffer(data, np.uint8).reshape(shape)


SAMPLES = (
    Sample(
        name="fashion-mnist",
        description="70,000 grey pictures of clothes, 28 x 28, in ten classes",
        licence="MIT",
        source=f"Debian {_FASHION}",
        fields={"image": "bytes [28, 28], 0 is black", "label": "0 to 9"},
        splits=("train", "test"),
        labels=_CLASSES,
        fetch=_fetch_fashion,
        read=_read_fashion,
    ),
)
