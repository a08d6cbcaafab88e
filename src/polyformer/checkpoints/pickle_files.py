"""Weights in PyTorch's pickle files, read as weights and as nothing else."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from polyformer.checkpoints.memory import copy_out
from polyformer.checkpoints.tensor_source import TensorSource
from polyformer.errors import CheckpointError


def _can_be_mapped(path: Path) -> bool:
    """The format of before PyTorch 1.6 is no archive, and can only be read as a whole."""
    return zipfile.is_zipfile(path)


def _load_weights_only(path: Path) -> dict[str, Tensor]:
    """Opens a pickle of weights. ``weights_only=True`` builds tensors and plain containers and can run nothing else."""
    mapped = _can_be_mapped(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if "weights only" in str(error).lower() or "unsupported" in str(error).lower():
            raise CheckpointError(
                f"{path} is a pickle that holds more than weights, so it could run code, and is refused: "
                "ask its author for safetensors"
            ) from error
        raise CheckpointError(f"{path} is not a readable file of weights: fetch it again") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: fetch it again") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} is not a table of named tensors: save the model's state_dict()")
    return state


class PickleSource:
    """Tensors in one or several ``pytorch_model.bin`` files.

    Args:
        path: what the source is called in messages: the folder or the file.
        files: the pickle files.
        weight_map: the index of a sharded checkpoint, tensor name to file name; checked against the files.

    Raises:
        CheckpointError: a file is damaged, wants to run code, or does not fit the index.
    """

    def __init__(self, path: Path, files: list[Path], weight_map: dict[str, str] | None = None) -> None:
        self.path = path
        self._files = files
        self._home: dict[str, Path] = {}
        self._facts: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._open_file: Path | None = None
        self._state: dict[str, Tensor] = {}
        for file in files:
            for name, tensor in _load_weights_only(file).items():
                if name in self._home:
                    first = self._home[name].name
                    raise CheckpointError(f"tensor {name} is in {first} and again in {file}: remove one of them")
                self._home[name] = file
                self._facts[name] = (tuple(tensor.shape), tensor.dtype)
        for name, shard in (weight_map or {}).items():
            if name not in self._home or self._home[name].name != shard:
                raise CheckpointError(f"{path}: the index places {name} in {shard}, where it is not: fetch it again")

    def names(self) -> list[str]:
        return list(self._home)

    def _fact(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        if name not in self._facts:
            raise CheckpointError(f"{self.path} holds no tensor called {name}")
        return self._facts[name]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._fact(name)[0]

    def dtype(self, name: str) -> torch.dtype:
        return self._fact(name)[1]

    def nbytes(self, name: str) -> int:
        shape, dtype = self._fact(name)
        return torch.Size(shape).numel() * dtype.itemsize

    def load(self, name: str, dtype: torch.dtype | None = None, *, keep_mapped: bool = True) -> Tensor:
        stored = self._fact(name)[1]
        wanted = dtype if dtype is not None and stored.is_floating_point else stored
        if self._open_file != self._home[name] or name not in self._state:
            self._state = {}
            self._open_file = self._home[name]
            self._state = _load_weights_only(self._open_file)
        if _can_be_mapped(self._open_file):
            # One map serves the whole file and lives as long as any of its tensors, so every tensor is copied out.
            return copy_out(self._state[name], wanted)
        # What was read as a whole is handed over piece by piece, so that it shrinks as the network grows.
        return self._state.pop(name).to(wanted).contiguous()

    def close(self) -> None:
        self._state, self._open_file = {}, None

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
