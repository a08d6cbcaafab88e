"""From files to a network: built on the meta device, filled tensor by tensor, never held twice."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyformer.checkpoints.ctranslate2 import CTRANSLATE2_FILE, CTranslate2File, is_ctranslate2, read_config
from polyformer.checkpoints.gguf import GGUFFile
from polyformer.checkpoints.memory import one_thread
from polyformer.checkpoints.sources import open_tensors
from polyformer.checkpoints.tensor_source import TensorSource
from polyformer.errors import CheckpointError, ConfigError
from polyformer.families import find_ctranslate2_family, find_family, find_gguf_family, find_writer
from polyformer.families.base import Family
from polyformer.families.weights import Chain, Plan, Reshape, Split, Transform, Unstack, WeightTable

CONFIG_FILE = "config.json"
# A checkpoint smaller than this is loaded in one thread.
SMALL_BYTES = 2**30


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose headers were read, and none of its weights.

    Attributes:
        path: the folder or the file.
        family: the public architecture.
        config: the network's config tree.
        table: the weight names of this kind of file.
        source: the tensors.
        values: the decoded ``config.json``; for a GGUF file its metadata.
        is_gguf: whether it is a GGUF file.
    """

    path: Path
    family: Family
    config: Any
    table: WeightTable
    source: TensorSource
    values: dict[str, Any]
    is_gguf: bool

    @property
    def is_quantized(self) -> bool:
        """Whether some weights are stored in blocks of few bits, and have no floating dtype of their own."""
        source = self.source
        return isinstance(source, (GGUFFile, CTranslate2File)) and any(
            source.is_quantized(name) for name in source.names()
        )

    @property
    def is_compact(self) -> bool:
        """Whether the file's numbers are those of storage, and not those that the model is computed with: quantized
        weights, and CTranslate2's, which are converted when they are opened there too."""
        return self.is_quantized or isinstance(self.source, CTranslate2File)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the file asks for: that of its config, else that of most of its weights."""
        stated = self.values.get("dtype") or self.values.get("torch_dtype")
        if not self.is_gguf and isinstance(stated, str):
            dtype = getattr(torch, stated.removeprefix("torch."), None)
            if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
                raise ConfigError(f"{self.path}: {CONFIG_FILE} states the dtype {stated!r}, which is none: give one")
            return dtype
        return stored_dtype(self.source)

    def load(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> nn.Module:
        """The network; see `load_network`. With no dtype, the one the file asks for."""
        return load_network(self.config, self.table, self.source, dtype=dtype or self.dtype, device=device)

    def close(self) -> None:
        """Lets go of the files; networks that were loaded stay valid."""
        self.source.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Reads the headers of a checkpoint: a folder in the Hugging Face layout, or a GGUF file.

    A folder with CTranslate2's ``model.bin`` is known by that file. A folder without ``config.json`` that holds one
    GGUF file stands for it; a ``.safetensors`` file needs its ``config.json`` beside it.

    Raises:
        CheckpointError: a file is missing, damaged or of an unknown kind.
        ConfigError: the architecture or a setting of it is not supported (it is named).
    """
    path = Path(path)
    folder = path.parent if path.name == CTRANSLATE2_FILE else path
    if is_ctranslate2(folder):
        return _open_ctranslate2(folder)
    if path.suffix == ".gguf" or (path.is_dir() and not (path / CONFIG_FILE).is_file() and _gguf_in(path)):
        file = open_tensors(path)
        assert isinstance(file, GGUFFile)
        known = recognize(file.path, file.metadata, file)
        return Checkpoint(file.path, known.family, known.config, known.table, file, file.metadata, True)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a folder of weights or a .gguf file")
    values = read_config_file((path if path.is_dir() else path.parent) / CONFIG_FILE)
    recognize(path, values, None)  # what cannot be read is said before its weights are opened
    source = open_tensors(path)
    known = recognize(path, with_pooler(values, source), None)
    return Checkpoint(path, known.family, known.config, known.table, source, values, False)


def with_pooler(values: dict[str, Any], source: TensorSource | None) -> dict[str, Any]:
    """A config that says whether the file has a layer that pools: BERT, RoBERTa and ViT are saved with and without one,
    and only the tensors tell."""
    if source is None or any("pooler." in name for name in source.names()):
        return values
    return {**values, "add_pooling_layer": False}


def _open_ctranslate2(folder: Path) -> Checkpoint:
    contents = CTranslate2File(folder / CTRANSLATE2_FILE)
    known = recognize_ctranslate2(contents)
    assert known.family.ctranslate2 is not None
    values = known.family.ctranslate2.config_values(known.config, read_config(folder))
    return Checkpoint(folder, known.family, known.config, known.table, contents, values, False)


@dataclass(frozen=True)
class Recognized:
    """What a checkpoint is: its family, the config of its network, and the table of its weight names."""

    family: Family
    config: Any
    table: WeightTable


def recognize_ctranslate2(contents: CTranslate2File) -> Recognized:
    """As `recognize`, for a CTranslate2 file, which says itself what it is."""
    family = find_ctranslate2_family(contents.spec)
    assert family.ctranslate2 is not None
    config = family.ctranslate2.read(contents)
    return Recognized(family, config, family.ctranslate2.weight_table(config))


