"""How a network knows the order of its tokens. Each scheme is one small class, with its source.

Three places to act:

* on the embeddings: `Sinusoidal`, `Learned`;
* on queries and keys inside attention: `Rotary` (with its scalings), and `Relative`, which adds to the scores what a
  query says about a distance;
* on the scores of every layer alike, once per forward pass: `RelativeBias`, `ALiBi`.

Positions are integers that count real tokens from 0. No class has a buffer: tables are worked out from the config, so a
network built on the meta device needs no repair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core
from polyformer.core.config import require
from polyformer.core.linear import INITIAL_STANDARD_DEVIATION, initialize
from polyformer.core.masks import Span
from polyformer.core.rotary import Rotary as Rotary  # the largest of them has a file of its own

# ---------------------------------------------------------------------------------------------------------------
# On the embeddings


class Sinusoidal(core.Module):
    """PE(p, 2i) = sin(p / base^(2i/d)), PE(p, 2i+1) = cos(p / base^(2i/d)) (Vaswani et al., 2017, section 3.5).

    Args of the config:
        hidden_size: d.
        base: 10000 in the paper.
        interleaved: sines and cosines alternate as in the paper; else all sines first, then all cosines
            (tensor2tensor, Marian).
        offset: the p of the first position (fairseq begins after the id of padding).
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        hidden_size: int
        base: float = 10000.0
        interleaved: bool = True
        offset: int = 0

        def __post_init__(self) -> None:
            require(self.hidden_size % 2 == 0, f"hidden_size is {self.hidden_size}, but sinusoids need an even one")

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """positions [rows, new] -> [rows, new, hidden_size] in ``dtype``."""
        size = self.config.hidden_size
        precise = torch.float64
        rates = self.config.base ** (-torch.arange(0, size, 2, dtype=precise, device=positions.device) / size)
        angles = (positions[..., None] + self.config.offset).to(precise) * rates
        if self.config.interleaved:
            return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2).to(dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


class Learned(core.Module):
    """A learned vector for each position (Gehring et al., 2017; GPT, BERT).

    Args of the config:
        max_positions: the number of positions.
        hidden_size: the length of each vector.
        offset: the table's row of position 0 (2 in BART and OPT, which keep rows for padding).
        fixed: the vectors are kept with the weights but not trained: without given ones they are sines, then cosines,
            whose wavelengths go from 2π to 10000 · 2π in equal factors (Whisper's encoder).
        standard_deviation: before training, where they are not fixed.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        max_positions: int
        hidden_size: int
        offset: int = 0
        fixed: bool = False
        standard_deviation: float = INITIAL_STANDARD_DEVIATION

        def __post_init__(self) -> None:
            require(
                not self.fixed or (self.hidden_size % 2 == 0 and self.hidden_size > 2),
                f"hidden_size is {self.hidden_size}, but sinusoids need an even one above 2",
            )

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        table = torch.empty(config.max_positions + config.offset, config.hidden_size)
        self.weight = nn.Parameter(table, requires_grad=not config.fixed)
        if config.fixed:
            with torch.no_grad():
                self.weight.copy_(self._sinusoids())
        else:
            initialize(self.weight, config.standard_deviation)

    def _sinusoids(self) -> Tensor:
        device, offset = self.weight.device, self.config.offset
        rates = 10000.0 ** -torch.linspace(0, 1, self.config.hidden_size // 2, dtype=torch.float64, device=device)
        positions = torch.arange(-offset, self.config.max_positions, dtype=torch.float64, device=device)
        angles = positions[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """positions [rows, new], each below max_positions -> [rows, new, hidden_size]."""
        return functional.embedding(positions + self.config.offset, self.weight)


# ---------------------------------------------------------------------------------------------------------------
# On the scores, in every layer alike


def _signed_distance(span: Span) -> Tensor:
    """key position - query position, [rows, new, columns]."""
    return span.keys[:, None, :] - span.queries[:, :, None]


class RelativeBias(core.Module):
    """A learned number per head and bucket of distance, added to the scores (Raffel et al., 2020, section 2.1: T5).

    Half of the buckets hold one distance each, the rest grow with its logarithm up to ``max_distance``.

    Args of the config:
        num_heads: heads of the attention it is added to.
        num_buckets: buckets in all (for both directions together where ``bidirectional``).
        max_distance: beyond it all distances share the last bucket.
        bidirectional: whether later keys have buckets of their own (encoders) or count as distance 0 (decoders).
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        num_heads: int
        num_buckets: int = 32
        max_distance: int = 128
        bidirectional: bool = False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_buckets, config.num_heads))
        initialize(self.weight)

    def forward(self, span: Span, dtype: torch.dtype) -> Tensor:
        """The bias [rows, num_heads, new, columns] in ``dtype``."""
        return functional.embedding(self.buckets(_signed_distance(span)), self.weight).permute(0, 3, 1, 2).to(dtype)

    def buckets(self, distance: Tensor) -> Tensor:
        """Bucket numbers of key position - query position, of any shape."""
        count = self.config.num_buckets
        first = torch.zeros_like(distance)
        if self.config.bidirectional:
            count //= 2
            first = (distance > 0) * count
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = count // 2
        # float32, as everyone who trained with these buckets computed them
        ratio = (distance.clamp(min=1).float() / exact).log() / math.log(self.config.max_distance / exact)
        far = (exact + (ratio * (count - exact)).long()).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)


