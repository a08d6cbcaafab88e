"""Small networks and data that are trained in a moment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyformer.core import (
    Attention,
    Causal,
    DecoderOnly,
    FeedForward,
    Head,
    Layer,
    RMSNorm,
    Rotary,
    Stack,
    TokenEmbedding,
)

VOCABULARY = 32


def small_config(*, dropout: float = 0.0, layers: int = 2, hidden: int = 16) -> DecoderOnly.Config:
    norm = RMSNorm.Config(hidden, 1e-6)
    attention = Attention.Config(
        hidden, 2, 1, hidden // 2, mask=Causal(), positions=Rotary.Config(hidden // 2), dropout=dropout
    )
    layer = Layer.Config(attention, FeedForward.Config(hidden, 32, "silu", gated=True), norm, dropout=dropout)
    return DecoderOnly.Config(
        TokenEmbedding.Config(VOCABULARY, hidden),
        Stack.Config((layer,) * layers, norm=norm),
        Head.Config(hidden, VOCABULARY, tied=True),
        max_positions=64,
    )


class Counting:
    """Rows that count upwards from a random number: the next token can be learned."""

    def __init__(self, rows: int = 40, length: int = 12):
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        begin = np.random.default_rng(index).integers(VOCABULARY)
        return {"input_ids": (begin + np.arange(self.length)) % VOCABULARY}


@pytest.fixture
def network() -> DecoderOnly:
    torch.manual_seed(0)
    made: DecoderOnly = small_config().build()
    return made
