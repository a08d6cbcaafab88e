"""What every measure takes and gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from polyformer.errors import DataError

Document = Mapping[str, Any]
Progress = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class Evaluation:
    """What a measure found.

    Attributes:
        measure: its name.
        documents: how many were looked at.
        values: name -> figure. Shares and F1 are from 0 to 1; BLEU and chrF from 0 to 100, as is usual.
        examples: what the model made of the first documents.
        notes: what a reader of the figures should know.
    """

    measure: str
    documents: int
    values: dict[str, float]
    examples: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def field_of(documents: Sequence[Document], name: str) -> list[Any]:
    """One field of every document.

    Raises:
        DataError: a document has no such field; its number and the fields that it has are named.
    """
    for number, document in enumerate(documents, 1):
        if document.get(name) is None:
            raise DataError(
                f"document {number} has no field {name!r}; it has {', '.join(map(str, document))} "
                "(fields can be renamed: fields={'" + name + "': 'its name'}, --field " + name + "=ITS-NAME)"
            )
    return [document[name] for document in documents]


def texts_of(documents: Sequence[Document], name: str) -> list[str]:
    """As `field_of`, of texts.

    Raises:
        DataError: as `field_of`; or a field holds something else than a text.
    """
    found = field_of(documents, name)
    for number, value in enumerate(found, 1):
        if not isinstance(value, str):
            raise DataError(f"document {number}: {name} is {type(value).__name__}, not a text")
    return found
