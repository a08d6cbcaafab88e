"""What belongs between the beginning and the end of a text, by a code model that was trained to fill in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyformer.errors import GenerationError
from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.base import Progress, length_batches, require_capability, require_tokenizer
from polyformer.tokenizers.encodings import warn_of_cuts

MARKS = ("prefix", "suffix", "middle")
_TOKENS_AT_ONCE = 8192
_USUAL_ROOM = 128


@dataclass(frozen=True)
class Infilling:
    """A text whose gap is filled.

    Attributes:
        prefix, middle, suffix: ``middle`` is what the model wrote.
        finish_reason: as of `Generation`; "length" where the model would have written more.
    """

    prefix: str
    middle: str
    suffix: str
    finish_reason: str

    @property
    def text(self) -> str:
        return self.prefix + self.middle + self.suffix

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def infill(
    model: Any,
    gaps: Sequence[tuple[str, str]],
    *,
    max_new_tokens: int | None = None,
    suffix_first: bool = False,
    truncate: bool = False,
    progress: Progress = None,
    **options: Any,
) -> list[Infilling]:
    """Fill gaps: the model is asked as ``<PRE> prefix <SUF> suffix <MID>`` (Bavarian et al., 2022, section 3, PSM), or
    as ``<PRE> <SUF> suffix <MID> prefix`` (SPM, in the variant of appendix D there).

    A gap does best where words and lines end: models that were trained on cuts between tokens have not seen one within.

    Args:
        gaps: what stands before and behind each.
        max_new_tokens: room for what is written; None takes 128, but at most a quarter of what the model reads.
        suffix_first: SPM: what is written follows right on the prefix, which small models are far better at. The model
            must have been trained so too: StarCoder and Code Llama were, and what `FillInTheMiddle` trains is.
        truncate: where prefix and suffix are more than the model reads, what is far from the gap is left out (the
            suffix keeps at most half of the room); otherwise that is an error.
        options: further ones of `GenerationSettings`; greedy where nothing is said.

    Raises:
        CapabilityError: the model has no marks for a prefix, a suffix and a middle.
        GenerationError: a text that is too long, no text at all, or an option that cannot be.
    """
    require_capability(model, "infill")
    tokenizer = require_tokenizer(model, "infill")
    marks = tokenizer.fill_in_the_middle_ids
    if max_new_tokens is None:
        max_new_tokens = min(_USUAL_ROOM, (model.context_length or 4 * _USUAL_ROOM) // 4)
    settings = GenerationSettings.from_options({"temperature": 0.0, "max_new_tokens": max_new_tokens, **options})
    if settings.n > 1:
        raise GenerationError("a gap is filled once: give the same gap several times, with a temperature above 0")
    room = None if model.context_length is None else model.context_length - len(MARKS) - settings.max_new_tokens
    if room is not None and room < 2:
        raise GenerationError(
            f"max_new_tokens={settings.max_new_tokens} leaves no room for a text: the model reads "
            f"{model.context_length} tokens in all"
        )
    prompts, cuts = [], 0
    for number, (prefix, suffix) in enumerate(gaps):
        before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (prefix, suffix))
        if not before and not after:
            raise GenerationError(f"gap {number} has nothing before it and nothing behind it")
        if room is not None and len(before) + len(after) > room:
            if not truncate:
                raise GenerationError(
                    f"gap {number} has {len(before) + len(after)} tokens around it, but the model reads {room} beside "
                    "what it writes: shorten the text, or ask for truncation (truncate=True, --truncate)"
                )
            cuts += 1
            kept = min(len(after), max(room // 2, room - len(before)))
            after, before = after[:kept], before[len(before) - min(len(before), room - kept) :]
        first, second, third = marks["prefix"], marks["suffix"], marks["middle"]
        if suffix_first:
            prompts.append([first, second, *after, third, *before])
        else:
            prompts.append([first, *before, second, *after, third])
    warn_of_cuts(cuts, len(prompts), "what is far from the gap")
    found: list[Any] = [None] * len(prompts)
    done = 0
    for numbers in length_batches([len(prompt) + settings.max_new_tokens for prompt in prompts], _TOKENS_AT_ONCE):
        made = generate(
            model.network.pack(),
            [prompts[number] for number in numbers],
            settings,
            tokenizer=tokenizer,
            eos_token_ids=model.eos_token_ids,
        )
        for number, (one,) in zip(numbers, made, strict=True):
            found[number] = Infilling(gaps[number][0], one.text or "", gaps[number][1], one.finish_reason)
        done += len(numbers)
        if progress is not None:
            progress(done, len(prompts))
    return found
