"""Attention by plain products with its gradients, against PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from polyformer.core import products
from polyformer.core.products import learned_products

SCALE = 0.3


def inputs(new: int, columns: int, shared: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(new + columns)
    shapes = [(2, 4, new, 6), (2, shared, columns, 6), (2, shared, columns, 5)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def mask_of(rows: int, new: int, columns: int) -> Tensor:
    mask = torch.rand(rows, 1, new, columns, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[..., 0] = True
    return mask


MASKS: dict[str, Callable[[int, int], Tensor | None]] = {
    "none": lambda new, columns: None,
    "of all": lambda new, columns: mask_of(1, new, columns),
    "of each": lambda new, columns: mask_of(2, new, columns),
    "of columns": lambda new, columns: mask_of(2, 1, columns),
}


@pytest.fixture(params=[True, False], ids=["weights kept", "weights computed again"])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_PIECE", 4)
    monkeypatch.setattr(products, "_KEPT", 100 if request.param else 3)


def check(given: list[Tensor], mask: Tensor | None, *, causal: bool) -> None:
    """The values are PyTorch's, and the gradients those of the values."""
    expected = functional.scaled_dot_product_attention(
        *given, attn_mask=mask, is_causal=causal, scale=SCALE, enable_gqa=True
    )

    def attend(*parts: Tensor) -> Tensor:
        return learned_products(*parts, SCALE, mask=mask, causal=causal)

    torch.testing.assert_close(attend(*given), expected)
    assert torch.autograd.gradcheck(attend, given, fast_mode=True)


@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("new", "columns"), [(9, 9), (5, 7), (3, 12)])
def test_with_a_mask(new: int, columns: int, mask: str, shared: int, small_pieces: None) -> None:
    check(inputs(new, columns, shared), MASKS[mask](new, columns), causal=False)


@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("new", [1, 4, 9])
def test_causal(new: int, shared: int, small_pieces: None) -> None:
    check(inputs(new, new, shared), None, causal=True)


def test_a_row_that_sees_nothing_stays_a_number() -> None:
    given = inputs(3, 3, 4)
    mask = torch.ones(2, 1, 3, 3, dtype=torch.bool)
    mask[1, :, 2] = False
    result = learned_products(*given, SCALE, mask=mask, causal=False)
    result[mask.any(-1).expand(2, 4, 3)].sum().backward()
    assert result.isfinite().all()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in given)


@pytest.mark.parametrize("length", [40, 200, 300, 600])
def test_in_16_bits_as_exact_as_the_fused_kernel(length: int) -> None:
    """Under autocast, as the trainer calls it, with several pieces, and beyond the length whose weights are kept."""
    exact = inputs(length, length, 4)
    expected = functional.scaled_dot_product_attention(*exact, is_causal=True, scale=SCALE)
    gradient = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = [expected, *torch.autograd.grad(expected, exact, gradient)]

    def errors(attend: Callable[..., Tensor]) -> list[float]:
        given = [tensor.detach().bfloat16().requires_grad_() for tensor in exact]
        with torch.autocast("cpu", torch.bfloat16):
            result = attend(*given)
        assert result.dtype == torch.bfloat16
        found = [result, *torch.autograd.grad(result, given, gradient.bfloat16())]
        assert all(one.dtype == torch.bfloat16 for one in found)
        return [float(((one - other).norm() / other.norm()).detach()) for one, other in zip(found, wanted, strict=True)]

    ours = errors(lambda *given: learned_products(*given, SCALE, mask=None, causal=True))
    fused = errors(lambda *given: functional.scaled_dot_product_attention(*given, is_causal=True, scale=SCALE))
    for one, other in zip(ours, fused, strict=True):
        assert one < max(2 * other, 0.01)
