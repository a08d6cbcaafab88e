"""Objectives of encoders: guess what was hidden, and tell which tokens were replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import (
    Encoder,
    EncoderOnly,
    FeedForward,
    Head,
    Layer,
    Linear,
    MaskedTokenHead,
    TokenEmbedding,
    Transform,
)
from polyformer.core import config as core
from polyformer.core.config import Config, require
from polyformer.core.network import Network
from polyformer.core.transformer import Output
from polyformer.errors import ConfigError
from polyformer.objectives.base import (
    IGNORED,
    Batch,
    Example,
    Loss,
    Objective,
    beside_tokens,
    check_ids,
    check_share,
    demand,
    ids_of,
    places_of,
    tokens_of,
)
from polyformer.objectives.cross_entropy import Piece, Tally, cross_entropy
from polyformer.objectives.tokens import arguments, check_factors, check_guesser, judge


@dataclass(frozen=True, kw_only=True)
class Masking(Objective):
    """Which tokens are hidden: base of objectives that hide some.

    Of every text ``rate`` of the tokens that may be hidden, rounded, and at least one. The noise is drawn anew in every
    epoch (Liu et al., 2019, RoBERTa, section 4.1: dynamic masking).

    Args:
        mask_token_id: what stands for a hidden token.
        special_token_ids: never hidden ([CLS], [SEP]).
        rate: the share of tokens that is hidden.
        whole_words: hide all tokens of a word or none (Devlin et al., 2019, in the later releases; Cui et al., 2019).
            Words are told by the example (``word_ids``: a number for each token, -1 for what belongs to no word; or
            ``starts_word``: true where one begins), or by ``continuation_token_ids``.
        continuation_token_ids: tokens that go on with a word ("##ing" of WordPiece).
    """

    reads: ClassVar[str] = "tokens"

    mask_token_id: int
    special_token_ids: tuple[int, ...] = ()
    rate: float = 0.15
    whole_words: bool = False
    continuation_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_share(type(self).__name__, rate=self.rate)
        demand(
            self.whole_words or not self.continuation_token_ids,
            f"{type(self).__name__}: continuation_token_ids are for whole_words, which is off",
        )

    @cached_property
    def _never(self) -> np.ndarray:
        return np.array(sorted({*self.special_token_ids, self.mask_token_id}))

    @cached_property
    def _within(self) -> np.ndarray:
        return np.array(sorted(self.continuation_token_ids), np.int64)

    def chosen(self, example: Example, random: np.random.Generator) -> np.ndarray:
        """[length], true where a token is to be hidden."""
        ids = ids_of(example)
        allowed = ~np.isin(ids, self._never)
        documents = beside_tokens(example, "document_ids")
        if documents is not None:
            allowed &= documents >= 0
        places = np.flatnonzero(allowed)
        hidden = np.zeros(len(ids), bool)
        if not len(places):
            return hidden
        wanted = max(1, round(self.rate * len(places)))
        if not self.whole_words:
            hidden[random.choice(places, wanted, replace=False)] = True
            return hidden
        groups = np.split(places, np.flatnonzero(np.diff(self._words(example, ids)[places])) + 1)
        order = random.permutation(len(groups))
        left = wanted
        for number in order:
            if len(groups[number]) <= left or left == wanted:  # a word that is too long alone is better than none
                hidden[groups[number]] = True
                left -= len(groups[number])
            if left <= 0:
                break
        return hidden

    def _words(self, example: Example, ids: np.ndarray) -> np.ndarray:
        """A number for each token, the same within a word."""
        words = beside_tokens(example, "word_ids")
        if words is not None:
            alone = words < 0
            return np.where(alone, -1 - np.arange(len(words)), words)
        starts = beside_tokens(example, "starts_word")
        if starts is None:
            if not len(self._within):
                raise ConfigError(
                    f"{type(self).__name__} with whole_words must know where words begin: give continuation_token_ids, "
                    "or examples with word_ids or starts_word"
                )
            starts = ~np.isin(ids, self._within)
        return np.cumsum(starts.astype(bool))

    def check(self, config: Config) -> None:
        size = getattr(config, "vocab_size", None)
        check_ids(
            type(self).__name__,
            size,
            mask_token_id=self.mask_token_id,
            special_token_ids=self.special_token_ids,
            continuation_token_ids=self.continuation_token_ids,
        )


@dataclass(frozen=True, kw_only=True)
class MaskedLM(Masking):
    """Hidden tokens from what stands around them (Devlin et al., 2019, BERT, section 3.1, task 1).

    Of the chosen tokens 80% become the mask token, 10% another token drawn from the vocabulary, and 10% stay as they
    are. Only chosen tokens are scored.

    Args:
        mask_token_id, special_token_ids, rate, whole_words, continuation_token_ids: see `Masking`.
        vocab_size: random tokens are drawn from it, special ones left out.
        random_rate, keep_rate: the share of chosen tokens that become random ones, and that stay.
        rows_at_once: tokens that are scored at once; None takes as many as 128 MB hold.

    The loss is summed over chosen tokens. Metrics: "cross_entropy", "accuracy", "tokens" (chosen ones a row).
    """

    vocab_size: int
    random_rate: float = 0.1
    keep_rate: float = 0.1
    rows_at_once: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factors("MaskedLM", 0, self.rows_at_once)
        check_share("MaskedLM", random_rate=self.random_rate, keep_rate=self.keep_rate)
        check_share("MaskedLM", **{"random_rate + keep_rate": self.random_rate + self.keep_rate})
        demand(len(self._drawn) > 0, "MaskedLM: every token of the vocabulary is special")

    @cached_property
    def _drawn(self) -> np.ndarray:
        return np.setdiff1d(np.arange(self.vocab_size), self._never)

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        ids = ids_of(example)
        places = np.flatnonzero(self.chosen(example, random))
        fate = random.random(len(places))
        replaced = random.random(len(places))
        noisy = ids.copy()
        noisy[places[fate >= self.random_rate + self.keep_rate]] = self.mask_token_id
        swapped = fate < self.random_rate
        noisy[places[swapped]] = self._drawn[(replaced[swapped] * len(self._drawn)).astype(np.int64)]
        labels = np.full(len(ids), IGNORED)
        labels[places] = ids[places]
        return {**example, "input_ids": noisy, "labels": labels}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``input_ids`` and what masks they need; ``places`` [chosen], indices into [rows * columns]; ``labels``
        [chosen], what stood there."""
        batch = tokens_of(examples)
        labels = [np.asarray(example["labels"]) for example in examples]
        batch["places"] = places_of([row != IGNORED for row in labels], batch["input_ids"].shape[1])
        batch["labels"] = torch.from_numpy(np.concatenate([row[row != IGNORED] for row in labels]))
        return batch

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        hidden = network(**arguments(batch), with_logits=False).last_hidden_state
        return judge(network, hidden, batch, rows_at_once=self.rows_at_once, accuracy=True)

    def check(self, config: Config) -> None:
        check_guesser("MaskedLM", config)
        super().check(config)
        size = getattr(config, "vocab_size", 0)
        demand(self.vocab_size <= size, f"MaskedLM: vocab_size is {self.vocab_size}, but the network's is {size}")


