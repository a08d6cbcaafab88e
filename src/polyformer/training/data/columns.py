"""The files of a store: one column of all documents each, written from front to back and mapped into memory to read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from polyformer.errors import DataError


class ColumnReader(Protocol):
    """The values of a column, by number of document."""

    def __getitem__(self, index: int) -> Any: ...


class ColumnWriter(Protocol):
    """Writes one value after another."""

    def write(self, value: Any, where: str) -> None:
        """
        Raises:
            DataError: a value of another kind than those before; ``where`` tells which.
        """
        ...

    def finish(self) -> dict[str, Any]:
        """Bring all to the disk; what `open_column` needs to know of it."""
        ...

    def close(self) -> None: ...


class _File:
    """A file that only grows."""

    def __init__(self, folder: Path, name: str, dtype: Any):
        self.dtype = np.dtype(dtype)
        self.count = 0
        self._path = folder / name
        with self._told():
            self._file = self._path.open("wb")

    def write(self, values: Any) -> None:
        """Numbers, counted one by one."""
        array = np.ascontiguousarray(values, self.dtype)
        with self._told():
            self._file.write(array.data)
        self.count += array.size

    def write_bytes(self, data: bytes) -> None:
        """Bytes, counted one by one."""
        with self._told():
            self._file.write(data)
        self.count += len(data)

    def finish(self) -> None:
        """All that was written is on the disk."""
        with self._told():
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of bytes that are not needed: `finish` has seen to the others
            self._file.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"cannot write {self._path} of a store: {error.strerror or error}; make room or choose another folder"
            ) from error


class ListWriter:
    """Lists of whole numbers of any length: one file of all of them, one of where each document's begin."""

    kind = "list"

    def __init__(self, folder: Path, name: str, dtype: Any = np.int64):
        self._numbers = _File(folder, f"{name}.bin", dtype)
        self._offsets = _File(folder, f"{name}.offsets.bin", np.int64)
        self._offsets.write([0])

    def write(self, value: Any, where: str) -> None:
        """See `ColumnWriter`."""
        array = _array(value, where)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iub"):
            raise DataError(f"{where} is {_kind(value)}, but those before are lists of whole numbers")
        self.write_many(array, np.array([len(array)]))

    def write_many(self, numbers: np.ndarray, lengths: np.ndarray) -> None:
        """All numbers of some documents, and how many each has."""
        self._offsets.write(self._numbers.count + np.cumsum(lengths))
        self._numbers.write(numbers)

    def finish(self) -> dict[str, Any]:
        """See `ColumnWriter`."""
        self._numbers.finish()
        self._offsets.finish()
        return {"kind": self.kind, "dtype": self._numbers.dtype.name, "count": self._numbers.count}

    def close(self) -> None:
        """See `ColumnWriter`."""
        self._numbers.close()
        self._offsets.close()


class TokenWriter(ListWriter):
    """Token ids, in the smallest type that holds them."""

    kind = "tokens"


class ArrayWriter:
    """Numbers or arrays, all of one shape and type: labels, multi-hot labels, pictures."""

    def __init__(self, folder: Path, name: str, first: Any):
        array = np.asarray(first)
        self._shape = array.shape
        self._whole = array.dtype.kind in "iub"
        dtype = np.uint8 if array.dtype == np.uint8 else np.int64 if self._whole else np.float64
        self._file = _File(folder, f"{name}.bin", dtype)

    def write(self, value: Any, where: str) -> None:
        """See `ColumnWriter`."""
        array = _array(value, where)
        if array.shape != self._shape or array.dtype.kind not in "iubf":
            shape = f"of shape {list(self._shape)}: make all of one size" if self._shape else "single numbers"
            raise DataError(f"{where} is {_kind(value)}, but those before are {shape}")
        if self._whole and array.dtype.kind == "f":
            raise DataError(f"{where} is {value}, but those before are whole numbers: write them all with a point")
        if self._file.dtype == np.uint8 and array.dtype != np.uint8:
            raise DataError(f"{where} is {_kind(value)}, but those before are arrays of uint8")
        self._file.write(array)

    def finish(self) -> dict[str, Any]:
        """See `ColumnWriter`."""
        self._file.finish()
        return {"kind": "array", "dtype": self._file.dtype.name, "shape": list(self._shape)}

    def close(self) -> None:
        """See `ColumnWriter`."""
        self._file.close()


