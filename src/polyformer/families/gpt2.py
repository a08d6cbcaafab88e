"""GPT-2, and GPT-3 where it is dense (Radford et al., 2019; Brown et al., 2020)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, LayerNorm, Learned, Stack, TokenEmbedding
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.parts import (
    ACTIVATION_NAMES,
    activation_name,
    fused_attention_rules,
    gguf_rules,
    gguf_vocab_size,
    renamed,
    transposed,
)
from polyformer.families.weights import Rule, Split, Transform, WeightTable

BLOCK = "transformer.h.{layer}"
LAYER = "stack.layers.{layer}"


def read(config: ConfigReader, *, key_value_heads: int | None = None) -> DecoderOnly.Config:
    """A ``config.json``; ``key_value_heads`` for a family that shares them."""
    hidden, heads = config.integer("n_embd"), config.integer("n_head")
    config.only("add_cross_attention", False)
    # Scores in float32, scaled first: a matter of rounding, and of this library's attention anyway.
    config.flag("reorder_and_upcast_attn", False)
    norm = LayerNorm.Config(hidden, config.number("layer_norm_epsilon", 1e-5))
    attention = Attention.Config(
        hidden,
        heads,
        key_value_heads or heads,
        bias=True,
        scale=None if config.flag("scale_attn_weights", True) else 1.0,  # type: ignore[arg-type]
        dropout=config.number("attn_pdrop", 0.1),
    )
    feedforward = FeedForward.Config(
        hidden,
        config.integer("n_inner", 4 * hidden),
        config.choose("activation_function", ACTIVATION_NAMES, "gelu_tanh"),
        bias=True,
    )
    layer = Layer.Config(attention, feedforward, norm, dropout=config.number("resid_pdrop", 0.1))
    count = config.integer("n_layer")
    layers = (layer,) * count
    if config.flag("scale_attn_by_inverse_layer_idx", False):
        layers = tuple(
            replace(layer, attention=replace(attention, scale=attention.scale / number))
            for number in range(1, count + 1)
        )
    vocab_size, positions = config.integer("vocab_size"), config.integer("n_positions", 1024)
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(
            vocab_size, hidden, Learned.Config(positions, hidden), dropout=config.number("embd_pdrop", 0.1)
        ),
        stack=Stack.Config(layers, norm=norm),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", True)),
        max_positions=positions,
    )


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layers = config.stack.layers
    attention = layers[0].attention
    feedforward = only_kind(layers[0].feedforward, FeedForward.Config, "the feed-forward part")
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": attention.num_heads,
        "n_inner": feedforward.intermediate_size,
        "activation_function": activation_name(feedforward.activation, prefer="gelu_new"),
        "resid_pdrop": layers[0].dropout,
        "embd_pdrop": config.embedding.dropout,
        "attn_pdrop": attention.dropout,
        "layer_norm_epsilon": layers[0].norm.eps,
        "scale_attn_weights": attention.scale != 1.0,
        "scale_attn_by_inverse_layer_idx": len({layer.attention.scale for layer in layers}) > 1,
        "tie_word_embeddings": config.head.tied,
    }


def outer_rules() -> list[Rule]:
    """Everything that is not inside a branch of a layer."""
    return [
        Rule("embedding.tokens.weight", "transformer.wte.weight"),
        Rule("embedding.positions.weight", "transformer.wpe.weight"),
        *renamed("stack", "transformer", {"norm": "ln_f"}),
        Rule("head.weight", "lm_head.weight"),
        Rule("head.bias", "lm_head.bias"),
        *renamed(LAYER, BLOCK, {"attention_norm": "ln_1", "feedforward_norm": "ln_2"}),
    ]


def split_of(config: DecoderOnly.Config) -> Split:
    """All queries, then all keys, then all values."""
    attention = config.stack.layers[0].attention
    shared = attention.num_key_value_heads * attention.head_dim
    return Split((attention.num_heads * attention.head_dim, shared, shared))


def ignored(config: DecoderOnly.Config) -> tuple[str, ...]:
    """The causal mask, which old files hold as if it were a weight, and the second copy of a tied head."""
    masks = r"(transformer\.)?(h\.\d+\.attn\.(attention\.)?)?(masked_)?bias"
    return (masks, r"lm_head\.weight") if config.head.tied else (masks,)


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    rules = (
        *outer_rules(),
        *fused_attention_rules(f"{BLOCK}.attn.c_attn", split_of(config), transpose=True),
        *transposed(f"{LAYER}.attention.output", f"{BLOCK}.attn.c_proj"),
        *transposed(f"{LAYER}.feedforward.up", f"{BLOCK}.mlp.c_fc"),
        *transposed(f"{LAYER}.feedforward.down", f"{BLOCK}.mlp.c_proj"),
    )
    return WeightTable(rules, ignored(config), optional_prefix="transformer.")


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    """llama.cpp's metadata, which knows fewer options."""
    hidden, heads = config.integer("embedding_length"), config.integer("attention.head_count")
    values = {
        "vocab_size": gguf_vocab_size(config, file),
        "n_positions": config.integer("context_length"),
        "n_embd": hidden,
        "n_layer": config.integer("block_count"),
        "n_head": heads,
        "n_inner": config.integer("feed_forward_length", 4 * hidden),
        "layer_norm_epsilon": config.number("attention.layer_norm_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.names(),
    }
    return read(ConfigReader(values, config.where), key_value_heads=config.integer("attention.head_count_kv", heads))


def gguf_weight_table(config: DecoderOnly.Config) -> WeightTable:
    split: Transform = split_of(config)
    return WeightTable(tuple(gguf_rules(fused=split)))


family = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("gpt2", read_gguf, gguf_weight_table),
)
