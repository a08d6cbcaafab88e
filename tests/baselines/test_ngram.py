"""n-grams: against the formulas computed with dictionaries, and as a model that is used."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyformer.baselines import NGram
from polyformer.errors import ConfigError, DataError

START = "start"


class ByDefinition:
    """Modified Kneser-Ney (Chen and Goodman, 1998) straight from the page, one n-gram at a time."""

    def __init__(self, documents: list[list[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        seen: Counter[tuple[Any, ...]] = Counter()
        before: dict[tuple[Any, ...], set[Any]] = defaultdict(set)
        for document in documents:
            text = [START, *document] if order > 1 else list(document)
            for end in range(1, len(text) + 1):
                for length in range(1, min(order, end) + 1):
                    gram = tuple(text[end - length : end])
                    seen[gram] += 1
                    if end > length:
                        before[gram].add(text[end - length - 1])
        self.counts: dict[int, dict[tuple[Any, ...], int]] = defaultdict(dict)
        for gram, count in seen.items():
            if gram[-1] == START:
                continue
            raw = len(gram) == order or gram[0] == START
            self.counts[len(gram)][gram] = count if raw else len(before[gram])
        self.following: dict[tuple[Any, ...], dict[tuple[Any, ...], int]] = defaultdict(dict)
        for counts in self.counts.values():
            for gram, count in counts.items():
                self.following[gram[:-1]][gram] = count
        self.discounts = {length: self._discounts(length) for length in range(1, order + 1)}

    def _discounts(self, length: int) -> list[float]:
        n = Counter(self.counts[length].values())
        if min(n[1], n[2], n[3], n[4]) == 0:
            return [0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return found if all(0 <= value <= k + 1 for k, value in enumerate(found)) else [0.5, 1.0, 1.5]

    def probability(self, token: int, context: tuple[Any, ...]) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        lower = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        following = self.following[context]
        total = sum(following.values())
        if not total:
            return lower
        discount = self.discounts[len(context) + 1]
        left = sum(discount[min(a, 3) - 1] for a in following.values()) / total
        a = following.get((*context, token), 0)
        return (a - (discount[min(a, 3) - 1] if a else 0.0)) / total + left * lower


def random_documents(seed: int, vocab_size: int, count: int = 12) -> list[list[int]]:
    """Documents in which some tokens are frequent, so that counts of every size come up."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 40, count)
    weights = 1 / np.arange(1, vocab_size + 1) ** 1.3
    return [random.choice(vocab_size, length, p=weights / weights.sum()).tolist() for length in lengths]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_as_defined(order: int, seed: int) -> None:
    vocab_size = 6
    documents = random_documents(seed, vocab_size)
    model, reference = NGram.train(documents, vocab_size, order), ByDefinition(documents, vocab_size, order)
    for length in range(order + 1):
        for context in product(range(vocab_size), repeat=length):
            for begins in (True, False):
                whole = (START, *context) if begins and order > 1 else context
                expected = [reference.probability(token, whole) for token in range(vocab_size)]
                np.testing.assert_allclose(model.distribution(context, begins=begins), expected, rtol=1e-12)
    text = random_documents(seed + 10, vocab_size, 1)[0] + [0, 5, 1, 1, 2]
    expected = [
        math.log(reference.probability(token, ((START,) if order > 1 else ()) + tuple(text[:place])))
        for place, token in enumerate(text)
    ]
    np.testing.assert_allclose(model.log_probabilities(text), expected, rtol=1e-12)
    assert model.perplexity([text, []]) == pytest.approx(math.exp(-sum(expected) / len(text)), rel=1e-12)


def test_the_estimated_discounts_are_used() -> None:
    """The comparison above would say little if every text fell back to the fixed discounts."""
    reference = ByDefinition(random_documents(0, 6), 6, 3)
    assert reference.discounts[3] != [0.5, 1.0, 1.5]


@pytest.mark.parametrize("begins", [True, False])
def test_probabilities_sum_to_one(begins: bool) -> None:
    model = NGram.train(random_documents(3, 50, 80), 60, 5)
    random = np.random.default_rng(0)
    for length in [0, 1, 2, 3, 4, 7] * 20:
        context = random.integers(0, 60, length)
        probabilities = model.distribution(context, begins=begins)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12) and probabilities.min() > 0
    text = random.integers(0, 60, 30)
    stepwise = [model.distribution(text[:place], begins=begins)[token] for place, token in enumerate(text)]
    np.testing.assert_allclose(np.exp(model.log_probabilities(text, begins=begins)), stepwise, rtol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [1, 17, 100])
