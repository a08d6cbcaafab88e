from __future__ import annotations

from typing import Any

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
