"""What stands on top of the layers: scores over a vocabulary or over labels, and one vector for a whole sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core
from polyformer.core.activations import activation
from polyformer.core.attention import Attention
from polyformer.core.config import require
from polyformer.core.feedforward import FeedForward
from polyformer.core.linear import Linear, Packable, initialize, keep_size
from polyformer.core.masks import Span
from polyformer.core.normalization import LayerNorm, RMSNorm
from polyformer.core.packing import Packed, bring_back, can_pack, give_up, is_in_use


class Head(Packable):
    """Vectors to scores over the vocabulary.

    Args of the config:
        tied: the matrix is the embedding's table (Press and Wolf, 2017); otherwise its own.
        bias: whether there is one.
        scale: the scores are multiplied by it.
        soft_cap: then squashed to cap · tanh(score / cap) (Gemma 2).
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        hidden_size: int
        vocab_size: int
        tied: bool = True
        bias: bool = False
        scale: float | None = None
        soft_cap: float | None = None

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.weight = None
        if not config.tied:
            self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
            initialize(self.weight)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.bias else None

    def pack_table(self, table: Tensor) -> None:
        """Pack the matrix: its own, or a copy of the embedding's table, which stays for looking up rows."""
        if self.joint is None and can_pack(table) and (self.weight is None or not is_in_use(self.weight)):
            self.joint = Packed([table if self.weight is None else self.weight], [self.bias])
            if self.weight is not None:
                give_up(self.weight)

    def unpack(self) -> None:
        if self.joint is not None and self.weight is not None:
            bring_back(self.weight, self.joint.plain()[0])
        self.joint = None

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """hidden [..., hidden_size] and the embedding's table [vocab_size, hidden_size] -> logits [..., vocab_size]."""
        if self.joint is not None:
            logits = self.joint(hidden)
        else:
            logits = functional.linear(hidden, table if self.weight is None else self.weight, self.bias)
        if self.config.scale is not None:
            logits = logits * self.config.scale
        if self.config.soft_cap is not None:
            logits = self.config.soft_cap * torch.tanh(logits / self.config.soft_cap)
        return logits


class Transform(core.Module):
    """norm(activation(W x + b)): what many heads do before their last map.

    Args of the config:
        in_features, out_features, bias: of the map.
        activation: its name; None leaves it out.
        norm: at the end; None leaves it out.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        in_features: int
        out_features: int
        activation: str | None = None
        norm: LayerNorm.Config | RMSNorm.Config | None = None
        bias: bool = True

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.linear = Linear.Config(config.in_features, config.out_features, config.bias).build()
        self.activation = activation(config.activation) if config.activation else None
        self.norm = config.norm.build() if config.norm else None

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        hidden = self.linear(inputs)
        if self.activation is not None:
            hidden = self.activation(hidden)
        return hidden if self.norm is None else self.norm(hidden)


class MaskedTokenHead(core.Module):
    """Scores over the vocabulary for every token, to guess the masked ones (Devlin et al., 2019, section 3.1).

    Args of the config:
        transform: before the scores; None leaves it out.
        head: the scores.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        transform: Transform.Config | None
        head: Head.Config

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.transform = config.transform.build() if config.transform else None
        self.head = config.head.build()

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """hidden [..., hidden_size] and the embedding's table -> logits [..., vocab_size]."""
        return self.head(hidden if self.transform is None else self.transform(hidden), table)


class TokenHead(core.Module):
    """Scores over labels for every token: tags, the beginnings and ends of answers, replaced or not.

    Args of the config:
        hidden_size: of the tokens.
        num_labels: scores for each.
        transform: before the last map; None leaves it out.
        dropout: before the last map, in training.
        bias: of the last map.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        hidden_size: int
        num_labels: int
        transform: Transform.Config | None = None
        dropout: float = 0.0
        bias: bool = True

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.transform = config.transform.build() if config.transform else None
        inner = config.transform.out_features if config.transform else config.hidden_size
        self.linear = Linear.Config(inner, config.num_labels, config.bias).build()

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, columns, hidden_size] -> [batch, columns, num_labels]."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        return self.linear(functional.dropout(hidden, self.config.dropout, self.training))


class SequenceHead(core.Module):
    """Scores over labels for a whole sequence, from the vector that a `Pooling` made of it.

    Args of the config:
        in_features: length of that vector.
        num_labels: scores.
        dropout: before the map, in training.
        bias: of the map.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        in_features: int
        num_labels: int
        dropout: float = 0.0
        bias: bool = True

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.linear = Linear.Config(config.in_features, config.num_labels, config.bias).build()

    def forward(self, pooled: Tensor) -> Tensor:
        """[batch, in_features] -> [batch, num_labels]."""
        return self.linear(functional.dropout(pooled, self.config.dropout, self.training))


# ---------------------------------------------------------------------------------------------------------------
# One vector for a sequence

POOLINGS = ("first", "last", "mean", "mean_patches", "first_and_mean_patches", "end", "last_end", "largest_id")
TEXT_POOLINGS = {"mean": "mean", "class": "first", "last": "last"}
"""What people call the ways to make one vector of a text -> the method here."""


