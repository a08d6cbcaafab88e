"""The network of a recipe: a public size, a public architecture with numbers of one's own, a tree of configs, or a
model with weights, perhaps with a new head."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyformer.checkpoints.catalogue import resolve
from polyformer.checkpoints.loading import Checkpoint, build_on_meta, open_checkpoint
from polyformer.checkpoints.sentence_transformers import EmbeddingSettings, read_embedding_settings
from polyformer.core.config import Config
from polyformer.errors import ConfigError
from polyformer.families import find_family
from polyformer.families.base import Family
from polyformer.families.sizes import build_config, find_size
from polyformer.tokenizers.images import ImageProcessor, load_image_processor
from polyformer.tokenizers.loading import load_tokenizer
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.recipe import ModelSection

# Parts that may be new on top of weights that were trained for another task.
HEADS = ("pooling", "masked_head", "token_head", "sequence_head", "head")


@dataclass
class Built:
    """A network ready to be trained.

    Attributes:
        network: in float32 on the CPU.
        family: how it is written.
        tokenizer: the one that came with the weights; None for a new network.
        new_parts: parameters of a given model that begin at random values (a new head).
        config_values: what config.json says beyond the network (names of labels).
        image_processor: the one that came with the weights.
        embedding_settings: how the model that was started from makes one vector of a text.
    """

    network: nn.Module
    family: Family
    tokenizer: TextTokenizer | None = None
    new_parts: tuple[str, ...] = ()
    config_values: Mapping[str, Any] | None = None
    image_processor: ImageProcessor | None = None
    embedding_settings: EmbeddingSettings | None = None

    @property
    def labels(self) -> list[str] | None:
        """Names of the labels, in the order of their numbers; None where nobody has named them."""
        names = (self.config_values or {}).get("id2label")
        return None if not names else [names[number] for number in sorted(names, key=int)]


def tokenizer_of(section: ModelSection) -> TextTokenizer | None:
    """The tokenizer of the model that a recipe starts from; None where it starts from none, or that has none."""
    if section.start_from is None:
        return None
    return load_tokenizer(folder_of(resolve(section.start_from).path))


def folder_of(path: Path) -> Path:
    """Where the files beside the weights lie."""
    return path if path.is_dir() else path.parent


def build_model(section: ModelSection, tokenizer: TextTokenizer | None, *, seed: int, length: int) -> Built:
    """
    Args:
        section: of the recipe.
        tokenizer: whose vocabulary a new network is made for.
        seed: of new weights.
        length: tokens of a row; the positions of a new network reach at least so far, unless the recipe says.

    Raises:
        ConfigError: no such size or architecture, or a setting that cannot be.
        CheckpointError: the weights cannot be read.
    """
    values = _label_values(section.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if section.start_from is not None:
            built = _from_weights(section, values)
        else:
            family, config = _new_config(section, tokenizer, values, length)
            _require_vocabulary(config, tokenizer)
            built = Built(config.build(), family)
    built.config_values = {**(built.config_values or {}), **values}
    _freeze(built.network, section.freeze)
    return built


def _new_config(
    section: ModelSection, tokenizer: TextTokenizer | None, labels: Mapping[str, Any], length: int
) -> tuple[Family, Any]:
    if section.size is not None:
        size = find_size(section.size)
        return find_family(size.family), build_config(section.size)
    if section.network is not None:
        return find_family("polyformer"), Config.from_dict(_with_vocabulary(section.network, tokenizer))
    assert section.family is not None
    family = find_family(section.family)
    values = _with_tokens({"max_position_embeddings": length, **section.config, **labels}, tokenizer, section.config)
    if section.architecture is not None:
        values["architectures"] = [section.architecture]
    config = family.read_config(values, "model.config")
    _require_end(config, tokenizer)
    unknown = [key for key in family.unread_keys(values) if key in section.config]
    if unknown:
        known = [key for key in family.write_config(config) if key not in ("architectures", "model_type")]
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"model.config: {section.family} has no {unknown[0]!r}; {hint}")
    return family, config


def _require_end(config: Any, tokenizer: TextTokenizer | None) -> None:
    """CLIP's texts end with their token of the highest id where the config says that the end has the id 2, as it did in
    its first release: then it must be so."""
    pooling = getattr(getattr(config, "text", None), "pooling", None)
    if tokenizer is None or getattr(pooling, "method", None) != "largest_id":
        return
    if tokenizer.eos_token_id != tokenizer.vocab_size - 1:
        raise ConfigError(
            "the tokenizer's end token has the id 2, which CLIP takes for the highest of all: give it another one "
            "(tokenizer.purpose: encoder-decoder)"
        )


def _with_tokens(values: dict[str, Any], tokenizer: TextTokenizer | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """With the size of the vocabulary and the ids of special tokens, where the recipe does not say them; of a pair of
    towers, those of the text's."""
    if tokenizer is None:
        return values
    text, decoder = given.get("text_config"), given.get("decoder")
    if isinstance(text, dict):
        return {**values, "text_config": _with_tokens({**text}, tokenizer, text)}
    if isinstance(decoder, dict):
        values = {**values, "decoder": _with_tokens({**decoder}, tokenizer, decoder)}
    else:
        values.setdefault("vocab_size", tokenizer.vocab_size)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    values.update({name: number for name, number in ids.items() if number is not None and name not in given})
    if "decoder_start_token_id" not in given:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id
        values["decoder_start_token_id"] = start
    return values


