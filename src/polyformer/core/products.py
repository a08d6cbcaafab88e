"""Attention by plain products on a CPU: a product, a softmax, a product.

PyTorch's fused kernel never holds the matrix of weights. On a CPU that costs more than it saves: plain products run at
the speed of all others, if the weights are made in pieces that stay in the caches.

`products` is for inference, `learned_products` for training in 16 bits, where it takes less than half of the time of
the fused kernel and its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyformer.core.packing import onednn_is_faster, product

# Scores that lie in memory at once: 8 MB in 16 bits, about what the caches of one processor hold.
_SCORES_AT_ONCE = 4_000_000
# Queries and columns from which one product at a time by oneDNN takes at most 0.7 of the time of the fused kernel.
_LONG = 256
# Queries of a piece in training. Fewer leave out more of what a causal mask hides, and make smaller products.
_PIECE = 128
# Columns up to which training keeps the weights for the gradient; beyond, they would take more memory than all else,
# and are computed again.
_KEPT = 512


def goes_alone(queries: Tensor, keys: Tensor) -> bool:
    """Whether every head is multiplied by itself: large matrices in 32 bits where PyTorch's products are slow."""
    long = min(queries.shape[2], keys.shape[2]) >= _LONG
    return long and onednn_is_faster(queries)


def products(queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ · scale) v without gradients.

    Args:
        queries, keys, values: [batch, heads, new or columns, head_dim].
        mask: [1 or batch, 1, 1 or new, columns], true where a query may look.
    """
    batch, heads, new, _ = queries.shape
    columns = keys.shape[2]
    if keys.dtype.itemsize == 2 and columns > 1:
        # Scores are rounded to few digits, so they must be small: what all keys have in common adds the same to all
        # scores of a query, and is left out (Zhang et al., 2024, "SageAttention", section 4.2).
        keys = keys - keys.mean(2, keepdim=True, dtype=torch.float32).to(keys.dtype)
    queries, keys, values = (queries * scale).contiguous(), keys.contiguous(), values.contiguous()
    alone = goes_alone(queries, keys)

    def weighted(rows: slice, some: slice, part: slice) -> Tensor:
        if alone:
            scores = product(queries[rows, some, part][0, 0], keys[rows, some][0, 0])[None, None]
        else:
            scores = queries[rows, some, part] @ keys[rows, some].mT
        if mask is not None:
            seen = mask if len(mask) == 1 else mask[rows]
            scores = scores.masked_fill_(~(seen if seen.shape[2] == 1 else seen[:, :, part]), float("-inf"))
        weights = scores.softmax(-1)
        return product(weights[0, 0], values[rows, some][0, 0].mT) if alone else weights @ values[rows, some]

    matrices = 1 if alone else max(1, _SCORES_AT_ONCE // max(1, new * columns))
    if matrices >= batch * heads:
        return weighted(slice(None), slice(None), slice(None))
    # In the order of the next projection, which reads all heads of a token together
    result = values.new_empty(batch, new, heads, values.shape[3]).transpose(1, 2)
    for row in range(0, batch, step := max(1, matrices // heads)):
        rows = slice(row, row + step)
        for head in range(0, heads, count := min(heads, matrices)):
            some = slice(head, head + count)
            for query in range(0, new, length := max(1, min(new, _SCORES_AT_ONCE // columns))):
                part = slice(query, query + length)
                result[rows, some, part] = weighted(rows, some, part)
    return result


def learned_products(
    queries: Tensor, keys: Tensor, values: Tensor, scale: float, *, mask: Tensor | None, causal: bool
) -> Tensor:
    """softmax(q kᵀ · scale) v with gradients.

    Args:
        queries: [batch, heads, new, head_dim].
        keys, values: [batch, key_value_heads, columns, head_dim]; heads is a multiple of key_value_heads.
        mask: [1 or batch, 1, 1 or new, columns], true where a query may look.
        causal: the mask is the lower triangle of a square, and ``mask`` is None.
    """
    group = queries.shape[1] // keys.shape[1]
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    return _LearnedProducts.apply(queries, keys, values, scale, mask, causal)


class _LearnedProducts(torch.autograd.Function):
    """Pieces of queries one after the other, for all heads together.

    P are the weights of a piece, dO is the gradient of its result, and that of the scores is dS = P ∘ (dP - δ), where
    δ is the sum of P ∘ dP over the columns. Then
    dV = Pᵀ dO,  dP = dO Vᵀ,  dQ = dS K · scale,  dK = dSᵀ Q · scale.
    """

    @staticmethod
    def forward(
        context: Any, queries: Tensor, keys: Tensor, values: Tensor, scale: float, mask: Tensor | None, causal: bool
    ) -> Tensor:
        batch, heads, new, size = queries.shape
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
        result = values.new_empty(batch, new, heads, values.shape[2])
        pieces = _pieces(new, keys.shape[1], causal)
        asked = [queries[:, :, first:last].reshape(batch * heads, -1, size) for first, last, _ in pieces]
        kept: list[Tensor] = []
        with torch.autocast(queries.device.type, enabled=False):  # it would compute the softmax in 32 bits
            for query, (first, last, seen) in zip(asked, pieces, strict=True):
                weights = _weights(query, _seen(keys, seen), scale, _hidden(mask, first, last, causal, keys))
                _write(result, first, weights @ _seen(values, seen))
                if keys.shape[1] <= _KEPT:
                    kept.append(weights)
        context.save_for_backward(keys, values, mask, *asked, *kept)
        context.scale, context.causal, context.pieces = scale, causal, pieces
        return result.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        keys, values, mask, *rest = context.saved_tensors
        pieces, causal = context.pieces, context.causal
        asked, kept = rest[: len(pieces)], rest[len(pieces) :]
        batch, heads, new, _ = gradient.shape
        widths = [heads * part.shape[2] for part in (keys, keys, values)]
        if new == keys.shape[1]:  # side by side: where one product made all three, `learned_split` takes them so
            rooms = keys.new_empty(batch, new, sum(widths)).split(widths, dim=-1)
        else:
            lengths = (new, keys.shape[1], keys.shape[1])
            rooms = tuple(keys.new_empty(batch, *shape) for shape in zip(lengths, widths, strict=True))
        of_queries, of_keys, of_values = (room.unflatten(-1, (heads, -1)) for room in rooms)
        sums: list[Tensor] = []
        with torch.autocast(gradient.device.type, enabled=False):
            # The last piece sees all columns, so the others add to what it gives.
            for number in reversed(range(len(pieces))):
                first, last, seen = pieces[number]
                key, value = _seen(keys, seen), _seen(values, seen)
                if kept:
                    weights = kept[number]
                else:
                    weights = _weights(asked[number], key, context.scale, _hidden(mask, first, last, causal, keys))
                of_result = gradient[:, :, first:last].reshape(len(keys), last - first, -1)
                of_weights = of_result @ value.mT
                # In place, as the softmax: fresh memory would have to be fetched into the caches first.
                of_scores = torch.ops.aten._softmax_backward_data.out(
                    of_weights, weights, -1, weights.dtype, grad_input=of_weights
                )
                _write(of_queries, first, of_scores @ key, context.scale)
                more = of_scores.mT @ asked[number], weights.mT @ of_result
                if not sums:
                    # Two pieces may add to the same keys; of more, the sum would lose digits in 16 bits.
                    sums = [one.to(torch.float32 if len(pieces) > 2 else one.dtype) for one in more]
                else:
                    for one, other in zip(sums, more, strict=True):
                        one[:, :seen] += other
            _write(of_keys, 0, sums[0], context.scale)
            _write(of_values, 0, sums[1])
        return (*(part.transpose(1, 2) for part in (of_queries, of_keys, of_values)), None, None, None)


def _pieces(new: int, columns: int, causal: bool) -> list[tuple[int, int, int]]:
    """The first query of each piece, the one after its last, and how many columns they can see at the most."""
    ends = [(first, min(first + _PIECE, new)) for first in range(0, new, _PIECE)]
    return [(first, last, last if causal else columns) for first, last in ends]


def _seen(whole: Tensor, seen: int) -> Tensor:
    """The first columns of keys or values, as one block: products of anything else would copy it each time."""
    return whole if seen == whole.shape[1] else whole[:, :seen].contiguous()


def _write(target: Tensor, first: int, piece: Tensor, factor: float = 1.0) -> None:
    """A piece [batch * heads, length, head_dim], times the factor, to its place in [batch, all, heads, head_dim]."""
    batch, _, heads, size = target.shape
    part = target[:, first : first + piece.shape[1]]
    given = piece.view(batch, heads, -1, size).transpose(1, 2)
    if factor == 1.0:
        part.copy_(given)
    else:
        torch.mul(given, factor, out=part)


def _hidden(mask: Tensor | None, first: int, last: int, causal: bool, like: Tensor) -> Tensor | None:
    """What is added to the scores of the queries from ``first`` to ``last``: very much less than nothing where they may
    not look. Not -∞: a row of padding sees nothing at all, and must not become NaN.

    Returns:
        [1 or batch, 1, 1 or queries, last columns] or None.
    """
    nothing = torch.finfo(like.dtype).min
    if causal:
        return like.new_full((1, 1, last - first, last - first), nothing).triu(1)
    if mask is None:
        return None
    part = mask if mask.shape[2] == 1 else mask[:, :, first:last]
    return like.new_zeros(part.shape).masked_fill_(~part, nothing)


def _weights(queries: Tensor, keys: Tensor, scale: float, hidden: Tensor | None) -> Tensor:
    """softmax(queries · keysᵀ · scale + hidden): [batch * heads, queries, columns]."""
    room = queries.new_empty(len(keys), queries.shape[1], keys.shape[1])  # of whose numbers nothing is taken
    scores = torch.baddbmm(room, queries, keys.mT, beta=0, alpha=scale)
    if hidden is not None:
        scores[:, :, -hidden.shape[3] :].unflatten(0, (len(hidden), -1)).add_(hidden)
    return torch.softmax(scores, -1, out=scores)
