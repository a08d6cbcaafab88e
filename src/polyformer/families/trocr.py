"""The decoder of TrOCR (Li et al., 2021), which reads what a vision transformer saw: BART's layers."""

from __future__ import annotations

from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Decoder,
    FeedForward,
    Head,
    Layer,
    LayerNorm,
    Learned,
    Sinusoidal,
    Stack,
    TokenEmbedding,
)
from polyformer.families.bart import layer_rules
from polyformer.families.base import ConfigReader, only_kind
from polyformer.families.parts import ACTIVATION_NAMES, activation_name
from polyformer.families.weights import Rule


def sinusoids(hidden: int, padding: int) -> Sinusoidal.Config:
    """fairseq's sinusoids: the slowest reaches the base exactly, and positions begin after the id of padding."""
    half = hidden // 2
    return Sinusoidal.Config(hidden, 10000.0 ** (half / (half - 1)), interleaved=False, offset=padding + 1)


def read(config: ConfigReader, source_size: int) -> tuple[Decoder.Config, Head.Config]:
    """The decoder that looks at vectors of ``source_size``."""
    hidden, limit = config.integer("d_model", 1024), config.integer("max_position_embeddings", 512)
    vocab_size = config.integer("vocab_size", 50265)
    padding = config.integer("pad_token_id", 1, least=0)
    config.integer("cross_attention_hidden_size", source_size)
    config.number("decoder_layerdrop", 0.0)  # whole layers left out in training
    config.flag("use_learned_position_embeddings", True)
    dropout = config.number("dropout", 0.1)
    norm = LayerNorm.Config(hidden)
    attention = {
        "num_heads": config.integer("decoder_attention_heads", 16),
        "bias": True,
        "dropout": config.number("attention_dropout", 0.0),
    }
    layer = Layer.Config(
        Attention.Config(hidden, **attention),
        FeedForward.Config(
            hidden,
            config.integer("decoder_ffn_dim", 4096),
            config.choose("activation_function", ACTIVATION_NAMES, "gelu"),
            bias=True,
            dropout=config.number("activation_dropout", 0.0),
        ),
        norm,
        placement="post",
        cross_attention=Attention.Config(hidden, **attention, source_size=source_size, mask=Bidirectional()),
        dropout=dropout,
    )
    learned = config.flag("use_learned_position_embeddings", True)
    embedding = TokenEmbedding.Config(
        vocab_size,
        hidden,
        Learned.Config(limit, hidden, 2) if learned else sinusoids(hidden, padding),
        hidden**0.5 if config.flag("scale_embedding", False) else None,
        norm if config.flag("layernorm_embedding", True) else None,
        dropout,
    )
    stack = Stack.Config((layer,) * config.integer("decoder_layers", 12))
    head = Head.Config(hidden, vocab_size, tied=config.flag("tie_word_embeddings", True))
    return Decoder.Config(embedding, stack), head


def write(decoder: Decoder.Config, head: Head.Config, limit: int | None) -> dict[str, Any]:
    embedding, layer = decoder.embedding, decoder.stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    cross = only_kind(layer.cross_attention, Attention.Config, "the cross-attention")
    positions = embedding.positions
    return {
        "model_type": "trocr",
        "vocab_size": embedding.vocab_size,
        "d_model": embedding.hidden_size,
        "decoder_layers": len(decoder.stack.layers),
        "decoder_attention_heads": layer.attention.num_heads,
        "decoder_ffn_dim": feedforward.intermediate_size,
        "activation_function": activation_name(feedforward.activation),
        "max_position_embeddings": limit,
        "dropout": layer.dropout,
        "attention_dropout": layer.attention.dropout,
        "activation_dropout": feedforward.dropout,
        "scale_embedding": embedding.scale is not None,
        "use_learned_position_embeddings": isinstance(positions, Learned.Config),
        "layernorm_embedding": embedding.norm is not None,
        "cross_attention_hidden_size": cross.source_size,
        "tie_word_embeddings": head.tied,
        "pad_token_id": positions.offset - 1 if isinstance(positions, Sinusoidal.Config) else 1,
    }


def rules() -> list[Rule]:
    """Names inside a vision encoder-decoder."""
    return [
        Rule("decoder.embedding.tokens.weight", "decoder.model.decoder.embed_tokens.weight"),
        *layer_rules("decoder.model.", "decoder"),
        Rule("head.weight", "decoder.output_projection.weight"),
    ]
