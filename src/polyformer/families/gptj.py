"""GPT-J (Wang and Komatsuzaki, 2021): attention and feed-forward side by side behind one norm, part of each head turned
by rotary positions."""

from __future__ import annotations

from typing import Any

from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, LayerNorm, Rotary, Stack, TokenEmbedding
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.gpt2 import BLOCK, LAYER, ignored, outer_rules
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, gguf_rules, gguf_vocab_size, renamed
from polyformer.families.weights import WeightTable


def read(config: ConfigReader) -> DecoderOnly.Config:
    hidden = config.integer("n_embd")
    config.only("rotary", True)
    config.only("scale_attn_weights", True)
    norm = LayerNorm.Config(hidden, config.number("layer_norm_epsilon", 1e-5))
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            config.integer("n_head"),
            positions=Rotary.Config(config.integer("rotary_dim", 64), interleaved=True),
            dropout=config.number("attn_pdrop", 0.0),
        ),
        feedforward=FeedForward.Config(
            hidden,
            config.integer("n_inner", 4 * hidden),
            config.choose("activation_function", ACTIVATION_NAMES, "gelu_tanh"),
            bias=True,
        ),
        norm=norm,
        placement="parallel",
        dropout=config.number("resid_pdrop", 0.0),
    )
    vocab_size = config.integer("vocab_size")
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden, dropout=config.number("embd_pdrop", 0.0)),
        stack=Stack.Config((layer,) * config.integer("n_layer"), norm=norm),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", False), bias=True),
        max_positions=config.integer("n_positions", 2048),
    )


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layer = config.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": layer.attention.num_heads,
        "rotary_dim": only_kind(layer.attention.positions, Rotary.Config, "the position scheme").rotary_dim,
        "n_inner": feedforward.intermediate_size,
        "activation_function": activation_name(feedforward.activation, prefer="gelu_new"),
        "resid_pdrop": layer.dropout,
        "embd_pdrop": config.embedding.dropout,
        "attn_pdrop": layer.attention.dropout,
        "layer_norm_epsilon": layer.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    rules = (
        *outer_rules(),
        *renamed(f"{LAYER}.attention", f"{BLOCK}.attn", attention),
        *renamed(f"{LAYER}.feedforward", f"{BLOCK}.mlp", {"up": "fc_in", "down": "fc_out"}),
    )
    return WeightTable(rules, ignored(config), optional_prefix="transformer.")


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    """The metadata that the GGUF specification lists for it. llama.cpp itself does not run this architecture."""
    config.only("rope.scale", 1.0)
    config.only("rope.freq_base", 10000.0)
    hidden = config.integer("embedding_length")
    values = {
        "vocab_size": gguf_vocab_size(config, file),
        "n_positions": config.integer("context_length"),
        "n_embd": hidden,
        "n_layer": config.integer("block_count"),
        "n_head": config.integer("attention.head_count"),
        "rotary_dim": config.integer("rope.dimension_count"),
        "n_inner": config.integer("feed_forward_length", 4 * hidden),
        "layer_norm_epsilon": config.number("attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.names(),
    }
    return read(ConfigReader(values, config.where))


family = Family(
    name="gptj",
    architectures=("GPTJForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("gptj", read_gguf, lambda config: WeightTable(tuple(gguf_rules()))),
)
