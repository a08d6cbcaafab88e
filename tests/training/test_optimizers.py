"""Optimizers against their equations, and which parameters each one moves."""

from __future__ import annotations

import pytest
import torch
from tests.training.conftest import small_config
from torch import nn

from polyformer.errors import ConfigError
from polyformer.training.optimizers import (
    Lion,
    Muon,
    OptimizerSettings,
    make_optimizers,
    orthogonalize,
    step_scaled,
)


def test_lion_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = Lion([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    momentum = torch.zeros(2, dtype=torch.float64)
    expected = weight.detach().clone()
    for gradient in (torch.tensor([0.3, -0.1]), torch.tensor([-2.0, 0.4]), torch.tensor([0.01, 0.0])):
        gradient = gradient.double()
        weight.grad = gradient.clone()
        optimizer.step()
        update = (0.9 * momentum + 0.1 * gradient).sign()
        momentum = 0.99 * momentum + 0.01 * gradient
        expected = expected - 0.1 * (update + 0.5 * expected)
        torch.testing.assert_close(weight.detach(), expected)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_muon_steps_in_a_nearly_orthogonal_direction(shape: tuple[int, int]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    singular = torch.linalg.svdvals(orthogonalize(gradient))
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.3
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    # It keeps the singular vectors: against the exact orthogonal factor, the angle is small.
    exact = left @ right
    made = orthogonalize(gradient)
    assert float((exact * made).sum() / exact.norm() / made.norm()) > 0.97


def test_muon_by_hand() -> None:
    weight = nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.2)
    expected, momentum = weight.detach().clone(), torch.zeros(4, 6, dtype=torch.float64)
    for seed in range(3):
        gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalize(0.1 * gradient + 0.9 * momentum)
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * 0.2 * 6**0.5 * update
        torch.testing.assert_close(weight.detach(), expected)


def test_adamw_is_torchs_with_vectors_that_do_not_decay() -> None:
    network = small_config().build()
    (optimizer,) = make_optimizers(network, OptimizerSettings(weight_decay=0.1))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in network.parameters():
        assert decays[id(parameter)] == (0.1 if parameter.dim() >= 2 else 0.0)


def test_muon_moves_the_matrices_of_layers_and_adamw_the_rest() -> None:
    network = small_config().build()
    optimizers = make_optimizers(network, OptimizerSettings("muon", adamw_learning_rate=1e-4))
    moved = [{id(p) for group in one.param_groups for p in group["params"]} for one in optimizers]
    assert not moved[0] & moved[1]
    assert moved[0] | moved[1] == {id(parameter) for parameter in network.parameters()}
    names = {name for name, parameter in network.named_parameters() if id(parameter) in moved[0]}
    assert all(name.startswith("stack.layers.") and "norm" not in name for name in names)
    assert "stack.layers.0.attention.query.weight" in names
    assert [one.param_groups[0]["lr"] for one in optimizers] == [3e-4, 1e-4]


def test_frozen_parameters_are_not_moved() -> None:
    network = small_config().build()
    network.embedding.requires_grad_(False)
    for name in ("adamw", "muon", "lion", "adafactor"):
        optimizers = make_optimizers(network, OptimizerSettings(name))
        moved = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
        assert id(network.embedding.tokens.weight) not in moved
    network.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        make_optimizers(network, OptimizerSettings())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor"])
def test_a_step_with_scaled_gradients(name: str, dtype: torch.dtype) -> None:
    """As if the gradients had been multiplied before, which is what they are afterwards. (AdamW does not care about the
    size of gradients, but for its eps, and for how they compare with those before.)"""
    weights: list[list[torch.Tensor]] = []
    for scaled in (True, False):
        torch.manual_seed(0)
        network = small_config().build().to(dtype)
        optimizers = make_optimizers(network, OptimizerSettings(name, learning_rate=0.01, eps=1e-3))
        for factor in (0.25, 3e-4, 7.0):
            for parameter in network.parameters():
                parameter.grad = torch.randn_like(parameter)
            wanted = [factor * parameter.grad for parameter in network.parameters()]  # type: ignore[operator]
            for optimizer in optimizers:
                if scaled:
                    step_scaled(optimizer, factor)
                    assert not hasattr(optimizer, "grad_scale")
            for parameter, gradient in zip(network.parameters(), wanted, strict=True):
                if scaled:
                    torch.testing.assert_close(parameter.grad, gradient)
                parameter.grad = gradient
            if not scaled:
                for optimizer in optimizers:
                    optimizer.step()
        weights.append([parameter.detach() for parameter in network.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="not one of"):
        OptimizerSettings("sgd")
    with pytest.raises(ConfigError, match="is for muon"):
        OptimizerSettings("adamw", adamw_learning_rate=1.0)
    with pytest.raises(ConfigError, match="adafactor has no betas"):
        OptimizerSettings("adafactor", betas=(0.9, 0.99))
    with pytest.raises(ConfigError, match="moves matrices"):
        Muon([nn.Parameter(torch.zeros(3))])
