"""What a model's own files say about generating with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyformer.errors import CheckpointError

# How generation_config.json names what we take from it when it says do_sample.
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")

# What older models say about generation in their config.json.
OLD_PLACE = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "max_length",
    "min_length",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "alignment_heads",
    "is_multilingual",
    "lang_to_id",
    "max_initial_timestamp_index",
    "no_timestamps_token_id",
    "prev_sot_token_id",
    "task_to_id",
)


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model's own ``generation_config.json`` says about generating with it.

    Attributes:
        eos_token_ids: tokens that end a text, besides the tokenizer's.
        options: used where a call leaves an option out: ``repetition_penalty``; and, if the file says ``do_sample``,
            ``temperature``, ``top_k``, ``top_p``, ``min_p``, ``typical_p`` (these for sampling calls only, not for
            greedy, beam or contrastive search).
        others: everything else in the file, lengths included. No call uses them by itself, but a task may look for
            what it needs there (Whisper's languages and alignment heads), and `Model.save` writes them back.
    """

    eos_token_ids: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, *, fallback: Mapping[str, Any] | None = None) -> GenerationDefaults:
        """The defaults of a file. Without it, the end tokens that the `fallback`, a ``config.json``, names.

        Raises:
            CheckpointError: the file is not a JSON object, or its token ids are not whole numbers.
        """
        if not path.is_file():
            given = fallback or {}
            others = {name: given[name] for name in OLD_PLACE if given.get(name) is not None}
            return cls(_end_tokens(given.get("eos_token_id"), path.with_name("config.json")), others=others)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not readable JSON ({error}): fetch it again") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must hold a JSON object, not {type(values).__name__}: fetch it again")
        names = ("repetition_penalty", *(SAMPLING if values.get("do_sample") else ()))
        options = {name: values[name] for name in names if values.get(name) is not None}
        taken = {"eos_token_id", "do_sample", "transformers_version", *names}
        others = {name: value for name, value in values.items() if name not in taken}
        return cls(_end_tokens(values.get("eos_token_id"), path), options, others)

    def to_json(self) -> dict[str, Any]:
        """The contents of a file that `read` and transformers understand; empty if there is nothing to say."""
        values = dict(self.others)
        if self.eos_token_ids:
            # Some classes of transformers take a number only.
            values["eos_token_id"] = self.eos_token_ids[0] if len(self.eos_token_ids) == 1 else list(self.eos_token_ids)
        if any(name in self.options for name in SAMPLING):
            values["do_sample"] = True
        return {**values, **self.options}


def _end_tokens(value: Any, path: Path) -> tuple[int, ...]:
    tokens = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
        raise CheckpointError(f"{path}: eos_token_id is {value!r}, but it must be a token id or a list of them")
    return tuple(tokens)
