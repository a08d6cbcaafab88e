"""Objectives with labels: of a whole text or picture, or of each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import EncoderDecoder, EncoderOnly
from polyformer.core.config import Config
from polyformer.errors import DataError
from polyformer.objectives.base import (
    IGNORED,
    Batch,
    Example,
    Loss,
    Objective,
    beside_tokens,
    check_share,
    demand,
    described,
    inputs_of,
    places_of,
    tokens_of,
)
from polyformer.objectives.tokens import arguments


@dataclass(frozen=True, kw_only=True)
class Judgement(Objective):
    """Base of objectives that judge a whole text or picture by the ``num_labels`` numbers that a network gives."""

    reads: ClassVar[str] = "labels"

    num_labels: int

    def __post_init__(self) -> None:
        demand(self.num_labels >= 1, f"{type(self).__name__}: num_labels is {self.num_labels}, below 1")

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        self.label(example)  # wrong ones are found here, where it is known which row this is
        return example

    def collate(self, examples: Sequence[Example]) -> Batch:
        """What the network reads (tokens and their masks, a picture or sound), and ``labels``."""
        return {**inputs_of(examples), "labels": torch.from_numpy(np.stack([self.label(each) for each in examples]))}

    def label(self, example: Example) -> np.ndarray:
        """The label of one example.

        Raises:
            DataError: there is none, or it cannot be.
        """
        raise NotImplementedError

    def check(self, config: Config) -> None:
        name = type(self).__name__
        fits = isinstance(config, (EncoderOnly.Config, EncoderDecoder.Config)) and config.sequence_head is not None
        demand(
            fits and getattr(config, "masked_head", None) is None,
            f"{name} trains networks with a sequence_head and without a masked_head (EncoderOnly with a pooling), but "
            f"this network is {config.kind}{_heads(config)}",
        )
        labels = getattr(config, "num_labels", None)
        demand(labels == self.num_labels, f"{name} has num_labels {self.num_labels}, but the network gives {labels}")

    def _scores(self, network: nn.Module, batch: Batch) -> Tensor:
        """[rows, num_labels], in float32 at least."""
        return _precise(network(**arguments(batch)).logits)


@dataclass(frozen=True, kw_only=True)
class Classification(Judgement):
    """One label of several (Devlin et al., 2019, section 4.1): the cross-entropy of the true one.

    Args:
        num_labels: how many there are; labels are numbers from 0.
        label_smoothing: so much of the true label's weight is spread over all (Szegedy et al., 2016, section 7).

    The loss is summed over examples. Metrics: "accuracy", and of two labels "precision" and "recall" of label 1 when no
    gradients are wanted.
    """

    problem_type: ClassVar[str | None] = "single_label_classification"

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        demand(self.num_labels >= 2, f"{type(self).__name__} chooses among labels, but num_labels is {self.num_labels}")
        demand(0 <= self.label_smoothing < 1, f"label_smoothing is {self.label_smoothing}, not at least 0 and below 1")

    def label(self, example: Example) -> np.ndarray:
        return _class(example, self.num_labels)

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        scores, labels = self._scores(network, batch), batch["labels"]
        total = functional.cross_entropy(scores, labels, reduction="sum", label_smoothing=self.label_smoothing)
        best = scores.detach().argmax(-1)
        metrics: dict[str, tuple[float | Tensor, float]] = {"accuracy": ((best == labels).sum(), len(labels))}
        if self.num_labels == 2 and not torch.is_grad_enabled():
            metrics.update(_precision_and_recall(best == 1, labels == 1))
        return Loss(total, len(labels), metrics)


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Classification):
    """One label of several for a picture (``pixel_values``). As `Classification`.

    Args:
        flip: the chance that a picture is mirrored, left for right.
        shift: it is moved by up to so many pixels in each direction; at the edge its outermost ones are repeated (He et
            al., 2016, section 4.2, has zeros there).

    Held-out pictures are left as they are.
    """

    reads: ClassVar[str] = "images"

    flip: float = 0.0
    shift: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("ImageClassification", flip=self.flip)
        demand(self.shift >= 0, f"ImageClassification: shift is {self.shift}, but it must be at least 0")

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        example = super().prepare(example, random)
        if not self.flip and not self.shift:
            return example
        pixels = np.asarray(example["pixel_values"])
        if random.random() < self.flip:
            pixels = pixels[..., ::-1]
        if self.shift:
            down, right = random.integers(0, 2 * self.shift + 1, 2)
            around = ((0, 0), (self.shift, self.shift), (self.shift, self.shift))
            height, width = pixels.shape[-2:]
            pixels = np.pad(pixels, around, mode="edge")[:, down : down + height, right : right + width]
        return {**example, "pixel_values": np.ascontiguousarray(pixels)}

    def held_out(self) -> ImageClassification:
        return replace(self, flip=0.0, shift=0)

    def check(self, config: Config) -> None:
        super().check(config)
        reads = getattr(getattr(config, "encoder", None), "input_name", None)
        demand(
            reads == "pixel_values",
            f"ImageClassification trains networks that read pictures, but this one reads {reads}",
        )


@dataclass(frozen=True, kw_only=True)
class Regression(Judgement):
    """One number or several for an example: the mean of their squared errors (Cer et al., 2017, as in GLUE's STS-B).

    Args:
        num_labels: how many numbers.

    The loss is summed over examples. Metrics: "absolute_error", the mean.
    """

    problem_type: ClassVar[str | None] = "regression"

    num_labels: int = 1

    def label(self, example: Example) -> np.ndarray:
        values = _numbers(example, self.num_labels)
        if not np.isfinite(values).all():
            raise DataError(f"{described(example)}: the label is {values.tolist()}, but it must be finite")
        return values

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        scores = self._scores(network, batch)
        errors = scores - batch["labels"].to(scores.dtype)
        rows = len(errors)
        return Loss(
            errors.square().mean(-1).sum(), rows, {"absolute_error": (errors.detach().abs().mean(-1).sum(), rows)}
        )


@dataclass(frozen=True, kw_only=True)
class MultiLabel(Judgement):
    """Any number of labels for an example, each by itself: the mean of their binary cross-entropies (Zhang and Zhou,
    2006, with the loss of logistic regression).

    A label is a list of ``num_labels`` zeros and ones.

    Args:
        num_labels: how many there are.

    The loss is summed over examples. Metrics: "accuracy" over all labels, and "precision" and "recall" of the ones when
    no gradients are wanted.
    """

    problem_type: ClassVar[str | None] = "multi_label_classification"

    def label(self, example: Example) -> np.ndarray:
        values = _numbers(example, self.num_labels)
        if not np.isin(values, (0, 1)).all():
            raise DataError(f"{described(example)}: the label is {values.tolist()}, but it must be zeros and ones")
        return values

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        scores = self._scores(network, batch)
        labels = batch["labels"].to(scores.dtype)
        losses = functional.binary_cross_entropy_with_logits(scores, labels, reduction="none")
        found, true = scores.detach() > 0, labels > 0
        metrics: dict[str, tuple[float | Tensor, float]] = {"accuracy": ((found == true).sum(), labels.numel())}
        if not torch.is_grad_enabled():
            metrics.update(_precision_and_recall(found, true))
        return Loss(losses.mean(-1).sum(), len(labels), metrics)


@dataclass(frozen=True, kw_only=True)
class Tagging(Objective):
    """A label for each token, as of names (Devlin et al., 2019, section 5.3).

    Examples have ``labels``, one for each token; -100 where a token is not judged (special ones, and those that go on
    with a word).

    Args:
        num_labels: how many there are; labels are numbers from 0.

    The loss is summed over judged tokens. Metrics: "accuracy".
    """

    reads: ClassVar[str] = "tags"

    num_labels: int

    def __post_init__(self) -> None:
        demand(self.num_labels >= 2, f"Tagging chooses among labels, but num_labels is {self.num_labels}")

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        self._labels(example)
        return example

    def collate(self, examples: Sequence[Example]) -> Batch:
        """``input_ids`` and what masks they need; ``places`` [judged], indices into [rows * columns]; ``labels``
        [judged]."""
        batch = tokens_of(examples)
        rows = [self._labels(example) for example in examples]
        batch["places"] = places_of([row != IGNORED for row in rows], batch["input_ids"].shape[1])
        batch["labels"] = torch.from_numpy(np.concatenate([row[row != IGNORED] for row in rows]).astype(np.int64))
        return batch

    def _labels(self, example: Example) -> np.ndarray:
        labels = beside_tokens(example, "labels")
        if labels is None:
            raise DataError(f"{described(example)} has no labels, but only {', '.join(sorted(example))}")
        wrong = (labels != IGNORED) & ((labels < 0) | (labels >= self.num_labels))
        for place in np.flatnonzero(wrong)[:1]:
            raise DataError(
                f"{described(example)}: the label of token {place} is {labels[place]}, but there are labels 0 to "
                f"{self.num_labels - 1} (and {IGNORED} for tokens that are not judged)"
            )
        return labels

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        logits = network(**arguments(batch)).logits
        scores, labels = _precise(logits.flatten(0, 1).index_select(0, batch["places"])), batch["labels"]
        total = functional.cross_entropy(scores, labels, reduction="sum")
        right = (scores.detach().argmax(-1) == labels).sum()
        return Loss(total, len(labels), {"accuracy": (right, len(labels))})

    def check(self, config: Config) -> None:
        head = getattr(config, "token_head", None)
        demand(
            isinstance(config, EncoderOnly.Config) and head is not None and config.task == "token-classification",
            "Tagging trains encoders with a token_head (EncoderOnly, task 'token-classification'), but this network is "
            f"{config.kind}{_heads(config)}",
        )
        labels = getattr(config, "num_labels", None)
        demand(labels == self.num_labels, f"Tagging has num_labels {self.num_labels}, but the network gives {labels}")


def _heads(config: Config) -> str:
    """The task and the heads of a network in words."""
    if not hasattr(config, "task"):
        return ""
    names = [name for name in ("head", "masked_head", "token_head", "sequence_head") if getattr(config, name, None)]
    return f" with the task {config.task!r} and {' and '.join(names) or 'no head'}"


def _precise(scores: Tensor) -> Tensor:
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def _given(example: Example) -> Any:
    if "label" not in example:
        raise DataError(f"{described(example)} has no label, but only {', '.join(sorted(example))}")
    return example["label"]


def _class(example: Example, count: int) -> np.ndarray:
    label = np.asarray(_given(example))
    if label.ndim or label.dtype.kind not in "iu" or not 0 <= label < count:
        raise DataError(
            f"{described(example)}: the label is {label.tolist()!r}, but it must be a whole number from 0 to "
            f"{count - 1}"
        )
    return label.astype(np.int64)


def _numbers(example: Example, count: int) -> np.ndarray:
    values = np.atleast_1d(np.asarray(_given(example)))
    if values.shape != (count,) or values.dtype.kind not in "iufb":
        raise DataError(
            f"{described(example)}: the label is {values.tolist()!r}, but it must be {count} number{'s' * (count > 1)}"
        )
    return values.astype(np.float64)


def _precision_and_recall(found: Tensor, true: Tensor) -> dict[str, tuple[float | Tensor, float]]:
    both = (found & true).sum()
    return {"precision": (both, int(found.sum())), "recall": (both, int(true.sum()))}
