"""Heads of public checkpoints: which one a config asks for, and how many labels it tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyformer.core import EncoderOnly, SequenceHead, TokenHead
from polyformer.families.base import ConfigReader


def read_task(config: ConfigReader, tasks: Mapping[str, str]) -> str:
    """What the network was trained for, by the class that ``architectures`` names; "features" where it names none.

    Args:
        tasks: class name -> task of `EncoderOnly`.
    """
    names = config("architectures", None, kind=list) or []
    return next((tasks[name] for name in names if name in tasks), "features")


def written_task(config: Any, tasks: Mapping[str, str]) -> dict[str, Any]:
    """``architectures`` for the network's task, and label names where its head has labels."""
    name = next((name for name, task in tasks.items() if task == config.task), None)
    values: dict[str, Any] = {} if name is None else {"architectures": [name]}
    if config.task in ("sequence-classification", "token-classification"):
        values.update(written_labels(config.num_labels))
    return values


def written_labels(count: int) -> dict[str, Any]:
    """``id2label`` and ``label2id`` with the names that stand where nobody gave any."""
    names = [f"LABEL_{number}" for number in range(count)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def count_labels(config: ConfigReader) -> int:
    """How many labels a head tells apart: as many as ``id2label`` names, else ``num_labels``, else 2."""
    names = config("id2label", None, kind=dict)
    count: int = len(names) if names else config.integer("num_labels", 2)
    return count


def simple_token_head(config: ConfigReader, task: str, hidden: int, dropout: float) -> TokenHead.Config | None:
    """A linear map for every token: labels in token classification, beginning and end in question answering."""
    if task == "token-classification":
        return TokenHead.Config(hidden, count_labels(config), dropout=dropout)
    if task == "question-answering":
        return TokenHead.Config(hidden, 2)
    return None


def simple_sequence_head(config: ConfigReader, task: str, hidden: int, dropout: float) -> SequenceHead.Config | None:
    """A linear map of the pooled vector: labels, a score for each choice, or whether a sentence follows."""
    if task == "sequence-classification":
        return SequenceHead.Config(hidden, count_labels(config), dropout=dropout)
    if task == "multiple-choice":
        return SequenceHead.Config(hidden, 1, dropout=dropout)
    if task in ("next-sentence", "pretraining"):
        return SequenceHead.Config(hidden, 2)
    return None


def head_dropout(config: EncoderOnly.Config) -> float | None:
    """The dropout of the head over labels; None where there is no such head."""
    head = config.token_head or config.sequence_head
    return None if head is None else head.dropout
