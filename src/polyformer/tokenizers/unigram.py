"""Train a unigram vocabulary (Kudo 2018, "Subword Regularization", section 3.2): the same data gives the same one.

The vocabulary starts as every substring that occurs often enough. Then, in turns, the probabilities of the pieces are
fitted by expectation-maximization over all ways to cut the words, and the pieces whose loss costs the least likelihood
go, until the size is right. As in the SentencePiece library, expected counts pass through a digamma function (a sparse
Dirichlet prior) and single characters always stay.

The trainer of the `tokenizers` library visits words in the order of a randomly seeded hash table and adds
floating-point numbers in that order, on as many threads as there are: two runs differ in the last bits, and near ties
then fall either way. Here words are sorted and everything is array arithmetic on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LONGEST_PIECE = 16
LONGEST_WORD = 64  # longer ones are cut: no piece is as long, and a word's length is the number of array passes
MOST_CHARACTERS = 8_000_000  # of different words together, the most frequent ones first: a bound of memory and time
MOST_SEEDS = 1_000_000
SHRINKING = 0.75
FITS = 2  # rounds of expectation and maximization between prunings
SPARE = 1.1  # pruning ends at this many times the wanted size; the least probable pieces go last
LEAST_COUNT = 0.5  # pieces expected less often than this go at once
DIGITS_OF_SCORE = 6


def train_unigram(
    words: Mapping[str, int],
    size: int,
    *,
    min_frequency: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[str, float]]:
    """The pieces of a unigram model and their log-probabilities, the likeliest first.

    Args:
        words: how often each word occurs; pieces lie within words.
        size: pieces wanted, all characters of the words included; there are fewer where the words give no more.
        min_frequency: a piece of several characters occurs at least this often.
        progress: called with the prunings done and how many there will be, about.
    """
    strings = _Strings.of_words(words)
    pieces = _seeds(strings, min_frequency)
    scores = np.log(pieces.counts / pieces.counts.sum())
    target = int(size * SPARE)
    rounds = max(int(np.ceil(np.log(max(len(pieces) / target, 1)) / -np.log(SHRINKING))), 0) + 1
    done = 0
    lattice = _Lattice.of(strings, pieces.match(strings))
    while True:
        for _ in range(FITS):
            counts = lattice.expected_counts(scores)
            kept = pieces.is_single | (counts >= LEAST_COUNT)
            counts = np.maximum(counts[kept], LEAST_COUNT)
            pieces, lattice = pieces.only(kept), lattice.only(kept)
            scores = _digamma(counts) - _digamma(counts.sum(keepdims=True))
        done += 1
        if progress is not None:
            progress(min(done, rounds), rounds)
        if len(pieces) <= target:
            break
        kept = _worth_keeping(lattice, pieces, scores, max(target, int(len(pieces) * SHRINKING)))
        pieces, lattice, scores = pieces.only(kept), lattice.only(kept), scores[kept]
    return _finished(pieces, scores, size)


def _finished(pieces: _Pieces, scores: Array, size: int) -> list[tuple[str, float]]:
    ranked = sorted(
        zip(pieces.texts(), np.round(scores, DIGITS_OF_SCORE).tolist()), key=lambda entry: (-entry[1], entry[0])
    )
    room = size - int(pieces.is_single.sum())
    result = []
    for text, score in ranked:
        if len(text) > 1:
            room -= 1
        if len(text) == 1 or room >= 0:
            result.append((text, score))
    return result


# --- words and pieces as arrays ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Strings:
    """Strings one after the other: each character's code, how many are left from it to the end of its string.

    `owner` is the number of the string that a character belongs to, `starts` where each string begins, `counts` how
    often it occurs. `letters` are the characters by code; codes begin at 1.
    """

    codes: Array
    left: Array
    owner: Array
    starts: Array
    counts: Array
    letters: Array

    @classmethod
    def of_words(cls, words: Mapping[str, int]) -> _Strings:
        chunks: dict[str, int] = {}
        room = MOST_CHARACTERS
        for word, count in sorted(words.items(), key=lambda entry: (-entry[1], entry[0])):
            room -= len(word)
            if room < 0:
                break
            for start in range(0, len(word), LONGEST_WORD):
                chunk = word[start : start + LONGEST_WORD]
                chunks[chunk] = chunks.get(chunk, 0) + count
        texts = sorted(chunks)
        points = np.frombuffer("".join(texts).encode("utf-32-le"), dtype=np.uint32)
        letters, codes = np.unique(points, return_inverse=True)
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        counts = np.array([chunks[text] for text in texts], dtype=np.float64)
        return cls.laid_out(codes.astype(np.int64) + 1, lengths, counts, letters)

    @classmethod
    def laid_out(cls, codes: Array, lengths: Array, counts: Array, letters: Array) -> _Strings:
        ends = np.cumsum(lengths)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        return cls(codes, ends[owner] - np.arange(len(codes)), owner, ends - lengths, counts, letters)

    @property
    def lengths(self) -> Array:
        return np.diff(np.append(self.starts, len(self.codes)))


@dataclass(frozen=True)
class _Edges:
    """Places where a piece stands: its first character's position, its length, its number."""

    start: Array
    length: Array
    piece: Array


