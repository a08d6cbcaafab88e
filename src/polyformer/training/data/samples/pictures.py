"""Pictures with labels or questions: Fashion-MNIST (Debian), handwritten digits (scikit-learn), easy-VQA (PyPI)."""

from __future__ import annotations

import importlib
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.errors import ConfigError
from polyformer.training.data.cleaning import part_of
from polyformer.training.data.files import open_bytes
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import debian_package, wheel, wheel_member
from polyformer.training.data.samples.storing import SHARES, SPLITS

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
_EASY_VQA, _EASY_VQA_VERSION = "easy-vqa", "1.0"
_ANSWERS = (
    "circle",
    "green",
    "red",
    "gray",
    "yes",
    "teal",
    "black",
    "rectangle",
    "yellow",
    "triangle",
    "brown",
    "blue",
    "no",
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


def _fetch_digits(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    try:
        sklearn = importlib.import_module("sklearn")
        digits = importlib.import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise ConfigError("the digits come with scikit-learn: pip install scikit-learn") from error
    np.savez(folder / "digits.npz", images=digits.images.astype(np.uint8), labels=digits.target.astype(np.uint8))
    return {"scikit-learn": sklearn.__version__}


def _read_digits(folder: Path) -> Iterator[Document]:
    with np.load(folder / "digits.npz") as stored:
        images, labels = stored["images"], stored["labels"]
    for number, (image, label) in enumerate(zip(images, labels)):
        # Ink from 0 to 16; beside other pictures, white is 255.
        picture = np.minimum(image.astype(np.uint16) * 16, 255).astype(np.uint8)
        yield {"image": picture, "label": int(label), "split": part_of(f"digit {number}", SHARES)}


def _fetch_questions(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    path = wheel(_EASY_VQA, _EASY_VQA_VERSION, folder, progress)
    wheel_member(path, "easy_vqa/data/train/questions.json")
    path.rename(folder / "easy_vqa.zip")
    return {_EASY_VQA: _EASY_VQA_VERSION}


def _read_questions(folder: Path) -> Iterator[Document]:
    from PIL import Image

    with zipfile.ZipFile(folder / "easy_vqa.zip") as opened:
        for split in ("train", "test"):
            last, image = -1, np.zeros(0, np.uint8)
            for question, answer, number in json.loads(opened.read(f"easy_vqa/data/{split}/questions.json")):
                if number != last:  # questions about one picture stand together
                    data = opened.read(f"easy_vqa/data/{split}/images/{number}.png")
                    last, image = number, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                label = _ANSWERS.index(answer)
                yield {"image": image, "question": question, "answer": answer, "label": label, "split": split}


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
    Sample(
        name="digits",
        description="1,797 handwritten digits, 8 x 8",
        licence="BSD-3-Clause (scikit-learn); the pictures are of the UCI repository, CC-BY-4.0",
        source="PyPI scikit-learn, as it is installed",
        fields={"image": "bytes [8, 8], 0 is black", "label": "0 to 9"},
        splits=SPLITS,
        labels=tuple("0123456789"),
        fetch=_fetch_digits,
        read=_read_digits,
    ),
    Sample(
        name="easy-vqa",
        description="48,000 questions about 5,000 pictures of one shape each, and their answers",
        licence="MIT",
        source=f"PyPI {_EASY_VQA} {_EASY_VQA_VERSION}",
        fields={
            "image": "bytes [64, 64, 3]",
            "question": "about it",
            "answer": "one word",
            "label": "the number of the answer",
        },
        splits=("train", "test"),
        labels=_ANSWERS,
        fetch=_fetch_questions,
        read=_read_questions,
    ),
)
