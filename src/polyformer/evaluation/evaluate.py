"""A model, documents, and the measure that fits both."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polyformer.errors import CapabilityError, ConfigError, DataError
from polyformer.evaluation.base import Document, Evaluation, Progress
from polyformer.evaluation.infilling import evaluate_infilling
from polyformer.evaluation.labels import evaluate_labels
from polyformer.evaluation.language import evaluate_language
from polyformer.evaluation.retrieval import evaluate_retrieval
from polyformer.evaluation.written import evaluate_summary, evaluate_translation
from polyformer.generation.settings import GenerationSettings
from polyformer.training.data.reading import Source, beside, read_documents, with_names

MEASURES: Mapping[str, Callable[..., Evaluation]] = {
    "language": evaluate_language,
    "labels": evaluate_labels,
    "translation": evaluate_translation,
    "summary": evaluate_summary,
    "infilling": evaluate_infilling,
    "retrieval": evaluate_retrieval,
}
"""Every measure by its name."""


def evaluate(
    model: Any,
    source: Source | Sequence[Source] | Sequence[Document],
    measure: str | None = None,
    *,
    split: str | None = None,
    limit: int | None = None,
    fields: Mapping[str, str] | None = None,
    source_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Measure a model on documents that it has not been trained on.

    Args:
        model: from `polyformer.load`.
        source: a sample set by name, a file, a folder …, as `read_documents` takes it; or documents themselves.
        measure: one of `MEASURES`; None takes the one that the model is for, where there is one.
        split: "train", "validation" or "test", of a source that has them.
        limit: only so many documents.
        fields: what the measure reads -> the field of the source ({"text": "caption"}).
        source_options: of the reader or the sample set.
        options: of the measure; see its function. Unknown ones are generation's, for measures that write.

    Raises:
        ConfigError: an unknown measure or option.
        CapabilityError: the model cannot be measured so.
        DataError: the source is missing, empty or damaged, or lacks a field.
    """
    name = default_measure(model) if measure is None else measure
    if name not in MEASURES:
        near = difflib.get_close_matches(name, MEASURES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MEASURES)}"
        raise ConfigError(f"there is no measure {name!r}: {hint}")
    function = MEASURES[name]
    check_options(name, options)
    documents = _documents(source, split, limit, source_options or {})
    if not documents:
        part = "" if split is None else f" in its part {split!r}"
        raise DataError(f"{source} holds no document{part}")
    if fields:
        documents = [with_names(one, fields, f"document {number}") for number, one in enumerate(documents, 1)]
    if isinstance(source, (str, os.PathLike)):
        documents = [
            {**document, "image": beside(source, document["image"])} if "image" in document else document
            for document in documents
        ]
    found = function(model, documents, progress=progress, **options)
    if split is None and any(document.get("split") == "train" for document in documents):
        found.notes.append("on every part of the data, that for training too: name a split, most often test")
    return found


def default_measure(model: Any) -> str:
    """
    Raises:
        CapabilityError: several measures fit the model, or none.
    """
    can = model.capabilities
    if "translate" in can:
        raise CapabilityError("this model may translate or sum up: name the measure, translation or summary")
    for ability, name in (("score", "language"), ("classify", "labels"), ("embed_images", "retrieval")):
        if ability in can and (name != "labels" or model.labels):
            return name
    raise CapabilityError(f"no measure fits this model; it can {', '.join(can)}")


def check_options(measure: str, options: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: the measure has no such option.
    """
    parameters = inspect.signature(MEASURES[measure]).parameters
    known = [one.name for one in parameters.values() if one.kind is one.KEYWORD_ONLY and one.name != "progress"]
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        known += list(GenerationSettings.__dataclass_fields__)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
            raise ConfigError(f"the measure {measure} has no option {name!r}: {hint}")


def _documents(source: Any, split: str | None, limit: int | None, options: Mapping[str, Any]) -> list[Document]:
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, but it must be at least 1")
    if isinstance(source, Sequence) and not isinstance(source, str) and source and isinstance(source[0], Mapping):
        chosen = [one for one in source if split is None or one.get("split") == split]
        return chosen[:limit]
    return list(read_documents(source, split=split, limit=limit, **options))