# ---------------------------------------------------------------------------------------------------------------
# Replaced tokens


class GeneratorDiscriminator(Network):
    """A small encoder that fills in hidden tokens, and the encoder that learns to tell them from the true ones (Clark
    et al., 2020, ELECTRA, section 3.1). The second is what is kept.

    Args of the config:
        generator: with a masked head.
        discriminator: with a token head that tells replaced tokens, one score each.
        shared_embeddings: both use the discriminator's vectors of tokens, positions and types (section 3.2 there),
            which must then have the same size. A generator with narrower layers projects them.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        generator: EncoderOnly.Config
        discriminator: EncoderOnly.Config
        shared_embeddings: bool = True

        def __post_init__(self) -> None:
            require(self.generator.masked_head is not None, "the generator needs a masked_head, to fill in tokens")
            require(
                _tells_replaced(self.discriminator),
                "the discriminator needs the task 'replaced-token-detection' and a token_head with 1 label, but its "
                f"task is {self.discriminator.task!r} and it has {self.discriminator.num_labels} labels",
            )
            first, second = (self._tables(part) for part in (self.generator, self.discriminator))
            require(
                not self.shared_embeddings or first == second,
                f"shared embeddings must be alike, but the generator has {first} and the discriminator {second} "
                "(words, their size, positions, types): give the generator a projection, or turn shared_embeddings off",
            )

        @staticmethod
        def _tables(part: EncoderOnly.Config) -> tuple[Any, ...]:
            embedding = part.encoder.embedding
            names = ("vocab_size", "hidden_size", "positions", "token_types")
            return tuple(getattr(embedding, name, None) for name in names)

        @property
        def vocab_size(self) -> int | None:
            return self.discriminator.vocab_size

        @property
        def max_positions(self) -> int | None:
            return self.discriminator.max_positions

    def __init__(self, config: Config, discriminator: EncoderOnly | None = None):
        """
        Args:
            discriminator: a network of the discriminator's config, with its weights; None makes a new one.
        """
        super().__init__()
        self.config = config
        self.generator = config.generator.build()
        self.discriminator = config.discriminator.build() if discriminator is None else discriminator
        if config.shared_embeddings:
            for name in ("tokens", "positions", "token_types"):
                shared = getattr(self.discriminator.encoder.embedding, name)
                setattr(self.generator.encoder.embedding, name, shared)

    def forward(self, input_ids: Tensor, *, part: str = "discriminator", **options: Any) -> Output:
        """What one of the two gives, as `EncoderOnly.forward`: the "generator" or the "discriminator"."""
        output: Output = getattr(self, part)(input_ids, **options)
        return output

    def score(self, hidden: Tensor) -> Tensor:
        """The generator's scores over the vocabulary, as `EncoderOnly.score`."""
        logits: Tensor = self.generator.score(hidden)
        return logits


