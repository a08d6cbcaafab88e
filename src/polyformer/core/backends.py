"""The one place that decides how attention is computed.

* ``fused``: PyTorch's scaled-dot-product attention. It never holds the matrix of weights, so it cannot return it, and
  knows neither soft caps nor sinks.
* ``products``: two plain products with a softmax between them, in the dtype of the inputs, a piece at a time (see
  `products`). On a CPU it is faster than ``fused`` for short sequences that see both ways, and in 16 bits for long ones
  too, and for all training: the matrix of weights stays in the caches, and single queries do not wait for blocks that
  are made for many. In 32 bits it is for long ones where MKL, of which ``fused`` is made, is slow.
* ``reference``: the equations written out. It can do everything.
* ``flex``: PyTorch's flex attention, compiled. Fused, and it knows soft caps; chosen on a GPU where ``fused`` is not
  exact.

`attend` chooses; `attention_backend` overrides the choice, and an impossible one is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyformer.core.config import require
from polyformer.core.packing import learns_in_16_bits
from polyformer.core.products import goes_alone, learned_products, products

BACKENDS = ("fused", "products", "reference", "flex")

# Columns up to which products are faster in 32 bits: at 64 they take half the time, at 512 it is a tie.
_SHORT = 128

_forced: ContextVar[str | None] = ContextVar("attention backend", default=None)


@contextlib.contextmanager
def attention_backend(name: str | None) -> Iterator[None]:
    """Within the ``with`` block, every attention is computed by ``name``; None chooses by itself again.

    Raises:
        ConfigError: there is no backend of that name, or (when it runs) it cannot do what a layer asks.
    """
    require(name is None or name in BACKENDS, f"attention backend {name!r} is not known; known: {', '.join(BACKENDS)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _forced_backend() -> str | None:
    """What `attention_backend` says; in code that `torch.compile` has made, what it said when that was made."""
    return _forced.get()


# What `torch.compiler.assume_constant_result` does, which would import the whole compiler here.
_forced_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Scoring:
    """How scores become weights.

    Attributes:
        scale: what q · k is multiplied by.
        mask: booleans [rows, 1, new, columns], true where a query may look; None hides nothing.
        causal: the mask is the lower triangle of a square, and ``mask`` is None.
        both_ways: nothing is hidden for coming later (encoders, cross-attention). There, scores in 16 bits are exact
            enough; in a text that is being written, errors of one token would go into all later ones.
        bias: added to the scaled scores, broadcasting to [batch, heads, new, columns]; it comes with the mask applied
            or without.
        soft_cap: scores become cap · tanh(score / cap) before bias and mask (Gemma 2; Bello et al., 2016).
        sinks: [heads], a score that takes weight and gives nothing (gpt-oss; Miller, 2023).
        dropout: the chance with which a weight is dropped.
    """

    scale: float
    mask: Tensor | None = None
    causal: bool = False
    bias: Tensor | None = None
    soft_cap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
    both_ways: bool = False


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, *, need_weights: bool = False
) -> tuple[Tensor, Tensor | None]:
    """softmax(q kᵀ · scale) v (Vaswani et al., 2017, equation 1), with what ``scoring`` adds to it.

    Args:
        queries: [batch, heads, new, head_dim].
        keys, values: [batch, key_value_heads, columns, head_dim]; heads is a multiple of key_value_heads, and each
            group of neighbouring heads shares one (Shazeer, 2019; Ainslie et al., 2023).
        need_weights: also return the weights [batch, heads, new, columns].

    Returns:
        The result [batch, heads, new, head_dim], and the weights as they were used (after dropout) or None.
    """
    backend = _choose(queries, keys, scoring, need_weights)
    if backend == "fused":
        return _fused(queries, keys, values, scoring), None
    if backend == "flex":
        return _flex(queries, keys, values, scoring), None
    if backend == "products":
        if _learns(queries):
            result = learned_products(
                queries, keys, values, scoring.scale, mask=scoring.mask, causal=scoring.causal and queries.shape[2] > 1
            )
            return result, None
        return products(queries, keys, values, scoring.scale, scoring.mask), None
    return _reference(queries, keys, values, scoring)


def _choose(queries: Tensor, keys: Tensor, scoring: Scoring, need_weights: bool) -> str:
    fused_is_exact = not need_weights and scoring.soft_cap is None and scoring.sinks is None
    flex_is_exact = not need_weights and scoring.sinks is None and not scoring.dropout
    forced = _forced_backend()
    if forced == "fused":
        require(
            fused_is_exact,
            "the fused attention backend cannot return weights, cap scores or use sinks: use 'reference'",
        )
    learns = _learns(queries)
    products_are_exact = fused_is_exact and scoring.bias is None and not scoring.dropout
    if not learns:
        products_are_exact &= not scoring.causal and queries.shape[1] == keys.shape[1]
    if forced == "products":
        require(
            products_are_exact,
            "the products attention backend knows neither biases nor dropout nor, without gradients, causal masks and "
            "shared heads; it cannot cap scores or use sinks, and returns no weights: use 'reference'",
        )
    if forced == "flex":
        require(
            flex_is_exact, "the flex attention backend cannot return weights, drop out or use sinks: use 'reference'"
        )
        require(
            queries.is_cuda or not (torch.is_grad_enabled() and queries.requires_grad),
            "the flex attention backend has no gradients on the CPU: use 'reference'",
        )
    if forced is not None:
        return forced
    if products_are_exact and (
        _learned_products_help(queries) if learns else scoring.both_ways and _products_help(queries, keys)
    ):
        return "products"
    if fused_is_exact:
        return "fused"
    return "flex" if flex_is_exact and _flex_helps(queries, scoring) else "reference"


def _flex_helps(queries: Tensor, scoring: Scoring) -> bool:
    """On a GPU, for more than one new token; its kernels know neither float64 nor narrow heads, and learn no bias."""
    learns_bias = scoring.bias is not None and scoring.bias.requires_grad
    wide = queries.shape[2] > 1 and queries.shape[3] >= 16
    return queries.is_cuda and queries.dtype != torch.float64 and wide and not learns_bias


def _products_help(queries: Tensor, keys: Tensor) -> bool:
    """On a CPU, in 16 bits or for some lengths."""
    if queries.device.type != "cpu":
        return False
    if queries.dtype == torch.float32:
        return keys.shape[2] <= _SHORT or goes_alone(queries, keys)
    return queries.dtype.itemsize == 2


def _learns(queries: Tensor) -> bool:
    return torch.is_grad_enabled() and queries.requires_grad


def _learned_products_help(queries: Tensor) -> bool:
    return queries.shape[2] > 1 and learns_in_16_bits(queries)


def _fused(queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
    batch, heads, new, size = queries.shape
    shared = keys.shape[1]
    mask = scoring.mask
    if scoring.bias is not None:
        mask = scoring.bias if mask is None else scoring.bias.masked_fill(~mask, float("-inf"))
        mask = mask.to(queries.dtype)
    if heads != shared and new == 1 and mask is not None and mask.shape[1] not in (1, heads):
        raise ValueError("a bias must be for one head or for all")
    if heads != shared and new == 1:
        # One new token: a group's heads become the rows of one matrix, and no key is repeated.
        if mask is not None and mask.shape[1] == heads:
            mask = mask.view(mask.shape[0], shared, heads // shared, -1)
        queries = queries.reshape(batch, shared, heads // shared, size)
    result = functional.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=scoring.dropout,
        is_causal=scoring.causal and mask is None and new > 1,
        scale=scoring.scale,
        enable_gqa=queries.shape[1] != shared,
    )
    return result.reshape(batch, heads, new, -1)


def _reference(queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    batch, heads, new, size = queries.shape
    shared, columns = keys.shape[1], keys.shape[2]
    grouped = (queries * scoring.scale).reshape(batch, shared, -1, size)  # [batch, shared, group * new, head_dim]
    scores = (grouped @ keys.mT).view(batch, heads, new, columns)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if scoring.soft_cap is not None:
        scores = scoring.soft_cap * torch.tanh(scores / scoring.soft_cap)
    if scoring.bias is not None:
        scores = scores + scoring.bias
    if scoring.mask is not None:
        scores = scores.masked_fill(~scoring.mask, float("-inf"))
    elif scoring.causal:
        hidden = torch.ones(new, columns, dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(scores.dtype)[None, :, None, None].expand(batch, -1, new, 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = weights.to(queries.dtype)
    if scoring.dropout:
        weights = functional.dropout(weights, scoring.dropout)
    result = weights.reshape(batch, shared, -1, columns) @ values
    return result.view(batch, heads, new, -1), weights


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def _flex(queries: Tensor, keys: Tensor, values: Tensor, scoring: Scoring) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    mask, bias, cap = scoring.mask, scoring.bias, scoring.soft_cap
    if mask is not None:
        mask = mask.expand(queries.shape[0], 1, -1, -1)
    if bias is not None:
        bias = bias.expand(queries.shape[0], queries.shape[1], -1, -1)

    def score(value: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if cap is not None:
            value = cap * torch.tanh(value / cap)
        if bias is not None:
            value = value + bias[row, head, query, key]
        if mask is not None:
            value = torch.where(mask[row, 0, query, key], value, -float("inf"))
        elif scoring.causal:
            value = torch.where(query >= key, value, -float("inf"))
        return value

    function = _compiled_flex_attention() if queries.is_cuda else flex_attention
    return function(
        queries, keys, values, score_mod=score, scale=scoring.scale, enable_gqa=queries.shape[1] != keys.shape[1]
    )