def _with_vocabulary(tree: Mapping[str, Any], tokenizer: TextTokenizer | None) -> dict[str, Any]:
    """A tree of configs in which the word "tokenizer" as a vocab_size or num_embeddings stands for its size."""

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        if value == "tokenizer":
            if tokenizer is None:
                raise ConfigError("model.network asks for the size of the tokenizer, but the recipe has none")
            return tokenizer.vocab_size
        return value

    result: dict[str, Any] = filled(dict(tree))
    return result


def _require_vocabulary(config: Any, tokenizer: TextTokenizer | None) -> None:
    size = getattr(config, "vocab_size", None)
    if tokenizer is not None and size is not None and size < tokenizer.vocab_size:
        raise ConfigError(
            f"the network has {size} token embeddings, but the tokenizer has {tokenizer.vocab_size} tokens: leave "
            "vocab_size out, or give at least so many"
        )


def _from_weights(section: ModelSection, labels: Mapping[str, Any]) -> Built:
    assert section.start_from is not None
    path = resolve(section.start_from).path
    folder = folder_of(path)
    beside: dict[str, Any] = {
        "tokenizer": load_tokenizer(folder),
        "image_processor": load_image_processor(folder),
        "embedding_settings": read_embedding_settings(folder),
    }
    with open_checkpoint(path) as checkpoint:
        given_names = {} if checkpoint.is_gguf else checkpoint.values
        beside["config_values"] = {name: given_names[name] for name in ("id2label", "label2id") if name in given_names}
        if section.architecture is None and not labels and not section.config:
            return Built(checkpoint.load(dtype=torch.float32), checkpoint.family, **beside)
        given = checkpoint.load(dtype=torch.float32)
        family, config = _changed_config(checkpoint, section, labels)
    network = config.build()
    new = _take_weights(network, given, section.start_from)
    return Built(network, family, new_parts=new, **beside)


def _changed_config(checkpoint: Checkpoint, section: ModelSection, labels: Mapping[str, Any]) -> tuple[Family, Any]:
    if checkpoint.is_gguf:
        raise ConfigError(f"{section.start_from} is a GGUF file: convert it to a folder before it gets another head")
    values = {**checkpoint.values, **section.config, **labels}
    if labels:
        values.pop("num_labels", None)
    if section.architecture is not None:
        values["architectures"] = [section.architecture]
    return checkpoint.family, checkpoint.family.read_config(values)


def _take_weights(network: nn.Module, given: nn.Module, source: str) -> tuple[str, ...]:
    """Copy what both have; gives the names of what only the new network has, which must be of a head.

    Raises:
        ConfigError: something else would be left at random values.
    """
    theirs: dict[str, Tensor] = dict(given.named_parameters())
    new: list[str] = []
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            weight = theirs.get(name)
            if weight is not None and weight.shape == parameter.shape:
                parameter.copy_(weight)
            else:
                new.append(name)
    wrong = [name for name in new if name.partition(".")[0] not in HEADS]
    if wrong:
        raise ConfigError(f"{source} has no weights for {', '.join(wrong[:3])} ({len(wrong)} in all) in that shape")
    return tuple(new)


def _label_values(labels: Sequence[str] | None) -> dict[str, Any]:
    if labels is None:
        return {}
    return {
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
        "num_labels": len(labels),
    }


def _freeze(network: nn.Module, beginnings: Sequence[str]) -> None:
    names = [name for name, _ in network.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            parts = sorted({name.partition(".")[0] for name in names})
            raise ConfigError(f"model.freeze: no parameter begins with {beginning!r}; the parts are {', '.join(parts)}")
    for name, parameter in network.named_parameters():
        if name.startswith(tuple(beginnings)):
            parameter.requires_grad_(False)


def count_parameters(config: Any) -> int:
    """Of the network of a config; shared ones count once."""
    return sum(parameter.numel() for parameter in build_on_meta(config).parameters())
