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

Watch = Callable[[Tensor, slice], None]


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
        watch: each gets the log-probabilities of each piece [rows of the piece, vocabulary], and which rows they are.

    Returns:
        The whole loss, a scalar with gradients (once: not for gradients of gradients), and the plain cross-entropy
        alone, weighted but neither smoothed nor with the z-loss, without gradients.
    """
    with torch.enable_grad():
        none = score(hidden[:0].detach())  # no rows, but it tells the size of the vocabulary and the weights in use
    rows = rows_at_once or max(1, _SCORES_AT_ONCE // none.shape[-1])
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
        of_head = [torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32)) for part in head]
        for start in range(0, len(hidden), at_once):
            rows = slice(start, start + at_once)
            with torch.enable_grad():
                piece = hidden[rows].detach().requires_grad_(wanted)
                logits = score(piece)
            share = None if weights is None else weights[rows].to(precise)
            losses, entropies, by_logits = _by_equations(
                logits.detach(), targets[rows], share, z_loss, smoothing, watch, rows
            )
            total += losses
            plain += entropies
            inputs = ([piece] if wanted else []) + list(head)
            if inputs:
                gradients = list(torch.autograd.grad(logits, inputs, by_logits()))
                if of_hidden is not None:
                    of_hidden[rows] = gradients.pop(0)
                for whole, part in zip(of_head, gradients):
                    whole += part
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
    logits: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    z_loss: float,
    smoothing: float,
    watch: Sequence[Watch],
    rows: slice,
) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """The loss of a piece, its plain cross-entropy, and the gradient of the loss by the logits, made when called.

    loss = -(1 - s) log p(target) - s mean(log p) + z log² Z, so with p the softmax
    d loss / d logits = (1 + 2 z log Z) p - (1 - s) [target] - s / vocabulary.
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logs = scores.log_softmax(-1)
    place = targets[:, None]
    hit = logs.gather(-1, place)
    losses = -hit if not smoothing else -(1 - smoothing) * hit - smoothing * logs.mean(-1, keepdim=True)
    normalizers = scores.gather(-1, place) - hit if z_loss else None
    if normalizers is not None:
        losses = losses + z_loss * normalizers.square()
    entropies = -hit
    if weights is not None:
        losses, entropies = losses * weights[:, None], entropies * weights[:, None]
    for look in watch:
        look(logs, rows)

    def by_logits() -> Tensor:
        gradient = logs.exp_()
        if normalizers is not None:
            gradient *= 1 + 2 * z_loss * normalizers
        gradient.scatter_add_(-1, place, gradient.new_full((1, 1), smoothing - 1).expand_as(place))
        if smoothing:
            gradient -= smoothing / gradient.shape[-1]
        if weights is not None:
            gradient *= weights[:, None]
        return gradient.to(logits.dtype)

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
        right: so many times, a scalar tensor.
        entropy: the sum, not weighted, a scalar tensor.
    """

    def __init__(self, targets: Tensor):
        self.targets = targets
        self.right = torch.zeros((), dtype=torch.long, device=targets.device)
        self.entropy: Tensor | float = 0.0

    def __call__(self, logs: Tensor, rows: slice) -> None:
        hit = logs.gather(-1, self.targets[rows, None])[:, 0]
        self.right += (hit >= logs.amax(-1)).sum()
        self.entropy = self.entropy - hit.sum()