class ALiBi(core.Module):
    """-slope · distance added to the scores, a fixed slope per head (Press et al., 2022, section 3).

    Slopes are 2^(-8/n), 2^(-16/n), ... for n heads, n a power of two; otherwise those of the next lower power, and then
    every other one of the next higher.

    Args of the config:
        num_heads: heads of the attention it is added to.
        scale: what every slope is multiplied by (Falcon divides by √head_dim after it has added the bias).
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        num_heads: int
        scale: float = 1.0

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    def forward(self, span: Span, dtype: torch.dtype) -> Tensor:
        """The bias [rows, num_heads, new, columns] in ``dtype``, worked out in float32 at least."""
        precise = torch.promote_types(dtype, torch.float32)
        slopes = torch.tensor(self.slopes(), dtype=precise, device=span.keys.device)[None, :, None, None]
        return (slopes * -_signed_distance(span).abs()[:, None]).to(dtype)

    def slopes(self) -> list[float]:
        """One slope per head."""
        heads = self.config.num_heads
        power = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
        slopes += [2 ** (-4 * (2 * extra + 1) / power) for extra in range(heads - power)]
        return [slope * self.config.scale for slope in slopes]


# ---------------------------------------------------------------------------------------------------------------
# Inside attention: what a query says about a distance


class Relative(core.Module):
    """Learned vectors for clipped distances: score(i, j) = q_i · (k_j + a_clip(j-i)) · scale (Shaw et al., 2018,
    equations 3-5).

    With ``values``, the output also gets Σ_j weight(i, j) · b_clip(j-i). With ``causal``, only distances back in time
    have vectors, as in the Music Transformer (Huang et al., 2018), which also has a table per head.

    Args of the config:
        head_dim: length of each vector.
        max_distance: longer distances are clipped to it.
        num_heads: tables, one per head; 1 shares one table among all heads.
        values: whether there are vectors for the values too.
        causal: whether only distances <= 0 have vectors.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        head_dim: int
        max_distance: int
        num_heads: int = 1
        values: bool = False
        causal: bool = False

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        rows = config.max_distance + 1 if config.causal else 2 * config.max_distance + 1
        shape = (config.num_heads, rows, config.head_dim)
        self.keys = nn.Parameter(torch.empty(shape))
        self.values = nn.Parameter(torch.empty(shape)) if config.values else None
        for table in self.parameters():
            initialize(table)

    def _rows(self, span: Span) -> Tensor:
        """Row of the table for each query and key, [rows, 1, new, columns]."""
        limit = self.config.max_distance
        distance = _signed_distance(span).clamp(-limit, 0 if self.config.causal else limit)
        return (distance + limit)[:, None]

    def scores(self, queries: Tensor, span: Span) -> Tensor:
        """queries [batch, heads, new, head_dim] -> q · a, [batch, heads, new, columns], not scaled."""
        by_row = queries @ self.keys.mT  # [batch, heads, new, table rows]: the "skewing" is a gather here
        rows = span.once(("relative", self.config), lambda: self._rows(span))
        return by_row.gather(-1, rows.expand(*by_row.shape[:2], -1, -1))

    def add_values(self, weights: Tensor, span: Span) -> Tensor:
        """weights [batch, heads, new, columns] -> Σ_j weight · b, [batch, heads, new, head_dim]."""
        assert self.values is not None
        rows = span.once(("relative", self.config), lambda: self._rows(span))
        by_row = weights.new_zeros(*weights.shape[:-1], self.values.shape[1])
        by_row.scatter_add_(-1, rows.expand(*weights.shape[:2], -1, -1), weights)
        return by_row @ self.values
