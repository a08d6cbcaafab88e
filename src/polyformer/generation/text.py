"""Following the text of a generation token by token: stop strings, and what may be shown already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from polyformer.generation.settings import GenerationSettings


class StreamDecoder(Protocol):
    """Turns tokens into text piece by piece; never half a character."""

    def push(self, token_id: int, /) -> str: ...

    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """What generation needs from a tokenizer (`polyformer.tokenizers.text.TextTokenizer` has it)."""

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_ids(self) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str: ...

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder: ...


class StopFinder:
    """Finds the first stop string in a text that arrives in pieces of any size.

    "First" is the stop string that is complete first (of two that end together, the longer), so the answer does not
    depend on how the text was cut into pieces.

    Args:
        stops: the stop strings; none means that all text passes at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self._held = ""

    def feed(self, piece: str, *, armed: bool = True) -> tuple[str, str | None]:
        """Take a piece; give the text that is certain, and the stop string that was found or None.

        While not `armed` a complete stop string is passed on as text (`min_new_tokens` is not reached yet).
        """
        text = self._held + piece
        found = self._first_match(text) if armed else None
        if found is not None:
            start, stop = found
            self._held = ""
            return text[:start], stop
        certain = len(text) - self._possible_beginning(text)
        self._held = text[certain:]
        return text[:certain], None

    def finish(self) -> str:
        """The text held back, now that no more will come."""
        rest, self._held = self._held, ""
        return rest

    def _first_match(self, text: str) -> tuple[int, str] | None:
        matches = []
        for stop in self.stops:
            start = text.find(stop)
            if start >= 0:
                matches.append((start + len(stop), start, stop))
        if not matches:
            return None
        _, start, stop = min(matches)
        return start, stop

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of the text that could be the beginning of a stop string."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(text), len(stop) - 1), longest, -1):
                if stop.startswith(text[-length:]):
                    longest = length
                    break
        return longest


class TextFollower:
    """The text of one generation while it grows.

    Args:
        tokenizer: decodes the tokens.
        settings: of the request: stop strings, `min_new_tokens`, `skip_special_tokens`.
    """

    def __init__(self, tokenizer: Tokenizer, settings: GenerationSettings) -> None:
        self._decoder = tokenizer.stream(skip_special_tokens=settings.skip_special_tokens)
        self._finder = StopFinder(settings.stop)
        self._min_new_tokens = settings.min_new_tokens
        self._count = 0
        self._parts: list[str] = []
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        """All text that is certain so far."""
        return "".join(self._parts)

    def push(self, token_id: int) -> str:
        """Take a token; give the text that became certain. `stopped_by` tells whether a stop string was found."""
        self._count += 1
        return self._feed(self._decoder.push(token_id))

    def finish(self) -> str:
        """The text still held back; nothing after a stop string. Call once, when no token will come."""
        if self.stopped_by is not None:
            return ""
        piece = self._feed(self._decoder.finish())
        rest = self._finder.finish()  # nothing, where a stop string was found just now
        self._parts.append(rest)
        return piece + rest

    def _feed(self, piece: str) -> str:
        certain, self.stopped_by = self._finder.feed(piece, armed=self._count >= self._min_new_tokens)
        self._parts.append(certain)
        return certain
