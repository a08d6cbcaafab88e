"""Whether a picture's own text comes first among all texts, and a text's own picture among all pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from polyformer.errors import DataError
from polyformer.evaluation.base import Document, Evaluation, Progress, field_of, texts_of
from polyformer.tasks.base import require_capability

_RANKS = (1, 5, 10)


def evaluate_retrieval(model: Any, documents: Sequence[Document], *, progress: Progress | None = None) -> Evaluation:
    """Each ``image`` looks for its ``text`` among those of all documents, and the other way.

    Returns:
        values "text_recall@1", "@5", "@10" (from a picture to its text), "image_recall@1" … (from a text to its
        picture), and "chance@1" …, what guessing gives. Where several documents have the same text, each of them
        is right; equally near ones count as nearer, so that a model that tells nothing apart recalls nothing.

    Raises:
        CapabilityError: the model does not compare pictures with texts.
        DataError: a document lacks a field, or there are fewer than two.
    """
    require_capability(model, "embed_images")
    require_capability(model, "embed")
    texts, images = texts_of(documents, "text"), field_of(documents, "image")
    if len(texts) < 2:
        raise DataError("there is one document: among one, everything is found; give at least two")
    pictures = model.embed_images(images, progress=progress)
    words = model.embed(texts)
    likeness = _unit(pictures) @ _unit(words).T  # [pictures, texts]
    same = np.array([[one == other for other in texts] for one in texts])
    values = {}
    for name, scores in (("text", likeness), ("image", likeness.T)):
        ranks = _ranks(scores, same)
        values.update({f"{name}_recall@{k}": float((ranks < k).mean()) for k in _RANKS})
    values.update({f"chance@{k}": min(1.0, k / len(texts)) for k in _RANKS})
    examples = [
        {"text": texts[row], "nearest": [texts[column] for column in np.argsort(-likeness[row])[:5]]}
        for row in range(min(8, len(texts)))
    ]
    return Evaluation("retrieval", len(texts), values, examples)


def _ranks(scores: np.ndarray[Any, Any], same: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """How many wrong ones are as near as the best right one, or nearer [rows]."""
    best = np.where(same, scores, -np.inf).max(1, keepdims=True)
    found: np.ndarray[Any, Any] = ((scores >= best) & ~same).sum(1)
    return found


def _unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result
