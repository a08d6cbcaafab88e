"""Writes the tables of docs/families.md out of the library itself: ``python docs/family_tables.py``.

A test compares the page with what this would write, so that it cannot go stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from polyformer.core import (
    ALiBi,
    BidirectionalWindow,
    Causal,
    DecoderOnly,
    DualEncoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    Layer,
    LayerNorm,
    MixtureOfExperts,
    PatchEmbedding,
    RelativeBias,
    RMSNorm,
    Rotary,
    SlidingWindow,
    Stack,
    TokenEmbedding,
)
from polyformer.families import all_families
from polyformer.families.base import Family
from polyformer.families.sizes import TABLES, Size, build_config

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


def configs_of(family: Family, sizes: Iterable[Size]) -> list[Any]:
    return [build_config(size.name) for size in sizes if size.family == family.name]


def decoder_row(family: Family) -> list[str]:
    configs = configs_of(family, TABLES["decoders"])
    pairs = [(config, layer) for config in configs for layer in config.stack.layers]

    def all_of(describe: Callable[[DecoderOnly.Config, Layer.Config], str]) -> str:
        return distinct(describe(config, layer) for config, layer in pairs)

    return [
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


def reader_row(family: Family, sizes: tuple[Size, ...]) -> list[str]:
    """Of a family with an encoder."""
    own = [size for size in sizes if size.family == family.name]
    configs = configs_of(family, own)
    layers = [layer for config in configs for stack in stacks(config) for layer in stack.layers]
    return [
        f"`{family.name}`",
        distinct(f"`{name}`" for size in own for name in size.values["architectures"]),
        distinct(reader_positions(config) for config in configs),
        distinct(extra for config in configs for extra in reader_extras(config)),
        distinct(norm(layer) for layer in layers),
        distinct(feedforward(layer) for layer in layers),
    ]


def encoders(config: Any) -> list[Encoder.Config]:
    """One, or those of both towers."""
    if isinstance(config, DualEncoder.Config):
        return [tower.encoder for tower in (config.text, config.image) if tower is not None]
    return [config.encoder]


def reader_positions(config: Any) -> str:
    return distinct(encoder_positions(encoder) for encoder in encoders(config))


def encoder_positions(encoder: Encoder.Config) -> str:
    if isinstance(encoder.stack.bias, RelativeBias.Config):
        return "relative"
    if isinstance(encoder.stack.layers[0].attention.positions, Rotary.Config):
        return "rotary"
    if isinstance(encoder.embedding, PatchEmbedding.Config):
        return "learned"
    return type(encoder.embedding.positions).__qualname__.split(".")[0].lower()


def reader_extras(config: Any) -> Iterable[str]:
    for encoder in encoders(config):
        if isinstance(encoder.embedding, PatchEmbedding.Config):
            yield from picture_extras(encoder)
        elif isinstance(encoder.embedding, TokenEmbedding.Config):
            yield from text_extras(encoder)
        else:
            yield "frames of sound"
    if isinstance(config, DualEncoder.Config):
        yield "two towers"
    if isinstance(config, EncoderDecoder.Config):
        source = config.encoder.embedding
        if isinstance(source, PatchEmbedding.Config):
            yield "decoder of text"
        if isinstance(source, TokenEmbedding.Config) and not config.head.tied:
            yield "untied head"


def text_extras(encoder: Encoder.Config) -> Iterable[str]:
    embedding = encoder.embedding
    assert isinstance(embedding, TokenEmbedding.Config)
    if embedding.projection is not None:
        yield "narrower embedding"
    if embedding.token_types > 1:
        yield "types of tokens"
    if any(isinstance(layer.attention.mask, BidirectionalWindow) for layer in encoder.stack.layers):
        yield "windows between full layers"
    if embedding.norm is not None:
        yield "norm of the embedding"
    if embedding.scale is not None:
        yield "scaled embedding"


def picture_extras(encoder: Encoder.Config) -> Iterable[str]:
    embedding = encoder.embedding
    assert isinstance(embedding, PatchEmbedding.Config)
    if embedding.class_token:
        yield "class token"
    if embedding.registers:
        yield "registers"
    if encoder.stack.layers[0].layer_scale:
        yield "scaled branches"


def families_table(kind: str) -> str:
    sizes = TABLES[kind]
    listed = {size.family for size in sizes}
    families = [family for family in all_families() if family.name in listed]
    if kind == "decoders":
        head = ["family", "class", "positions", "attention", "heads", "also", "norm", "feed-forward", "GGUF"]
        return table(head, map(decoder_row, families))
    head = ["family", "class", "positions", "also", "norm", "feed-forward"]
    return table(head, (reader_row(family, sizes) for family in families))


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def stacks(config: Any) -> list[Stack.Config]:
    """The encoders' and the decoder's, as far as the network has them."""
    if isinstance(config, DecoderOnly.Config):
        return [config.stack]
    decoder = [config.decoder.stack] if isinstance(config, EncoderDecoder.Config) else []
    return [encoder.stack for encoder in encoders(config)] + decoder


def context(config: Any) -> str:
    """The longest text, and the size of pictures."""
    embedding = None if isinstance(config, DecoderOnly.Config) else encoders(config)[-1].embedding
    if not isinstance(embedding, PatchEmbedding.Config):
        return "any" if config.max_positions is None else f"{config.max_positions:,}"
    pixels = f"{embedding.image_size[0]} pixels"
    return pixels if config.max_positions is None else f"{config.max_positions:,}; {pixels}"


def size_row(size: Size) -> list[str]:
    with torch.device("meta"):
        network = build_config(size.name).build()
    config = network.config
    count = sum(parameter.numel() for parameter in network.parameters())
    assert size.agrees(count), size
    attentions = [stack.layers[0].attention for stack in stacks(config)]
    return [
        f"`{size.name}`",
        f"`{size.family}`",
        size.published,
        f"{count:,}",
        " + ".join(f"{len(stack.layers)}" for stack in stacks(config)),
        distinct(f"{attention.hidden_size:,}" for attention in attentions),
        distinct(f"{attention.num_heads} / {attention.num_key_value_heads}" for attention in attentions),
        "—" if config.vocab_size is None else f"{config.vocab_size:,}",
        context(config),
        size.source,
    ]


def sizes_table(kind: str) -> str:
    head = "name, family, published, counted, layers, width, heads / shared, vocabulary, context, who published it"
    return table(head.split(", "), map(size_row, TABLES[kind]))


def written(page: str) -> str:
    """The page with its tables made anew, between their ``<!-- table: name -->`` marks."""
    made = {f"families: {kind}": families_table(kind) for kind in TABLES}
    made |= {f"sizes: {kind}": sizes_table(kind) for kind in TABLES}
    for name, text in made.items():
        pattern = rf"(<!-- table: {name} -->\n\n).*?(\n\n<!-- end of table -->)"
        page, count = re.subn(pattern, lambda m, text=text: m[1] + text + m[2], page, flags=re.DOTALL)
        assert count == 1, name
    return page


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
