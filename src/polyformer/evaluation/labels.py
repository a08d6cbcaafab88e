"""How often a model finds the right label: accuracy, and precision, recall and F1 of each label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polyformer.errors import CapabilityError, DataError
from polyformer.evaluation.base import Document, Evaluation, Progress, field_of, texts_of
from polyformer.tasks.base import require_capability

_SHOWN = 200
"""Characters of a text in an example."""


def evaluate_labels(
    model: Any, documents: Sequence[Document], *, truncate: bool = True, progress: Progress | None = None
) -> Evaluation:
    """The likeliest label beside the field ``label`` (a name, or its number among the model's labels), of each ``text``
    or ``image``.

    Args:
        truncate: texts that are longer than the model reads are cut.

    Returns:
        values of `judged`.

    Raises:
        CapabilityError: the model tells no labels apart.
        DataError: a document lacks a field, or has a label that the model does not know.
    """
    require_capability(model, "classify")
    if not model.labels:
        raise CapabilityError("this model has no labels of its own to be measured by")
    names = list(model.labels)
    true = [_name(label, names, number) for number, label in enumerate(field_of(documents, "label"), 1)]
    pictures = "embed_images" in model.capabilities
    texts = [] if pictures else texts_of(documents, "text")
    if pictures:
        found = model.classify(field_of(documents, "image"), top_k=1, progress=progress)
    else:
        found = model.classify(texts, top_k=1, truncate=truncate, progress=progress)
    predicted = [one[0].label for one in found]
    examples = [
        {"label": label, "predicted": one[0].label, "score": one[0].score} for label, one in zip(true[:8], found)
    ]
    if not pictures:
        examples = [{"text": text[:_SHOWN], **one} for text, one in zip(texts, examples)]
    return Evaluation("labels", len(documents), judged(true, predicted, names), examples)


def judged(true: Sequence[str], predicted: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """
    Returns:
        "accuracy"; "macro_f1", the mean of the labels' F1; and "precision_NAME", "recall_NAME", "f1_NAME" of each
        label. A label that is neither there nor predicted has 0 in all three.
    """
    values = {"accuracy": sum(map(str.__eq__, true, predicted)) / len(true), "macro_f1": 0.0}
    for name in names:
        right = sum(one == other == name for one, other in zip(true, predicted))
        precision = right / max(1, sum(one == name for one in predicted))
        recall = right / max(1, sum(one == name for one in true))
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        values.update({f"precision_{name}": precision, f"recall_{name}": recall, f"f1_{name}": f1})
        values["macro_f1"] += f1 / len(names)
    return values


def _name(label: Any, names: Sequence[str], number: int) -> str:
    if isinstance(label, str) and label in names:
        return label
    if not isinstance(label, (str, bool)) and label == int(label) and 0 <= int(label) < len(names):
        return names[int(label)]
    raise DataError(f"document {number} has the label {label!r}, but the model's are {', '.join(names)}")
