"""Summaries by an encoder-decoder, of texts of any length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyformer.errors import GenerationError
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.base import Progress, as_list, require_capability, require_tokenizer
from polyformer.tasks.sequence_to_sequence import (
    fitting,
    generate_from,
    own_options,
    require_words,
    warn_of_unfinished,
)

# Where a text may be cut: after the end of a sentence, or a line.
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|\n+")

# A source without a limit of its own is still cut into pieces of so many tokens: attention grows with the square.
UNLIMITED = 1024


@dataclass(frozen=True)
class Summary:
    """A shorter text.

    Attributes:
        text: the summary.
        chunks: into how many pieces the source was cut; the summaries of the pieces follow one another.
    """

    text: str
    chunks: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarize(
    model: Any,
    texts: str | Sequence[str],
    *,
    prefix: str | None = None,
    progress: Progress = None,
    **options: Any,
) -> Any:
    """Summarize texts. One longer than the model reads is cut between sentences, and its pieces are summarized.

    Args:
        prefix: words that stand before each piece; None takes those that the model's files name ("summarize: " of T5).
        options: of `GenerationSettings`; what the model's own files say is used where they say nothing.

    Returns:
        A `Summary` for one text, a list of them for a list.

    Raises:
        GenerationError: a text is blank, the prefix leaves no room for any, or an unknown option.
    """
    require_capability(model, "summarize")
    tokenizer = require_tokenizer(model, "summarize")
    given, alone = as_list(texts)
    require_words(given, "summarize")
    settings = GenerationSettings.from_options({**own_options(model, options), **options})
    if prefix is None:
        special = (getattr(model, "task_settings", None) or {}).get("summarization") or {}
        prefix = str(special.get("prefix") or "")
    limit = model.network.config.max_source_positions or UNLIMITED
    room = limit - len(tokenizer.encode(prefix))
    if room < 1:
        raise GenerationError(
            f"the prefix takes {limit - room} of the {limit} tokens that the model reads, which leaves no room for a "
            "text: shorten it"
        )
    pieces = [cut(tokenizer, text, room) for text in given]
    sources = [fitting(model, tokenizer.encode(prefix + piece)) for parts in pieces for piece in parts]
    made = generate_from(model, sources, settings, progress=progress)
    warn_of_unfinished(made, options.get("max_new_tokens"))
    written = iter((one[0].text or "").strip() for one in made)
    results = [Summary(" ".join(next(written) for _ in parts).strip(), len(parts)) for parts in pieces]
    return results[0] if alone else results


def cut(tokenizer: Any, text: str, room: int) -> list[str]:
    """A text in pieces of at most ``room`` tokens, cut between sentences; a longer sentence between words.

    Returns:
        At least one piece; together they hold every word of the text, in order.
    """
    if _count(tokenizer, text) <= room:
        return [text]
    pieces: list[str] = []
    for sentence in _sentences(text):
        grown = f"{pieces[-1]} {sentence}" if pieces else sentence
        if pieces and _count(tokenizer, grown) <= room:
            pieces[-1] = grown
        else:
            pieces += _by_words(tokenizer, sentence, room)
    return pieces


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in _SENTENCE_END.split(text) if sentence and sentence.strip()]


def _by_words(tokenizer: Any, sentence: str, room: int) -> list[str]:
    """A sentence in pieces, halved between words until each fits; a single word longer than the room is cut itself."""
    if _count(tokenizer, sentence) <= room:
        return [sentence]
    words = sentence.split()
    if len(words) > 1:
        middle = len(words) // 2
        halves = " ".join(words[:middle]), " ".join(words[middle:])
    elif len(sentence) > 1:
        halves = sentence[: len(sentence) // 2], sentence[len(sentence) // 2 :]
    else:
        return [sentence]
    return [piece for half in halves for piece in _by_words(tokenizer, half, room)]


def _count(tokenizer: Any, text: str) -> int:
    return len(tokenizer.encode(text))
