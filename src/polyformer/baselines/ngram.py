"""n-grams with modified Kneser-Ney smoothing: the language model that counts.

An n-gram has a number among those of its length. It is found by the number of its first n - 1 tokens and its last
token, which together are one key in a sorted array: no hash tables of tuples, and whole texts are looked up at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyformer.baselines.counting import Counts, count_ngrams
from polyformer.core.config import require
from polyformer.errors import DataError

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

_FORMAT = "polyformer n-grams 1"
_USUAL_DISCOUNTS = (0.5, 1.0, 1.5)
_AT_ONCE = 1 << 20  # tokens that are looked up at once


@dataclass(frozen=True)
class Order:
    """The n-grams of one length.

    Attributes:
        keys: [grams], sorted: number of the first n - 1 tokens x (vocab_size + 1) + last token. Of single tokens there
            are none: a token is its own number.
        probabilities: [grams], (count - discount) / (count of all that begin alike).
        backoffs: [grams], what is left for shorter contexts where this n-gram is the context; 1 where nothing ever
            followed it. Empty for the longest.
    """

    keys: Integers
    probabilities: Floats
    backoffs: Floats

    def find(self, keys: Integers) -> Integers:
        """The number of each n-gram, -1 where there is none (or the key is negative)."""
        if not len(self.keys):
            return np.full(keys.shape, -1, np.int64)
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


class NGram:
    """A language model of n-grams, interpolated, with modified Kneser-Ney smoothing (Chen and Goodman, 1998).

    p(w | c) = (a(c w) - D(a(c w))) / sum over v of a(c v) + b(c) p(w | c without its first token), down to the even
    distribution. a counts the n-gram if it is the longest, else how many different tokens were seen before it; what
    stands at the beginning of a document has nothing before it and is counted as it is. D takes one of three values,
    for counts of 1, 2 and more. Contexts end at the beginning of their document.

    Made by `train` or `open`.

    Attributes:
        vocab_size: token ids are below it.
        order: length of the longest n-grams.
        orders: those of length 1, 2, ..., ``order``.
    """

    def __init__(self, vocab_size: int, orders: Sequence[Order]):
        self.vocab_size = vocab_size
        self.orders = tuple(orders)

    @property
    def order(self) -> int:
        return len(self.orders)

    @property
    def num_parameters(self) -> int:
        """Probabilities and back-off weights."""
        return sum(one.probabilities.size + one.backoffs.size for one in self.orders)

    def __repr__(self) -> str:
        return f"<NGram, order {self.order}, {self.num_parameters:,} parameters, {self.vocab_size} token ids>"

    # --- training -----------------------------------------------------------------------------------------------------

    @staticmethod
    def train(
        documents: Iterable[NDArray[Any] | Sequence[int]],
        vocab_size: int,
        order: int = 5,
        *,
        chunk_tokens: int = 1 << 22,
        progress: Callable[[int], object] | None = None,
    ) -> NGram:
        """Count the n-grams of documents and smooth them.

        The documents are read once, one after the other; memory grows with the number of different n-grams only.

        Args:
            documents: token ids of each.
            vocab_size: all ids are below it.
            order: length of the longest n-grams.
            chunk_tokens: counted at once; more is faster and takes more memory.
            progress: called with the number of tokens read so far.

        Raises:
            ConfigError: vocab_size, order or chunk_tokens is below 1.
            DataError: there is no token, or an id is out of range.
        """
        require(vocab_size >= 1, f"vocab_size is {vocab_size}, but it must be at least 1")
        require(order >= 1, f"order is {order}, but it must be at least 1")
        require(chunk_tokens >= 1, f"chunk_tokens is {chunk_tokens}, but it must be at least 1")
        checked = (_checked(document, vocab_size) for document in documents)
        levels = list(count_ngrams(checked, vocab_size, order, chunk_tokens=chunk_tokens, progress=progress))
        return NGram(vocab_size, list(_smoothed(levels, vocab_size)))

    # --- probabilities ------------------------------------------------------------------------------------------------

    def log_probabilities(self, tokens: NDArray[Any] | Sequence[int], *, begins: bool = True) -> Floats:
        """The natural logarithm of the probability of each token, given those before it.

        Args:
            tokens: [length] ids.
            begins: whether the text is the beginning of a document; else it is a piece of one.

        Raises:
            DataError: an id is out of range.
        """
        ids = _checked(tokens, self.vocab_size)
        parts, context = [], self._start(begins)
        for start in range(0, len(ids), _AT_ONCE):
            part, context = self._read(ids[start : start + _AT_ONCE], context)
            parts.append(part)
        return np.log(np.concatenate(parts)) if parts else np.zeros(0)

    def perplexity(self, documents: Iterable[NDArray[Any] | Sequence[int]]) -> float:
        """exp(- mean log-probability of a token) over whole documents.

        Raises:
            DataError: there is no token, or an id is out of range.
        """
        total, count = 0.0, 0
        for document in documents:
            scores = self.log_probabilities(document)
            total, count = total + float(scores.sum()), count + len(scores)
        if not count:
            raise DataError("there is no token to judge the n-grams by: give a text that is not empty")
        return float(np.exp(-total / count))

    def distribution(self, context: NDArray[Any] | Sequence[int] = (), *, begins: bool = True) -> Floats:
        """The probability of every token after a context, [vocab_size].

        Raises:
            DataError: an id is out of range.
        """
        _, numbers = self._read(_checked(context, self.vocab_size), self._start(begins))
        return self._after(numbers)

    def sample(
        self,
        prompt: NDArray[Any] | Sequence[int] = (),
        *,
        max_new_tokens: int,
        seed: int,
        temperature: float = 1.0,
        eos_token_ids: Sequence[int] = (),
    ) -> list[int]:
        """Write a text, or continue one that begins a document.

        Args:
            prompt: token ids.
            max_new_tokens: it ends after so many.
            seed: the same seed gives the same text.
            temperature: probabilities are taken to the power of 1 / temperature; 0 takes the likeliest.
            eos_token_ids: tokens that end the text; they are the last of it.

        Returns:
            The new tokens.

        Raises:
            ConfigError: a negative temperature or number of tokens.
            DataError: an id is out of range.
        """
        require(temperature >= 0, f"temperature is {temperature}, but it must be at least 0")
        require(max_new_tokens >= 0, f"max_new_tokens is {max_new_tokens}, but it must be at least 0")
        random = np.random.default_rng(seed)
        _, numbers = self._read(_checked(prompt, self.vocab_size), self._start(True))
        written: list[int] = []
        while len(written) < max_new_tokens and not (written and written[-1] in eos_token_ids):
            probabilities = self._after(numbers)
            if temperature == 0:
                token = int(probabilities.argmax())
            else:
                sums = np.cumsum((probabilities / probabilities.max()) ** (1 / temperature))
                token = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
            written.append(token)
            _, numbers = self._read(np.array([token]), numbers)
        return written

    def _start(self, begins: bool) -> Integers:
        """The context before the first token: [order], number of the n-gram of each length that ends there, or -1."""
        numbers = np.full(self.order, -1, np.int64)
        if begins:
            numbers[0] = self.vocab_size  # the sign before every document
        return numbers

    def _read(self, ids: Integers, before: Integers) -> tuple[Floats, Integers]:
        """The probabilities of tokens [length] after a context [order], and the context after them."""
        if not len(ids):
            return np.zeros(0), before
        after = np.full(self.order, -1, np.int64)
        numbers, probabilities = ids, self.orders[0].probabilities[ids]
        after[0] = ids[-1]
        for length, order in enumerate(self.orders[1:], start=2):
            contexts = np.concatenate([before[length - 2 : length - 1], numbers[:-1]])
            known = contexts >= 0
            numbers = order.find(np.where(known, contexts * (self.vocab_size + 1) + ids, -1))
            shorter = np.where(known, self.orders[length - 2].backoffs[contexts], 1.0) * probabilities
            probabilities = np.where(numbers >= 0, order.probabilities[numbers], 0.0) + shorter
            after[length - 1] = numbers[-1]
        return probabilities, after

    def _after(self, numbers: Integers) -> Floats:
        """The probability of every token after the context ``numbers`` [order]."""
        base = self.vocab_size + 1
        found = self.orders[0].probabilities.copy()
        for shorter, order, context in zip(self.orders, self.orders[1:], numbers):
            if context < 0:
                continue
            first, last = np.searchsorted(order.keys, [context * base, (context + 1) * base])
            found *= shorter.backoffs[context]
            found[order.keys[first:last] - context * base] += order.probabilities[first:last]
        return found

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one file of numpy arrays (``.npz``); it appears when it is complete."""
        path = Path(path)
        arrays: dict[str, Any] = {"format": np.array(_FORMAT), "vocab_size": np.array(self.vocab_size)}
        for length, order in enumerate(self.orders, start=1):
            for name in ("keys", "probabilities", "backoffs"):
                arrays[f"{name}_{length}"] = getattr(order, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                np.savez(file, **arrays)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> NGram:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if "format" not in arrays or str(arrays["format"]) != _FORMAT:
                    raise DataError(f"{path} holds no n-grams of this library: give a file that NGram.save wrote")
                order = sum(name.startswith("keys_") for name in arrays)
                names = ("keys", "probabilities", "backoffs")
                orders = [Order(*(arrays[f"{name}_{length}"] for name in names)) for length in range(1, order + 1)]
                return NGram(int(arrays["vocab_size"]), orders)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: give a file that NGram.save wrote") from None
        except DataError:
            raise
        except Exception as error:  # numpy and zipfile raise many kinds for a damaged file
            raise DataError(f"{path} is damaged ({error}): train the n-grams again") from error


def _checked(tokens: NDArray[Any] | Sequence[int], vocab_size: int) -> Integers:
    ids = np.asarray(tokens)
    if not ids.size:
        return np.zeros(0, np.int64)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"a document must be a list of token ids, but it is {ids.dtype} {list(ids.shape)}")
    ids = ids.astype(np.int64)
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if len(wrong):
        raise DataError(f"there is no token {wrong[0]}: the ids are 0 to {vocab_size - 1}")
    return ids


