"""Multi-head attention: self and cross, with any number of key/value heads, any mask and any positions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core
from polyformer.core.backends import Scoring, attend
from polyformer.core.cache import Store
from polyformer.core.config import require
from polyformer.core.linear import Linear, Packable
from polyformer.core.masks import Bidirectional, BidirectionalWindow, Causal, Mask, Span
from polyformer.core.normalization import LayerNorm, RMSNorm
from polyformer.core.positions import Relative
from polyformer.core.rotary import Rotary
from polyformer.errors import ConfigError


class Attention(Packable):
    """Attention of several heads (Vaswani et al., 2017, section 3.2).

    Args of the config:
        hidden_size: width of the input and the output.
        num_heads: query heads.
        num_key_value_heads: key/value heads; each serves num_heads / num_key_value_heads query heads (1: multi-query,
            Shazeer, 2019; in between: grouped-query, Ainslie et al., 2023). None means num_heads.
        head_dim: width of a head; None means hidden_size / num_heads.
        source_size: width of what keys and values are made from (cross-attention); None is self-attention.
            It takes the `Bidirectional` mask and no ``positions``: places in two sequences are not compared.
        mask: who may look at whom.
        positions: `Rotary` or `Relative`, acting inside attention; None where positions act elsewhere.
        bias: whether the query, key and value projections have a bias.
        key_bias, output_bias: the same for the key and the output projection; None follows ``bias``.
        query_key_norm: normalization of queries and keys (Henry et al., 2020); its size is head_dim (each head by
            itself) or num_heads * head_dim (all heads together, keys likewise).
        scale: what scores are multiplied by; None means head_dim^-0.5.
        soft_cap: scores are squashed to ±cap (Gemma 2).
        sinks: each head has a learned score that takes weight and gives nothing (gpt-oss).
        dropout: on the weights, in training.
        output_dropout: on the result, in training: of attention alone (ModernBERT), where the dropout of a layer acts
            on every branch.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        hidden_size: int
        num_heads: int
        num_key_value_heads: int = None  # type: ignore[assignment]  # filled in below
        head_dim: int = None  # type: ignore[assignment]
        source_size: int | None = None
        mask: Mask = Causal()  # noqa: RUF009 (frozen data)
        positions: Rotary.Config | Relative.Config | None = None
        bias: bool = False
        key_bias: bool = None  # type: ignore[assignment]
        output_bias: bool = None  # type: ignore[assignment]
        query_key_norm: LayerNorm.Config | RMSNorm.Config | None = None
        scale: float = None  # type: ignore[assignment]
        soft_cap: float | None = None
        sinks: bool = False
        dropout: float = 0.0
        output_dropout: float = 0.0

        def __post_init__(self) -> None:
            require(self.num_heads >= 1, f"num_heads is {self.num_heads}, but it must be at least 1")
            for name in ("dropout", "output_dropout"):
                chance = getattr(self, name)
                require(0 <= chance < 1, f"{name} is {chance}, but it must be at least 0 and below 1")
            if not self.head_dim:
                require(
                    self.hidden_size % self.num_heads == 0,
                    f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}: give head_dim",
                )
                object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
            shared = self.num_heads if self.num_key_value_heads is None else self.num_key_value_heads
            object.__setattr__(self, "num_key_value_heads", shared)
            object.__setattr__(self, "key_bias", self.bias if self.key_bias is None else self.key_bias)
            object.__setattr__(self, "output_bias", self.bias if self.output_bias is None else self.output_bias)
            object.__setattr__(self, "scale", self.head_dim**-0.5 if self.scale is None else self.scale)
            require(
                shared >= 1 and self.num_heads % shared == 0,
                f"num_heads {self.num_heads} is not a multiple of num_key_value_heads {shared}",
            )
            if isinstance(self.positions, Rotary.Config):
                require(
                    self.positions.rotary_dim <= self.head_dim,
                    f"rotary_dim {self.positions.rotary_dim} is larger than head_dim {self.head_dim}",
                )
            if isinstance(self.positions, Relative.Config):
                require(
                    self.positions.head_dim == self.head_dim and self.positions.num_heads in (1, self.num_heads),
                    f"Relative has head_dim {self.positions.head_dim} and {self.positions.num_heads} heads, but "
                    f"attention has head_dim {self.head_dim} and {self.num_heads} heads",
                )
            require(
                self.source_size is None or (isinstance(self.mask, Bidirectional) and self.positions is None),
                "cross-attention (source_size) needs mask=Bidirectional() and positions=None",
            )
            if self.query_key_norm is not None:
                require(
                    self.query_key_norm.size in (self.head_dim, self.num_heads * self.head_dim),
                    f"query_key_norm has size {self.query_key_norm.size}, but it must be head_dim {self.head_dim} "
                    f"or num_heads * head_dim {self.num_heads * self.head_dim}",
                )

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        heads, shared, size = config.num_heads, config.num_key_value_heads, config.head_dim
        source = config.source_size or config.hidden_size
        self.query = Linear.Config(config.hidden_size, heads * size, config.bias).build()
        self.key = Linear.Config(source, shared * size, config.key_bias).build()
        self.value = Linear.Config(source, shared * size, config.bias).build()
        self.output = Linear.Config(heads * size, config.hidden_size, config.output_bias).build()
        self.query_norm = self.key_norm = None
        if config.query_key_norm is not None:
            together = config.query_key_norm.size != size
            self.query_norm = config.query_key_norm.build()
            self.key_norm = replace(config.query_key_norm, size=shared * size if together else size).build()
        self.positions = None if config.positions is None else config.positions.build()
        self.sinks = nn.Parameter(torch.zeros(heads)) if config.sinks else None

    def forward(
        self,
        inputs: Tensor,
        span: Span,
        *,
        store: Store | None = None,
        source: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            inputs: [batch, new, hidden_size].
            span: positions of the new tokens and of the key columns.
            store: keys and values of earlier tokens; the new ones are added to it.
            source: what keys and values are made from, [batch, columns, source_size] (cross-attention); None means
                ``inputs``. With a filled store it may be left out.
            need_weights: also return the weights.

        Returns:
            [batch, new, hidden_size], and the weights [batch, num_heads, new, columns] or None.
        """
        if self.config.source_size is None:
            queries, keys, values = self._self_attention(inputs, span, store)
        else:
            queries = self._heads(self.query(inputs), self.query_norm)
            keys, values = self._source_keys_values(source, store)
            queries = queries.to(keys.dtype)
            if span.neighbours is not None:
                queries = span.neighbours.fold(queries)
        scoring = self._scoring(queries, span)
        relative = self.positions if isinstance(self.positions, Relative) and self.positions.config.values else None
        result, weights = attend(queries, keys, values, scoring, need_weights=need_weights or relative is not None)
        if relative is not None and weights is not None:
            result = result + relative.add_values(weights, span)
        if span.neighbours is not None:
            result = span.neighbours.unfold(result)
            weights = None if weights is None else span.neighbours.unfold(weights)
        batch, new = inputs.shape[:2]
        merged = result.transpose(1, 2).reshape(batch, new, -1)
        if not torch.is_autocast_enabled(merged.device.type):  # it gives the next map what it wants
            merged = merged.to(inputs.dtype)
        output = self.output(merged)
        if self.config.output_dropout:
            output = functional.dropout(output, self.config.output_dropout, self.training)
        return output, weights if need_weights else None

    def _heads(self, projected: Tensor, norm: nn.Module | None) -> Tensor:
        """[batch, new, heads * head_dim] -> [batch, heads, new, head_dim], normalized.

        How many heads there are follows from the width: where processes share this layer, each has some of them.
        """
        if norm is not None and norm.config.size != self.config.head_dim:
            projected, norm = norm(projected), None
        batch, new, width = projected.shape
        split = projected.view(batch, new, width // self.config.head_dim, self.config.head_dim)
        if norm is not None:
            split = norm(split)
        return split.transpose(1, 2)

    def joint_linears(self) -> tuple[Linear, ...]:
        """Query, key and value read the same input; those of cross-attention do not."""
        return (self.query, self.key, self.value) if self.config.source_size is None else ()

    def _self_attention(self, inputs: Tensor, span: Span, store: Store | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the new tokens, keys and values of all in sight.

        Queries and keys go together as long as they can: at one token, the number of calls is what costs.
        """
        group = self.config.num_heads // self.config.num_key_value_heads  # query heads that share one key
        turning: Tensor | None = None
        if self.joint is not None and self.query_norm is None:
            joined = self._heads(self.joint(inputs), None)
            shared = joined.shape[1] // (group + 2)
            turning, values = joined.split([(group + 1) * shared, shared], dim=1)
            queries, keys = turning.split([group * shared, shared], dim=1)
        else:
            query, key, value = self.project(inputs)
            queries, keys = self._heads(query, self.query_norm), self._heads(key, self.key_norm)
            values = self._heads(value, None)
        rotary = self.positions if isinstance(self.positions, Rotary) else None
        if rotary is not None and not rotary.turns_stored_keys:
            turned = rotary(torch.cat([queries, keys], dim=1) if turning is None else turning, span.queries, span)
            queries, keys = turned.split([queries.shape[1], keys.shape[1]], dim=1)
        if store is not None:
            keys, values = store.append(keys, values)
        if rotary is not None and rotary.turns_stored_keys:
            queries, keys = rotary(queries, span.queries, span), rotary(keys, span.keys, span)
        return queries, keys, values

    def _source_keys_values(self, source: Tensor | None, store: Store | None) -> tuple[Tensor, Tensor]:
        """Keys and values of the source are made once, and kept in the store if there is one."""
        if store is not None and store.filled:
            return store.read()
        if source is None:
            raise ConfigError("cross-attention needs a source: encoder states, or a cache that holds them")
        keys = self._heads(self.key(source), self.key_norm)
        values = self._heads(self.value(source), None)
        if store is None:
            return keys, values
        if keys.dtype.itemsize == 2 and keys.device.type == "cpu" and not torch.is_grad_enabled():
            # They are read at every step, and a CPU reads 32 bits several times as fast as it converts 16.
            keys, values = (part.to(torch.float32, memory_format=torch.contiguous_format) for part in (keys, values))
        return store.append(keys, values)

    def _scoring(self, queries: Tensor, span: Span) -> Scoring:
        config = self.config
        causal = config.mask.is_plain_causal(span) and span.bias is None and not isinstance(self.positions, Relative)
        bias = config.mask.bias_of(span)
        mask = None if causal or bias is not None else config.mask.of(span)
        if isinstance(self.positions, Relative):
            scores = self.positions.scores(queries, span) * config.scale
            bias = scores if bias is None else bias + scores
        dropout = config.dropout if self.training else 0.0
        both_ways = isinstance(config.mask, (Bidirectional, BidirectionalWindow))
        return Scoring(config.scale, mask, causal, bias, config.soft_cap, self.sinks, dropout, both_ways)
