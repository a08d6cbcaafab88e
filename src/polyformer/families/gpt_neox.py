"""GPT-NeoX and Pythia (Black et al., 2022; Biderman et al., 2023): attention and feed-forward side by side, behind a
norm each, and a part of each head turned by rotary positions."""

from __future__ import annotations

from typing import Any

from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, LayerNorm, Rotary, Stack, TokenEmbedding
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.parts import (
    ACTIVATION_NAMES,
    GGUF_IGNORED,
    activation_name,
    fused_attention_rules,
    gguf_rules,
    gguf_vocab_size,
    read_gguf_rotary,
    read_rotary,
    renamed,
    write_rotary,
)
from polyformer.families.weights import GroupedQueryKeyValue, Rule, Split, WeightTable


def read(config: ConfigReader) -> DecoderOnly.Config:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    max_positions = config.integer("max_position_embeddings", 2048)
    bias = config.flag("attention_bias", True)
    parallel = config.flag("use_parallel_residual", True)
    norm = LayerNorm.Config(hidden, config.number("layer_norm_eps", 1e-5))
    dropout = config.number("hidden_dropout", 0.0)
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            heads,
            positions=_read_rotary(config, hidden // heads, max_positions),
            bias=bias,
            dropout=config.number("attention_dropout", 0.0),
        ),
        feedforward=FeedForward.Config(
            hidden,
            config.integer("intermediate_size"),
            config.choose("hidden_act", ACTIVATION_NAMES, "gelu"),
            bias=True,
        ),
        norm=norm,
        placement="parallel" if parallel else "pre",
        parallel_norms=parallel,
        dropout=dropout,
    )
    vocab_size = config.integer("vocab_size")
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden, dropout=dropout),
        stack=Stack.Config((layer,) * config.integer("num_hidden_layers"), norm=norm),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", False)),
        max_positions=max_positions,
    )


def _read_rotary(config: ConfigReader, head_dim: int, max_positions: int) -> Rotary.Config:
    """The turned part and the base have names of their own here, ``rotary_pct`` and ``rotary_emb_base``; newer files
    write both in ``rope_parameters``."""
    newer = ConfigReader(config("rope_parameters", None, kind=dict) or {}, f"{config.where}: rope_parameters")
    part = newer.number("partial_rotary_factor", config.number("rotary_pct", 0.25))
    base = config.number("rotary_emb_base", 10000.0)
    return read_rotary(config, int(head_dim * part), max_positions=max_positions, base=base)


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layer = config.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    rotary = only_kind(layer.attention.positions, Rotary.Config, "the position scheme")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": feedforward.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": layer.attention.num_heads,
        "hidden_act": activation_name(feedforward.activation),
        "max_position_embeddings": config.max_positions,
        "layer_norm_eps": layer.norm.eps,
        "use_parallel_residual": layer.placement == "parallel",
        "attention_bias": layer.attention.bias,
        "attention_dropout": layer.attention.dropout,
        "hidden_dropout": layer.dropout,
        "tie_word_embeddings": config.head.tied,
        "rotary_pct": rotary.rotary_dim / layer.attention.head_dim,
        "rotary_emb_base": rotary.base,
        "rope_scaling": write_rotary(rotary)["rope_scaling"],
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    attention = config.stack.layers[0].attention
    # Per head: its rows of the query, of the key, of the value. A group of one query head is Falcon's case of that.
    fused = GroupedQueryKeyValue(attention.num_heads, attention.num_heads, attention.head_dim)
    ours, theirs = "stack.layers.{layer}", "gpt_neox.layers.{layer}"
    norms = {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}
    return WeightTable(
        rules=(
            Rule("embedding.tokens.weight", "gpt_neox.embed_in.weight"),
            *renamed(ours, theirs, norms),
            *fused_attention_rules(f"{theirs}.attention.query_key_value", fused),
            *renamed(f"{ours}.attention", f"{theirs}.attention", {"output": "dense"}),
            *renamed(f"{ours}.feedforward", f"{theirs}.mlp", {"up": "dense_h_to_4h", "down": "dense_4h_to_h"}),
            *renamed("stack", "gpt_neox", {"norm": "final_layer_norm"}),
            Rule("head.weight", "embed_out.weight"),
        ),
        ignored=(
            r".*attention\.(bias|masked_bias)",  # the triangle of the mask, in the files of old
            r".*rotary_emb\.inv_freq",
            *([r"embed_out\.weight"] if config.head.tied else []),
        ),
    )


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    hidden, heads = config.integer("embedding_length"), config.integer("attention.head_count")
    names = file.names()
    rotary = read_gguf_rotary(config, file, config.integer("rope.dimension_count", hidden // heads))
    values = {
        "vocab_size": gguf_vocab_size(config, file),
        "hidden_size": hidden,
        "intermediate_size": config.integer("feed_forward_length"),
        "num_hidden_layers": config.integer("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": config.integer("context_length"),
        "layer_norm_eps": config.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": config.flag("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "rotary_pct": rotary.rotary_dim / (hidden // heads),
        "rotary_emb_base": rotary.base,
        "rope_scaling": write_rotary(rotary)["rope_scaling"],
    }
    return read(ConfigReader(values, config.where))


def gguf_weight_table(config: DecoderOnly.Config) -> WeightTable:
    """llama.cpp's converter lays the fused projection out anew: all queries, all keys, all values."""
    return WeightTable(tuple(gguf_rules(fused=Split((config.hidden_size,) * 3))), GGUF_IGNORED)


family = Family(
    name="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("gptneox", read_gguf, gguf_weight_table),
)
