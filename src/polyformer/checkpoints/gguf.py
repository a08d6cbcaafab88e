"""GGUF files: metadata and tensors in one memory-mapped file.

Source: the GGUF specification, versions 2 and 3 (``docs/gguf.md`` of the ggml project). Lengths read from the file are
never trusted: each is compared with the bytes that are left before anything is allocated.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyformer.checkpoints.dequantize import BLOCK_FORMATS, OTHER_TYPE_NAMES, BlockFormat, dequantize
from polyformer.checkpoints.memory import copy_out
from polyformer.checkpoints.tensor_source import TensorSource
from polyformer.errors import CheckpointError

_MAGIC = b"GGUF"
_MOST_DIMENSIONS = 4
_DEEPEST_ARRAY = 4
_DEFAULT_ALIGNMENT = 32

# The value types of the metadata: number -> struct code. 8 is a string and 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class _TensorEntry:
    shape: tuple[int, ...]
    block_format: BlockFormat
    start: int
    nbytes: int


class _Cursor:
    """Reads values one after the other, and refuses to read past the end of the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged at byte {self.at:,}: {what}; fetch it again")

    def need(self, count: int, what: str) -> None:
        if count > len(self.data) - self.at:
            raise CheckpointError(
                f"{self.path} is cut short: {what} needs {count:,} bytes at byte {self.at:,}, and the file ends at "
                f"{len(self.data):,}; fetch it again"
            )

    def scalar(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        self.need(size, what)
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def string(self, what: str) -> str:
        length = self.scalar("Q", what)
        self.need(length, what)
        raw = self.data[self.at : self.at + length]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error
        self.at += length
        return text

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what, depth + 1)
        raise self.fail(f"{what} has the unknown value type {kind}")

    def array(self, what: str, depth: int) -> list[Any]:
        if depth > _DEEPEST_ARRAY:
            raise self.fail(f"{what} nests arrays more than {_DEEPEST_ARRAY} deep")
        kind = self.scalar("I", what)
        count = self.scalar("Q", what)
        if kind in _SCALARS:
            code = f"<{count}{_SCALARS[kind]}"
            self.need(count * struct.calcsize("<" + _SCALARS[kind]), what)
            values = list(struct.unpack_from(code, self.data, self.at))
            self.at += struct.calcsize(code)
            return values
        if kind == _STRING:
            return self.strings(count, what)
        self.need(count * 12, what)  # an array inside an array takes at least its own type and count
        return [self.value(kind, what, depth) for _ in range(count)]

    def strings(self, count: int, what: str) -> list[str]:
        """An array of strings. Vocabularies have hundreds of thousands, so this loop is kept tight."""
        self.need(count * 8, what)
        data, end, at = self.data, len(self.data), self.at
        unpack = struct.Struct("<Q").unpack_from
        values = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(data, at)[0]
                if at > end:
                    self.at = start - 8
                    self.need(at - start + 8, what)
                values.append(data[start:at].decode("utf-8"))
        except struct.error:
            self.at = at
            self.need(8, what)
        except UnicodeDecodeError as error:
            self.at = start
            raise self.fail(f"item {len(values)} of {what} is not UTF-8") from error
        self.at = at
        return values


