"""GPT, the first (Radford et al., 2018): post-norm, learned positions, no norm at the end."""

from __future__ import annotations

from typing import Any

from polyformer.core import Attention, DecoderOnly, FeedForward, Head, Layer, LayerNorm, Learned, Stack, TokenEmbedding
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.gpt2 import BLOCK, LAYER, split_of
from polyformer.families.parts import fused_attention_rules, renamed, transposed
from polyformer.families.weights import Rule, WeightTable

_ACTIVATIONS = {"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"}  # its "gelu" is the approximation


def read(config: ConfigReader) -> DecoderOnly.Config:
    hidden = config.integer("n_embd")
    layer = Layer.Config(
        attention=Attention.Config(
            hidden, config.integer("n_head"), bias=True, dropout=config.number("attn_pdrop", 0.1)
        ),
        feedforward=FeedForward.Config(hidden, 4 * hidden, config.choose("afn", _ACTIVATIONS, "gelu_tanh"), bias=True),
        norm=LayerNorm.Config(hidden, config.number("layer_norm_epsilon", 1e-5)),
        placement="post",
        dropout=config.number("resid_pdrop", 0.1),
    )
    vocab_size, positions = config.integer("vocab_size"), config.integer("n_positions", 512)
    return DecoderOnly.Config(
        embedding=TokenEmbedding.Config(
            vocab_size, hidden, Learned.Config(positions, hidden), dropout=config.number("embd_pdrop", 0.1)
        ),
        stack=Stack.Config((layer,) * config.integer("n_layer")),
        head=Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", True)),
        max_positions=positions,
    )


def write(config: DecoderOnly.Config) -> dict[str, Any]:
    layer = config.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    names = [name for name, meaning in _ACTIVATIONS.items() if meaning == feedforward.activation]
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": layer.attention.num_heads,
        "afn": names[0] if names else feedforward.activation,
        "resid_pdrop": layer.dropout,
        "embd_pdrop": config.embedding.dropout,
        "attn_pdrop": layer.attention.dropout,
        "layer_norm_epsilon": layer.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def weight_table(config: DecoderOnly.Config) -> WeightTable:
    rules = (
        Rule("embedding.tokens.weight", "transformer.tokens_embed.weight"),
        Rule("embedding.positions.weight", "transformer.positions_embed.weight"),
        Rule("head.weight", "lm_head.weight"),
        *renamed(LAYER, BLOCK, {"attention_norm": "ln_1", "feedforward_norm": "ln_2"}),
        *fused_attention_rules(f"{BLOCK}.attn.c_attn", split_of(config), transpose=True),
        *transposed(f"{LAYER}.attention.output", f"{BLOCK}.attn.c_proj"),
        *transposed(f"{LAYER}.feedforward.up", f"{BLOCK}.mlp.c_fc"),
        *transposed(f"{LAYER}.feedforward.down", f"{BLOCK}.mlp.c_proj"),
    )
    ignored = [r"(transformer\.)?h\.\d+\.attn\.bias"]  # the causal mask, which old files hold as if it were a weight
    if config.head.tied:
        ignored.append(r"lm_head\.weight")
    return WeightTable(rules, tuple(ignored), optional_prefix="transformer.")


family = Family("openai-gpt", ("OpenAIGPTLMHeadModel",), read, write, weight_table)
