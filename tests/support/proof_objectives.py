"""Small networks to train, and what holds for every objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from polyformer import core
from polyformer.objectives import Example, Loss, Objective

HIDDEN, VOCABULARY = 16, 37


def attention(mask: Any = None, **options: Any) -> Any:
    return core.Attention.Config(HIDDEN, 4, mask=mask or core.Causal(), bias=True, **options)


def stack(mask: Any = None, *, source: bool = False, layers: int = 2) -> Any:
    cross = attention(core.Bidirectional(), source_size=HIDDEN) if source else None
    norm = core.LayerNorm.Config(HIDDEN)
    feedforward = core.FeedForward.Config(HIDDEN, 24, "gelu")
    return core.Stack.Config(
        (core.Layer.Config(attention(mask), feedforward, norm, cross_attention=cross),) * layers, norm
    )


def embedding(**options: Any) -> Any:
    return core.TokenEmbedding.Config(VOCABULARY, HIDDEN, positions=core.Learned.Config(64, HIDDEN), **options)


def decoder(mask: Any = None, **head: Any) -> Any:
    return core.DecoderOnly.Config(embedding(), stack(mask), core.Head.Config(HIDDEN, VOCABULARY, **head))


def encoder(**options: Any) -> Any:
    return core.EncoderOnly.Config(core.Encoder.Config(embedding(), stack(core.Bidirectional())), **options)


def guesser() -> Any:
    transform = core.Transform.Config(HIDDEN, HIDDEN, "gelu", core.LayerNorm.Config(HIDDEN))
    return encoder(
        task="masked-lm",
        masked_head=core.MaskedTokenHead.Config(transform, core.Head.Config(HIDDEN, VOCABULARY, bias=True)),
    )


def translator(**options: Any) -> Any:
    return core.EncoderDecoder.Config(
        core.Encoder.Config(embedding(), stack(core.Bidirectional())),
        core.Decoder.Config(embedding(), stack(source=True)),
        core.Head.Config(HIDDEN, VOCABULARY, bias=True),
        shared_embedding=True,
        decoder_start_token_id=options.pop("start", 3),
        **options,
    )


def built(config: Any, std: float = 0.3, seed: int = 0) -> Any:
    """In float64, every parameter random, so that no swap hides behind a 0 or a 1."""
    network = config.build().double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return network


def texts(*lengths: int, seed: int = 0, first: int = 5, last: int = VOCABULARY) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(first, last, length) for length in lengths]


def prepared(objective: Objective, examples: Sequence[Example], seed: int = 0) -> list[Example]:
    return [
        objective.prepare(example, np.random.default_rng((seed, number))) for number, example in enumerate(examples)
    ]


def gradients_of(network: nn.Module, total: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    total.backward()
    return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}


def assert_same(result: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def check_adds(objective: Objective, network: nn.Module, examples: Sequence[Example]) -> Loss:
    """The loss of a batch, its gradients and metrics are the sums over its rows, each of them alone and unpadded."""
    whole = objective(network, objective.collate(examples))
    gradients = gradients_of(network, whole.total)
    rows = [objective(network, objective.collate([example])) for example in examples]
    total = torch.stack([row.total for row in rows]).sum()
    assert_same(whole.total, total)
    assert whole.count == sum(row.count for row in rows)
    summed = gradients_of(network, total)
    assert gradients.keys() == summed.keys() and len(summed) > 5
    for name, gradient in gradients.items():
        assert_same(gradient, summed[name])
    for name, (value, count) in whole.metrics.items():
        assert_same(float(value), float(sum(float(row.metrics[name][0]) for row in rows)))
        assert float(count) == sum(float(row.metrics[name][1]) for row in rows)
    return whole