class GGUFFile:
    """A GGUF file: its metadata, and its tensors as a ``TensorSource`` that dequantizes.

    Opening reads the metadata and the table of tensors; weights are read when asked for. Quantized tensors load as
    float32 when no dtype is asked for.

    Attributes:
        path: the file.
        version: the version of the format, 2 or 3.
        metadata: every key with its value; arrays are Python lists.

    Raises:
        CheckpointError: the file is no GGUF file, is cut short or damaged, is big endian, is one part of a split file,
            or holds a tensor of a type that is not read here (the message names both).
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                # A private map may be written to without changing the file: PyTorch wants writable memory.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError as error:
            raise CheckpointError(f"{self.path} does not exist: check the path") from error
        except ValueError as error:
            raise CheckpointError(f"{self.path} is empty: fetch it again") from error
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror}") from error
        cursor = _Cursor(self._map, self.path)
        self.version, tensor_count, metadata_count = self._read_header(cursor)
        self.metadata = self._read_metadata(cursor, metadata_count)
        self._tensors = self._read_tensor_table(cursor, tensor_count)
        self._handed_out: set[str] = set()
        self._bytes: Tensor | None = torch.frombuffer(self._map, dtype=torch.uint8)

    def _read_header(self, cursor: _Cursor) -> tuple[int, int, int]:
        magic = self._map[:4]
        if magic != _MAGIC:
            raise CheckpointError(f"{self.path} is no GGUF file: it begins with {magic!r}, not {_MAGIC!r}")
        cursor.at = 4
        version = cursor.scalar("I", "the version")
        if version & 0xFFFF == 0 and version:
            raise CheckpointError(
                f"{self.path} is a big-endian GGUF file, which is not read here: convert it with gguf-py's "
                "gguf_convert_endian"
            )
        if version not in (2, 3):
            raise CheckpointError(f"{self.path} is GGUF version {version}; versions 2 and 3 are read: convert it anew")
        tensor_count = cursor.scalar("Q", "the number of tensors")
        metadata_count = cursor.scalar("Q", "the number of metadata keys")
        # A key takes at least 13 bytes (length, type, a byte of value), a tensor 24 (length, dimensions, type, offset).
        cursor.need(metadata_count * 13 + tensor_count * 24, f"{metadata_count:,} keys and {tensor_count:,} tensors")
        return version, tensor_count, metadata_count

    def _read_metadata(self, cursor: _Cursor, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for number in range(count):
            key = cursor.string(f"metadata key {number}")
            kind = cursor.scalar("I", f"the type of {key}")
            if key in metadata:
                raise cursor.fail(f"the metadata key {key} occurs twice")
            metadata[key] = cursor.value(kind, f"metadata {key}")
        parts = metadata.get("split.count", 0)
        if isinstance(parts, int) and parts > 1:
            raise CheckpointError(
                f"{self.path} is one of {parts} parts of a split GGUF file: join them with llama.cpp's "
                "llama-gguf-split --merge, and give the joined file"
            )
        return metadata

    def _read_tensor_table(self, cursor: _Cursor, count: int) -> dict[str, _TensorEntry]:
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
        rows = []
        for number in range(count):
            name = cursor.string(f"the name of tensor {number}")
            dimensions = cursor.scalar("I", f"the dimensions of {name}")
            if dimensions > _MOST_DIMENSIONS:
                raise cursor.fail(f"tensor {name} has {dimensions} dimensions, and {_MOST_DIMENSIONS} are the most")
            sizes = [cursor.scalar("Q", f"the shape of {name}") for _ in range(dimensions)]
            rows.append(
                (name, sizes, cursor.scalar("I", f"the type of {name}"), cursor.scalar("Q", f"where {name} is"))
            )
        data_start = -(-cursor.at // alignment) * alignment
        tensors: dict[str, _TensorEntry] = {}
        for name, sizes, kind, offset in rows:
            if name in tensors:
                raise cursor.fail(f"the tensor {name} occurs twice")
            tensors[name] = self._check_tensor(name, sizes, kind, data_start + offset)
        return tensors

    def _check_tensor(self, name: str, sizes: list[int], kind: int, start: int) -> _TensorEntry:
        if kind not in BLOCK_FORMATS:
            known = ", ".join(block.name for block in BLOCK_FORMATS.values())
            called = OTHER_TYPE_NAMES.get(kind, f"number {kind}")
            raise CheckpointError(f"{self.path}: tensor {name} is of type {called}; the types read here are {known}")
        block = BLOCK_FORMATS[kind]
        weights = 1
        for size in sizes:
            weights *= size
        if sizes and sizes[0] % block.weights:
            raise CheckpointError(
                f"{self.path}: tensor {name} has rows of {sizes[0]} weights, which {block.name} cannot store "
                f"(blocks of {block.weights}): the file is damaged, fetch it again"
            )
        nbytes = weights // block.weights * block.nbytes
        if start + nbytes > len(self._map):
            raise CheckpointError(
                f"{self.path} is cut short: tensor {name} ends at byte {start + nbytes:,}, and the file at "
                f"{len(self._map):,}; fetch it again"
            )
        # GGUF writes the innermost dimension first.
        return _TensorEntry(tuple(reversed(sizes)), block, start, nbytes)

    def names(self) -> list[str]:
        return list(self._tensors)

    def _entry(self, name: str) -> _TensorEntry:
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} holds no tensor called {name}")
        return self._tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._entry(name).block_format.dtype or torch.float32

    def type_name(self, name: str) -> str:
        """The GGUF type of a tensor, such as ``"Q4_1"``."""
        return self._entry(name).block_format.name

    def is_quantized(self, name: str) -> bool:
        """Whether a tensor is stored in blocks of few bits."""
        return self._entry(name).block_format.dtype is None

    def nbytes(self, name: str) -> int:
        return self._entry(name).nbytes

    def _stored(self, entry: _TensorEntry) -> Tensor:
        if self._bytes is None:
            raise CheckpointError(f"{self.path} is closed: open it again to read tensors")
        return self._bytes[entry.start : entry.start + entry.nbytes]

    def load(self, name: str, dtype: torch.dtype | None = None, *, keep_mapped: bool = True) -> Tensor:
        """Reads one tensor; a quantized one is dequantized straight into ``dtype``. See ``TensorSource.load``."""
        entry = self._entry(name)
        stored = self._stored(entry)
        plain = entry.block_format.dtype
        # The pages of a tensor that was handed out mapped stay: its holder may have written to them.
        alone = name not in self._handed_out
        if plain is None:
            return dequantize(stored, entry.block_format, entry.shape, dtype or torch.float32, mapped=alone)
        convert = dtype is not None and plain.is_floating_point and dtype != plain
        aligned = entry.start % plain.itemsize == 0
        values = (stored if aligned else stored.clone()).view(plain).view(entry.shape)
        if keep_mapped and aligned and not convert:
            self._handed_out.add(name)
            return values
        target = dtype if convert and dtype is not None else plain
        return copy_out(values, target) if alone and aligned else values.to(target, copy=True)

    def load_raw(self, name: str) -> tuple[Tensor, str]:
        """The stored bytes of one tensor, and its type.

        Returns:
            The bytes, uint8 [..., bytes per row], memory-mapped (do not write to them), and the GGUF type's name.
        """
        entry = self._entry(name)
        stored = self._stored(entry)
        self._handed_out.add(name)
        if not entry.shape:
            return stored, entry.block_format.name
        row = entry.shape[-1] // entry.block_format.weights * entry.block_format.nbytes
        return stored.view(*entry.shape[:-1], row), entry.block_format.name

    def close(self) -> None:
        # The map itself goes when the last tensor that lies in it does.
        self._bytes = None

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
