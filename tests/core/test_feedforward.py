from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from polyformer import core
from polyformer.core.activations import ACTIVATIONS, activation
from polyformer.errors import ConfigError

INPUTS = torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_feedforward(name: str, gated: bool, bias: bool, random_module: Any) -> None:
    part = random_module(core.FeedForward.Config(6, 11, name, gated, bias))
    weights = dict(part.named_parameters())
    assert len(weights) == (3 if gated else 2) * (2 if bias else 1)

    def linear(which: str, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ weights[f"{which}.weight"].T + weights.get(f"{which}.bias", 0)

    inner = activation(name)(linear("gate" if gated else "up", INPUTS))
    inner = inner * linear("up", INPUTS) if gated else inner
    torch.testing.assert_close(part(INPUTS), linear("down", inner), rtol=1e-10, atol=1e-10)


def test_dropout_falls_on_the_inner_numbers_and_only_in_training(random_module: Any) -> None:
    part = random_module(core.FeedForward.Config(6, 4000, "identity", dropout=0.25))
    plain = random_module(core.FeedForward.Config(6, 4000, "identity"))
    assert torch.equal(part(INPUTS), plain(INPUTS))
    with torch.no_grad():
        part.up.weight.fill_(1 / 6)
        part.down.weight.fill_(1 / 4000)
    part.train()
    torch.manual_seed(0)
    kept = part(torch.ones(500, 6, dtype=torch.float64))[:, 0]  # the mean of 4000 numbers that are 0 or 1 / 0.75
    assert kept.mean().item() == pytest.approx(1, abs=4 * (0.25 / 0.75 / 4000 / 500) ** 0.5)
    assert kept.std().item() == pytest.approx((0.25 / 0.75 / 4000) ** 0.5, rel=0.15)


def dense_mixture(part: Any, inputs: torch.Tensor, top_k: int, normalized: bool) -> torch.Tensor:
    """Every expert sees every token; the weights of those not chosen are zero."""
    probabilities = (inputs @ part.router.weight.T).softmax(-1)
    smallest = probabilities.sort(-1, descending=True).values[..., top_k - 1 : top_k]
    weights = probabilities * (probabilities >= smallest)
    if normalized:
        weights = weights / weights.sum(-1, keepdim=True)
    return sum(weights[..., number, None] * expert(inputs) for number, expert in enumerate(part.experts))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_mixture_of_experts(top_k: int, normalized: bool, random_module: Any) -> None:
    expert = core.FeedForward.Config(6, 7, "silu", gated=True, bias=True)
    part = random_module(core.MixtureOfExperts.Config(expert, 5, top_k, normalized))
    inputs = INPUTS.clone().requires_grad_()
    result, expected = part(inputs), dense_mixture(part, inputs, top_k, normalized)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)

    parameters = [inputs, *part.parameters()]
    probe = torch.randn(result.shape, dtype=torch.float64)
    ours = torch.autograd.grad((result * probe).sum(), parameters, allow_unused=True)
    theirs = torch.autograd.grad((expected * probe).sum(), parameters)
    for mine, other in zip(ours, theirs):
        mine = torch.zeros_like(other) if mine is None else mine  # an expert that no token chose
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


def test_mixture_of_experts_against_mixtral(random_module: Any) -> None:
    part = random_module(core.MixtureOfExperts.Config(core.FeedForward.Config(6, 7, "silu", gated=True), 4, 2))
    config = MixtralConfig(hidden_size=6, intermediate_size=7, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    reference = MixtralSparseMoeBlock(config).double()
    reference.gate.weight = nn.Parameter(part.router.weight)
    wide = [torch.cat([expert.gate.weight, expert.up.weight]) for expert in part.experts]
    reference.experts.gate_up_proj = nn.Parameter(torch.stack(wide))
    reference.experts.down_proj = nn.Parameter(torch.stack([expert.down.weight for expert in part.experts]))
    # The reference computes the routing weights in float32.
    torch.testing.assert_close(part(INPUTS), reference(INPUTS), rtol=1e-5, atol=1e-6)


def test_routing(random_module: Any) -> None:
    part = random_module(core.MixtureOfExperts.Config(core.FeedForward.Config(6, 7), 4, 3), dtype=torch.bfloat16)
    weights, chosen = part.route(INPUTS.bfloat16().reshape(-1, 6))
    assert weights.shape == chosen.shape == (10, 3)
    assert weights.dtype == torch.bfloat16
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(10), rtol=0, atol=0.01)


def test_gradients(random_module: Any) -> None:
    part = random_module(core.FeedForward.Config(6, 4, "gelu", gated=True, bias=True))
    inputs = INPUTS[:1, :2].clone().requires_grad_()
    assert gradcheck(lambda x, *parameters: part(x), (inputs, *part.parameters()))


@pytest.mark.parametrize("top_k", [0, 5])
def test_impossible_top_k(top_k: int) -> None:
    with pytest.raises(ConfigError, match=f"top_k is {top_k}, but it must lie between 1 and num_experts = 4"):
        core.MixtureOfExperts.Config(core.FeedForward.Config(6, 7), 4, top_k)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ConfigError, match="activation 'swoosh' is not known"):
        core.FeedForward.Config(6, 7, "swoosh").build()
