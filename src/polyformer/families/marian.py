"""Marian (Junczys-Dowmunt et al., 2018): the original Transformer (Vaswani et al., 2017) for translation, with norms
behind, sinusoids, and one table of tokens for source, target and scores."""

from __future__ import annotations

from typing import Any

from polyformer.core import EncoderDecoder
from polyformer.families.bart import Layout, weight_table
from polyformer.families.bart import read as read_layout
from polyformer.families.bart import write as write_layout
from polyformer.families.base import ConfigReader, Family

LAYOUT = Layout("Marian", "post", sinusoidal=True, embedding_norm=False, heads=False, model_class="MTModel")


def read(config: ConfigReader) -> EncoderDecoder.Config:
    return read_layout(config.assume(decoder_start_token_id=config("pad_token_id", 58100)), LAYOUT)


def write(config: EncoderDecoder.Config) -> dict[str, Any]:
    return {
        **write_layout(config, LAYOUT),
        "decoder_vocab_size": config.vocab_size,
        "share_encoder_decoder_embeddings": config.shared_embedding,
        # The target begins with the padding token.
        "pad_token_id": config.decoder_start_token_id,
    }


family = Family("marian", tuple(LAYOUT.tasks), read, write, weight_table)
