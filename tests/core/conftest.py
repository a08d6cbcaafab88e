"""Small random networks for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from polyformer import core
from polyformer.core.config import Config

HIDDEN, HEADS, VOCABULARY = 16, 4, 29


def randomise(module: nn.Module, std: float = 0.3, seed: int = 0) -> Any:
    """Every parameter random, norms and biases too, so that no swap or forgotten term hides behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)
            parameter.copy_(1 + std * noise if "norm" in name and name.endswith("weight") else std * noise)
    return module


def network_config(
    attention: dict[str, Any] | list[dict[str, Any]] | None = None,
    *,
    layers: int = 2,
    embedding: dict[str, Any] | None = None,
    stack: dict[str, Any] | None = None,
    layer: dict[str, Any] | None = None,
    head: dict[str, Any] | None = None,
    feedforward: Config | None = None,
) -> Any:
    """A decoder with grouped heads and head_dim != hidden_size / num_heads.

    A list gives each layer its own attention.
    """
    own = attention if isinstance(attention, list) else [attention or {}] * layers
    common = {"hidden_size": HIDDEN, "num_heads": HEADS, "num_key_value_heads": 2, "head_dim": 6}
    norm = core.RMSNorm.Config(HIDDEN)
    first = core.Layer.Config(
        attention=core.Attention.Config(**common),
        feedforward=feedforward or core.FeedForward.Config(HIDDEN, 24, "silu", gated=True),
        norm=norm,
        **(layer or {}),
    )
    return core.DecoderOnly.Config(
        embedding=core.TokenEmbedding.Config(VOCABULARY, HIDDEN, **(embedding or {})),
        stack=core.Stack.Config(
            layers=tuple(replace(first, attention=core.Attention.Config(**{**common, **each})) for each in own),
            norm=norm,
            **(stack or {}),
        ),
        head=core.Head.Config(HIDDEN, VOCABULARY, **(head or {})),
    )


@pytest.fixture(scope="session")
def random_module() -> Callable[..., Any]:
    """Builds a config in float64 (or another dtype) with random parameters, in eval mode."""

    def build(config: Config, *, std: float = 0.3, seed: int = 0, dtype: torch.dtype = torch.float64) -> Any:
        return randomise(config.build().to(dtype), std, seed).eval()

    return build


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Any]:
    return network_config
