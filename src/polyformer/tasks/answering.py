"""The part of a text that answers a question (Rajpurkar et al., 2016; Devlin et al., 2019, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from polyformer.errors import GenerationError
from polyformer.tasks.base import Progress, TaskModel, require_capability, require_tokenizer, run_batches
from polyformer.tokenizers.encodings import Encoding, encode_windows


@dataclass(frozen=True)
class Answer:
    """A part of the context.

    Attributes:
        text: ``context[start:end]``; empty where the context does not say.
        start, end: its place in the context, in characters.
        score: probability of its first token times that of its last one, in the window it was found in.
    """

    text: str
    start: int
    end: int
    score: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def answer(
    model: TaskModel,
    question: str | Sequence[str],
    context: str | Sequence[str],
    *,
    top_k: int = 1,
    max_answer_tokens: int = 30,
    stride: int = 64,
    impossible: bool = False,
    progress: Progress = None,
) -> Any:
    """Find the answer to a question in a context of any length.

    A context longer than the model reads is cut into windows that share ``stride`` tokens; the best answer of all
    windows counts.

    Args:
        question, context: one of each, or lists alike in length (or one context for all questions).
        top_k: so many different answers, best first.
        max_answer_tokens: the longest answer.
        impossible: the empty answer competes, with the score of the first token ([CLS]), for models that were trained
            to say so (Rajpurkar et al., 2018).

    Returns:
        An `Answer`, or with ``top_k`` above 1 a list of them; for a list of questions a list of these.

    Raises:
        GenerationError: questions and contexts do not fit together, or there is nothing in a context.
        TokenizerError: a question leaves no room for the context.
    """
    require_capability(model, "answer")
    tokenizer = require_tokenizer(model, "answer questions")
    alone = isinstance(question, str)
    questions = [question] if isinstance(question, str) else list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(contexts) != len(questions):
        raise GenerationError(f"there are {len(questions)} questions, but {len(contexts)} contexts")
    for name, value in (("top_k", top_k), ("max_answer_tokens", max_answer_tokens)):
        if value < 1:
            raise GenerationError(f"{name} is {value}, but it must be at least 1")
    for number, text in enumerate(contexts):
        if not text.strip():
            raise GenerationError(f"context {number} is empty: there is nothing to find an answer in")
    windows: list[tuple[int, Encoding]] = []
    for number, (one, text) in enumerate(zip(questions, contexts, strict=True)):
        limit = model.context_length or 1 << 20
        made = encode_windows(tokenizer, one, text, limit=limit, stride=min(stride, limit // 4))
        windows += [(number, window) for window in made]
    found: list[list[Answer]] = [[] for _ in questions]
    for numbers, _, output in run_batches(model, [window for _, window in windows], progress=progress):
        for row, index in enumerate(numbers):
            number, window = windows[index]
            logits = output.logits[row, : len(window.ids)].double().cpu()
            found[number] += _candidates(contexts[number], window, logits, top_k, max_answer_tokens, impossible)
    results = [_best(one, top_k) for one in found]
    chosen = [one if top_k > 1 else one[0] for one in results]
    return chosen[0] if alone else chosen


def _candidates(
    context: str, window: Encoding, logits: Tensor, top_k: int, longest: int, impossible: bool
) -> list[Answer]:
    """The best answers of a window. logits: [tokens, 2], of beginnings and ends."""
    inside = torch.tensor([one == 1 for one in window.sequence_ids])
    kept = inside.clone()
    kept[0] = True  # the first token's score says that there is no answer
    start, end = logits.masked_fill(~kept[:, None], float("-inf")).softmax(0).unbind(1)
    columns = inside.nonzero()[:, 0]
    scores = start[columns, None] * end[columns][None, :]
    scores = scores.triu().tril(longest - 1)
    best = scores.flatten().topk(min(4 * top_k, scores.numel()))
    answers = []
    for score, place in zip(best.values.tolist(), best.indices.tolist()):
        first, last = (int(columns[number]) for number in divmod(place, len(columns)))
        if score > 0:
            answers.append(_answer(context, window.offsets[first][0], window.offsets[last][1], score))
    if impossible:
        answers.append(Answer("", 0, 0, float(start[0] * end[0])))
    return answers


def _answer(context: str, start: int, end: int, score: float) -> Answer:
    while start < end and context[start].isspace():
        start += 1
    return Answer(context[start:end], start, end, score)


def _best(candidates: list[Answer], top_k: int) -> list[Answer]:
    """Windows overlap, so the same place may have been found twice; the empty answer counts by its least score, for a
    window without the answer says nothing of the others."""
    best: dict[tuple[int, int], Answer] = {}
    empty = [one for one in candidates if one.start == one.end]
    if empty:
        best[0, 0] = min(empty, key=lambda one: one.score)
    for one in candidates:
        key = (one.start, one.end)
        if one.start < one.end and (key not in best or one.score > best[key].score):
            best[key] = one
    ordered = sorted(best.values(), key=lambda one: -one.score)[:top_k]
    return ordered or [Answer("", 0, 0, 0.0)]
