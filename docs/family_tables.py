"""Writes the tables of docs/families.md out of the library itself: ``python docs/family_tables.py``.

A test compares the page with what this would write, so that it cannot go stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from polyformer.core import (
    ALiBi,
    Causal,
    DecoderOnly,
    FeedForward,
    Layer,
    LayerNorm,
    MixtureOfExperts,
    RMSNorm,
    Rotary,
    SlidingWindow,
)
from polyformer.families import all_families
from polyformer.families.base import Family
from polyformer.families.sizes import SIZES, Size, build_config

PAGE = Path(__file__).with_name("families.md")
PLACEMENTS = {"pre": "before", "post": "after", "sandwich": "before and after", "parallel": "parallel"}


def positions(config: DecoderOnly.Config, layer: Layer.Config) -> str:
    if isinstance(config.stack.bias, ALiBi.Config):
        return "ALiBi"
    if config.embedding.positions is not None:
        return type(config.embedding.positions).__qualname__.split(".")[0].lower()
    rotary = layer.attention.positions
    assert isinstance(rotary, Rotary.Config)
    part = "" if rotary.rotary_dim == layer.attention.head_dim else ", in part"
    pairs = ", interleaved" if rotary.interleaved else ""
    scaling = "" if rotary.scaling is None else f", {rotary.scaling.kind.removesuffix('Scaling')}"
    return f"rotary{part}{pairs}{scaling}"


def heads(layer: Layer.Config) -> str:
    attention = layer.attention
    if attention.num_key_value_heads == attention.num_heads:
        return "multi-head"
    return "multi-query" if attention.num_key_value_heads == 1 else "grouped"


def mask(layer: Layer.Config) -> str:
    if isinstance(layer.attention.mask, SlidingWindow):
        return "window"
    assert type(layer.attention.mask) is Causal
    return "full"


def extras(config: DecoderOnly.Config, layer: Layer.Config) -> Iterable[str]:
    if layer.attention.query_key_norm is not None:
        yield "query and key norms"
    if layer.attention.soft_cap is not None:
        yield "soft caps"
    if layer.attention.bias:
        yield "bias" if layer.attention.output_bias else "bias of q, k, v"


def norm(layer: Layer.Config) -> str:
    kind = {LayerNorm.Config: "LayerNorm", RMSNorm.Config: "RMSNorm"}[type(layer.norm)]
    return f"{kind}, {PLACEMENTS[layer.placement]}" + (", two" if layer.parallel_norms else "")


def feedforward(layer: Layer.Config) -> str:
    part = layer.feedforward
    if isinstance(part, MixtureOfExperts.Config):
        inner = feedforward_kind(part.expert)
        return f"{part.top_k} of {part.num_experts} experts, {inner}"
    return feedforward_kind(part)


def feedforward_kind(part: FeedForward.Config) -> str:
    return f"gated {part.activation}" if part.gated else part.activation


def distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values)) or "—"


def family_row(family: Family) -> str:
    configs = [build_config(size.name) for size in SIZES.values() if size.family == family.name]
    pairs = [(config, layer) for config in configs for layer in config.stack.layers]

    def all_of(describe: Callable[[DecoderOnly.Config, Layer.Config], str]) -> str:
        return distinct(describe(config, layer) for config, layer in pairs)

    cells = [
        f"`{family.name}`",
        f"`{family.architectures[0]}`",
        all_of(positions),
        distinct(" + ".join(dict.fromkeys(mask(layer) for layer in config.stack.layers)) for config in configs),
        all_of(lambda _, layer: heads(layer)),
        distinct(extra for config, layer in pairs for extra in extras(config, layer)),
        all_of(lambda _, layer: norm(layer)),
        all_of(lambda _, layer: feedforward(layer)),
        f"`{family.gguf.architecture}`" if family.gguf is not None else "no",
    ]
    return "| " + " | ".join(cells) + " |"


def families_table() -> str:
    head = ["family", "class", "positions", "attention", "heads", "also", "norm", "feed-forward", "GGUF"]
    listed = {size.family for size in SIZES.values()}
    rows = [family_row(family) for family in all_families() if family.name in listed]
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])


def size_row(size: Size) -> str:
    with torch.device("meta"):
        network = build_config(size.name).build()
    config = network.config
    count = sum(parameter.numel() for parameter in network.parameters())
    assert size.agrees(count), size
    attention = config.stack.layers[0].attention
    cells = [
        f"`{size.name}`",
        f"`{size.family}`",
        size.published,
        f"{count:,}",
        f"{config.num_layers}",
        f"{config.hidden_size:,}",
        f"{attention.num_heads} / {attention.num_key_value_heads}",
        f"{config.vocab_size:,}",
        f"{config.max_positions:,}",
        size.source,
    ]
    return "| " + " | ".join(cells) + " |"


def sizes_table() -> str:
    head = "name, family, published, counted, layers, width, heads / shared, vocabulary, context, who published it"
    rows = [size_row(size) for size in SIZES.values()]
    return "\n".join(["| " + head.replace(", ", " | ") + " |", "|---" * (head.count(",") + 1) + "|", *rows])


def written(page: str) -> str:
    """The page with its tables made anew, between their ``<!-- table: name -->`` marks."""
    for name, table in (("families", families_table()), ("sizes", sizes_table())):
        pattern = rf"(<!-- table: {name} -->\n\n).*?(\n\n<!-- end of table -->)"
        page, count = re.subn(pattern, lambda m, table=table: m[1] + table + m[2], page, flags=re.DOTALL)
        assert count == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
