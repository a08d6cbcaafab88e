"""Rotary positions, and the ways to stretch them to longer contexts.

A scaling changes the angles. Those that depend on the length of the sequence (`DynamicNTKScaling`, `LongRoPEScaling`)
would turn old keys otherwise than new ones; attention therefore keeps their keys unturned in the cache, so that a query
meets all keys turned alike. While the angles stay the same (`LongRoPEScaling`: on one side of its switch), a cached
sequence gives the numbers of an uncached one. What the lower layers said of a token while the sequence was shorter
stays as it was said: to have the numbers of the whole after a change of angles, feed the whole to a new cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polyformer.core import config as core
from polyformer.core.config import require
from polyformer.core.masks import Span


@dataclass(frozen=True)
class Scaling(core.Config):
    """How angles per position are changed. Subclasses override `frequencies`, and `magnitude` where they have one."""

    @property
    def depends_on_length(self) -> bool:
        """Whether the angles change as the sequence grows."""
        return False

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return 1.0

    def frequencies(self, base: float, exponents: Tensor, length: Tensor) -> Tensor:
        """
        Args:
            base: the base of the geometric series.
            exponents: 2i/d, [pairs].
            length: tokens in each row so far, [rows, 1, 1], or in each column's document, [rows, columns, 1].

        Returns:
            Angles per position, broadcasting to [rows, columns, pairs].
        """
        raise NotImplementedError


@dataclass(frozen=True)
class LinearScaling(Scaling):
    """Positions divided by ``factor`` (Chen et al., 2023: position interpolation)."""

    factor: float

    def frequencies(self, base: float, exponents: Tensor, length: Tensor) -> Tensor:
        return 1.0 / base**exponents / self.factor


@dataclass(frozen=True)
class FactorScaling(Scaling):
    """Each pair's angles divided by a factor of its own (how a GGUF file writes Llama 3's scaling)."""

    factors: tuple[float, ...]

    def frequencies(self, base: float, exponents: Tensor, length: Tensor) -> Tensor:
        return 1.0 / (exponents.new_tensor(self.factors) * base**exponents)


@dataclass(frozen=True)
class DynamicNTKScaling(Scaling):
    """A base that grows with the sequence once it is longer than in training (Peng et al., 2023, YaRN, section 3.3)."""

    factor: float
    original_max_positions: int

    @property
    def depends_on_length(self) -> bool:
        return True

    def frequencies(self, base: float, exponents: Tensor, length: Tensor) -> Tensor:
        size = 2 * exponents.numel()
        ratio = length.clamp(min=self.original_max_positions).to(exponents.dtype) / self.original_max_positions
        return 1.0 / (base * (self.factor * ratio - (self.factor - 1)) ** (size / (size - 2))) ** exponents


@dataclass(frozen=True)
class YaRNScaling(Scaling):
    """Fast pairs as they were, slow pairs interpolated, a ramp between (Peng et al., 2023, section 3.2 and 3.4).

    Args:
        factor: how much longer the context is than in training.
        original_max_positions: the context of training.
        beta_fast, beta_slow: turns within that context above which a pair keeps, and below which it is interpolated.
        attention_factor: what cosines and sines are multiplied by; None takes the paper's 0.1 ln(factor) + 1.
        truncate: whether the ends of the ramp are rounded outwards to whole pairs.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    @property
    def magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def frequencies(self, base: float, exponents: Tensor, length: Tensor) -> Tensor:
        size = 2 * exponents.numel()

        def pair_that_turns(times: float) -> float:
            return size * math.log(self.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(base))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, size - 1)
        width = high - low if high != low else 0.001  # a ramp of no width would divide by zero
        pairs = torch.arange(exponents.numel(), dtype=exponents.dtype, device=exponents.device)
        interpolated = ((pairs - low) / width).clamp(0, 1)
        plain = 1.0 / base**exponents
        return plain / self.factor * interpolated + plain * (1 - interpolated)


