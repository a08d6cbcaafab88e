"""Guessing masked words (Devlin et al., 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

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
from polyformer.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Guess:
    """A token for a masked place.

    Attributes:
        token_id, token: the token, and its text without marks of the vocabulary.
        score: its probability.
        text: the whole text with the token in its place (other masks stay); a piece that continues a word is written
            onto what stands before it.
    """

    token_id: int
    token: str
    score: float
    text: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def fill_mask(
    model: TaskModel,
    texts: str | Sequence[str],
    *,
    top_k: int = 5,
    targets: Sequence[str] | None = None,
    truncate: bool = False,
    progress: Progress = None,
) -> Any:
    """The likeliest tokens for every masked place.

    Args:
        texts: each with the model's mask token at least once ("Paris is the [MASK] of France.").
        top_k: how many guesses for each place.
        targets: only these words compete; each must be one token of the vocabulary.
        truncate: texts longer than the model reads are cut; otherwise they are an error.

    Returns:
        For one text with one mask, a list of `Guess`, best first; with several masks, such a list for each of them,
        each place being judged with the others masked. For a list of texts, a list of these.

    Raises:
        GenerationError: a text without a mask, or a target that is not one token.
    """
    require_capability(model, "fill_mask")
    tokenizer = require_tokenizer(model, "fill masks")
    mask, mask_id = tokenizer.mask_token, tokenizer.mask_token_id
    if mask is None or mask_id is None:
        raise GenerationError("this model's tokenizer has no mask token, so there is nothing to fill")
    if top_k < 1:
        raise GenerationError(f"top_k is {top_k}, but it must be at least 1")
    given, alone = as_list(texts)
    allowed = None if targets is None else torch.tensor([_single_token(model, word) for word in targets])
    encodings = read_texts(model, given, truncate=truncate, what="fill masks")
    for number, encoding in enumerate(encodings):
        if mask_id not in encoding.ids:
            cut = " that is left after cutting" if truncate and mask in given[number] else ""
            raise GenerationError(f"text {number} has no {mask}{cut}: write it where a word is missing")
    results: list[Any] = [None] * len(given)
    for numbers, inputs, output in run_batches(model, encodings, progress=progress):
        for row, number in enumerate(numbers):
            columns = (inputs["input_ids"][row] == mask_id).nonzero()[:, 0]
            scores = output.logits[row, columns].double().softmax(-1).cpu()
            places = [
                _guesses(model, given[number], mask, place, row_scores, top_k, allowed)
                for place, row_scores in enumerate(scores)
            ]
            results[number] = places[0] if len(places) == 1 else places
    return results[0] if alone else results


def _guesses(
    model: TaskModel,
    text: str,
    mask: str,
    place: int,
    scores: torch.Tensor,
    top_k: int,
    allowed: torch.Tensor | None,
) -> list[Guess]:
    tokenizer = require_tokenizer(model, "fill masks")
    candidates = scores if allowed is None else scores[allowed]
    best = candidates.topk(min(top_k, len(candidates)))
    pieces = text.split(mask)
    before, after = mask.join(pieces[: place + 1]), mask.join(pieces[place + 1 :])
    guesses = []
    for score, index in zip(best.values.tolist(), best.indices.tolist()):
        token_id = index if allowed is None else int(allowed[index])
        token = tokenizer.decode([token_id], skip_special_tokens=False).strip()
        token = token.removeprefix("##") or (tokenizer.id_to_token(token_id) or "")
        start = before.rstrip() if _continues_a_word(tokenizer, token_id) else before
        guesses.append(Guess(token_id, token, score, start + token + after))
    return guesses


def _continues_a_word(tokenizer: TextTokenizer, token_id: int) -> bool:
    """Whether the vocabulary marks a token as one that stands right behind what is before it."""
    piece = tokenizer.id_to_token(token_id) or ""
    if type(tokenizer.backend.model).__name__ == "WordPiece":
        return piece.startswith("##")
    return piece[:1].isalpha() and not piece.startswith(("Ġ", "▁", "Ċ"))  # words begin with a space's mark there


def _single_token(model: TaskModel, word: str) -> int:
    tokenizer = require_tokenizer(model, "fill masks")
    spellings = [tokenizer.encode(space + word, add_special_tokens=False) for space in (" ", "")]
    single = next((ids[0] for ids in spellings if len(ids) == 1 and ids[0] != tokenizer.unk_token_id), None)
    if single is None:
        pieces = [tokenizer.id_to_token(token_id) for token_id in spellings[0]]
        raise GenerationError(
            f"the target {word!r} is not one token of the vocabulary, but {', '.join(map(str, pieces)) or 'none'}"
        )
    return single