def _smoothed(levels: Sequence[Counts], vocab_size: int) -> Iterator[Order]:
    """Counts of n-grams to probabilities."""
    base = vocab_size + 1
    first, left = _smooth(levels[0].counts, np.zeros(base, np.int64), 1)
    keys, probabilities = levels[0].keys, first[:vocab_size] + left / vocab_size
    for shorter, level in pairwise(levels):
        longer, backoffs = _smooth(level.counts, level.keys // base, len(shorter.counts))
        yield Order(keys, probabilities, backoffs)
        keys, probabilities = level.keys, longer
    yield Order(keys, probabilities, np.zeros(0))


def _smooth(counts: Integers, contexts: Integers, among: int) -> tuple[Floats, Floats]:
    """The discounted probability of each n-gram after its context, and what is left in each of ``among`` contexts."""
    discounts = np.array([0.0, *_discounts(counts)])[np.minimum(counts, 3)]
    totals = np.bincount(contexts, counts, minlength=among)
    left = np.bincount(contexts, discounts, minlength=among)
    backoffs = np.divide(left, totals, out=np.ones(among), where=totals > 0)
    return (counts - discounts) / totals[contexts], backoffs


def _discounts(counts: Integers) -> tuple[float, float, float]:
    """What is taken off counts of 1, 2 and more (Chen and Goodman, 1998, equation 26).

    Texts too small for the estimate get fixed values.
    """
    one, two, three, four = (int((counts == number).sum()) for number in (1, 2, 3, 4))
    if not (one and two and three and four):
        return _USUAL_DISCOUNTS
    share = one / (one + 2 * two)
    found = (1 - 2 * share * two / one, 2 - 3 * share * three / two, 3 - 4 * share * four / three)
    if not all(0 <= value <= number for number, value in enumerate(found, start=1)):
        return _USUAL_DISCOUNTS
    return found
