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
        batch, heads, new, _ = queries.shape
        with torch.autocast(queries.device.type, enabled=False):  # it would compute the softmax in 32 bits
            scaled = torch.mul(queries, scale, out=torch.empty_like(queries, memory_format=torch.contiguous_format))
            scaled, keys, values = (part.flatten(0, 1) for part in (scaled, keys, values))
            result = values.new_empty(batch, new, heads, values.shape[2])
            kept = []
            for first, last, seen in _pieces(new, keys.shape[1], causal):
                weights = _weights(scaled, keys, mask, first, last, seen, causal)
                piece = weights @ values[:, :seen]
                result[:, first:last] = piece.view(batch, heads, last - first, -1).transpose(1, 2)
                if keys.shape[1] <= _KEPT:
                    kept.append(weights)
        context.save_for_backward(scaled, keys, values, mask, *kept)
        context.scale, context.causal, context.heads = scale, causal, heads
        return result.transpose(1, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, keys, values, mask, *kept = context.saved_tensors
        heads, new, columns = context.heads, scaled.shape[1], keys.shape[1]
        gradient = gradient.flatten(0, 1)
        pieces = _pieces(new, columns, context.causal)
        # Many pieces add to the same keys: in 16 bits the sum would lose digits.
        exact = torch.float32 if len(pieces) > 1 else keys.dtype
        of_queries = scaled.new_empty(len(scaled) // heads, new, heads, scaled.shape[2])
        of_keys, of_values = (torch.zeros_like(part, dtype=exact) for part in (keys, values))
        with torch.autocast(gradient.device.type, enabled=False):
            for number, (first, last, seen) in enumerate(pieces):
                weights = kept[number] if kept else _weights(scaled, keys, mask, first, last, seen, context.causal)
                of_result = gradient[:, first:last]
                of_values[:, :seen] += weights.mT @ of_result
                of_weights = of_result @ values[:, :seen].mT
                of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
                piece = of_scores @ keys[:, :seen]
                of_queries[:, first:last] = piece.view(-1, heads, last - first, piece.shape[2]).transpose(1, 2)
                of_keys[:, :seen] += of_scores.mT @ scaled[:, first:last]
        parts = (
            of_queries.transpose(1, 2) * context.scale,
            *(p.unflatten(0, (-1, heads)) for p in (of_keys, of_values)),
        )
        return (*(part.to(keys.dtype) for part in parts), None, None, None)


def _pieces(new: int, columns: int, causal: bool) -> list[tuple[int, int, int]]:
    """The first query of each piece, the one after its last, and how many columns they can see at the most."""
    ends = [(first, min(first + _PIECE, new)) for first in range(0, new, _PIECE)]
    return [(first, last, last if causal else columns) for first, last in ends]


def _weights(
    scaled: Tensor, keys: Tensor, mask: Tensor | None, first: int, last: int, seen: int, causal: bool
) -> Tensor:
    """Of the queries from ``first`` to ``last``: [batch * heads, queries, seen]."""
    scores = scaled[:, first:last] @ keys[:, :seen].mT
    nothing = torch.finfo(scores.dtype).min  # not -∞: a row of padding sees nothing at all, and must not become NaN
    if causal:
        hidden = torch.ones(last - first, last - first, dtype=torch.bool, device=scores.device).triu(1)
        scores[:, :, first:].masked_fill_(hidden, nothing)
    elif mask is not None:
        part = mask if mask.shape[2] == 1 else mask[:, :, first:last]
        scores.unflatten(0, (len(part), -1)).masked_fill_(~part, nothing)
    return scores.softmax(-1)