def recognize(path: Path, values: dict[str, Any], file: GGUFFile | None) -> Recognized:
    """Finds the family of a checkpoint and reads its config.

    Args:
        path: what to call it in messages.
        values: the decoded ``config.json``, or the metadata of ``file``.
        file: the open file, for a GGUF checkpoint.

    Raises:
        CheckpointError: the weights are quantized in a way that is not read.
        ConfigError: the architecture or a setting of it is not supported (it is named).
    """
    key = "model_type" if file is None else "general.architecture"
    name = values.get(key)
    if not isinstance(name, str):
        where = CONFIG_FILE if file is None else "the metadata"
        raise ConfigError(f"{path}: {where} has no {key}, so the architecture is not known: fetch the model again")
    if file is not None:
        family = find_gguf_family(name)
        assert family.gguf is not None
        config = family.gguf.read_config(file)
        return Recognized(find_writer(family, config), config, family.gguf.weight_table(config))
    if method := values.get("quantization_config"):
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        raise CheckpointError(
            f"{path}: the weights are quantized with {method!r}, which is not read here: use the unquantized "
            "checkpoint or a GGUF file"
        )
    family = find_family(name)
    config = family.read_config(values)
    return Recognized(family, config, family.weight_table(config))


def load_network(
    config: Any,
    table: WeightTable,
    source: TensorSource,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Builds a network and fills it from a source.

    The network is built on the meta device, where it takes no memory; each tensor is read straight into its dtype and
    becomes the parameter. On the CPU, tensors that need no change stay in the memory-mapped file: it may be deleted or
    replaced while the network lives, but must not be written to in place.

    Args:
        config: a network config.
        table: the names of the source.
        source: open tensors; it may be closed afterwards.
        dtype: of all parameters. None takes what most weights of the source have (float32 for quantized ones).
        device: where to; the CPU if None.

    Returns:
        The network, in evaluation mode.

    Raises:
        CheckpointError: a weight is missing, unexpected, misshaped, or no floating number; or something was left empty.
    """
    dtype = dtype or stored_dtype(source)
    target = torch.device(device or "cpu")
    network = build_on_meta(config)
    plan = plan_for(network, table, source)
    plan.raise_if_broken(str(source.path))
    small = sum(source.nbytes(name) for name in source.names()) < SMALL_BYTES
    with one_thread() if small else nullcontext():
        _fill(network, plan, source, dtype, target)
    _refuse_empty(network, source)
    return network.eval()


def _fill(network: nn.Module, plan: Plan, source: TensorSource, dtype: torch.dtype, target: torch.device) -> None:
    places = _parameter_places(network)
    for step in plan.steps:
        only_cuts = _only_cuts(step.transform)
        theirs = [
            source.load(
                name,
                # Arithmetic happens in the finer of the two dtypes, and is rounded once.
                torch.promote_types(source.dtype(name), dtype) if step.transform.computes else dtype,
                keep_mapped=only_cuts and target.type == "cpu",
            )
            for name in step.theirs
        ]
        for name, tensor in zip(step.ours, step.to_ours(theirs), strict=True):
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"{source.path}: {', '.join(step.theirs)} holds {tensor.dtype} and not floating numbers: this kind "
                    "of quantized checkpoint is not read"
                )
            _set_parameter(places[name], tensor.to(target, dtype).contiguous())


def build_on_meta(config: Any) -> nn.Module:
    """The network of a config with shapes and no memory."""
    with torch.device("meta"):
        network: nn.Module = config.build()
    return network


def plan_for(network: nn.Module, table: WeightTable, source: TensorSource) -> Plan:
    """What filling the network from the source would do, by names and shapes alone."""
    ours = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    return table.plan(ours, {name: source.shape(name) for name in source.names()})


def stored_dtype(source: TensorSource) -> torch.dtype:
    """The floating dtype that most weights of a source have; quantized ones count as float32.

    Raises:
        CheckpointError: there is no floating tensor.
    """
    weights: dict[torch.dtype, int] = {}
    for name in source.names():
        dtype = source.dtype(name)
        if dtype.is_floating_point:
            weights[dtype] = weights.get(dtype, 0) + torch.Size(source.shape(name)).numel()
    if not weights:
        raise CheckpointError(f"{source.path} holds no floating tensor: these are not the weights of a network")
    return max(weights, key=lambda dtype: weights[dtype])


def read_config_file(path: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: there is no such file, or it is not a JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: it says what the network is; fetch it with the weights") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}): fetch it again") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}: fetch it again")
    return values


def _gguf_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.gguf"))


def _only_cuts(transform: Transform) -> bool:
    """Whether the transform gives contiguous views of what it gets: nothing is computed and nothing copied."""
    if isinstance(transform, Chain):
        return all(_only_cuts(part) for part in transform.parts)
    return type(transform) is Transform or isinstance(transform, (Split, Unstack, Reshape))


_Places = list[tuple[nn.Module, str]]


def _parameter_places(network: nn.Module) -> dict[str, _Places]:
    """Every parameter by its first name, with all modules and attributes that share it (tied weights)."""
    first_names: dict[int, str] = {}
    places: dict[str, _Places] = {}
    for path, module in network.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = first_names.setdefault(id(parameter), f"{path}.{attribute}" if path else attribute)
            places.setdefault(name, []).append((module, attribute))
    return places


def _set_parameter(places: _Places, tensor: Tensor) -> None:
    parameter = nn.Parameter(tensor, requires_grad=places[0][0].get_parameter(places[0][1]).requires_grad)
    for module, attribute in places:
        setattr(module, attribute, parameter)


def _refuse_empty(network: nn.Module, source: TensorSource) -> None:
    empty = [name for name, tensor in network.named_parameters() if tensor.is_meta]
    empty += [name for name, tensor in network.named_buffers() if tensor.is_meta]
    if empty:
        raise CheckpointError(f"{source.path}: nothing fills {', '.join(empty[:5])} ({len(empty)} tensors)")
