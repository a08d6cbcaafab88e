"""PaLM (Chowdhery et al., 2022, section 2): there are no public weights, so this one is for building from scratch.

SwiGLU; attention and feed-forward side by side behind one norm; one key/value head; rotary positions; no bias anywhere,
LayerNorm's included; input and output share one embedding, which starts as N(0, 1), and logits are scaled by
1/√hidden_size for that; the other matrices start as N(0, 1/inputs) (section 5). The paper does not say which numbers of
a head rotary positions pair: neighbours here, as in the work it cites (Su et al., 2021), nor what is added to the
variance: 1e-5.
"""

from __future__ import annotations

from typing import Any

from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, LayerNorm, Rotary, Stack, TokenEmbedding
from polyformer.families import native
from polyformer.families.base import ConfigReader, Family, only_kind

_HEAD_DIM = 256  # in all three sizes (table 1)


def read(config: ConfigReader) -> DecoderOnly.Config:
    """Its own keys, called as in LLaMA's ``config.json``."""
    hidden = config.integer("hidden_size")
    head_dim = config.integer("head_dim", _HEAD_DIM)
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            config.integer("num_attention_heads"),
            1,
            head_dim,
            positions=Rotary.Config(head_dim, config.number("rope_theta", 10000.0), interleaved=True),
        ),
        feedforward=FeedForward.Config(hidden, config.integer("intermediate_size", 4 * hidden), "silu", gated=True),
        norm=LayerNorm.Config(hidden, config.number("layer_norm_epsilon", 1e-5), bias=False),
        placement="parallel",
    )
    vocab_size = config.integer("vocab_size")
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden, standard_deviation=1.0),
        stack=Stack.Config((layer,) * config.integer("num_hidden_layers"), norm=layer.norm, initialization="fan-in"),
        head=Head.Config(hidden, vocab_size, scale=hidden**-0.5),
        max_positions=config.integer("max_position_embeddings", 2048),
    )


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layer = config.stack.layers[0]
    rotary = only_kind(layer.attention.positions, Rotary.Config, "the position scheme")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": only_kind(
            layer.feedforward, FeedForward.Config, "the feed-forward part"
        ).intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": layer.attention.num_heads,
        "head_dim": layer.attention.head_dim,
        "max_position_embeddings": config.max_positions,
        "layer_norm_epsilon": layer.norm.eps,
        "rope_theta": rotary.base,
    }


family = Family("palm", ("PaLMForCausalLM",), read, write, native.family.weight_table)
