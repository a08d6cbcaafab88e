"""StarCoder2 (Lozhkov et al., 2024): LLaMA's layout with LayerNorm, biases and a plain feed-forward part."""

from __future__ import annotations

from typing import Any

from polyformer.core import (
    Attention,
    Causal,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    SlidingWindow,
    Stack,
    TokenEmbedding,
)
from polyformer.families.base import ConfigReader, Family, GGUFContents, GGUFFormat, only_kind
from polyformer.families.parts import (
    ACTIVATION_NAMES,
    GGUF_IGNORED,
    LLAMA_EMBEDDING,
    LLAMA_HEAD,
    activation_name,
    gguf_rules,
    gguf_vocab_size,
    llama_attention_rules,
    llama_norm_rules,
    read_gguf_rotary,
    read_rotary,
    refuse_partial_rotary,
    renamed,
    write_rotary,
)
from polyformer.families.weights import WeightTable
from polyformer.families.windows import window_of


def read(config: ConfigReader) -> DecoderOnly.Config:
    config.only("norm_type", "layer_norm")
    config.only("mlp_type", "default")
    refuse_partial_rotary(config)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", hidden // heads)
    max_positions = config.integer("max_position_embeddings", 4096)
    bias = config.flag("use_bias", True)
    window = config.integer("sliding_window", None)
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            heads,
            config.integer("num_key_value_heads", 2),
            head_dim,
            mask=SlidingWindow(window) if window else Causal(),
            positions=read_rotary(config, head_dim, max_positions=max_positions),
            bias=bias,
            dropout=config.number("attention_dropout", 0.0),
        ),
        feedforward=FeedForward.Config(
            hidden,
            config.integer("intermediate_size"),
            config.choose("hidden_act", ACTIVATION_NAMES, "gelu_tanh"),
            bias=bias,
        ),
        norm=LayerNorm.Config(hidden, config.number("norm_epsilon", 1e-5)),
        dropout=config.number("residual_dropout", 0.0),
    )
    vocab_size = config.integer("vocab_size")
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden, dropout=config.number("embedding_dropout", 0.0)),
        stack=Stack.Config((layer,) * config.integer("num_hidden_layers"), norm=layer.norm),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", True)),
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
        "hidden_act": activation_name(feedforward.activation, prefer="gelu_pytorch_tanh"),
        "max_position_embeddings": config.max_positions,
        "norm_epsilon": layer.norm.eps,
        "sliding_window": window_of(attention.mask),
        "use_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "residual_dropout": layer.dropout,
        "embedding_dropout": config.embedding.dropout,
        "tie_word_embeddings": config.head.tied,
        **write_rotary(attention.positions),
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    rules = (
        LLAMA_EMBEDDING,
        LLAMA_HEAD,
        *renamed("stack", "model", {"norm": "norm"}),
        *llama_norm_rules(),
        *llama_attention_rules(),
        *renamed("stack.layers.{layer}.feedforward", "model.layers.{layer}.mlp", {"up": "c_fc", "down": "c_proj"}),
    )
    return WeightTable(rules, (r".*rotary_emb\.inv_freq", *([r"lm_head\.weight"] if config.head.tied else [])))


def read_gguf(config: ConfigReader, file: GGUFContents) -> DecoderOnly.Config:
    hidden, heads = config.integer("embedding_length"), config.integer("attention.head_count")
    head_dim = config.integer("attention.key_length", hidden // heads)
    config.only("attention.value_length", head_dim)
    config.only("rope.dimension_count", head_dim)
    bias = "blk.0.attn_q.bias" in file.names()
    window = config.integer("attention.sliding_window", None)
    layer = Layer.Config(
        attention=Attention.Config(
            hidden,
            heads,
            config.integer("attention.head_count_kv", heads),
            head_dim,
            mask=SlidingWindow(window) if window else Causal(),
            positions=read_gguf_rotary(config, file, head_dim),
            bias=bias,
        ),
        feedforward=FeedForward.Config(hidden, config.integer("feed_forward_length"), "gelu_tanh", bias=bias),
        norm=LayerNorm.Config(hidden, config.number("attention.layer_norm_epsilon")),
    )
    vocab_size = gguf_vocab_size(config, file)
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(vocab_size, hidden),
        stack=Stack.Config((layer,) * config.integer("block_count"), norm=layer.norm),
        head=Head.Config(hidden, vocab_size, tied="output.weight" not in file.names()),
        max_positions=config.integer("context_length"),
    )


family = Family(
    name="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    read=read,
    write=write,
    weight_table=weight_table,
    gguf=GGUFFormat("starcoder2", read_gguf, lambda config: WeightTable(tuple(gguf_rules()), GGUF_IGNORED)),
)
