"""The special tokens of a Whisper model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from polyformer.errors import CapabilityError, GenerationError
from polyformer.tasks.transcription.languages import LANGUAGES

SECONDS_PER_TIMESTAMP = 0.02


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the tokens that steer a Whisper model.

    Args:
        tokenizer: of the model.
        size: rows of the network's table.

    Raises:
        CapabilityError: this is no vocabulary of Whisper.
    """

    tokenizer: Any
    size: int

    def __post_init__(self) -> None:
        missing = [
            name
            for name in ("<|endoftext|>", "<|startoftranscript|>", "<|transcribe|>", "<|notimestamps|>")
            if self.tokenizer.token_to_id(name) is None
        ]
        if missing:
            raise CapabilityError(
                f"this model's vocabulary has no {missing[0]}: it is no speech model of Whisper's kind"
            )

    def _id(self, *names: str) -> int:
        found = next((self.tokenizer.token_to_id(name) for name in names if self.tokenizer.token_to_id(name)), None)
        if found is None:
            raise CapabilityError(f"this model's vocabulary has no {names[0]}")
        return int(found)

    @cached_property
    def end(self) -> int:
        """<|endoftext|>: all special tokens and timestamps come after it."""
        return self._id("<|endoftext|>")

    @cached_property
    def start(self) -> int:
        return self._id("<|startoftranscript|>")

    @cached_property
    def previous(self) -> int:
        """Stands before the text of the window before."""
        return self._id("<|startofprev|>")

    @cached_property
    def no_speech(self) -> int:
        return self._id("<|nospeech|>", "<|nocaptions|>")

    @cached_property
    def no_timestamps(self) -> int:
        return self._id("<|notimestamps|>")

    @cached_property
    def first_timestamp(self) -> int:
        """0.00 seconds; every further one is 0.02 seconds later."""
        return self.no_timestamps + 1

    @cached_property
    def is_multilingual(self) -> bool:
        """English-only models have the tokens of languages too, but were never taught them."""
        return self.size >= 51865

    @cached_property
    def languages(self) -> dict[str, int]:
        """Code -> token."""
        found = {code: self.tokenizer.token_to_id(f"<|{code}|>") for code in LANGUAGES}
        return {code: token for code, token in found.items() if token is not None}

    def task(self, name: str) -> int:
        return self._id(f"<|{name}|>")

    def prefix(self, language: str, task: str, *, timestamps: bool) -> list[int]:
        """What a transcript begins with.

        Raises:
            GenerationError: the model does not know the language or the task.
        """
        tokens = [self.start]
        if self.is_multilingual:
            if language not in self.languages:
                raise GenerationError(f"this model has no language {language!r}; it has {', '.join(self.languages)}")
            tokens += [self.languages[language], self.task(task)]
        elif language != "en" or task != "transcribe":
            raise GenerationError(
                f"this model knows English only: it cannot {task} {LANGUAGES.get(language, language)}; take one that "
                "is multilingual, such as whisper-base"
            )
        return tokens if timestamps else [*tokens, self.no_timestamps]

    def decode(self, tokens: list[int] | tuple[int, ...]) -> str:
        """The text of tokens, timestamps and other special ones left out."""
        text: str = self.tokenizer.decode([token for token in tokens if token < self.end])
        return text
