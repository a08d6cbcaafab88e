"""The arithmetic of a step, counted while it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyformer import core
from polyformer.baselines import ConvolutionLM, RecurrentLM
from polyformer.core import packing
from polyformer.training.peak import count_flops


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "config",
    [RecurrentLM.Config(50, 16, 2, cell) for cell in ("rnn", "lstm", "gru")] + [ConvolutionLM.Config(50, 16, 3)],
    ids=["rnn", "lstm", "gru", "convolution"],
)
def test_every_matrix_counts(config: Any, training: bool) -> None:
    """Two operations a token for each number of a matrix, and twice as many again for the gradients. Recurrent layers
    are one kernel on some machines and many products on others; the count is the same."""
    network = config.build().train(training)
    ids = torch.randint(50, (3, 8), generator=torch.Generator().manual_seed(0))
    matrices = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() == 2)
    once = 2 * matrices * ids.numel()

    def forward() -> Any:
        with torch.set_grad_enabled(training):
            return network(ids).logits

    def forward_and_backward() -> None:
        forward().square().sum().backward()

    found, expected = count_flops(forward_and_backward if training else forward), once * (3 if training else 1)
    # Less is known to be needless: nothing is before the first step of a recurrence, so that its gradient stays out.
    assert 0.9 * expected <= found <= expected


@pytest.mark.parametrize("by_onednn", [False, True])
def test_products_count_whoever_multiplies(by_onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "mkl_is_slow", lambda: by_onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)
    linear = core.Linear.Config(12, 20, bias=True).build()
    inputs = torch.zeros(5, 20, 12, requires_grad=True)
    assert count_flops(lambda: linear(inputs).sum().backward()) == 3 * 2 * 100 * 12 * 20
