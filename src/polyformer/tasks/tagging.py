"""Names in texts: persons, places, organizations (Tjong Kim Sang and De Meulder, 2003)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from polyformer.errors import GenerationError
from polyformer.tasks.base import (
    Progress,
    TaskModel,
    as_list,
    read_texts,
    require_capability,
    require_tokenizer,
    run_batches,
)
from polyformer.tokenizers.encodings import Encoding, encode_windows

STRATEGIES = ("first", "average", "max")

# Marks before a label (B-PER): where in a name a word stands. Others belong to the label itself.
_BEGINS, _ENDS = frozenset("BSU"), frozenset("ESLU")
_MARKS = frozenset("BIESLU")


@dataclass(frozen=True)
class Entity:
    """A tagged part of a text.

    Attributes:
        label: without the mark of its place ("PER", not "B-PER").
        text: as it is written.
        start, end: its place in the text, in characters: ``text[start:end]``.
        score: the mean probability of its words' labels.
    """

    label: str
    text: str
    start: int
    end: int
    score: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Word:
    start: int
    end: int
    label: str
    score: float


def tag(
    model: TaskModel,
    texts: str | Sequence[str],
    *,
    strategy: str = "first",
    grouped: bool = True,
    outside: str = "O",
    stride: int | None = None,
    truncate: bool = False,
    progress: Progress = None,
) -> Any:
    """Find what a model was trained to tag, in whole words.

    Args:
        strategy: the label of a word of several tokens: that of its "first" one, of the "average" of their
            probabilities, or of the token that is surest ("max").
        grouped: neighbouring words of one name are one `Entity`; otherwise every word is one.
        outside: the label of words that are nothing; they are left out.
        stride: a text longer than the model reads is cut into windows that share so many tokens; each token is judged
            in the window where it stands farthest from the ends.
        truncate: texts longer than the model reads are cut; without a stride and this they are an error.

    Returns:
        For one text a list of `Entity` in the order of the text; for a list of texts a list of these.

    Raises:
        GenerationError: an unknown strategy, or a stride together with truncation.
        TokenizerError: a text is longer than the model reads, or the stride longer than a window.
    """
    require_capability(model, "tag")
    if strategy not in STRATEGIES:
        raise GenerationError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if stride is not None and stride < 0:
        raise GenerationError(f"stride is {stride}, but it must be a number of tokens, 0 or more")
    if stride is not None and truncate:
        raise GenerationError("a stride reads the whole text: leave truncate out")
    given, alone = as_list(texts)
    if stride is None or model.context_length is None:
        windows = [[one] for one in read_texts(model, given, truncate=truncate, what="tag texts")]
    else:
        tokenizer, limit = require_tokenizer(model, "tag texts"), model.context_length
        windows = [encode_windows(tokenizer, text, limit=limit, stride=stride) for text in given]
    names = list(model.labels or ())
    owners = [(number, place) for number, parts in enumerate(windows) for place in range(len(parts))]
    scores: list[list[Tensor]] = [[torch.empty(0)] * len(parts) for parts in windows]
    for rows, _, output in run_batches(model, [one for parts in windows for one in parts], progress=progress):
        for row, index in enumerate(rows):
            number, place = owners[index]
            length = len(windows[number][place].ids)
            scores[number][place] = output.logits[row, :length].double().softmax(-1).cpu()
    results = []
    for text, parts, judged in zip(given, windows, scores, strict=True):
        encoding, joined = (parts[0], judged[0]) if len(parts) == 1 else _joined(parts, judged)
        results.append(_entities(text, _words(text, encoding, joined, names, strategy), outside, grouped))
    return results[0] if alone else results


def _joined(windows: list[Encoding], scores: list[Tensor]) -> tuple[Encoding, Tensor]:
    """The tokens of the whole text, each with its scores from the window where most stands around it.

    Windows share tokens, which are told by their places in the text: a token that another window repeats has the same.
    """
    best: dict[tuple[int, int, int], tuple[int, int, int]] = {}  # place and word -> room, window, column
    for number, window in enumerate(windows):
        inside = [column for column, one in enumerate(window.sequence_ids) if one is not None]
        seen: dict[tuple[int, int], int] = {}
        for column in inside:
            place = window.offsets[column]  # several tokens of one character have the same
            repeated = seen[place] = seen.get(place, -1) + 1
            first, last = number == 0, number == len(windows) - 1
            room = min(
                len(inside) if first else column - inside[0],
                len(inside) if last else inside[-1] - column,
            )
            key = (*place, repeated)
            if key not in best or room > best[key][0]:
                best[key] = (room, number, column)
    ordered = [best[key] for key in sorted(best)]
    rows = torch.stack([scores[number][column] for _, number, column in ordered])
    encoding = Encoding(
        ids=[windows[number].ids[column] for _, number, column in ordered],
        type_ids=[0] * len(ordered),
        offsets=[windows[number].offsets[column] for _, number, column in ordered],
        word_ids=[windows[number].word_ids[column] for _, number, column in ordered],
        sequence_ids=[0] * len(ordered),
    )
    return encoding, rows


def _words(text: str, encoding: Encoding, scores: Tensor, names: list[str], strategy: str) -> list[_Word]:
    """The words of a text with their labels. A word is what stands between spaces and punctuation."""
    words = []
    tokens = [(column, word) for column, word in enumerate(encoding.word_ids) if word is not None]
    for _, group in groupby(tokens, key=lambda token: token[1]):
        columns = [column for column, _ in group]
        start, end = encoding.offsets[columns[0]][0], encoding.offsets[columns[-1]][1]
        while start < end and text[start].isspace():  # some vocabularies count the space to the word
            start += 1
        if start == end:
            continue
        if strategy == "first":
            row = scores[columns[0]]
        elif strategy == "average":
            row = scores[columns].mean(0)
        else:
            row = scores[columns[int(scores[columns].amax(-1).argmax())]]
        best = int(torch.argmax(row))
        words.append(_Word(start, end, names[best], float(row[best])))
    return words


def _entities(text: str, words: list[_Word], outside: str, grouped: bool) -> list[Entity]:
    groups: list[list[_Word]] = []
    open_label: str | None = None  # of the name that the next word may continue
    for word in words:
        if word.label == outside:
            open_label = None
            continue
        mark, label = _parts(word.label)
        if grouped and label == open_label and mark not in _BEGINS:
            groups[-1].append(word)
        else:
            groups.append([word])
        open_label = None if mark in _ENDS else label
    return [
        Entity(
            _parts(group[0].label)[1],
            text[group[0].start : group[-1].end],
            group[0].start,
            group[-1].end,
            sum(word.score for word in group) / len(group),
        )
        for group in groups
    ]


def _parts(label: str) -> tuple[str, str]:
    """("B", "PER") of "B-PER"; ("", "PER") of "PER"."""
    mark, dash, rest = label.partition("-")
    return (mark, rest) if dash and mark in _MARKS else ("", label)
