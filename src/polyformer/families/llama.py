"""LLaMA 1 to 3, Code Llama and SmolLM (Touvron et al., 2023; Rozière et al., 2023; Dubey et al., 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyformer.core import (
    Attention,
    Causal,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    RMSNorm,
    SlidingWindow,
    Stack,
    TokenEmbedding,
)
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.experts import gguf_expert_rules, read_gguf_experts
from polyformer.families.parts import (
    ACTIVATION_NAMES,
    GGUF_IGNORED,
    LLAMA_EMBEDDING,
    LLAMA_FINAL_NORM,
    LLAMA_HEAD,
    activation_name,
    gguf_rules,
    gguf_vocab_size,
    llama_attention_rules,
    llama_feedforward_rules,
    llama_norm_rules,
    read_gguf_rotary,
    read_rotary,
    refuse_partial_rotary,
    write_rotary,
)
from polyformer.families.weights import WeightTable


def read(
    config: ConfigReader,
    *,
    activation: str | None = None,
    attention: Mapping[str, Any] | None = None,
) -> DecoderOnly.Config:
    """A ``config.json``; a family that differs in activation, or in options of `Attention.Config`, passes its own."""
    config.only("rope_interleaved", False)
    hidden = config.integer("hidden_size")
    heads = config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", hidden // heads)
    max_positions = config.integer("max_position_embeddings", 2048)
    bias = config.flag("attention_bias", False)
    options = {"bias": bias, "dropout": config.number("attention_dropout", 0.0), **(attention or {})}
    if "positions" not in options:
        refuse_partial_rotary(config)
        options["positions"] = read_rotary(config, head_dim, max_positions=max_positions)
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            heads,
            config.integer("num_key_value_heads", heads),
            head_dim,
            **options,
        ),
        feedforward=FeedForward.Config(
            hidden,
            config.integer("intermediate_size"),
            activation or config.choose("hidden_act", ACTIVATION_NAMES, "silu"),
            gated=True,
            bias=config.flag("mlp_bias", False),
        ),
        norm=RMSNorm.Config(hidden, config.number("rms_norm_eps", 1e-6)),
    )
    vocab_size = config.integer("vocab_size")
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden),
        stack=Stack.Config((layer,) * config.integer("num_hidden_layers"), norm=layer.norm),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", False)),
        max_positions=max_positions,
    )


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layer = config.stack.layers[0]
    attention = layer.attention
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": feedforward.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "hidden_act": activation_name(feedforward.activation),
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": layer.norm.eps,
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "mlp_bias": feedforward.bias,
        "tie_word_embeddings": config.head.tied,
        **write_rotary(attention.positions),
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    return WeightTable(
        rules=(
            LLAMA_EMBEDDING,
            LLAMA_FINAL_NORM,
            LLAMA_HEAD,
            *llama_norm_rules(),
            *llama_attention_rules(),
            *llama_feedforward_rules(),
        ),
        ignored=(r".*rotary_emb\.inv_freq", *([r"lm_head\.weight"] if config.head.tied else [])),
    )


def read_gguf(config: ConfigReader, file: GGUFContents, *, activation: str = "silu") -> DecoderOnly.Config:
    """GGUF metadata of LLaMA and all who are built like it: biases, norms of queries and keys, windows and experts are
    there if the file has them."""
    config.only("attention.causal", True)
    hidden = config.integer("embedding_length")
    heads = config.integer("attention.head_count")
    head_dim = config.integer("attention.key_length", hidden // heads)
    config.only("attention.value_length", head_dim)
    names = set(file.names())
    norm = RMSNorm.Config(hidden, config.number("attention.layer_norm_rms_epsilon"))
    window = config.integer("attention.sliding_window", 0, least=0)
    expert = FeedForward.Config(
        hidden, config.integer("feed_forward_length"), activation, gated=True, bias="blk.0.ffn_up.bias" in names
    )
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            heads,
            config.integer("attention.head_count_kv", heads),
            head_dim,
            mask=SlidingWindow(window) if window else Causal(),
            positions=read_gguf_rotary(config, file, config.integer("rope.dimension_count", head_dim)),
            bias="blk.0.attn_q.bias" in names,
            output_bias="blk.0.attn_output.bias" in names,
            query_key_norm=RMSNorm.Config(head_dim, norm.eps) if "blk.0.attn_q_norm.weight" in names else None,
        ),
        feedforward=read_gguf_experts(config, expert, names),
        norm=norm,
    )
    vocab_size = gguf_vocab_size(config, file)
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden),
        stack=Stack.Config((layer,) * config.integer("block_count"), norm=layer.norm),
        head=Head.Config(hidden, vocab_size, tied="output.weight" not in names),
        max_positions=config.integer("context_length"),
    )


def gguf_weight_table(config: DecoderOnly.Config) -> WeightTable:
    attention = config.stack.layers[0].attention
    # llama.cpp stores the rows of LLaMA's queries and keys as neighbours
    rules = gguf_rules(interleaved_rotary=(attention.num_heads, attention.num_key_value_heads))
    return WeightTable((*rules, *gguf_expert_rules(config)), ignored=GGUF_IGNORED)


gguf = GGUFFormat("llama", read_gguf, gguf_weight_table)  # of Mistral and Mixtral too

family = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=gguf,
)