class Pooling(core.Module):
    """One vector for a whole sequence: that of a chosen token, or the mean.

    Args of the config:
        method: which tokens.
            "first", "last": the first or last real token ([CLS] of BERT; the last of SigLIP and of decoders). Padding
            on the left is skipped, where classes of transformers take the first column, whatever it holds.
            "mean": the mean of all real tokens.
            "mean_patches": the mean of those after the ``leading`` ones (the patches of a picture).
            "first_and_mean_patches": the first, then that mean: twice as long (DINOv2).
            "end", "last_end": the first or last token whose id is ``end_token_id`` (CLIP; BART).
            "largest_id": the first token with the largest id, which is the end token where that has the last id (CLIP
            as it was first published).
        norm: of that vector; None without.
        transform: after it; None without.
        dropout: before the transform, in training.
        leading: how many tokens are no patches.
        end_token_id: for "end" and "last_end".
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        method: str
        norm: LayerNorm.Config | RMSNorm.Config | None = None
        transform: Transform.Config | None = None
        dropout: float = 0.0
        leading: int = 1
        end_token_id: int | None = None

        def __post_init__(self) -> None:
            require(self.method in POOLINGS, f"pooling {self.method!r} is not one of {', '.join(POOLINGS)}")
            require(
                self.method not in ("end", "last_end") or self.end_token_id is not None,
                f"pooling {self.method!r} needs end_token_id",
            )

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.norm = config.norm.build() if config.norm else None
        self.transform = config.transform.build() if config.transform else None

    def forward(self, hidden: Tensor, span: Span, input_ids: Tensor | None = None) -> Tensor:
        """
        Args:
            hidden: [batch, columns, hidden_size].
            span: says which columns hold a token.
            input_ids: [batch, columns], for the methods that look for one.

        Returns:
            [batch, size].

        Raises:
            ConfigError: ids are needed and not there, or a sequence holds no end token.
        """
        pooled = self._pool(hidden, span, input_ids)
        if self.norm is not None:
            pooled = self.norm(pooled)
        if self.transform is not None:
            pooled = self.transform(functional.dropout(pooled, self.config.dropout, self.training))
        return pooled

    def _pool(self, hidden: Tensor, span: Span, input_ids: Tensor | None) -> Tensor:
        method = self.config.method
        if method in ("mean_patches", "first_and_mean_patches"):
            mean = hidden[:, self.config.leading :].mean(1)
            return mean if method == "mean_patches" else torch.cat([hidden[:, 0], mean], dim=-1)
        if method == "mean":
            if span.start is not None:
                return hidden.mean(1)
            real = (span.keys >= 0)[..., None].to(hidden.dtype)
            return (hidden * real).sum(1) / real.sum(1).clamp(min=1)
        if method in ("first", "last"):
            if span.start is not None:
                return hidden[:, 0 if method == "first" else -1]
            column = (span.keys == 0).int().argmax(1) if method == "first" else span.keys.argmax(1)
        else:
            require(input_ids is not None, f"pooling {method!r} needs input_ids")
            assert input_ids is not None
            column = self._column_of_end(input_ids, span)
        return hidden[torch.arange(len(hidden), device=hidden.device), column]

    def _column_of_end(self, input_ids: Tensor, span: Span) -> Tensor:
        real = span.keys >= 0
        if self.config.method == "largest_id":
            return input_ids.masked_fill(~real, -1).argmax(1)
        ends = (input_ids == self.config.end_token_id) & real
        require(
            bool(ends.any(1).all()),
            f"a sequence has no end token {self.config.end_token_id}, whose vector stands for the whole: add it",
        )
        if self.config.method == "end":
            return ends.int().argmax(1)
        return ends.shape[1] - 1 - ends.flip(1).int().argmax(1)


class AttentionPooling(core.Module):
    """One vector for a whole sequence: what a learned query finds in it (Lee et al., 2019; the head of SigLIP).

    Args of the config:
        attention: from the query to the sequence: cross-attention (``source_size``).
        norm, feedforward: after it, x + feedforward(norm(x)).

    Query and matrices start as N(0, 2/(inputs + outputs)), as in the code of SigLIP.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        attention: Attention.Config
        norm: LayerNorm.Config | RMSNorm.Config
        feedforward: FeedForward.Config

        def __post_init__(self) -> None:
            require(self.attention.source_size is not None, "the attention of a pooling needs source_size")

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        size = config.attention.hidden_size
        self.probe = nn.Parameter(torch.empty(size))
        initialize(self.probe, (2 / (1 + size)) ** 0.5)
        self.attention = config.attention.build()
        self.norm = config.norm.build()
        self.feedforward = config.feedforward.build()
        keep_size(*(module for module in self.modules() if isinstance(module, Linear)))

    def forward(self, hidden: Tensor, span: Span, input_ids: Tensor | None = None) -> Tensor:
        """hidden [batch, columns, source_size] -> [batch, hidden_size]. ``input_ids`` are not needed."""
        query = self.probe.expand(len(hidden), 1, -1)
        looked, _ = self.attention(query, Span.over(span), source=hidden)
        return (looked + self.feedforward(self.norm(looked)))[:, 0]
