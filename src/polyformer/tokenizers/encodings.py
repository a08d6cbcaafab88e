"""Texts as encoders read them: with special tokens, types of tokens, and where each token stands in the text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from polyformer.errors import TokenizerError, TruncationWarning
from polyformer.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Encoding:
    """One text, or a pair of texts, as tokens.

    Attributes:
        ids: token ids, special tokens included.
        type_ids: 0 for the first text and 1 for the second, where the tokenizer tells them apart.
        offsets: (start, end) of each token in its text, in characters; (0, 0) of special tokens.
        word_ids: the number of the word each token belongs to; None of special tokens.
        sequence_ids: 0 or 1 for the text each token comes from; None of special tokens.
    """

    ids: list[int]
    type_ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    sequence_ids: list[int | None]


def encode_texts(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    limit: int | None = None,
    truncate: bool = False,
) -> list[Encoding]:
    """Texts, or pairs of texts, with the special tokens that the model expects.

    Args:
        pairs: a second text for each.
        limit: the most tokens of one input, special ones included; None for no limit.
        truncate: cut what is longer, the longer of two texts first, and warn of it; otherwise it is an error.

    Raises:
        TokenizerError: an input has more tokens than the limit, or is not valid Unicode.
    """
    backend = tokenizer.backend
    if truncate and limit is not None:
        backend = _truncating(tokenizer, limit, 0, "longest_first")
    made = _encode(backend, texts, pairs)
    warn_of_cuts(sum(bool(one.overflowing) for one in made), len(made))
    encodings = [_encoding(one) for one in made]
    for number, encoding in enumerate(encodings):
        if limit is not None and len(encoding.ids) > limit:
            raise TokenizerError(
                f"text {number} has {len(encoding.ids)} tokens, but the model reads at most {limit}: shorten it, or "
                "ask for truncation (truncate=True, --truncate)"
            )
    return encodings


def warn_of_cuts(cut: int, total: int, lost: str = "their end") -> None:
    """Says how many of all texts were cut, if any, and what they lost."""
    if cut:
        warnings.warn(
            f"{cut} of {total} texts were longer than the model reads and lost {lost}",
            TruncationWarning,
            stacklevel=2,
        )


def encode_windows(
    tokenizer: TextTokenizer, text: str, pair: str | None = None, *, limit: int, stride: int
) -> list[Encoding]:
    """A text that may be long, or a pair whose second text may be: it is cut into windows that overlap.

    Args:
        limit: tokens of a window, with special tokens, and with the whole first text of a pair.
        stride: tokens of the long text that neighbouring windows share.

    Raises:
        TokenizerError: too little room is left for the long text.
    """
    if pair is None:
        around = len(_encode(tokenizer.backend, [""], None)[0].ids)
        if around + stride + 1 > limit:
            raise TokenizerError(
                f"windows of {limit} tokens, of which {around} are special, cannot share {stride}: let them share fewer"
            )
        first = _encode(_truncating(tokenizer, limit, stride, "longest_first"), [text], None)[0]
        return [_encoding(one) for one in (first, *first.overflowing)]
    alone = len(_encode(tokenizer.backend, [text], [""])[0].ids)
    if alone + stride + 1 > limit:
        raise TokenizerError(
            f"the question takes {alone} of the {limit} tokens that the model reads, which leaves too little for the "
            f"context (windows share {stride}): shorten it"
        )
    first = _encode(_truncating(tokenizer, limit, stride, "only_second"), [text], [pair])[0]
    return [_encoding(one) for one in (first, *first.overflowing)]


def pad_together(encodings: Sequence[Encoding], pad_token_id: int) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``token_type_ids``, each [inputs, longest], padded on the right."""
    longest = max(len(encoding.ids) for encoding in encodings)

    def filled(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (longest - len(row)) for row in rows])

    return {
        "input_ids": filled([encoding.ids for encoding in encodings], pad_token_id),
        "attention_mask": filled([[1] * len(encoding.ids) for encoding in encodings], 0),
        "token_type_ids": filled([encoding.type_ids for encoding in encodings], 0),
    }


def _encode(backend: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None) -> list[Any]:
    given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
    for number, text in enumerate([*texts, *(pairs or ())]):
        if not isinstance(text, str):
            raise TokenizerError(f"text {number} is {type(text).__name__}, not str: decode bytes to str first")
    try:
        return list(backend.encode_batch(given))
    except (UnicodeEncodeError, TypeError) as error:
        raise TokenizerError(
            "a text is not valid Unicode (it holds a lone surrogate): read it as UTF-8 with errors='replace'"
        ) from error
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(f"this tokenizer cannot encode the text: {error}") from error


def _encoding(one: Any) -> Encoding:
    return Encoding(one.ids, one.type_ids, one.offsets, one.word_ids, one.sequence_ids)


def _truncating(tokenizer: TextTokenizer, limit: int, stride: int, strategy: str) -> Tokenizer:
    """A copy that cuts: the setting is one of the whole object, and other calls must not feel it."""
    key = (limit, stride, strategy)
    if key not in tokenizer.truncating_backends:
        copy = Tokenizer.from_str(tokenizer.backend.to_str())
        copy.enable_truncation(limit, stride=stride, strategy=strategy)
        tokenizer.truncating_backends[key] = copy
    return tokenizer.truncating_backends[key]