@dataclass(frozen=True)
class Llama3Scaling(Scaling):
    """Long waves divided by ``factor``, short ones kept, smoothly between (Llama 3.1; Dubey et al., 2024, section
    3.4)."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_max_positions: int

    def frequencies(self, base: float, exponents: Tensor, length: Tensor) -> Tensor:
        plain = 1.0 / base**exponents
        turns = self.original_max_positions * plain / (2 * math.pi)
        span = self.high_frequency_factor - self.low_frequency_factor
        kept = ((turns - self.low_frequency_factor) / span).clamp(0, 1)
        return plain / self.factor * (1 - kept) + plain * kept


@dataclass(frozen=True)
class LongRoPEScaling(Scaling):
    """A searched factor per pair, one set for short sequences and one for long (Ding et al., 2024; Phi-3).

    Args:
        short_factors, long_factors: one number per pair.
        original_max_positions: sequences longer than this take ``long_factors``.
        attention_factor: what cosines and sines are multiplied by.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    attention_factor: float = 1.0

    @property
    def depends_on_length(self) -> bool:
        return True

    @property
    def magnitude(self) -> float:
        return self.attention_factor

    def frequencies(self, base: float, exponents: Tensor, length: Tensor) -> Tensor:
        short, long = (exponents.new_tensor(factors) for factors in (self.short_factors, self.long_factors))
        return 1.0 / (torch.where(length > self.original_max_positions, long, short) * base**exponents)


class Rotary(core.Module):
    """Queries and keys turned by an angle that grows with position (Su et al., 2021, section 3.2.2).

    Pair i of the first ``rotary_dim`` numbers turns by position · base^(-2i / rotary_dim).

    Args of the config:
        rotary_dim: how many of a head's numbers are turned; the rest pass (GPT-NeoX, Phi: a part).
        base: 10000 in the paper.
        interleaved: pairs are neighbours (2i, 2i+1) as in the paper and GPT-J; else (i, i + half) as in GPT-NeoX,
            LLaMA.
        scaling: how the angles are stretched, or None.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        rotary_dim: int
        base: float = 10000.0
        interleaved: bool = False
        scaling: Scaling | None = None

        def __post_init__(self) -> None:
            require(
                self.rotary_dim >= 2 and self.rotary_dim % 2 == 0,
                f"rotary_dim is {self.rotary_dim}, but it must be even and positive",
            )
            lists: tuple[tuple[float, ...], ...] = ()
            if isinstance(self.scaling, LongRoPEScaling):
                lists = (self.scaling.short_factors, self.scaling.long_factors)
            elif isinstance(self.scaling, FactorScaling):
                lists = (self.scaling.factors,)
            for factors in lists:
                require(
                    len(factors) == self.rotary_dim // 2,
                    f"the scaling has {len(factors)} factors, but rotary_dim {self.rotary_dim} "
                    f"has {self.rotary_dim // 2} pairs",
                )
            require(
                self.rotary_dim > 2 or not isinstance(self.scaling, DynamicNTKScaling),
                "dynamic NTK scaling needs a rotary_dim above 2",
            )

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    @property
    def turns_stored_keys(self) -> bool:
        """Whether keys must be stored unturned, since their angles change with the length."""
        return self.config.scaling is not None and self.config.scaling.depends_on_length

    def forward(self, vectors: Tensor, positions: Tensor, span: Span) -> Tensor:
        """
        Args:
            vectors: queries or keys, [batch, heads, count, head_dim].
            positions: ``span.queries`` or ``span.keys``, [rows, count].

        Returns:
            The turned vectors.
        """
        key = ("rotary", self.config, positions is span.keys, vectors.dtype)
        cosine, sine = span.once(key, lambda: self.tables(positions, span, vectors.dtype))
        size = self.config.rotary_dim
        if size == vectors.shape[-1]:
            return self._turn(vectors, cosine, sine)
        return torch.cat([self._turn(vectors[..., :size], cosine, sine), vectors[..., size:]], dim=-1)

    def _turn(self, vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        if self.config.interleaved:
            other = torch.stack([vectors[..., 1::2], vectors[..., ::2]], dim=-1).flatten(-2)
        else:
            other = vectors.roll(self.config.rotary_dim // 2, dims=-1)
        return torch.addcmul(vectors * cosine, other, sine)  # the sign of each half is in the sine

    def tables(self, positions: Tensor, span: Span, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines, each [rows, 1, count, rotary_dim], worked out in float32 at least."""
        precise = torch.promote_types(dtype, torch.float32)
        size, scaling = self.config.rotary_dim, self.config.scaling
        exponents = torch.arange(0, size, 2, device=positions.device).to(precise) / size
        if scaling is None:
            frequencies, magnitude = 1.0 / self.config.base**exponents, 1.0
        else:
            length = span.lengths()[..., None]
            frequencies, magnitude = scaling.frequencies(self.config.base, exponents, length), scaling.magnitude
        angles = positions[..., None].to(precise) * frequencies
        cosine, sine = angles.cos() * magnitude, angles.sin() * magnitude
        if self.config.interleaved:
            tables = torch.stack([cosine, cosine], -1).flatten(-2), torch.stack([-sine, sine], -1).flatten(-2)
        else:
            tables = torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)
        return tables[0][:, None].to(dtype), tables[1][:, None].to(dtype)
