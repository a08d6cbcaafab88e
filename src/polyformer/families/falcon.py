"""Falcon (Almazrouei et al., 2023): few key/value heads, attention and feed-forward side by side.

Its RW models have many heads, one branch after the other, and ALiBi.
"""

from __future__ import annotations

from typing import Any

from polyformer.core import (
    ALiBi,
    Attention,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    Rotary,
    Stack,
    TokenEmbedding,
)
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.gpt2 import split_of
from polyformer.families.parts import (
    ACTIVATION_NAMES,
    GGUF_IGNORED,
    activation_name,
    fused_attention_rules,
    gguf_rules,
    gguf_vocab_size,
    read_gguf_rotary,
    read_rotary,
    refuse_partial_rotary,
    renamed,
    write_rotary,
)
from polyformer.families.weights import GroupedQueryKeyValue, Rule, WeightTable

_BLOCK = "transformer.h.{layer}"
_LAYER = "stack.layers.{layer}"


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.only("apply_residual_connection_post_layernorm", False)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = hidden // heads
    max_positions = config.integer("max_position_embeddings", 2048)
    bias, alibi = config.flag("bias", False), config.flag("alibi", False)
    shared, parallel, two_norms = _read_arrangement(config, heads)
    inner = config.integer("ffn_hidden_size", 4 * hidden)
    config.only("ff_factor", inner / hidden)  # the 11B says it twice
    refuse_partial_rotary(config)
    rotary = read_rotary(config, head_dim, max_positions=max_positions)
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            heads,
            shared,
            positions=None if alibi else rotary,
            bias=bias,
            dropout=config.number("attention_dropout", 0.0),
        ),
        feedforward=FeedForward.Config(
            hidden,
            inner,
            config.choose("activation", ACTIVATION_NAMES, "gelu"),
            bias=bias,
        ),
        norm=LayerNorm.Config(hidden, config.number("layer_norm_epsilon", 1e-5)),
        placement="parallel" if parallel else "pre",
        parallel_norms=two_norms,
        dropout=config.number("hidden_dropout", 0.0),
    )
    vocab_size = config.integer("vocab_size")
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden),
        stack=Stack.Config(
            (layer,) * config.integer("num_hidden_layers"),
            norm=layer.norm,
            bias=ALiBi.Config(heads, scale=layer.attention.scale) if alibi else None,
        ),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", True)),
        max_positions=max_positions,
    )


def _read_arrangement(config: ConfigReader, heads: int) -> tuple[int, bool, bool]:
    """Key/value heads, whether the branches are parallel, and whether they then have a norm each."""
    multi_query = config.flag("multi_query", True)
    if config.flag("new_decoder_architecture", False):
        config.only("parallel_attn", True)
        config.only("num_ln_in_parallel_attn", 1, 2)
        return config.integer("num_kv_heads", heads), True, config("num_ln_in_parallel_attn", 2) == 2
    config.only("num_ln_in_parallel_attn", 1)
    parallel = config.flag("parallel_attn", True)
    if multi_query:
        config("num_kv_heads", None)  # without meaning: there is one
        return 1, parallel, False
    config.only("num_kv_heads", heads)
    return heads, parallel, False


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layer = config.stack.layers[0]
    attention = layer.attention
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    parallel = layer.placement == "parallel"
    grouped = attention.num_key_value_heads not in (1, attention.num_heads)
    if grouped and not parallel:
        raise ConfigError("falcon has groups of key/value heads only where attention and feed-forward are parallel")
    new = layer.parallel_norms or grouped
    values = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": feedforward.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_kv_heads": attention.num_key_value_heads,
        "new_decoder_architecture": new,
        "multi_query": attention.num_key_value_heads == 1,
        "parallel_attn": parallel,
        "activation": activation_name(feedforward.activation),
        "max_position_embeddings": config.max_positions,
        "layer_norm_epsilon": layer.norm.eps,
        "bias": attention.bias,
        "alibi": config.stack.bias is not None,
        "attention_dropout": attention.dropout,
        "hidden_dropout": layer.dropout,
        "tie_word_embeddings": config.head.tied,
        "apply_residual_connection_post_layernorm": False,
    }
    if new:
        values["num_ln_in_parallel_attn"] = 2 if layer.parallel_norms else 1
    if config.stack.bias is None:
        values.update(write_rotary(only_kind(attention.positions, Rotary.Config, "the position scheme")))
    return values


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    layer = config.stack.layers[0]
    attention = layer.attention
    split = GroupedQueryKeyValue(attention.num_heads, attention.num_key_value_heads, attention.head_dim)
    norms = {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}
    if layer.parallel_norms:
        norms = {"attention_norm": "ln_attn", "feedforward_norm": "ln_mlp"}
    rules = (
        Rule("embedding.tokens.weight", "transformer.word_embeddings.weight"),
        Rule("head.weight", "lm_head.weight"),
        *renamed("stack", "transformer", {"norm": "ln_f"}),
        *renamed(_LAYER, _BLOCK, norms),
        *fused_attention_rules(f"{_BLOCK}.self_attention.query_key_value", split),
        *renamed(f"{_LAYER}.attention", f"{_BLOCK}.self_attention", {"output": "dense"}),
        *renamed(f"{_LAYER}.feedforward", f"{_BLOCK}.mlp", {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}),
    )
    ignored = (r".*rotary_emb\.inv_freq", *([r"lm_head\.weight"] if config.head.tied else []))
    return WeightTable(rules, ignored, optional_prefix="transformer.")


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    """llama.cpp knows the rotary, parallel Falcons."""
    config.only("tensor_data_layout", "jploski")  # all queries, then all keys, then all values
    hidden, heads = config.integer("embedding_length"), config.integer("attention.head_count")
    names = file.names()
    config.only("rope.dimension_count", hidden // heads)
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            heads,
            config.integer("attention.head_count_kv", 1),
            positions=read_gguf_rotary(config, file, hidden // heads),
        ),
        feedforward=FeedForward.Config(hidden, config.integer("feed_forward_length", 4 * hidden), "gelu"),
        norm=LayerNorm.Config(hidden, config.number("attention.layer_norm_epsilon")),
        placement="parallel",
        parallel_norms="blk.0.attn_norm_2.weight" in names,
    )
    vocab_size = gguf_vocab_size(config, file)
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden),
        stack=Stack.Config((layer,) * config.integer("block_count"), norm=layer.norm),
        head=Head.Config(hidden, vocab_size, tied="output.weight" not in names),
        max_positions=config.integer("context_length"),
    )


def gguf_weight_table(config: DecoderOnly.Config) -> WeightTable:
    norms = {"attention_norm": "attn_norm"}
    if config.stack.layers[0].parallel_norms:  # the second norm is that of attention
        norms = {"attention_norm": "attn_norm_2", "feedforward_norm": "attn_norm"}
    common = [rule for rule in gguf_rules(fused=split_of(config)) if f"{_LAYER}.attention_norm" not in rule.ours[0]]
    common = [rule for rule in common if f"{_LAYER}.feedforward_norm" not in rule.ours[0]]
    return WeightTable((*common, *renamed(_LAYER, "blk.{layer}", norms)), GGUF_IGNORED)


family = Family(
    name="falcon",
    architectures=("FalconForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("falcon", read_gguf, gguf_weight_table),
)
