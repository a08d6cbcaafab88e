"""Where each word is spoken, by what the decoder looks at while it writes it.

Some heads of cross-attention follow the sound. Dynamic time warping over their weights finds the path from the first
token at the beginning to the last token at the end (Radford et al., 2022, as released with the code; Sakoe and Chiba,
1978).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyformer.tasks.transcription.languages import SPACELESS
from polyformer.tasks.transcription.results import Word
from polyformer.tasks.transcription.vocabulary import SECONDS_PER_TIMESTAMP, Vocabulary

_MEDIAN_WIDTH = 7
_BEFORE = "\"'“¿([{-"
_AFTER = "\"'.。,，!！?？:：”)]}、"


@torch.inference_mode()
def align_words(
    model: Any,
    vocabulary: Vocabulary,
    states: Tensor,
    tokens: Sequence[int],
    *,
    language: str,
    task: str,
    seconds: float,
) -> list[Word]:
    """The words of one window with their places in seconds from its beginning.

    Args:
        states: [1, columns, size] of the encoder.
        tokens: of the text; timestamps among them are left out.
        seconds: how much of the window holds sound.
    """
    text = [token for token in tokens if token < vocabulary.end]
    if not text:
        return []
    begin = vocabulary.prefix(language, task, timestamps=False)
    ids = torch.tensor([[*begin, *text, vocabulary.end]], device=states.device)
    heads = _alignment_heads(model)
    layers = sorted({layer for layer, _ in heads})
    output = model.network.with_source(states)(ids, output_attentions=layers)
    columns = max(1, min(states.shape[1], round(seconds / SECONDS_PER_TIMESTAMP)))
    attention = output.cross_attentions
    weights = torch.stack([attention[layer][0, head, :, :columns] for layer, head in heads]).float()
    # As the reference: in proportion over the columns kept, then how far above the usual of each column.
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-9)
    spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
    smooth = _median(((weights - mean) / spread.clamp(min=1e-9)), _MEDIAN_WIDTH).mean(0)
    path = smooth[len(begin) : -1].cpu().numpy().astype(np.float64)
    token_rows, frames = warp(-path)
    jumps = np.concatenate([[True], np.diff(token_rows) > 0])
    starts = frames[jumps] * SECONDS_PER_TIMESTAMP
    probabilities = output.logits[0, len(begin) - 1 : -2].float().softmax(-1)
    chosen = probabilities.gather(1, ids[0, len(begin) : -1, None])[:, 0].tolist()
    pieces = split_words(vocabulary, text, language)
    words, at = [], 0
    ends = [*starts[1:], columns * SECONDS_PER_TIMESTAMP]
    for piece in pieces:
        last = at + len(piece.tokens) - 1
        probability = sum(chosen[at : last + 1]) / len(piece.tokens)
        words.append(Word(piece.text, float(starts[at]), float(ends[last]), probability))
        at = last + 1
    return _merge_punctuation(words)


def _alignment_heads(model: Any) -> list[tuple[int, int]]:
    """(layer, head) of cross-attention; without a word from the model's files, all heads of the upper half."""
    named = model.generation_defaults.others.get("alignment_heads")
    if named:
        return [(int(layer), int(head)) for layer, head in named]
    layers = model.network.config.decoder.stack.layers
    return [
        (number, head)
        for number in range(len(layers) // 2, len(layers))
        for head in range(layers[number].attention.num_heads)
    ]


def _median(weights: Tensor, width: int) -> Tensor:
    """The median over ``width`` neighbours in the last dimension, mirrored at the ends."""
    half = width // 2
    if weights.shape[-1] <= half:
        return weights
    padded = torch.nn.functional.pad(weights, (half, half), mode="reflect")
    return padded.unfold(-1, width, 1).median(-1).values


def warp(costs: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The cheapest path through costs [rows, columns] from the first to the last corner, going on by one row, one
    column or both at a time.

    Returns:
        The rows and the columns of the path.
    """
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    # Antidiagonals depend only on the two before them, so each is one step of numpy.
    for diagonal in range(2, rows + columns + 1):
        row = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        best = np.minimum(np.minimum(total[row - 1, column - 1], total[row - 1, column]), total[row, column - 1])
        total[row, column] = costs[row - 1, column - 1] + best
    row_path, column_path = [], []
    row_at, column_at = rows, columns
    while row_at > 0 and column_at > 0:
        row_path.append(row_at - 1)
        column_path.append(column_at - 1)
        steps = (
            (total[row_at - 1, column_at - 1], row_at - 1, column_at - 1),
            (total[row_at - 1, column_at], row_at - 1, column_at),
            (total[row_at, column_at - 1], row_at, column_at - 1),
        )
        _, row_at, column_at = min(steps, key=lambda step: step[0])
    return np.array(row_path[::-1]), np.array(column_path[::-1])


@dataclass(frozen=True)
class _Piece:
    text: str
    tokens: tuple[int, ...]


def split_words(vocabulary: Vocabulary, tokens: Sequence[int], language: str) -> list[_Piece]:
    """Tokens as words: at spaces, or in languages without them wherever a character is complete."""
    characters: list[_Piece] = []
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = vocabulary.tokenizer.decode(waiting)
        if "\N{REPLACEMENT CHARACTER}" not in text:
            characters.append(_Piece(text, tuple(waiting)))
            waiting = []
    if waiting:
        characters.append(_Piece(vocabulary.tokenizer.decode(waiting), tuple(waiting)))
    if language in SPACELESS:
        return characters
    words: list[_Piece] = []
    for piece in characters:
        begins = piece.text.startswith(" ") or not words
        if begins or (piece.text.strip() in _AFTER and piece.text.strip()):
            words.append(piece)
        else:
            words[-1] = _Piece(words[-1].text + piece.text, words[-1].tokens + piece.tokens)
    return words


def _merge_punctuation(words: list[Word]) -> list[Word]:
    """Marks go to the word they belong to: opening ones to the next, others to the one before."""
    merged: list[Word] = []
    opening: Word | None = None
    for word in words:
        if opening is not None:
            word = replace(word, text=opening.text + word.text.removeprefix(" "), start=opening.start)
            opening = None
        mark = word.text.strip()
        if mark and word.text.startswith(" ") and all(character in _BEFORE for character in mark):
            opening = word
        elif mark and all(character in _AFTER for character in mark) and merged:
            merged[-1] = replace(merged[-1], text=merged[-1].text + mark)
        else:
            merged.append(word)
    return merged if opening is None else [*merged, opening]
