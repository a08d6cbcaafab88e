"""Weights in safetensors files, one or several."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from polyformer.checkpoints.memory import copy_out
from polyformer.checkpoints.tensor_source import TensorSource
from polyformer.errors import CheckpointError

_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}


class _ShardFile:
    """One safetensors file, with two maps: one for tensors that stay mapped, one for those that are only read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept: Any = None
        self._passing: Any = None
        handle: Any = self._open()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for name in list(handle.keys()):
            part = handle.get_slice(name)
            code = part.get_dtype()
            if code not in _DTYPES:
                raise CheckpointError(f"{path}: tensor {name} has the dtype {code}, which is not read here")
            self.shapes[name] = tuple(part.get_shape())
            self.dtypes[name] = _DTYPES[code]
        self._kept = handle

    def _open(self) -> AbstractContextManager[Any]:
        try:
            return safe_open(self.path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise CheckpointError(
                f"{self.path} is damaged or cut short ({_first_line(error)}): fetch it again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {_first_line(error)}") from error

    def nbytes(self, name: str) -> int:
        count = 1
        for size in self.shapes[name]:
            count *= size
        return count * self.dtypes[name].itemsize

    def load(self, name: str, dtype: torch.dtype | None, keep_mapped: bool) -> Tensor:
        stored = self.dtypes[name]
        convert = dtype is not None and stored.is_floating_point and dtype != stored
        if keep_mapped and not convert:
            if self._kept is None:
                self._kept = self._open()
            return self._read(self._kept, name)
        if self._passing is None:
            self._passing = self._open()
        return copy_out(self._read(self._passing, name), dtype if convert and dtype is not None else stored)

    def _read(self, handle: Any, name: str) -> Tensor:
        try:
            tensor: Tensor = handle.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{self.path}: tensor {name} cannot be read ({_first_line(error)})") from error
        return tensor

    def close(self) -> None:
        self._kept = self._passing = None


class SafetensorsSource:
    """Tensors in one or several safetensors files.

    Args:
        path: what the source is called in messages: the folder or the file.
        files: the safetensors files.
        weight_map: the index of a sharded checkpoint, tensor name to file name; checked against the files.

    Raises:
        CheckpointError: a file is damaged or cut short, a name occurs twice, or the index does not fit the files.
    """

    def __init__(self, path: Path, files: list[Path], weight_map: dict[str, str] | None = None) -> None:
        self.path = path
        self._home: dict[str, _ShardFile] = {}
        self._shards = [_ShardFile(file) for file in files]
        for shard in self._shards:
            for name in shard.shapes:
                if name in self._home:
                    first = self._home[name].path.name
                    raise CheckpointError(f"tensor {name} is in {first} and again in {shard.path}: remove one of them")
                self._home[name] = shard
        if weight_map is not None:
            _check_index(path, weight_map, {name: shard.path.name for name, shard in self._home.items()})

    def names(self) -> list[str]:
        return list(self._home)

    def _shard(self, name: str) -> _ShardFile:
        if name not in self._home:
            raise CheckpointError(f"{self.path} holds no tensor called {name}")
        return self._home[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shard(name).shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return self._shard(name).dtypes[name]

    def nbytes(self, name: str) -> int:
        return self._shard(name).nbytes(name)

    def load(self, name: str, dtype: torch.dtype | None = None, *, keep_mapped: bool = True) -> Tensor:
        return self._shard(name).load(name, dtype, keep_mapped)

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_index(path: Path) -> dict[str, str]:
    """Reads the index of a sharded checkpoint: tensor name to file name.

    Raises:
        CheckpointError: the file is not JSON, or has no ``weight_map`` of strings.
    """
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable JSON index ({_first_line(error)}): fetch it again") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    good = isinstance(weight_map, dict) and all(isinstance(file, str) for file in weight_map.values())
    if not good or not weight_map:
        raise CheckpointError(f'{path} has no "weight_map" from tensor names to file names: fetch it again')
    return weight_map


def _check_index(path: Path, weight_map: dict[str, str], found: dict[str, str]) -> None:
    """The index and the shards must name the same tensors in the same files."""
    for name, file in weight_map.items():
        if found.get(name) != file:
            where = f"it is in {found[name]}" if name in found else "it is in no shard"
            raise CheckpointError(f"{path}: the index places {name} in {file}, but {where}: fetch the shards again")
    extra = [name for name in found if name not in weight_map]
    if extra:
        raise CheckpointError(
            f"{path}: {len(extra)} tensors of the shards are not in the index, such as {extra[0]}: fetch it again"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
