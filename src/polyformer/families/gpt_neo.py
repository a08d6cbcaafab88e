"""GPT-Neo, the public GPT-3 style: global and local attention in turn (Black et al., 2021; Brown et al., 2020, section
2.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, LayerNorm, Learned, Stack, TokenEmbedding
from polyformer.core.masks import SlidingWindow
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.gpt2 import BLOCK, LAYER, ignored, outer_rules
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.weights import WeightTable


def read(config: ConfigReader) -> DecoderOnly.Config:
    hidden = config.integer("hidden_size")
    norm = LayerNorm.Config(hidden, config.number("layer_norm_epsilon", 1e-5))
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            config.integer("num_heads"),
            output_bias=True,
            scale=1.0,  # scores are not divided by √head_dim: the weights learned to
            dropout=config.number("attention_dropout", 0.0),
        ),
        feedforward=FeedForward.Config(
            hidden,
            config.integer("intermediate_size", 4 * hidden),
            config.choose("activation_function", ACTIVATION_NAMES, "gelu_tanh"),
            bias=True,
        ),
        norm=norm,
        dropout=config.number("resid_dropout", 0.0),
    )
    local = replace(layer, attention=replace(layer.attention, mask=SlidingWindow(config.integer("window_size", 256))))
    layers = tuple({"global": layer, "local": local}[kind] for kind in _attention_layers(config))
    vocab_size, positions = config.integer("vocab_size"), config.integer("max_position_embeddings", 2048)
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(
            vocab_size, hidden, Learned.Config(positions, hidden), dropout=config.number("embed_dropout", 0.0)
        ),
        stack=Stack.Config(layers, norm=norm),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", True)),
        max_positions=positions,
    )


def _attention_layers(config: ConfigReader) -> list[str]:
    """``[[["global", "local"], 6]]`` is global, local, global, local, ... for twelve layers."""
    pattern = config("attention_types", [[["global", "local"], 12]], kind=list)
    config("attention_layers", None)  # the same, written out
    try:
        kinds = [kind for names, times in pattern for _ in range(times) for kind in names]
    except (TypeError, ValueError):
        raise ConfigError(f"attention_types is {pattern!r}, but it must be a list of [kinds, times]") from None
    for kind in kinds:
        if kind not in ("global", "local"):
            raise ConfigError(f"attention_types holds {kind!r}, which is not supported; supported: global, local")
    count = config.integer("num_layers")
    if len(kinds) != count:
        raise ConfigError(f"attention_types describes {len(kinds)} layers, but num_layers is {count}")
    return kinds


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layers = config.stack.layers
    layer = layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    windows = [each.attention.mask.window for each in layers if isinstance(each.attention.mask, SlidingWindow)]
    kinds = ["local" if isinstance(each.attention.mask, SlidingWindow) else "global" for each in layers]
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": layer.attention.num_heads,
        "intermediate_size": feedforward.intermediate_size,
        "activation_function": activation_name(feedforward.activation, prefer="gelu_new"),
        "attention_types": [[kinds, 1]],
        "attention_layers": kinds,
        **({"window_size": windows[0]} if windows else {}),
        "resid_dropout": layer.dropout,
        "embed_dropout": config.embedding.dropout,
        "attention_dropout": layer.attention.dropout,
        "layer_norm_epsilon": layer.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    rules = (
        *outer_rules(),
        *renamed(f"{LAYER}.attention", f"{BLOCK}.attn.attention", attention),
        *renamed(f"{LAYER}.feedforward", f"{BLOCK}.mlp", {"up": "c_fc", "down": "c_proj"}),
    )
    return WeightTable(rules, ignored(config), optional_prefix="transformer.")


family = Family("gpt_neo", ("GPTNeoForCausalLM",), read, write, weight_table)