class TextWriter:
    """Strings: lines of JSON, and where each line begins."""

    def __init__(self, folder: Path, name: str):
        self._lines = _File(folder, f"{name}.jsonl", np.uint8)
        self._offsets = _File(folder, f"{name}.offsets.bin", np.int64)
        self._offsets.write([0])

    def write(self, value: Any, where: str) -> None:
        """See `ColumnWriter`."""
        if not isinstance(value, str):
            raise DataError(f"{where} is {_kind(value)}, but those before are strings")
        self._lines.write_bytes(json.dumps(value).encode() + b"\n")
        self._offsets.write([self._lines.count])

    def finish(self) -> dict[str, Any]:
        """See `ColumnWriter`."""
        self._lines.finish()
        self._offsets.finish()
        return {"kind": "text", "count": self._lines.count}

    def close(self) -> None:
        """See `ColumnWriter`."""
        self._lines.close()
        self._offsets.close()


def writer_for(folder: Path, name: str, first: Any) -> ColumnWriter:
    """A writer for values such as this one.

    Raises:
        DataError: values of this kind cannot be kept.
    """
    if isinstance(first, str):
        return TextWriter(folder, name)
    array = _array(first, f"{name!r} of the first document")
    if array.ndim == 1 and (array.dtype.kind in "iub" or not array.size):
        return ListWriter(folder, name)
    if array.dtype.kind in "iubf":
        return ArrayWriter(folder, name, first)
    raise DataError(f"{name!r} of the first document is {_kind(first)}: kept are numbers, lists, strings and pictures")


class ListReader:
    """Lists of whole numbers.

    Attributes:
        numbers: all of all documents, one after another.
        offsets: where those of each document begin, and the end of the last. int64 [documents + 1]
    """

    def __init__(self, numbers: np.ndarray, offsets: np.ndarray):
        self.numbers = numbers
        self.offsets = offsets

    def __getitem__(self, index: int) -> np.ndarray:
        """int64 numbers of a document."""
        return self.numbers[self.offsets[index] : self.offsets[index + 1]].astype(np.int64)


class TokenReader(ListReader):
    """Token ids."""


class ArrayReader:
    """Numbers or arrays of one shape. ``values`` is [documents, ...]."""

    def __init__(self, values: np.ndarray):
        self.values = values

    def __getitem__(self, index: int) -> Any:
        value = self.values[index]
        return value.item() if value.ndim == 0 else np.array(value)


class TextReader:
    """Strings."""

    def __init__(self, lines: np.ndarray, offsets: np.ndarray):
        self._lines = lines
        self._offsets = offsets

    def __getitem__(self, index: int) -> str:
        line: str = json.loads(self._lines[self._offsets[index] : self._offsets[index + 1]].tobytes())
        return line


def open_column(folder: Path, name: str, about: Mapping[str, Any], documents: int) -> ColumnReader:
    """
    Raises:
        DataError: a file is missing or has not the size that it was written with.
    """
    kind = about["kind"]
    if kind not in ("array", "text", "tokens", "list"):
        raise DataError(f"the store in {folder} has a column of unknown kind {kind!r}: build it again")
    if kind == "array":
        shape = (documents, *about["shape"])
        return ArrayReader(_map(folder / f"{name}.bin", about["dtype"], shape))
    offsets = _map(folder / f"{name}.offsets.bin", "int64", (documents + 1,))
    if kind == "text":
        return TextReader(_map(folder / f"{name}.jsonl", "uint8", (about["count"],)), offsets)
    reader = TokenReader if kind == "tokens" else ListReader
    return reader(_map(folder / f"{name}.bin", about["dtype"], (about["count"],)), offsets)


def _map(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"the store lacks {path}: delete its folder and build it again") from error
    if found != expected:
        raise DataError(f"{path} has {found:,} bytes, not {expected:,}: delete the store's folder and build it again")
    if not expected:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", shape=shape).view(np.ndarray)


def _array(value: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where} is a list of lists of different lengths, which cannot be kept") from error


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} of shape {list(shape)}" if shape else type(value).__name__
