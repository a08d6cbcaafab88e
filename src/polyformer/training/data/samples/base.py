"""What a sample set is: real data with a name, fetched once into the cache, and read as documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyformer.checkpoints.transfer import ProgressCallback

Document = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """A named set of real data.

    Attributes:
        name: what a person types.
        description: one line.
        licence: of the data; told before they are fetched.
        source: the packages that they come from.
        fields: name of each field -> what is in it. "split" comes beside them where ``splits`` is not empty.
        splits: the parts that the set has, by nature or by the hash of what belongs together.
        labels: names of the values of the field "label"; empty if there is none.
        fetch: writes the set into an empty folder; returns the versions of what it was made of.
        read: documents out of that folder; takes the ``options``.
        options: options of ``read`` -> what they do.
        revision: goes up when ``fetch`` makes something else of the same packages: what is in the cache is made again.
    """

    name: str
    description: str
    licence: str
    source: str
    fields: Mapping[str, str]
    fetch: Callable[[Path, ProgressCallback], dict[str, str]]
    read: Callable[..., Iterator[Document]]
    splits: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    revision: int = 1