def _tells_replaced(config: EncoderOnly.Config) -> bool:
    return config.task == "replaced-token-detection" and config.token_head is not None and config.num_labels == 1


def small_generator(discriminator: EncoderOnly.Config, share: float) -> EncoderOnly.Config:
    """A generator for a discriminator: as many layers, ``share`` of its width, heads and feed-forward, and the same
    embeddings, projected (Clark et al., 2020, section 3.2: best between 1/4 and 1/2).

    Raises:
        ConfigError: the layers are of a kind that cannot simply be made narrower.
    """
    embedding, layers = discriminator.encoder.embedding, discriminator.encoder.stack.layers
    narrow, norm = [_narrower(layer, share) for layer in layers], layers[0].norm
    if not isinstance(embedding, TokenEmbedding.Config):
        raise ConfigError("replaced tokens are for encoders of text")
    width, size = narrow[0].norm.size, embedding.hidden_size
    projection = None if size == width else Linear.Config(size, width, True)
    outer = discriminator.encoder.stack
    stack = replace(
        outer,
        layers=tuple(narrow),
        norm=None if outer.norm is None else replace(outer.norm, size=width),
        bias=None if outer.bias is None else replace(outer.bias, num_heads=narrow[0].attention.num_heads),
    )
    return EncoderOnly.Config(
        Encoder.Config(replace(embedding, projection=projection), stack),
        "masked-lm",
        masked_head=MaskedTokenHead.Config(
            Transform.Config(width, size, "gelu", replace(norm, size=size)),
            Head.Config(size, embedding.vocab_size, tied=True, bias=True),
        ),
        max_positions=discriminator.max_positions,
    )


def _narrower(layer: Layer.Config, share: float) -> Layer.Config:
    attention, feedforward = layer.attention, layer.feedforward
    if not isinstance(feedforward, FeedForward.Config) or attention.num_key_value_heads != attention.num_heads:
        raise ConfigError(
            "a generator can be derived from layers with a plain feed-forward and as many key as query heads only: "
            "give a GeneratorDiscriminator with a generator of its own"
        )
    heads = max(1, round(attention.num_heads * share))
    width = heads * attention.head_dim
    norm = attention.query_key_norm
    if norm is not None and norm.size != attention.head_dim:
        norm = replace(norm, size=width)
    return replace(
        layer,
        attention=replace(
            attention, hidden_size=width, num_heads=heads, num_key_value_heads=heads, query_key_norm=norm
        ),
        feedforward=replace(
            feedforward,
            hidden_size=width,
            intermediate_size=max(1, round(feedforward.intermediate_size * width / feedforward.hidden_size)),
        ),
        norm=replace(layer.norm, size=width),
    )


