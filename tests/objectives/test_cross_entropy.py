"""The loss in pieces is the loss in one, with every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer import core
from polyformer.objectives.cross_entropy import Tally, cross_entropy

ROWS, SIZE, VOCABULARY = 23, 8, 19
HEADS = {
    "tied": {},
    "own weights": {"tied": False},
    "bias": {"bias": True},
    "scale": {"scale": 0.7},
    "soft cap": {"soft_cap": 1.5},
    "everything": {"tied": False, "bias": True, "scale": 1.3, "soft_cap": 2.0},
}


class Scorer(nn.Module):
    """A transform and a head, over a table that a tied head shares with an embedding."""

    def __init__(self, **options: Any):
        super().__init__()
        self.transform = core.Transform.Config(SIZE, SIZE, "gelu", core.LayerNorm.Config(SIZE)).build()
        self.head = core.Head.Config(SIZE, VOCABULARY, **options).build()
        self.table = nn.Parameter(torch.randn(VOCABULARY, SIZE))

    def score(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(self.transform(hidden), self.table)
        return logits


def given(dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Scorer, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    scorer = Scorer(**options).to(dtype)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    hidden = torch.randn(ROWS, SIZE, dtype=dtype, requires_grad=True)
    return scorer, hidden, torch.randint(VOCABULARY, (ROWS,)), torch.rand(ROWS, dtype=dtype)


def plain(logits: Tensor, targets: Tensor, weights: Tensor | None, z_loss: float, smoothing: float) -> Tensor:
    losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    losses = losses + z_loss * logits.exp().sum(-1).log().square()
    return losses.sum() if weights is None else (losses * weights).sum()


@pytest.mark.parametrize("rows_at_once", [1, 5, 23, None])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (0.01, 0.0), (0.0, 0.2), (0.03, 0.1)])
def test_loss_and_gradients(
    head: str, weighted: bool, z_loss: float, smoothing: float, rows_at_once: int | None
) -> None:
    scorer, hidden, targets, weights = given(**HEADS[head])
    share = weights if weighted else None
    inputs = [
        hidden,
        *(value for name, value in scorer.named_parameters() if name != "table" or scorer.head.config.tied),
    ]
    expected = plain(scorer.score(hidden), targets, share, z_loss, smoothing)
    by_hand = torch.autograd.grad(3 * expected, inputs)
    total, entropy = cross_entropy(
        scorer.score,
        hidden,
        targets,
        weights=share,
        z_loss=z_loss,
        label_smoothing=smoothing,
        rows_at_once=rows_at_once,
    )
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, plain(scorer.score(hidden), targets, share, 0, 0), rtol=1e-12, atol=1e-12)
    assert not entropy.requires_grad
    for result, wanted in zip(torch.autograd.grad(3 * total, inputs), by_hand, strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)


def test_a_table_shared_with_the_embedding_gets_both_gradients() -> None:
    scorer, _, targets, _ = given()
    ids = torch.randint(VOCABULARY, (ROWS,))
    results = []
    for pieces in (True, False):
        scorer.zero_grad()
        hidden = functional.embedding(ids, scorer.table)
        loss = cross_entropy(scorer.score, hidden, targets, rows_at_once=4)[0]
        (loss if pieces else plain(scorer.score(hidden), targets, None, 0, 0)).backward()
        results.append(scorer.table.grad.clone())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_frozen_parts() -> None:
    """Only the head learns, only the body, or nothing."""
    for body, head in [(False, True), (True, False), (False, False)]:
        scorer, hidden, targets, _ = given(tied=False)
        hidden.requires_grad_(body)
        scorer.requires_grad_(head)
        total, _ = cross_entropy(scorer.score, hidden, targets, rows_at_once=7)
        expected = plain(scorer.score(hidden), targets, None, 0, 0)
        torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)
        assert total.requires_grad == (body or head)
        if body or head:
            inputs = [hidden] if body else [value for name, value in scorer.named_parameters() if name != "table"]
            for result, wanted in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs)):
                torch.testing.assert_close(result, wanted, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert not cross_entropy(scorer.score, hidden, targets)[0].requires_grad


def test_no_rows() -> None:
    scorer, hidden, targets, _ = given()
    total, entropy = cross_entropy(scorer.score, hidden[:0], targets[:0])
    total.backward()
    assert total == entropy == 0 and torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_scores_are_never_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece holds more rows than allowed, or more scores than fit, and pieces are as few as can be."""
    scorer, hidden, targets, _ = given()
    sizes = []

    def score(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return scorer.score(rows)

    cross_entropy(score, hidden, targets, rows_at_once=6)
    assert sizes == [0, 6, 6, 6, 5]
    sizes.clear()
    monkeypatch.setattr("polyformer.objectives.cross_entropy._SCORES_AT_ONCE", 10 * VOCABULARY + 1)
    cross_entropy(score, hidden, targets)
    assert sizes == [0, 8, 8, 7]
    sizes.clear()
    monkeypatch.setattr("polyformer.objectives.cross_entropy._SCORES_AT_ONCE", 1)
    cross_entropy(score, hidden[:2], targets[:2])
    assert sizes == [0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sixteen_bits_are_summed_in_32(dtype: torch.dtype) -> None:
    scorer, hidden, targets, _ = given(dtype, tied=False)
    exact, *_ = given(tied=False)
    exact.load_state_dict(scorer.state_dict())
    expected = plain(exact.score(hidden.double()), targets, None, 0, 0)
    total, _ = cross_entropy(scorer.score, hidden, targets, rows_at_once=1)
    assert total.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=0)
    total.backward()
    assert hidden.grad.dtype == dtype and scorer.head.weight.grad.dtype == dtype
    (wanted,) = torch.autograd.grad(expected, [exact.head.weight])
    torch.testing.assert_close(
        scorer.head.weight.grad.double(), wanted, rtol=0, atol=tolerance * wanted.abs().max().item()
    )


def test_autocast() -> None:
    scorer, hidden, targets, _ = given(torch.float32, bias=True)
    results = []
    for pieces in (True, False):
        scorer.zero_grad()
        hidden.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            loss = cross_entropy(scorer.score, hidden, targets, rows_at_once=5)[0]
            loss = loss if pieces else plain(scorer.score(hidden).float(), targets, None, 0, 0)
        loss.backward()
        results.append((loss, hidden.grad, scorer.table.grad))
    for ours, theirs in zip(*results):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2 * theirs.abs().max().item())


def test_tally() -> None:
    scorer, hidden, targets, _ = given()
    best = scorer.score(hidden).argmax(-1)
    targets[::3] = best[::3]
    tally = Tally()
    cross_entropy(scorer.score, hidden, targets, weights=torch.rand(ROWS), rows_at_once=4, watch=[tally])
    assert 8 <= tally.right == (best == targets).sum() < ROWS
    torch.testing.assert_close(tally.entropy, plain(scorer.score(hidden), targets, None, 0, 0).detach())