@dataclass(frozen=True)
class _Pieces:
    """A vocabulary: codes [pieces, LONGEST_PIECE] filled up with 0, and how often each piece occurs."""

    codes: Array
    lengths: Array
    counts: Array
    letters: Array

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def is_single(self) -> Array:
        return self.lengths == 1

    def only(self, kept: Array) -> _Pieces:
        return _Pieces(self.codes[kept], self.lengths[kept], self.counts[kept], self.letters)

    def texts(self) -> list[str]:
        points = self.letters[np.maximum(self.codes - 1, 0)].astype("<u4")
        lengths = self.lengths.tolist()
        return [row[:length].tobytes().decode("utf-32-le") for row, length in zip(points, lengths)]

    def strings(self) -> _Strings:
        """The pieces themselves as strings to cut."""
        inside = np.arange(self.codes.shape[1]) < self.lengths[:, None]
        return _Strings.laid_out(self.codes[inside], self.lengths, np.ones(len(self)), self.letters)

    def match(self, strings: _Strings) -> _Edges:
        """Every place in the strings where a piece stands, found with a trie whose levels are sorted arrays."""
        width = len(self.letters) + 1
        node = np.zeros(len(self), dtype=np.int64)  # of each piece's beginning, its rank on the trie's level
        at = np.arange(len(strings.codes))  # positions whose next characters are in the trie down to this level
        place = np.zeros_like(at)
        found = []
        for depth in range(int(self.lengths.max())):
            alive = np.flatnonzero(self.lengths > depth)
            level, rank = np.unique(node[alive] * width + self.codes[alive, depth], return_inverse=True)
            node[alive] = rank
            piece_of = np.full(len(level), -1, dtype=np.int64)
            whole = self.lengths[alive] == depth + 1
            piece_of[rank[whole]] = alive[whole]
            on = strings.left[at] > depth
            at, place = at[on], place[on]
            key = place * width + strings.codes[at + depth]
            place = np.minimum(np.searchsorted(level, key), len(level) - 1)
            on = level[place] == key
            at, place = at[on], place[on]
            piece = piece_of[place]
            on = piece >= 0
            found.append(_Edges(at[on], np.full(int(on.sum()), depth + 1, dtype=np.int64), piece[on]))
        return _Edges(*(np.concatenate([getattr(one, name) for one in found]) for name in ("start", "length", "piece")))