def test_streams_give_the_same(chunk_tokens: int) -> None:
    """Counted in pieces and joined, with any integer type, from a generator."""
    documents, reports = random_documents(5, 30, 40), []
    stream = (np.array(document, np.uint16) for document in documents)
    found = NGram.train(stream, 30, 4, chunk_tokens=chunk_tokens, progress=reports.append)
    expected = NGram.train(documents, 30, 4)
    for one, other in zip(found.orders, expected.orders, strict=True):
        for name in ("keys", "probabilities", "backoffs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert reports[-1] == sum(map(len, documents)) and reports == sorted(reports)


def test_large_ids_do_not_overflow() -> None:
    """Five ids below 70,000 do not fit into one key of 64 bits; the counts are those of small ids."""
    documents = random_documents(6, 9, 20)
    large = NGram.train(([60_000 + 1_000 * token for token in document] for document in documents), 70_000, 5)
    small = NGram.train(documents, 9, 5)
    for one, other in zip(large.orders[1:], small.orders[1:], strict=True):
        np.testing.assert_array_equal(one.probabilities, other.probabilities)
        np.testing.assert_array_equal(one.backoffs, other.backoffs)


def test_sampling_follows_the_probabilities() -> None:
    documents = random_documents(1, 6)
    model = NGram.train(documents, 6, 3)
    assert model.sample([1, 2], max_new_tokens=9, seed=4) == model.sample([1, 2], max_new_tokens=9, seed=4)
    first = Counter(model.sample([2], max_new_tokens=1, seed=seed)[0] for seed in range(2000))
    shares = np.array([first[token] / 2000 for token in range(6)])
    assert np.abs(shares - model.distribution([2])).max() < 4 * math.sqrt(0.25 / 2000)
    sharp = Counter(model.sample([2], max_new_tokens=1, seed=seed, temperature=0.5)[0] for seed in range(2000))
    squared = model.distribution([2]) ** 2
    shares = np.array([sharp[token] / 2000 for token in range(6)])
    assert np.abs(shares - squared / squared.sum()).max() < 4 * math.sqrt(0.25 / 2000)
    greedy, text = model.sample([3], max_new_tokens=6, seed=0, temperature=0), [3]
    for token in greedy:
        assert token == int(model.distribution(text).argmax())
        text.append(token)
    ended = model.sample([], max_new_tokens=500, seed=1, eos_token_ids=[5])
    assert ended.index(5) == len(ended) - 1 < 499


def test_better_with_context_and_on_its_own_text() -> None:
    """On a text with structure a longer context predicts better, held out too."""
    random = np.random.default_rng(0)
    follows = random.permutation(40)

    def write(length: int) -> list[int]:
        text = [int(random.integers(40))]
        while len(text) < length:
            text.append(int(follows[text[-1]]) if random.random() < 0.8 else int(random.integers(40)))
        return text

    train, held_out = [write(400) for _ in range(10)], [write(400)]
    perplexities = [NGram.train(train, 40, order).perplexity(held_out) for order in (1, 2)]
    best = math.exp(-(0.805 * math.log(0.805) + 39 * 0.005 * math.log(0.005)))
    assert 35 < perplexities[0] < 41 and best < perplexities[1] < 1.25 * best


def test_saved_and_opened(tmp_path: Path) -> None:
    documents = random_documents(2, 20)
    model = NGram.train(documents, 20, 3)
    model.save(tmp_path / "model" / "ngram.npz")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["ngram.npz"]
    again = NGram.open(tmp_path / "model" / "ngram.npz")
    assert (again.order, again.vocab_size, again.num_parameters) == (3, 20, model.num_parameters)
    np.testing.assert_array_equal(again.log_probabilities(documents[0]), model.log_probabilities(documents[0]))
    (tmp_path / "other.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match="is damaged"):
        NGram.open(tmp_path / "other.npz")
    np.savez(tmp_path / "foreign.npz", numbers=np.arange(3))
    with pytest.raises(DataError, match="holds no n-grams"):
        NGram.open(tmp_path / "foreign.npz")
    with pytest.raises(DataError, match="does not exist"):
        NGram.open(tmp_path / "nowhere.npz")


def test_mistakes_are_named() -> None:
    with pytest.raises(DataError, match="there is no token 7: the ids are 0 to 6"):
        NGram.train([[1, 7]], 7)
    with pytest.raises(DataError, match="no token to count"):
        NGram.train([[], []], 7)
    with pytest.raises(ConfigError, match="order is 0"):
        NGram.train([[1]], 7, 0)
    with pytest.raises(DataError, match="float64"):
        NGram.train([np.array([0.5])], 7)
    model = NGram.train([[1, 2, 3]], 7)
    with pytest.raises(DataError, match="no token -1"):
        model.log_probabilities([-1])
    with pytest.raises(DataError, match="no token to judge"):
        model.perplexity([[]])
    with pytest.raises(ConfigError, match="temperature is -1"):
        model.sample(max_new_tokens=1, seed=0, temperature=-1)
