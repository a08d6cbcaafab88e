"""From a network to files: the layout that transformers loads, whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from polyformer.checkpoints.disk import DiskFullError, require_room, told_when_disk_is_full
from polyformer.checkpoints.loading import CONFIG_FILE
from polyformer.checkpoints.sources import SAFETENSORS_FILE, SAFETENSORS_INDEX
from polyformer.errors import CheckpointError
from polyformer.families.base import Family
from polyformer.families.weights import Step

GENERATION_CONFIG_FILE = "generation_config.json"
DEFAULT_SHARD_BYTES = 5 * 2**30
_OUR_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


@dataclass
class _Shard:
    steps: list[Step]
    nbytes: int = 0


def save_network(
    network: nn.Module,
    family: Family,
    folder: str | Path,
    *,
    writers: Sequence[Callable[[Path], object]] = (),
    config_values: Mapping[str, Any] | None = None,
    generation_config: Mapping[str, Any] | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes ``config.json`` and safetensors, and the generation config and whatever else belongs to the model.

    Everything is written beside its place first and moved there when it is complete, so that a failure or an
    interruption leaves what was there before. Weights of an earlier save in the same folder are removed. The tensors
    are bit-equal to the network's; tied weights are written once.

    Args:
        network: the network; its weights may lie in the very files that are replaced.
        family: the public architecture to write it as.
        folder: made if need be.
        writers: each writes its own files into the folder it is given (``tokenizer.save``, say).
        config_values: what ``config.json`` says beyond the network (names of labels).
        generation_config: the contents of ``generation_config.json``.
        shard_bytes: weights beyond this size go into several files with an index. A single tensor is never cut.

    Raises:
        ConfigError: the network has parts that the family cannot express.
        CheckpointError: the folder cannot be written.
        DiskFullError: there is no room; nothing was changed.
    """
    folder = Path(folder)
    values = {**family.write_config(network.config), **(config_values or {})}
    names = {name for name, _ in network.named_parameters()}  # a shared weight has one name here
    # Plain weights, also from a packed network.
    parameters = {name: tensor for name, tensor in network.state_dict().items() if name in names}
    if not parameters:
        raise CheckpointError("the network has no weights to save")
    values["torch_dtype"] = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
    steps = family.weight_table(network.config).steps(parameters)
    shards = _cut_into_shards(steps, parameters, shard_bytes)
    require_room(folder, sum(shard.nbytes for shard in shards), f"saving to {folder.name}")
    with _moved_when_complete(folder) as staging:
        _write_weights(shards, parameters, staging)
        for write in writers:
            write(staging)
        if generation_config is not None:
            _write_json(staging / GENERATION_CONFIG_FILE, generation_config)
        _write_json(staging / CONFIG_FILE, values)


def _cut_into_shards(steps: list[Step], parameters: dict[str, Tensor], shard_bytes: int) -> list[_Shard]:
    shards = [_Shard([])]
    for step in steps:
        nbytes = sum(parameters[name].nbytes for name in step.ours)
        if shards[-1].steps and shards[-1].nbytes + nbytes > shard_bytes:
            shards.append(_Shard([]))
        shards[-1].steps.append(step)
        shards[-1].nbytes += nbytes
    return shards


def _write_weights(shards: list[_Shard], parameters: dict[str, Tensor], folder: Path) -> None:
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        file = SAFETENSORS_FILE if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = _their_tensors(shard, parameters)
        weight_map.update(dict.fromkeys(tensors, file))
        (folder / file).touch()  # safetensors makes files that only their owner may read; this one is like any other
        mode = (folder / file).stat().st_mode
        try:
            save_file(tensors, folder / file, metadata={"format": "pt"})
            os.chmod(folder / file, mode)
        except SafetensorError as error:
            if "os error 28" in str(error) or "No space left" in str(error):
                raise DiskFullError(f"the disk was full while writing {file} to {folder.parent}: make room") from error
            raise CheckpointError(f"{folder / file} cannot be written: {str(error).splitlines()[0]}") from error
    if len(shards) > 1:
        total = sum(shard.nbytes for shard in shards)
        _write_json(folder / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _their_tensors(shard: _Shard, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a shard under the names of the file. Those that are only renamed are not copied."""
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for step in shard.steps:
            theirs = step.to_theirs([parameters[name].cpu() for name in step.ours])
            tensors.update((name, tensor.contiguous()) for name, tensor in zip(step.theirs, theirs, strict=True))
    return tensors


@contextlib.contextmanager
def _moved_when_complete(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder on the same disk; its files move into ``folder`` when the block ends well."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file: name a folder")
    existed = folder.exists()
    staging = (folder if existed else folder.parent) / f".{folder.name}.{os.getpid()}.partial"
    try:
        with told_when_disk_is_full(folder, "the model"):
            staging.mkdir(parents=True)
            yield staging
            if existed:
                _move_into(staging, folder)
            else:
                os.replace(staging, folder)
    except PermissionError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into(staging: Path, folder: Path) -> None:
    """Moves complete files over older ones, and removes the weights of an earlier save that are not among them."""
    new = {path.name for path in staging.iterdir()}
    # The config goes last: with it the folder says what the weights are.
    for name in sorted(new, key=lambda name: name == CONFIG_FILE):
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
        os.replace(staging / name, folder / name)
    for path in folder.iterdir():
        if _OUR_WEIGHTS.fullmatch(path.name) and path.name not in new:
            path.unlink()


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
