"""CTranslate2's ``model.bin``, binary version 6: named variables one after the other, then aliases.

Source: ``python/ctranslate2/specs/model_spec.py`` of the CTranslate2 project, which writes the file. Lengths read from
the file are never trusted: each is compared with the bytes that are left before anything is read.
"""

from __future__ import annotations

import json
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyformer.errors import CheckpointError

CTRANSLATE2_FILE = "model.bin"
BINARY_VERSION = 6

_DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class _Variable:
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    nbytes: int


class CTranslate2File:
    """An open ``model.bin``. Weights in eight or sixteen bits with scales beside them are given as floating numbers.

    Attributes:
        path: the file.
        spec: what kind of model it says it is ("WhisperSpec").
        numbers: its variables without dimensions (``"encoder/num_heads"``).

    Raises:
        CheckpointError: the file is cut short, damaged, or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise CheckpointError(f"{self.path} is empty: fetch it again") from error
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from error
        self._at = 0
        version = self._scalar("I", "the version")
        if version != BINARY_VERSION:
            raise CheckpointError(
                f"{self.path} is no CTranslate2 file of version {BINARY_VERSION} (it says {version}): convert the "
                "model again with a CTranslate2 of version 3 or later"
            )
        self.spec = self._string("the kind of model")
        self.revision = self._scalar("I", "the revision")
        self._variables: dict[str, _Variable] = {}
        self.numbers: dict[str, float] = {}
        for _ in range(self._scalar("I", "the number of variables")):
            self._read_variable()
        self.aliases = {
            self._string("an alias"): self._string("an alias") for _ in range(self._scalar("I", "the aliases"))
        }
        if self._at != len(self._data):
            raise CheckpointError(
                f"{self.path} is damaged: {len(self._data) - self._at:,} bytes follow its end; fetch it again"
            )

    def _need(self, count: int, what: str) -> None:
        if count > len(self._data) - self._at:
            raise CheckpointError(
                f"{self.path} is cut short: {what} needs {count:,} bytes at byte {self._at:,}, and the file ends at "
                f"{len(self._data):,}; fetch it again"
            )

    def _scalar(self, code: str, what: str) -> int:
        size = struct.calcsize("<" + code)
        self._need(size, what)
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += size
        return int(value)

    def _string(self, what: str) -> str:
        length = self._scalar("H", what)
        self._need(length, what)
        raw = self._data[self._at : self._at + length]
        self._at += length
        try:
            return raw.rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path} is damaged at byte {self._at:,}: {what} is no text") from error

    def _read_variable(self) -> None:
        name = self._string("the name of a variable")
        rank = self._scalar("B", name)
        if rank > _MOST_DIMENSIONS:
            raise CheckpointError(f"{self.path} is damaged at byte {self._at:,}: {name} has {rank} dimensions")
        shape = tuple(self._scalar("I", name) for _ in range(rank))
        kind = self._scalar("B", name)
        if kind >= len(_DTYPES):
            raise CheckpointError(f"{self.path} is damaged at byte {self._at:,}: {name} has the unknown type {kind}")
        dtype, nbytes = _DTYPES[kind], self._scalar("I", name)
        count = 1
        for size in shape:
            count *= size
        if nbytes != count * dtype.itemsize:
            raise CheckpointError(
                f"{self.path} is damaged at byte {self._at:,}: {name} {list(shape)} cannot take {nbytes:,} bytes"
            )
        self._need(nbytes, name)
        variable = _Variable(shape, dtype, self._at, nbytes)
        self._at += nbytes
        if rank == 0:
            self.numbers[name] = float(self._read(variable))
        else:
            self._variables[name] = variable

    def _read(self, variable: _Variable) -> Tensor:
        if variable.nbytes == 0:
            return torch.empty(variable.shape, dtype=variable.dtype)
        raw = torch.frombuffer(
            bytearray(self._data[variable.start : variable.start + variable.nbytes]), dtype=torch.uint8
        )
        return raw.view(variable.dtype).reshape(variable.shape)

    def names(self) -> list[str]:
        """The names of all weights. Scales belong to the weight before them and have none."""
        return [name for name in self._variables if not name.endswith("_scale")]

    def _find(self, name: str) -> _Variable:
        if name not in self._variables:
            raise CheckpointError(f"{self.path} has no tensor {name!r}")
        return self._variables[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._find(name).shape

    def dtype(self, name: str) -> torch.dtype:
        dtype = self._find(name).dtype
        return torch.float32 if self._is_scaled(name) else dtype

    def nbytes(self, name: str) -> int:
        return self._find(name).nbytes

    def is_quantized(self, name: str) -> bool:
        """Whether the weight is stored as whole numbers with scales."""
        return self._is_scaled(name)

    def _is_scaled(self, name: str) -> bool:
        return not self._find(name).dtype.is_floating_point and (
            f"{name}_scale" in self._variables or f"{name}_scale" in self.numbers
        )

    def load(self, name: str, dtype: torch.dtype | None = None, *, keep_mapped: bool = True) -> Tensor:
        """One weight; see `TensorSource.load`. It is always a copy: places in the file are not aligned."""
        tensor = self._read(self._find(name))
        if self._is_scaled(name):
            if f"{name}_scale" in self._variables:
                scale = self._read(self._variables[f"{name}_scale"]).float()
                scale = scale.reshape(-1, *[1] * (tensor.dim() - 1)) if scale.numel() > 1 else scale
            else:
                scale = torch.tensor(self.numbers[f"{name}_scale"])
            tensor = tensor.float() / scale
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        return tensor

    def close(self) -> None:
        self._data.close()

    def __enter__(self) -> CTranslate2File:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def is_ctranslate2(folder: Path) -> bool:
    """Whether the weights of a folder are a CTranslate2 file."""
    path = folder / CTRANSLATE2_FILE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in {version.to_bytes(4, "little") for version in range(1, 16)}


def read_config(folder: Path) -> dict[str, Any]:
    """Their ``config.json``; empty where there is none.

    Raises:
        CheckpointError: it is not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): fetch it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object: fetch it again")
    return values
