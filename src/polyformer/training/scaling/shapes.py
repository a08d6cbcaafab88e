"""The network of a recipe in other sizes, at constant shape: depth and width grow together.

What is scaled is plain data, the keys of a config.json or a tree of configs, by the role of each key. The ratios of
width to depth, of the feed-forward part to the width and of query heads to key/value heads stay as they are; heads keep
their width where that hits the size that was asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from polyformer.checkpoints.loading import build_on_meta
from polyformer.core import Config, Head, Learned
from polyformer.core.linear import Embedding
from polyformer.errors import ConfigError
from polyformer.families import find_family
from polyformer.families.sizes import find_size
from polyformer.training.recipe import ModelSection

_ROLES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), "depth"),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), "depth"),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "source_size"), "width"),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), "heads"),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), "heads"),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), "groups"),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "hidden_dim", "ffn_hidden_size"), "inner"),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), "inner"),
    **dict.fromkeys(("head_dim", "d_kv", "rotary_dim"), "head"),
    **dict.fromkeys(("size", "in_features", "out_features"), "same"),
}
_ANY_VOCABULARY = 512


@dataclass(frozen=True)
class Shape:
    """What a size is: layers, width, and heads (0 where there is no attention) of ``head`` numbers each, ``groups`` of
    them with keys and values of their own."""

    depth: int
    width: int
    heads: int = 0
    head: int = 0
    groups: int = 0


@dataclass(frozen=True)
class Sized:
    """A network of one size.

    Attributes:
        section: the recipe's, with other numbers.
        shape: of it.
        parameters: without embeddings: neither tables of tokens and positions nor the head's matrix.
    """

    section: ModelSection
    shape: Shape
    parameters: int


def scaled_to(section: ModelSection, parameters: float, length: int) -> Sized:
    """The network of a recipe with about so many parameters, embeddings not counted.

    Args:
        section: of the recipe.
        parameters: wanted.
        length: tokens of a row, as in the recipe.

    Raises:
        ConfigError: this kind of network cannot be scaled, or not to this size.
    """
    values = _plain(section, length)
    base = shape_of(values)
    try:
        count = count_without_embeddings(section, length)
        near = _near(base, parameters, count)
        if not near:
            raise ConfigError(f"at its shape ({base.depth} layers of {base.width}) there is none so small")
        best = min(
            near,
            key=lambda shape: _distance(shape, base, _count(section, values, base, shape, length), parameters),
        )
        found = _count(section, values, base, best, length)
    except ConfigError as error:
        raise ConfigError(f"model cannot be scaled to {parameters:.3g} parameters: {error}") from None
    if not 0.7 < found / parameters < 1.4:
        raise ConfigError(
            f"model cannot be scaled to {parameters:.3g} parameters at its shape: the nearest has {found:,} "
            f"({best.depth} layers of {best.width})"
        )
    return Sized(_section(section, values, base, best), best, found)


def count_without_embeddings(section: ModelSection, length: int) -> int:
    """Parameters of the network of a recipe, without tables of tokens and positions and without the head's matrix
    (Kaplan et al., 2020, section 1.3)."""
    network = build_on_meta(_config(section, length))
    skipped = (Embedding, Learned, Head, nn.Embedding)
    tables = {
        id(parameter) for part in network.modules() if isinstance(part, skipped) for parameter in part.parameters()
    }
    return sum(parameter.numel() for parameter in network.parameters() if id(parameter) not in tables)


def shape_of(values: Mapping[str, Any]) -> Shape:
    """
    Raises:
        ConfigError: there is no depth or no width in it.
    """
    found: dict[str, Counter[int]] = {role: Counter() for role in set(_ROLES.values())}
    for key, value in _walk(values):
        if key in _ROLES and isinstance(value, int) and not isinstance(value, bool):
            found[_ROLES[key]][value] += 1
    layers = [len(value) for key, value in _walk(values) if key == "layers" and isinstance(value, list)]
    depth = max([*found["depth"], *layers], default=0)
    if not depth or not found["width"]:
        raise ConfigError("its config says no number of layers or no width, so there is nothing to scale")
    width = _commonest(found["width"])
    heads = _commonest(found["heads"]) if found["heads"] else 0
    if not heads:
        return Shape(depth, width)
    heads_width = [value for key, value in _walk(values) if key in ("head_dim", "d_kv") and isinstance(value, int)]
    head = heads_width[0] if heads_width else width // heads
    return Shape(depth, width, heads, head, _commonest(found["groups"]) if found["groups"] else heads)


def _commonest(counted: Counter[int]) -> int:
    return max(counted, key=lambda value: (counted[value], value))


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


# --- which shape ----------------------------------------------------------------------------------------------------


def _near(base: Shape, wanted: float, count: int) -> list[Shape]:
    """The shapes that come nearest, if parameters go as depth times the square of the width."""
    candidates = []
    ideal = (wanted / count) ** (1 / 3)
    for depth in range(max(1, int(base.depth * ideal * 0.6)), math.ceil(base.depth * ideal * 1.6) + 2):
        candidates += [replace(shape, depth=depth) for shape in _widths(base, ideal)]

    def expected(shape: Shape) -> float:
        return count * shape.depth / base.depth * (shape.width / base.width) ** 2

    return sorted(candidates, key=lambda shape: _distance(shape, base, expected(shape), wanted))[:12]


def _widths(base: Shape, ideal: float) -> Iterator[Shape]:
    if not base.heads:
        step = _step(base.width)
        centre = base.width * ideal
        for width in range(max(step, int(centre * 0.6) // step * step), int(centre * 1.6) + step + 1, step):
            yield replace(base, width=width)
        return
    together = base.heads // base.groups if 1 < base.groups < base.heads else 1
    share = base.width / (base.heads * base.head)
    step = _step(base.head)
    for groups in range(1, math.ceil(base.heads * ideal * 2 / together) + 2):
        heads = groups * together
        for head in range(max(step, base.head // 2 // step * step), 2 * base.head + 1, step):
            width = round(heads * head * share)
            if 0.4 * ideal < width / base.width < 2.5 * ideal and math.isclose(width, heads * head * share):
                kept = {1: 1, base.heads: heads}.get(base.groups, groups)
                yield replace(base, width=width, heads=heads, head=head, groups=kept)


def _step(size: int) -> int:
    return 8 if size >= 16 and size % 8 == 0 else 2


def _distance(shape: Shape, base: Shape, count: float, wanted: float) -> float:
    """How bad a shape is: a tenth too many parameters count like a width larger by a third, or heads larger by two
    thirds."""
    slender = math.log(shape.width / shape.depth) - math.log(base.width / base.depth)
    head = math.log(shape.head / base.head) if base.head else 0.0
    return (math.log(count / wanted) / 0.1) ** 2 + (slender / 0.35) ** 2 + (head / 0.5) ** 2


# --- from a section to data and back --------------------------------------------------------------------------------


def _plain(section: ModelSection, length: int) -> dict[str, Any]:
    """What says the size of a network, as plain data: a whole config.json, or a tree of configs."""
    if section.start_from is not None:
        raise ConfigError("a law is fitted to new networks, but model.start_from gives one with weights: give family")
    if section.network is not None:
        return section.network
    if section.size is not None:
        return {**find_size(section.size).values}
    assert section.family is not None
    family = find_family(section.family)
    whole = family.write(_config(section, length))
    return {**whole, **section.config}


def _config(section: ModelSection, length: int) -> Any:
    """The network config, with a vocabulary of any size where the tokenizer would say it."""
    if section.network is not None:
        return Config.from_dict(_with_vocabulary(section.network))
    if section.size is not None:
        size = find_size(section.size)
        return find_family(size.family).read_config(size.values, "model.size")
    assert section.family is not None
    values = {"vocab_size": _ANY_VOCABULARY, "max_position_embeddings": length, **section.config}
    if section.labels is not None:
        values["id2label"] = {str(number): name for number, name in enumerate(section.labels)}
    if section.architecture is not None:
        values["architectures"] = [section.architecture]
    return find_family(section.family).read_config(values, "model.config")


def _with_vocabulary(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_vocabulary(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_vocabulary(inner) for inner in value]
    return _ANY_VOCABULARY if value == "tokenizer" else value


def _count(section: ModelSection, values: Mapping[str, Any], base: Shape, shape: Shape, length: int) -> int:
    return count_without_embeddings(_section(section, values, base, shape), length)


def _section(section: ModelSection, values: Mapping[str, Any], base: Shape, shape: Shape) -> ModelSection:
    """The section of a recipe that gives this shape."""
    scaled = _scaled(values, base, shape)
    if section.network is not None:
        return section.model_copy(update={"network": scaled})
    if section.size is not None:
        return section.model_copy(update={"size": None, "family": find_size(section.size).family, "config": scaled})
    changed = {key: value for key, value in scaled.items() if key in section.config or value != values[key]}
    return section.model_copy(update={"config": changed})


def _scaled(value: Any, base: Shape, shape: Shape, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _scaled(inner, base, shape, name) for name, inner in value.items()}
    if isinstance(value, list):
        inside = [_scaled(inner, base, shape) for inner in value]
        if not inside or not (key in ("layers", "layer_types") or len(inside) == base.depth):
            return inside
        return [inside[number % len(inside)] for number in range(_depth(len(inside), base, shape))]
    if isinstance(value, float) and key == "scale" and math.isclose(value, math.sqrt(base.width), rel_tol=1e-6):
        return math.sqrt(shape.width)
    if not isinstance(value, int) or isinstance(value, bool) or key not in _ROLES:
        return value
    return _number(value, _ROLES[key], base, shape)


def _number(value: int, role: str, base: Shape, shape: Shape) -> int:
    if role == "depth":
        return _depth(value, base, shape)
    exact = {
        "width": {base.width: shape.width},
        "heads": {base.heads: shape.heads},
        "groups": {base.groups: shape.groups},
        "head": {base.head: shape.head},
        "same": {base.head: shape.head, base.width: shape.width},
        "inner": {},
    }[role]
    if value in exact:
        return exact[value]
    if role == "same":
        return value
    if role == "groups":
        return value if value == 1 else max(1, round(value * shape.groups / base.groups))
    ratio = {
        "width": shape.width / base.width,
        "inner": shape.width / base.width,
        "heads": shape.heads / max(base.heads, 1),
        "head": shape.head / max(base.head, 1),
    }[role]
    step = 1 if role == "heads" else _step(value)
    return max(step, round(value * ratio / step) * step)


def _depth(value: int, base: Shape, shape: Shape) -> int:
    return max(1, round(value * shape.depth / base.depth))
