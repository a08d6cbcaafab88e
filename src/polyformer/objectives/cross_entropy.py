"""Cross-entropy over a vocabulary without ever holding all scores.

For 16,384 tokens and 128,000 words the scores alone would be 8 GB, their softmax and its gradient as much again. Here a
piece of the rows is scored at a time, and its gradients are worked out on the spot: the arithmetic is that of the plain
way, without doing anything twice, and what is kept is a gradient for each hidden state and each weight of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores in memory at once: 128 MB in 32 bits. Smaller pieces would spend their time adding up gradients of the head.
_SCORES_AT_ONCE = 2**25


class Piece:
    """Some of the rows, scored.

    Attributes:
        rows: which.
        targets: [rows].
        scores: [rows, vocabulary], in float32 at least.
        probabilities: their softmax.
        normalizers: log Z, [rows], Z being the sum of the exponentials of the scores.
        entropies: -log p(target), [rows].
    """

    def __init__(self, logits: Tensor, targets: Tensor, rows: slice):
        self.rows = rows
        self.targets = targets
        self.scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        self.probabilities = self.scores.softmax(-1)
        # The largest probability is exp(largest score) / Z. Two looks at the largest cost less than one exponential.
        self.normalizers = self.scores.amax(-1) - self.probabilities.amax(-1).log()
        self.entropies = self.normalizers - self.scores.gather(-1, targets[:, None])[:, 0]


Watch = Callable[[Piece], None]


def cross_entropy(
    score: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    rows_at_once: int | None = None,
    watch: Sequence[Watch] = (),
) -> tuple[Tensor, Tensor]:
    """The sum of the cross-entropies of ``score(hidden)``, computed piece by piece.

    Args:
        score: hidden states [..., size] to logits [..., vocabulary], row by row. Any head: its weights are found by
            what it uses.
        hidden: [rows, size].
        targets: [rows], each an index into the vocabulary.
        weights: [rows], by which losses are multiplied; None means 1.
        z_loss: log² Z is added with this factor, Z being the sum of the exponentials of a row's logits (Chowdhery et
            al., 2022, PaLM, section 5, where it is 1e-4). It keeps log Z near 0.
        label_smoothing: so much of the target's weight is spread over the whole vocabulary (Szegedy et al., 2016,
            section 7), as in `torch.nn.functional.cross_entropy`.
        rows_at_once: rows of a piece; None takes as many as 128 MB hold.
        watch: each is shown every piece.

    Returns:
        The whole loss, a scalar with gradients (once: not for gradients of gradients), and the plain cross-entropy
        alone, weighted but neither smoothed nor with the z-loss, without gradients.
    """
    with torch.enable_grad():
        none = score(hidden[:0].detach())  # no rows, but it tells the size of the vocabulary and the weights in use
    rows = rows_at_once or max(1, _SCORES_AT_ONCE // none.shape[-1])
    rows = -(-len(hidden) // -(-len(hidden) // rows)) if len(hidden) else 1  # pieces of one size, as few as can be
    head = _leaves(none) if torch.is_grad_enabled() else []
    return _CrossEntropy.apply(score, targets, weights, (z_loss, label_smoothing, rows, watch), hidden, *head)


class _CrossEntropy(torch.autograd.Function):
    """Gradients are made in the forward pass, piece by piece, and only scaled in the backward pass."""

    @staticmethod
    def forward(
        context: Any,
        score: Callable[[Tensor], Tensor],
        targets: Tensor,
        weights: Tensor | None,
        options: tuple[float, float, int, Sequence[Watch]],
        hidden: Tensor,
        *head: Tensor,
    ) -> tuple[Tensor, Tensor]:
        z_loss, smoothing, at_once, watch = options
        wanted = context.needs_input_grad[4]
        precise = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=precise, device=hidden.device)
        plain = torch.zeros_like(total)
        of_hidden = torch.zeros_like(hidden) if wanted else None
        of_head: list[Tensor] = []
        for start in range(0, len(hidden), at_once):
            rows = slice(start, start + at_once)
            with torch.enable_grad():
                piece = hidden[rows].detach().requires_grad_(wanted)
                logits = score(piece)
            share = None if weights is None else weights[rows].to(precise)
            scored = Piece(logits.detach(), targets[rows], rows)
            for look in watch:
                look(scored)
            losses, entropies, by_logits = _by_equations(scored, z_loss, smoothing, share)
            total += losses
            plain += entropies
            inputs = ([piece] if wanted else []) + list(head)
            if inputs:
                gradients = list(torch.autograd.grad(logits, inputs, by_logits().to(logits.dtype)))
                if of_hidden is not None:
                    of_hidden[rows] = gradients.pop(0)
                if not of_head:  # sums of 16-bit gradients are made in 32 bits
                    of_head = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in gradients]
                else:
                    for whole, part in zip(of_head, gradients):
                        whole += part
        of_head = of_head or [torch.zeros_like(part) for part in head]
        context.save_for_backward(of_hidden, *(whole.to(part.dtype) for whole, part in zip(of_head, head)))
        context.mark_non_differentiable(plain)
        return total, plain

    @staticmethod
    @once_differentiable
    def backward(context: Any, by_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        saved = context.saved_tensors
        if by_total.device.type != "cpu" or by_total.item() != 1:  # on a CPU, looking costs nothing
            saved = [None if part is None else part * by_total.to(part.dtype) for part in saved]
        return None, None, None, None, *saved


def _by_equations(
    piece: Piece, z_loss: float, smoothing: float, weights: Tensor | None
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """The loss of a piece, its plain cross-entropy, and the gradient of the loss by the logits, made when called.

    loss = -(1 - s) log p(target) - s mean(log p) + z log² Z, so with p the softmax
    d loss / d logits = (1 + 2 z log Z) p - (1 - s) [target] - s / vocabulary.
    """
    entropies = piece.entropies
    losses = entropies
    if smoothing:
        losses = (1 - smoothing) * entropies + smoothing * (piece.normalizers - piece.scores.mean(-1))
    if z_loss:
        losses = losses + z_loss * piece.normalizers.square()
    if weights is not None:
        losses, entropies = losses * weights, entropies * weights

    def by_logits() -> Tensor:
        gradient = piece.probabilities  # nobody else needs them any more
        if z_loss:
            gradient *= (1 + 2 * z_loss * piece.normalizers)[:, None]
        place = piece.targets[:, None]
        gradient.scatter_add_(-1, place, gradient.new_full((1, 1), smoothing - 1).expand_as(place))
        if smoothing:
            gradient -= smoothing / gradient.shape[-1]
        if weights is not None:
            gradient *= weights[:, None]
        return gradient

    return losses.sum(), entropies.sum(), by_logits


def _leaves(result: Tensor) -> list[Tensor]:
    """The parameters with gradients that ``result`` was made of, each once."""
    found: dict[int, Tensor] = {}
    seen, waiting = set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found[id(leaf)] = leaf
        waiting.extend(before for before, _ in node.next_functions)
    return list(found.values())


class Tally:
    """Counts, as `cross_entropy` goes, how often the target had the highest score, and adds up the cross-entropies.

    Attributes:
        right: so many times.
        entropy: the sum, not weighted.
    """

    def __init__(self) -> None:
        self.right: Tensor | int = 0
        self.entropy: Tensor | float = 0.0

    def __call__(self, piece: Piece) -> None:
        hit = piece.scores.gather(-1, piece.targets[:, None])[:, 0]
        self.right = self.right + (hit >= piece.scores.amax(-1)).sum()
        self.entropy = self.entropy + piece.entropies.sum()
