"""What an objective is: it disturbs an example, puts examples together, and says how wrong a network is about them.

The three steps are apart so that training can be repeated exactly. All chance is in `Objective.prepare`, which gets a
random generator for one example alone; so the noise of an example depends neither on its neighbours nor on the number
of processes. Losses are sums with a count, so that the losses of small batches add up to that of a large one, and
whoever trains divides once, by the count over all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from polyformer.core.config import Config
from polyformer.errors import ConfigError, DataError

Example = Mapping[str, Any]  # numpy arrays, ints and floats of one example
Batch = dict[str, Tensor]

IGNORED = -100  # the label of a token that is not judged


@dataclass
class Loss:
    """How wrong a network is about a batch.

    Attributes:
        total: the sum over what was judged, a scalar with gradients.
        count: how much was judged (tokens or rows, as the objective says). It does not depend on the network.
        metrics: name -> (sum, count), without gradients. Sums and counts add up over batches, and sum / count is the
            metric: "accuracy" is (right ones, all).
    """

    total: Tensor
    count: int | float
    metrics: dict[str, tuple[float | Tensor, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Base of every objective.

    Attributes:
        reads: the examples it needs: "tokens" (``input_ids``), "pair" (``source_ids``, ``target_ids``), "labels"
            (``input_ids`` or ``pixel_values``, with ``label`` or ``labels``), "texts" (``first_ids``, ``second_ids``)
            or "images" (``pixel_values``, ``input_ids``).
        depends_on_batch: whether the loss of a row depends on the other rows of its batch. Then small batches do not
            add up to a large one.
        one_document: whether a row must hold one document, so that texts cannot be packed.
        problem_type: what the labels are, as ``config.json`` says it; None without labels of whole inputs.
    """

    reads: ClassVar[str]
    depends_on_batch: ClassVar[bool] = False
    one_document: ClassVar[bool] = False
    problem_type: ClassVar[str | None] = None

    def prepare(self, example: Example, random: np.random.Generator) -> Example:
        """One example with its noise.

        Args:
            random: the only source of chance, the example's own.
        """
        return example

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Prepared examples, padded and put together. No chance here.

        Raises:
            DataError: an example lacks something, or holds a value that cannot be.
        """
        raise NotImplementedError

    def __call__(self, network: nn.Module, batch: Batch) -> Loss:
        """The loss of ``network`` on a collated batch."""
        raise NotImplementedError

    def check(self, config: Config) -> None:
        """
        Raises:
            ConfigError: a network of this config cannot be trained with this objective; the message says what fits.
        """
        raise NotImplementedError

    def begun(self, network: nn.Module) -> nn.Module:
        """What is trained, given the network that is wanted: the same, or the same with something at its side that only
        training needs. To be called once, after `check`."""
        return network

    def held_out(self) -> Objective:
        """The same for held-out data: without what only makes more of the training data, such as mirrored pictures."""
        return self

    def finished(self, network: Any, family: Any) -> tuple[Any, Any]:
        """What is kept of a trained network, and the family that writes it: the way back from `begun`."""
        return network, family


# ---------------------------------------------------------------------------------------------------------------
# Putting examples together


def pad(rows: Sequence[np.ndarray], value: float = 0, dtype: Any = np.int64) -> Tensor:
    """Arrays [length] of any lengths, as one tensor [rows, longest], with ``value`` on the right of short ones."""
    padded = np.full((len(rows), max((len(row) for row in rows), default=0)), value, dtype)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return torch.from_numpy(padded)


def tokens_of(examples: Sequence[Example], name: str = "input_ids", prefix: str = "") -> Batch:
    """The ids in field ``name``, as the arguments of a network: ``input_ids``, and where they are needed
    ``attention_mask``, ``document_ids`` and ``token_type_ids``.

    Rows of one length that hold one document each need no mask, and are faster without.

    Args:
        name: the field; a network that reads two texts has two.
        prefix: of the names of the arguments.

    Raises:
        DataError: an example has no such field, or no token in it.
    """
    rows = [ids_of(example, name) for example in examples]
    batch = {"input_ids": pad(rows)}
    plain = len({len(row) for row in rows}) <= 1
    if name == "input_ids":
        documents = [beside_tokens(example, "document_ids") for example in examples]
        numbers = [np.zeros(len(row), np.int64) if ids is None else ids for row, ids in zip(rows, documents)]
        if any((ids != ids[0]).any() or ids[0] < 0 for ids in numbers):
            batch["document_ids"] = pad(numbers, -1)
            plain = True  # padding has the number -1
        types = [beside_tokens(example, "token_type_ids") for example in examples]
        if any(kinds is not None for kinds in types):
            batch["token_type_ids"] = pad(
                [np.zeros(len(row)) if kinds is None else kinds for row, kinds in zip(rows, types)]
            )
    if not plain:
        batch["attention_mask"] = pad([np.ones(len(row), bool) for row in rows], 0, bool)
    return {f"{prefix}{argument}": values for argument, values in batch.items()}


def beside_tokens(example: Example, name: str) -> np.ndarray | None:
    """Field ``name`` of an example with ``input_ids``: one number for each token; None where there is no such field.

    Raises:
        DataError: not one for each token.
    """
    if name not in example:
        return None
    values, count = np.asarray(example[name]), len(ids_of(example))
    if values.shape != (count,):
        raise DataError(
            f"{described(example)}: {name} has the shape {list(values.shape)}, but there are {count} tokens"
        )
    return values


def ids_of(example: Example, name: str = "input_ids") -> np.ndarray:
    """The tokens in field ``name``, [length].

    Raises:
        DataError: there is no such field, or it holds no tokens.
    """
    if name not in example:
        raise DataError(f"{described(example)} has no {name}, but only {', '.join(sorted(example)) or 'nothing'}")
    ids = np.asarray(example[name])
    if ids.ndim != 1 or not len(ids) or ids.dtype.kind not in "iu":
        raise DataError(f"{described(example)}: {name} must be one or more token ids, but are {_shown(ids)}")
    return ids


def single_document(example: Example, name: str = "input_ids", *, use: str) -> np.ndarray:
    """The tokens of an example that holds one document.

    Raises:
        DataError: it holds several; ``use`` is what cannot be done with them.
    """
    ids = ids_of(example, name)
    documents = beside_tokens(example, "document_ids") if name == "input_ids" else None
    if documents is not None and (documents != documents[0]).any():
        raise DataError(
            f"{described(example)} holds several documents, but {use} reads one document a row: do not pack"
        )
    return ids


def inputs_of(examples: Sequence[Example]) -> Batch:
    """What a network reads, as its arguments: tokens (see `tokens_of`), a picture or sound.

    Raises:
        DataError: an example has nothing to read, or pictures differ in shape.
    """
    for name in ("pixel_values", "input_features"):
        if name in examples[0]:
            return {name: stack(examples, name)}
    return tokens_of(examples)


def stack(examples: Sequence[Example], name: str) -> Tensor:
    """Field ``name`` of all examples, arrays of one shape, as float32 [examples, ...].

    Raises:
        DataError: an example lacks it, or has another shape than the first.
    """
    arrays: list[np.ndarray] = []
    for example in examples:
        if name not in example:
            raise DataError(f"{described(example)} has no {name}, but only {', '.join(sorted(example)) or 'nothing'}")
        array = np.asarray(example[name], np.float32)
        if arrays and array.shape != arrays[0].shape:
            raise DataError(
                f"{described(example)}: {name} has the shape {list(array.shape)}, but others of its batch have "
                f"{list(arrays[0].shape)}"
            )
        arrays.append(array)
    return torch.from_numpy(np.stack(arrays))


def places_of(masks: Sequence[np.ndarray], columns: int) -> Tensor:
    """Where rows of booleans are true: indices into [rows * columns], row after row."""
    found = [np.flatnonzero(mask) + number * columns for number, mask in enumerate(masks)]
    return torch.from_numpy(np.concatenate(found).astype(np.int64))


def described(example: Example) -> str:
    """An example in words, for a message."""
    if "index" in example:
        return f"example {example['index']}"
    for name, value in example.items():
        if name.endswith("_ids") and np.ndim(value) == 1 and len(value):
            begin = ", ".join(str(int(number)) for number in value[:5])
            return f"the example whose {name} begin with {begin}"
    return "an example"


def _shown(values: np.ndarray) -> str:
    return f"{values.dtype} of shape {list(values.shape)}" if values.ndim else repr(values[()])


# ---------------------------------------------------------------------------------------------------------------
# Checking


def demand(condition: bool, message: str) -> None:
    """
    Raises:
        ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(message)


def check_share(owner: str, **shares: float) -> None:
    """
    Raises:
        ConfigError: a number that must be between 0 and 1 is not.
    """
    for name, value in shares.items():
        demand(0 <= value <= 1, f"{owner}: {name} is {value}, but it must be between 0 and 1")


def check_ids(owner: str, vocab_size: int | None, **ids: int | Iterable[int] | None) -> None:
    """
    Raises:
        ConfigError: an id is not in a vocabulary of ``vocab_size``.
    """
    for name, value in ids.items():
        for number in [] if value is None else [value] if isinstance(value, int) else value:
            demand(
                number >= 0 and (vocab_size is None or number < vocab_size),
                f"{owner}: {name} {number} is not in the network's vocabulary of {vocab_size}",
            )