def _seeds(strings: _Strings, min_frequency: int) -> _Pieces:
    """All characters, and the substrings of most characters in all (frequency × length).

    A substring that the same character always follows is no seed: the longer one stands for it. (These are the inner
    nodes of a suffix tree, which SentencePiece starts from.)
    """
    weights = strings.counts[strings.owner]
    singles = len(strings.letters)
    codes = np.zeros((singles, LONGEST_PIECE), dtype=np.int64)
    codes[:, 0] = np.arange(1, singles + 1)
    counts = np.bincount(strings.codes - 1, weights=weights, minlength=singles)
    found_codes, found_lengths, found_counts = [codes], [np.ones(singles, dtype=np.int64)], [counts]
    at = np.arange(len(strings.codes))
    rank = strings.codes - 1
    frequency = counts
    example = None  # where a substring of the present length stands
    for length in range(2, LONGEST_PIECE + 2):
        on = strings.left[at] >= length
        longer_at, longer_from = at[on], rank[on]
        key = longer_from * (singles + 1) + strings.codes[longer_at + length - 1]
        longer, longer_rank = np.unique(key, return_inverse=True)
        longer_frequency = np.bincount(longer_rank, weights=weights[longer_at], minlength=len(longer))
        if example is not None:
            most = np.zeros(len(frequency))
            np.maximum.at(most, longer // (singles + 1), longer_frequency)
            chosen = np.flatnonzero((frequency >= min_frequency) & (most < frequency))
            found_codes.append(_cut_out(strings, example[chosen], length - 1))
            found_lengths.append(np.full(len(chosen), length - 1, dtype=np.int64))
            found_counts.append(frequency[chosen])
        often = longer_frequency >= min_frequency
        on = often[longer_rank]
        renumbered = np.cumsum(often) - 1
        at, rank, frequency = longer_at[on], renumbered[longer_rank[on]], longer_frequency[often]
        if not len(at):
            break
        example = np.zeros(len(frequency), dtype=np.int64)
        example[rank[::-1]] = at[::-1]  # the first place of each
    pieces = _Pieces(
        np.concatenate(found_codes), np.concatenate(found_lengths), np.concatenate(found_counts), strings.letters
    )
    if len(pieces) <= MOST_SEEDS:
        return pieces
    order = np.lexsort((np.arange(len(pieces)), -pieces.counts * pieces.lengths, ~pieces.is_single))
    return pieces.only(np.sort(order[: max(MOST_SEEDS, singles)]))


def _cut_out(strings: _Strings, starts: Array, length: int) -> Array:
    codes = np.zeros((len(starts), LONGEST_PIECE), dtype=np.int64)
    codes[:, :length] = strings.codes[starts[:, None] + np.arange(length)]
    return codes


# --- all ways to cut the words ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lattice:
    """Strings and the pieces that stand in them: a node before each character and at each end, an edge for each piece.

    Nodes are visited by their depth in their string, those of all strings at once.

    Attributes:
        piece, owner, start, end: of each edge, its piece, its string, the nodes it leads from and to.
    """

    strings: _Strings
    piece: Array
    owner: Array
    start: Array
    end: Array

    @classmethod
    def of(cls, strings: _Strings, edges: _Edges) -> _Lattice:
        owner = strings.owner[edges.start]
        start = edges.start + owner  # each string before has one node more than it has characters
        return cls(strings, edges.piece, owner, start, start + edges.length)

    def only(self, kept: Array) -> _Lattice:
        """The lattice of a smaller vocabulary, whose pieces are renumbered."""
        on = kept[self.piece]
        if on.all():
            return self
        number = np.cumsum(kept) - 1
        return _Lattice(self.strings, number[self.piece[on]], self.owner[on], self.start[on], self.end[on])

    @cached_property
    def first_nodes(self) -> Array:
        return self.strings.starts + np.arange(len(self.strings.starts))

    @cached_property
    def last_nodes(self) -> Array:
        return self.first_nodes + self.strings.lengths

    @cached_property
    def by_end(self) -> list[tuple[Array, Array, Array]]:
        return _by_depth(self.end - self.first_nodes[self.owner], self.end)

    @cached_property
    def by_start(self) -> list[tuple[Array, Array, Array]]:
        """The deepest first."""
        return _by_depth(self.start - self.first_nodes[self.owner], self.start)[::-1]

    @property
    def nodes(self) -> int:
        return len(self.strings.codes) + len(self.first_nodes)

    def expected_counts(self, scores: Array) -> Array:
        """How often each piece stands in the strings, over all ways to cut them by their probability."""
        weight = scores[self.piece]
        forward, backward = np.zeros(self.nodes), np.zeros(self.nodes)
        for edges, groups, nodes in self.by_end:
            forward[nodes] = _log_sum(forward[self.start[edges]] + weight[edges], groups)
        for edges, groups, nodes in self.by_start:
            backward[nodes] = _log_sum(backward[self.end[edges]] + weight[edges], groups)
        total = forward[self.last_nodes]
        share = np.exp(forward[self.start] + weight + backward[self.end] - total[self.owner])
        return np.bincount(self.piece, weights=share * self.strings.counts[self.owner], minlength=len(scores))

    def best_cut(self, scores: Array) -> tuple[Array, Array, Array]:
        """The likeliest cut of each string: (log-probability of each string; then owner and piece of every part)."""
        weight = scores[self.piece]
        best = np.full(self.nodes, -np.inf)
        best[self.first_nodes] = 0.0
        back = np.full(self.nodes, -1, dtype=np.int64)
        for edges, groups, nodes in self.by_end:
            value = best[self.start[edges]] + weight[edges]
            most = np.maximum.reduceat(value, groups)
            sizes = np.diff(np.append(groups, len(value)))
            winners = np.flatnonzero(value == np.repeat(most, sizes))
            group = np.repeat(np.arange(len(groups)), sizes)[winners]
            first = winners[np.concatenate(([True], group[1:] != group[:-1]))]
            best[nodes], back[nodes] = most, edges[first]
        node, owners, parts = self.last_nodes, [], []
        reached = np.isfinite(best[node])
        node, owner = node[reached], np.flatnonzero(reached)
        while len(node):
            edge = back[node]
            owners.append(owner)
            parts.append(self.piece[edge])
            node = self.start[edge]
            on = node != self.first_nodes[owner]
            node, owner = node[on], owner[on]
        empty = np.zeros(0, dtype=np.int64)
        return best[self.last_nodes], np.concatenate([empty, *owners]), np.concatenate([empty, *parts])


def _by_depth(depth: Array, node: Array) -> list[tuple[Array, Array, Array]]:
    """For each depth: its edges, where the edges of each node begin among them, and the nodes."""
    # Edges come in a few sorted runs and depths are small: two stable sorts are faster than one by both.
    order = np.argsort(node, kind="stable")
    order = order[np.argsort(depth[order].astype(np.uint8), kind="stable")]
    bounds = np.flatnonzero(np.diff(depth[order])) + 1
    result = []
    for edges in np.split(order, bounds):
        nodes = node[edges]
        groups = np.flatnonzero(np.concatenate(([True], nodes[1:] != nodes[:-1])))
        result.append((edges, groups, nodes[groups]))
    return result


def _log_sum(values: Array, groups: Array) -> Array:
    most = np.maximum.reduceat(values, groups)
    sizes = np.diff(np.append(groups, len(values)))
    return most + np.log(np.add.reduceat(np.exp(values - np.repeat(most, sizes)), groups))


def _worth_keeping(lattice: _Lattice, pieces: _Pieces, scores: Array, size: int) -> Array:
    """Which pieces stay: the characters, and those without which the likeliest cuts of all words lose the most.

    A piece that goes is replaced by the likeliest cut of itself; one that is likelier in parts goes anyway.
    """
    _, owners, parts = lattice.best_cut(scores)
    counts = np.bincount(parts, weights=lattice.strings.counts[owners], minlength=len(pieces))
    texts = pieces.strings()
    edges = pieces.match(texts)
    within = edges.length < pieces.lengths[texts.owner[edges.start]]
    inner = _Lattice.of(texts, _Edges(edges.start[within], edges.length[within], edges.piece[within]))
    instead, owners, parts = inner.best_cut(scores)
    total = counts.sum()
    useful = ~pieces.is_single & (counts > 0) & (instead < scores)
    on = useful[owners]
    owners, parts = owners[on], parts[on]
    numbers = np.bincount(owners, minlength=len(pieces))
    split = np.bincount(owners, weights=np.log(counts[parts] + counts[owners]), minlength=len(pieces))
    split -= numbers * np.log(total + counts * (numbers - 1))
    loss = np.zeros(len(pieces))
    loss[useful] = counts[useful] / total * (np.log(counts[useful] / total) - split[useful])
    ranked = np.flatnonzero(useful)
    ranked = ranked[np.lexsort((ranked, -loss[ranked]))]
    kept = pieces.is_single.copy()
    kept[ranked[: max(size - int(kept.sum()), 0)]] = True
    return kept


def _digamma(values: Array) -> Array:
    """The derivative of log Γ, by its recurrence up to 6 and its asymptotic series (Abramowitz and Stegun, 6.3.18)."""
    values = values.astype(np.float64).copy()
    result = np.zeros_like(values)
    for _ in range(6):
        small = values < 6
        result[small] -= 1 / values[small]
        values[small] += 1
    inverse = 1 / (values * values)
    series = inverse * (1 / 12 - inverse * (1 / 120 - inverse * (1 / 252 - inverse * (1 / 240 - inverse / 132))))
    return result + np.log(values) - 0.5 / values - series