@dataclass(frozen=True, kw_only=True)
class ReplacedTokens(Masking):
    """Which tokens of a text were replaced by a generator that learns to fill in hidden ones (Clark et al., 2020,
    ELECTRA, section 3.1).

    Chosen tokens are all hidden from the generator. What it draws for them stands in the discriminator's text, and
    where it drew the true token that counts as not replaced. A row's loss is the mean over its hidden tokens of the
    generator's, plus ``weight`` times the mean over all its tokens of the discriminator's. The draws follow from
    numbers that `prepare` gives to each hidden token, so they are the same whatever else is in the batch.

    Args:
        mask_token_id, special_token_ids, rate, whole_words, continuation_token_ids: see `Masking`.
        weight: of the discriminator's loss (section 3.1 and appendix A: 50).
        generator_share: of a generator that is made here, the width as a share of the discriminator's.
        rows_at_once: tokens that are scored at once; None takes as many as 128 MB hold.

    The loss is summed over rows. Metrics: "generator_loss" and "generator_accuracy" (over hidden tokens),
    "discriminator_loss", "discriminator_accuracy" and "replaced" (the share of replaced tokens) over all tokens.
    """

    weight: float = 50.0
    generator_share: float = 0.25
    rows_at_once: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factors("ReplacedTokens", 0, self.rows_at_once)
        demand(self.weight > 0, f"ReplacedTokens: weight is {self.weight}, but it must be above 0")
        check_share("ReplacedTokens", generator_share=self.generator_share)
        demand(self.generator_share > 0, "ReplacedTokens: generator_share is 0, but it must be above 0")

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        hidden = self.chosen(example, random)
        draws = random.random(len(hidden))  # for every token, so that a change of rate leaves the others alone
        return {**example, "hidden": hidden, "draws": draws}

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``input_ids``, as they are, and what masks they need; ``places`` [hidden], indices into [rows * columns],
        with ``draws`` [hidden] from 0 to 1 and ``shares`` [hidden], 1 / hidden tokens of the row; ``judged`` and
        ``judged_shares``, the same for all tokens that the discriminator judges."""
        batch = tokens_of(examples)
        columns = batch["input_ids"].shape[1]
        hidden = [np.asarray(example["hidden"], bool) for example in examples]
        real = []
        for example in examples:
            documents = beside_tokens(example, "document_ids")
            real.append(np.ones(len(ids_of(example)), bool) if documents is None else documents >= 0)
        batch["places"], batch["shares"] = places_of(hidden, columns), _shares(hidden)
        batch["judged"], batch["judged_shares"] = places_of(real, columns), _shares(real)
        drawn = [np.asarray(example["draws"])[mask] for example, mask in zip(examples, hidden)]
        batch["draws"] = torch.from_numpy(np.concatenate(drawn))
        return batch

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        inputs, places = arguments(batch), batch["places"]
        true = batch["input_ids"].flatten()
        targets = true[places]
        inputs["input_ids"] = true.index_fill(0, places, self.mask_token_id).view_as(batch["input_ids"])
        states = network(**inputs, part="generator", with_logits=False).last_hidden_state
        tally, drawing = Tally(), _Drawing(batch["draws"])
        generator_loss, _ = cross_entropy(
            network.score,  # type: ignore[arg-type]
            states.flatten(0, 1).index_select(0, places),
            targets,
            weights=batch["shares"],
            rows_at_once=self.rows_at_once,
            watch=(tally, drawing),
        )
        text = true.index_copy(0, places, drawing.ids)
        inputs["input_ids"] = text.view_as(batch["input_ids"])
        judged = batch["judged"]
        scores = network(**inputs, part="discriminator").logits.flatten()[judged]
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        replaced = (text != true)[judged]
        losses = functional.binary_cross_entropy_with_logits(scores, replaced.to(scores.dtype), reduction="none")
        total = generator_loss + self.weight * (losses * batch["judged_shares"].to(losses.dtype)).sum()
        tokens, found = len(judged), ((scores > 0) == replaced).sum()
        return Loss(
            total,
            len(batch["input_ids"]),
            {
                "generator_loss": (tally.entropy, len(places)),
                "generator_accuracy": (tally.right, len(places)),
                "discriminator_loss": (losses.detach().sum(), tokens),
                "discriminator_accuracy": (found, tokens),
                "replaced": (replaced.sum(), tokens),
            },
        )

    def check(self, config: Config) -> None:
        demand(
            isinstance(config, GeneratorDiscriminator.Config)
            or (isinstance(config, EncoderOnly.Config) and _tells_replaced(config)),
            "ReplacedTokens trains an encoder that tells replaced tokens (EncoderOnly, task "
            f"'replaced-token-detection'), or a GeneratorDiscriminator, but this network is {config.kind}"
            + (f" with the task {config.task!r}" if isinstance(config, EncoderOnly.Config) else ""),
        )
        super().check(config)

    def begun(self, network: nn.Module) -> nn.Module:
        """With a generator beside it, if it has none yet."""
        if isinstance(network, GeneratorDiscriminator):
            return network
        assert isinstance(network, EncoderOnly)
        config = GeneratorDiscriminator.Config(small_generator(network.config, self.generator_share), network.config)
        return GeneratorDiscriminator(config, network)

    def finished(self, network: Any, family: Any) -> tuple[Any, Any]:
        """The discriminator alone."""
        return network.discriminator, family


def _shares(masks: Sequence[np.ndarray]) -> Tensor:
    """For every true place, 1 / how many there are in its row."""
    counts = [int(mask.sum()) for mask in masks]
    return torch.from_numpy(np.concatenate([np.full(count, 1 / max(1, count)) for count in counts]))


class _Drawing:
    """Draws a token from each row of probabilities.

    A number from 0 to 1 for each row decides. Probabilities are rounded to whole numbers, so that their sums do not
    depend on the order of adding.

    Attributes:
        ids: [rows], what was drawn.
    """

    def __init__(self, draws: Tensor):
        self.draws = draws
        self.ids = torch.zeros(len(draws), dtype=torch.long, device=draws.device)

    def __call__(self, piece: Piece) -> None:
        rows = piece.rows
        sums = (piece.probabilities * 2**30).to(torch.int32).cumsum(-1, dtype=torch.int32)
        whole = sums[:, -1:]
        wanted = torch.minimum((self.draws[rows, None] * whole).to(torch.int32), whole - 1)
        self.ids[rows] = torch.searchsorted(sums, wanted, right=True)[:, 0]
