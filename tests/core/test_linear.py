from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from polyformer import core
from polyformer.core.linear import INITIAL_STANDARD_DEVIATION, initialize


@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_a_sum_of_products(bias: bool, random_module: Any) -> None:
    linear = random_module(core.Linear.Config(5, 3, bias))
    inputs = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = torch.einsum("bti,oi->bto", inputs, linear.weight)
    if bias:
        assert linear.bias.abs().min() > 0
        expected = expected + linear.bias
    torch.testing.assert_close(linear(inputs), expected, rtol=1e-12, atol=1e-12)
    assert set(linear.state_dict()) == ({"weight", "bias"} if bias else {"weight"})


def test_embedding_is_a_row_of_the_table(random_module: Any) -> None:
    embedding = random_module(core.Embedding.Config(7, 3))
    ids = torch.tensor([[0, 6, 2], [2, 2, 5]])
    one_hot = torch.nn.functional.one_hot(ids, 7).double()
    assert torch.equal(embedding(ids), one_hot @ embedding.weight)


@pytest.mark.parametrize("config", [core.Linear.Config(300, 400, bias=True), core.Embedding.Config(400, 300)])
def test_weights_start_as_documented(config: Any) -> None:
    torch.manual_seed(0)
    module = config.build()
    assert module.weight.std().item() == pytest.approx(INITIAL_STANDARD_DEVIATION, rel=0.02) == pytest.approx(0.02)
    assert abs(module.weight.mean().item()) < 3e-4
    if isinstance(module, core.Linear):
        assert torch.equal(module.bias, torch.zeros(400))


def test_initialize_follows_the_seed_and_leaves_the_meta_device_alone() -> None:
    first, second = torch.empty(4, 4), torch.empty(4, 4)
    for tensor in (first, second):
        torch.manual_seed(3)
        initialize(tensor, 1.0)
    assert torch.equal(first, second)
    initialize(torch.empty(2, device="meta"))


def test_repr_says_the_sizes() -> None:
    assert repr(core.Linear.Config(5, 3).build()) == "Linear(5 -> 3, bias=False)"
    assert repr(core.Embedding.Config(5, 3).build()) == "Embedding(5 x 3)"


@pytest.mark.parametrize("deviation", [INITIAL_STANDARD_DEVIATION, 1.0])
def test_an_embedding_starts_as_wide_as_asked(deviation: float) -> None:
    torch.manual_seed(0)
    table = core.TokenEmbedding.Config(200, 100, standard_deviation=deviation).build().tokens.weight.detach()
    assert float(table.std()) == pytest.approx(deviation, rel=0.03)
    assert float(table.mean()) == pytest.approx(0.0, abs=0.03 * deviation)


def test_maps_of_one_input_are_joined_in_training_in_16_bits() -> None:
    """Keys without a bias too; values and gradients are those of the single maps."""
    torch.manual_seed(0)
    attention = core.Attention.Config(24, 4, 2, bias=True, key_bias=False).build()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    inputs = torch.randn(2, 5, 24, requires_grad=True)
    maps = attention.joint_linears()
    expected = [linear(inputs) for linear in maps]
    weights = [torch.randn_like(one) for one in expected]
    wanted = torch.autograd.grad(expected, [inputs, *attention.query.parameters(), attention.key.weight], weights)
    with torch.autocast("cpu", torch.bfloat16), mock.patch.object(core.Linear, "forward", side_effect=AssertionError):
        found = attention.project(inputs)
    assert [one.dtype for one in found] == [torch.bfloat16] * 3
    given = torch.autograd.grad(
        found, [inputs, *attention.query.parameters(), attention.key.weight], [one.bfloat16() for one in weights]
    )
    for one, other in zip([*found, *given], [*expected, *wanted], strict=True):
        assert one.shape == other.shape and (one - other).norm() <= 0.02 * other.norm()


def test_maps_that_are_more_than_plain_ones_are_called_by_themselves() -> None:
    attention = core.Attention.Config(24, 4).build()
    calls = []
    attention.value.register_forward_hook(lambda *_: calls.append("value"))
    inputs = torch.randn(1, 3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        attention.project(inputs)
        assert calls == ["value"]
        assert attention.query.joins(inputs)
        with torch.no_grad():
            assert not attention.query.joins(inputs)
    assert not attention.query.joins(inputs)
