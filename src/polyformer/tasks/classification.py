"""Labels for texts: those that a model was trained on, or any, through a model that tells entailment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from polyformer.errors import CapabilityError, GenerationError
from polyformer.tasks.base import Progress, TaskModel, as_list, read_texts, require_capability, run_batches

TEMPLATE = "This example is {}."
"""What a label becomes for a model that tells entailment (Yin et al., 2019)."""


@dataclass(frozen=True)
class Label:
    """A label and how well it fits: a probability, or the number itself that a model of regression gives."""

    label: str
    score: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def classify(
    model: TaskModel,
    texts: str | Sequence[str],
    *,
    pairs: str | Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    multi_label: bool | None = None,
    top_k: int | None = None,
    template: str | None = None,
    truncate: bool = False,
    progress: Progress = None,
) -> Any:
    """How well each label fits a text.

    Args:
        texts: one or many.
        pairs: a second text for each, for a model that judges pairs.
        labels: words of one's own instead of the model's labels: then the model must be one that tells entailment, and
            each label is put into the ``template`` as what the text may entail (zero-shot classification).
        multi_label: several labels may fit, so that each has a probability of its own; None takes what the model was
            trained for, and False with ``labels``.
        top_k: only so many labels; None gives all.
        template: with ``{}`` where the label goes; None is `TEMPLATE`.
        truncate: texts longer than the model reads are cut; otherwise they are an error.

    Returns:
        For one text a list of `Label`, best first; for a list of texts a list of these.

    Raises:
        CapabilityError: the model has no labels, or with ``labels``, none that means entailment.
        GenerationError: options that do not fit together.
    """
    require_capability(model, "classify")
    given, alone = as_list(texts)
    if top_k is not None and top_k < 1:
        raise GenerationError(f"top_k is {top_k}, but it must be at least 1")
    if labels is not None:
        if pairs is not None:
            raise GenerationError("labels of one's own are compared with single texts: leave pairs out")
        scores, names = _entailed(
            model, given, own_labels(labels), bool(multi_label), template or TEMPLATE, truncate, progress
        )
    else:
        if template is not None:
            raise GenerationError("a template is for labels of one's own: give labels too, or leave it out")
        seconds = None if pairs is None else as_list(pairs)[0]
        if seconds is not None and len(seconds) != len(given):
            raise GenerationError(f"there are {len(given)} texts, but {len(seconds)} second texts: give one for each")
        logits = _logits(model, given, seconds, truncate, progress)
        scores, names = probabilities(model, logits, multi_label), list(model.labels or ())
    results = [ranked(names, row, top_k) for row in scores]
    return results[0] if alone else results


def own_labels(labels: Sequence[str]) -> list[str]:
    """A person's labels.

    Raises:
        GenerationError: there are none, or one is blank or stands there twice: it would share its own probability.
    """
    if isinstance(labels, str):
        raise GenerationError(f"labels are a list of words, not one text: labels=[{labels!r}, ...]")
    names = list(labels)
    if not names:
        raise GenerationError("labels are empty: give at least one")
    for number, name in enumerate(names):
        if not name.strip():
            raise GenerationError(f"label {number} is blank: write what may fit")
        if name in names[:number]:
            raise GenerationError(f"the label {name!r} is given twice: leave one out")
    return names


def ranked(names: Sequence[str], scores: Tensor, top_k: int | None) -> list[Label]:
    """Labels with scores [labels], best first."""
    order = scores.argsort(descending=True, stable=True).tolist()[:top_k]
    return [Label(names[number], float(scores[number])) for number in order]


def _logits(model: TaskModel, texts: list[str], pairs: list[str] | None, truncate: bool, progress: Progress) -> Tensor:
    """[texts, labels], float64."""
    encodings = read_texts(model, texts, pairs, truncate=truncate, what="classify texts")
    logits = torch.zeros(len(texts), len(model.labels or ()), dtype=torch.float64)
    for numbers, _, output in run_batches(model, encodings, progress=progress):
        logits[numbers] = output.logits.double().cpu()
    return logits


def probabilities(model: TaskModel, logits: Tensor, multi_label: bool | None) -> Tensor:
    """Scores [inputs, labels] as probabilities, as the model was trained for unless ``multi_label`` says otherwise."""
    kind = getattr(model, "problem_type", None)
    if kind == "regression" and multi_label is None:
        return logits
    if multi_label or (multi_label is None and (kind == "multi_label_classification" or logits.shape[1] == 1)):
        return logits.sigmoid()
    return logits.softmax(-1)


def _entailed(
    model: TaskModel,
    texts: list[str],
    labels: list[str],
    multi_label: bool,
    template: str,
    truncate: bool,
    progress: Progress,
) -> tuple[Tensor, list[str]]:
    names = [name.lower() for name in model.labels or ()]
    entailment = next((number for number, name in enumerate(names) if name.startswith("entail")), None)
    if entailment is None:
        raise CapabilityError(
            f"labels of one's own need a model that tells entailment, but this one tells {', '.join(names)}: leave "
            "labels out, or load a model trained on natural language inference"
        )
    if "{}" not in template:
        raise GenerationError(f"the template {template!r} has no {{}} where the label goes")
    firsts = [text for text in texts for _ in labels]
    seconds = [template.replace("{}", label) for _ in texts for label in labels]
    logits = _logits(model, firsts, seconds, truncate, progress).view(len(texts), len(labels), -1)
    if multi_label or len(labels) == 1:
        contradiction = next((number for number, name in enumerate(names) if name.startswith("contra")), None)
        if contradiction is None:
            contradiction = -1 if entailment == 0 else 0
        return logits[..., [contradiction, entailment]].softmax(-1)[..., 1], labels
    return logits[..., entailment].softmax(-1), labels
