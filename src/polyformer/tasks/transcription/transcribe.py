"""Recordings of any length: window after window, each going on where the last one ended (Radford et al., 2022,
section 3.8). Windows of many recordings go through the network together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyformer.core.freed_memory import keep_freed_memory
from polyformer.errors import CapabilityError, GenerationError
from polyformer.tasks.base import Progress, require_capability, require_tokenizer
from polyformer.tasks.transcription.alignment import align_words
from polyformer.tasks.transcription.decoding import LONGEST, Decoded, DecodingOptions, decode_windows
from polyformer.tasks.transcription.languages import language_code
from polyformer.tasks.transcription.results import Segment, Transcript, Word
from polyformer.tasks.transcription.vocabulary import SECONDS_PER_TIMESTAMP, Vocabulary
from polyformer.tokenizers.audio_files import read_sound

TASKS = ("transcribe", "translate")

# Above this temperature a text is too doubtful to be the beginning of the next one.
_HOTTEST_CONTEXT = 0.5


@dataclass
class _Recording:
    """A recording on its way."""

    index: int
    features: Tensor  # [mel_bins, frames]
    duration: float
    language: str | None = None
    probability: float | None = None
    seek: int = 0
    tokens: list[int] = field(default_factory=list)  # written so far
    context_from: int = 0  # the first of them that the next window is told of
    segments: list[Segment] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return self.features.shape[-1]

    @property
    def done(self) -> bool:
        return self.seek >= self.frames


def transcribe(
    model: Any,
    sound: Any,
    *,
    language: str | None = None,
    task: str = "transcribe",
    timestamps: bool = True,
    word_timestamps: bool = False,
    initial_prompt: str | None = None,
    condition_on_previous_text: bool = True,
    batch_size: int = 8,
    progress: Progress = None,
    **options: Any,
) -> Any:
    """What is said in recordings of any length.

    Args:
        sound: a file (wav, flac, mp3, ogg …), the bytes of one, (samples, rate), or a list of these.
        language: a code or a name ("en", "english"); None listens to the first 30 seconds.
        task: "transcribe", or "translate" into English.
        timestamps: whether the model writes where segments begin and end; without, each window is one segment.
        word_timestamps: also find where each word is spoken.
        initial_prompt: a text that might have stood before: names, spelling, style.
        condition_on_previous_text: each window is told the text of those before.
        batch_size: windows of different recordings that go through the network together.
        progress: called with the seconds done and the seconds in all.
        options: the fields of `DecodingOptions`: ``num_beams``, ``temperatures`` …

    Returns:
        A `Transcript`, or a list of them for a list.

    Raises:
        TokenizerError: a file is no sound, or damaged.
        GenerationError: an unknown language, task or option, or a prompt that is too long.
    """
    alone = not isinstance(sound, list)
    sounds = [sound] if alone else sound
    transcriber = _Transcriber(
        model,
        language=language,
        task=task,
        word_timestamps=word_timestamps,
        initial_prompt=initial_prompt,
        condition=condition_on_previous_text,
        batch_size=batch_size,
        decoding=_decoding_options(timestamps, options),
    )
    recordings = [transcriber.read(index, one) for index, one in enumerate(sounds)]
    total = sum(recording.duration for recording in recordings)
    for _ in transcriber.run(recordings):
        if progress is not None:
            seconds = sum(min(one.seek, one.frames) for one in recordings) / transcriber.frames_per_second
            progress(min(round(seconds), round(total)), round(total))
    results = [_transcript(recording) for recording in recordings]
    return results[0] if alone else results


def stream_segments(model: Any, sound: Any, **options: Any) -> Iterator[Segment]:
    """The segments of one recording as soon as each window is done. Takes what `transcribe` takes for one sound."""
    known = ("language", "task", "word_timestamps", "initial_prompt")
    given = {name: options.pop(name) for name in known if name in options}
    condition = options.pop("condition_on_previous_text", True)
    timestamps = options.pop("timestamps", True)
    transcriber = _Transcriber(
        model, condition=condition, batch_size=1, decoding=_decoding_options(timestamps, options), **given
    )
    recording = transcriber.read(0, sound)
    return (segment for _, segments in transcriber.run([recording]) for segment in segments)


def detect_language(model: Any, sound: Any) -> dict[str, float]:
    """The probability of each language, likeliest first, by the first 30 seconds.

    Raises:
        CapabilityError: the model knows English only.
    """
    transcriber = _Transcriber(model, decoding=DecodingOptions())
    recording = transcriber.read(0, sound)
    if not transcriber.vocabulary.is_multilingual:
        raise CapabilityError("this model knows English only: take one that is multilingual, such as whisper-base")
    states = transcriber.encode([recording])
    return transcriber.languages_of(states)[0]


def _decoding_options(timestamps: bool, options: dict[str, Any]) -> DecodingOptions:
    values = dict(options)
    if isinstance(values.get("temperature"), (int, float)):
        values["temperatures"] = (float(values.pop("temperature")),)
    if "temperatures" in values:
        values["temperatures"] = tuple(float(one) for one in values["temperatures"])
    unknown = sorted(set(values) - set(DecodingOptions.__dataclass_fields__))
    if unknown:
        raise GenerationError(
            f"unknown option {unknown[0]!r} of transcription; there are "
            f"{', '.join(DecodingOptions.__dataclass_fields__)}"
        )
    made = DecodingOptions(**{**values, "timestamps": timestamps})
    if not made.temperatures or not all(0 <= one <= 100 for one in made.temperatures):
        raise GenerationError(f"temperatures are {made.temperatures}, but they must be numbers from 0 on, at least one")
    if made.num_beams < 1 or made.best_of < 1:
        raise GenerationError("num_beams and best_of must be at least 1")
    return made


class _Transcriber:
    def __init__(
        self,
        model: Any,
        *,
        decoding: DecodingOptions,
        language: str | None = None,
        task: str = "transcribe",
        word_timestamps: bool = False,
        initial_prompt: str | None = None,
        condition: bool = True,
        batch_size: int = 8,
    ) -> None:
        require_capability(model, "transcribe")
        tokenizer = require_tokenizer(model, "transcribe")
        if task not in TASKS:
            raise GenerationError(f"task {task!r} is not one of {', '.join(TASKS)}")
        if batch_size < 1:
            raise GenerationError(f"batch_size is {batch_size}, but it must be at least 1")
        self.model, self.network = model, model.network.pack()
        if self.network.device.type == "cpu":
            keep_freed_memory()
        self.vocabulary = Vocabulary(tokenizer, model.network.config.vocab_size)
        self.processor = model.audio_processor
        self.frames_per_second = self.processor.frames_per_second
        self.task, self.decoding = task, decoding
        self.word_timestamps, self.condition, self.batch_size = word_timestamps, condition, batch_size
        self.language = None if language is None else language_code(language)
        if self.language is None and not self.vocabulary.is_multilingual:
            self.language = "en"
        if self.language is not None:
            self.vocabulary.prefix(self.language, task, timestamps=True)  # refuses now what it would refuse later
        self.prompt = (
            [] if not initial_prompt else tokenizer.encode(" " + initial_prompt.strip(), add_special_tokens=False)
        )
        # How many tokens may stand before a window's own.
        self.room = min(LONGEST, self.network.config.max_positions // 2) - 1
        if len(self.prompt) > self.room:
            raise GenerationError(
                f"the initial prompt has {len(self.prompt)} tokens, but there is room for {self.room}: shorten it"
            )

    def read(self, index: int, sound: Any) -> _Recording:
        samples: np.ndarray[Any, Any] = read_sound(sound, self.processor.rate)
        # Silence under the last transform, so that the end of the sound is not mirrored there.
        features = self.processor.log_mel(samples, padding=self.processor.window)
        features = features[:, : max(1, len(samples) // self.processor.hop)]
        recording = _Recording(index, features, len(samples) / self.processor.rate, self.language)
        recording.tokens = list(self.prompt)
        return recording

    def run(self, recordings: Sequence[_Recording]) -> Iterator[tuple[int, list[Segment]]]:
        """Decode window after window; gives the index of a recording and its new segments."""
        # The longest first: at the end, short ones fill the batches.
        waiting = sorted(recordings, key=lambda one: -one.frames)
        active: list[_Recording] = []
        while waiting or active:
            while waiting and len(active) < self.batch_size:
                active.append(waiting.pop(0))
            for recording, segments in self._round(active):
                yield recording.index, segments
            active = [recording for recording in active if not recording.done]

    @torch.inference_mode()
    def encode(self, recordings: Sequence[_Recording]) -> Tensor:
        """The encoder's states of the present window of each recording.

        Beyond the end of the sound its frames are zeros, as in the reference implementation: not those of silence,
        which lie at the floor of the scale.
        """
        windows = [
            self.processor.fill(recording.features[:, recording.seek : recording.seek + self.processor.frames])
            for recording in recordings
        ]
        inputs = torch.stack(windows).to(self.network.device, self.network.dtype)
        states: Tensor = self.network.encode(input_features=inputs).last_hidden_state
        return states

    @torch.inference_mode()
    def languages_of(self, states: Tensor) -> list[dict[str, float]]:
        vocabulary = self.vocabulary
        ids = torch.full((len(states), 1), vocabulary.start, device=states.device)
        logits = self.network.with_source(states)(ids).logits[:, -1].float()
        tokens = list(vocabulary.languages.values())
        probabilities = logits[:, tokens].softmax(-1).tolist()
        codes = list(vocabulary.languages)
        return [dict(sorted(zip(codes, row, strict=True), key=lambda pair: -pair[1])) for row in probabilities]

    def _round(self, active: list[_Recording]) -> list[tuple[_Recording, list[Segment]]]:
        states = self.encode(active)
        unknown = [place for place, recording in enumerate(active) if recording.language is None]
        if unknown:
            for place, found in zip(unknown, self.languages_of(states[unknown]), strict=True):
                active[place].language, active[place].probability = next(iter(found.items()))
        decoded = decode_windows(
            self.model, self.vocabulary, states, [self._prompt_of(recording) for recording in active], self.decoding
        )
        made = []
        for place, (recording, window) in enumerate(zip(active, decoded, strict=True)):
            made.append((recording, self._advance(recording, window, states[place : place + 1])))
        return made

    def _prompt_of(self, recording: _Recording) -> list[int]:
        assert recording.language is not None
        begin = self.vocabulary.prefix(recording.language, self.task, timestamps=self.decoding.timestamps)
        before = recording.tokens[recording.context_from :][-self.room :]
        return [self.vocabulary.previous, *before, *begin] if before else begin

    def _advance(self, recording: _Recording, window: Decoded, states: Tensor) -> list[Segment]:
        """Take what the window says, and go on to where the next one begins."""
        offset = recording.seek / self.frames_per_second
        frames = min(self.processor.frames, recording.frames - recording.seek)
        if window.is_silence(self.decoding):
            recording.seek += frames
            return []
        pieces, used = _split(self.vocabulary, window.tokens, frames, self.frames_per_second)
        segments = []
        for start, end, tokens in pieces:
            text = self.vocabulary.decode(tokens)
            if not text.strip() or start == end:
                continue
            segments.append(
                Segment(
                    round(offset + start, 3),
                    round(min(offset + end, recording.duration) if end > start else offset + end, 3),
                    text,
                    tuple(tokens),
                    window.temperature,
                    window.mean_logprob,
                    window.compression_ratio,
                    window.no_speech_probability,
                )
            )
        if self.word_timestamps and segments:
            segments = self._with_words(recording, segments, states, offset, frames)
        recording.segments += segments
        recording.tokens += [token for segment in segments for token in segment.token_ids]
        doubtful = window.temperature > _HOTTEST_CONTEXT or window.is_wrong(self.decoding)
        if not self.condition or doubtful:
            recording.context_from = len(recording.tokens)
        recording.seek += max(1, used)
        return segments

    def _with_words(
        self, recording: _Recording, segments: list[Segment], states: Tensor, offset: float, frames: int
    ) -> list[Segment]:
        assert recording.language is not None
        tokens = [token for segment in segments for token in segment.token_ids]
        words = align_words(
            self.model,
            self.vocabulary,
            states,
            tokens,
            language=recording.language,
            task=self.task,
            seconds=frames / self.frames_per_second,
        )
        shared = _share_out(words, [segment.text for segment in segments])
        made = []
        for segment, own in zip(segments, shared, strict=True):
            placed = tuple(
                replace(word, start=round(offset + word.start, 3), end=round(offset + word.end, 3)) for word in own
            )
            if placed:
                segment = replace(segment, start=placed[0].start, end=max(placed[-1].end, placed[0].start))
            made.append(replace(segment, words=placed))
        return made


def _split(
    vocabulary: Vocabulary, tokens: Sequence[int], frames: int, frames_per_second: int
) -> tuple[list[tuple[float, float, list[int]]], int]:
    """A window's tokens as (start, end, tokens) in seconds, and how many frames of it were used.

    Two timestamps side by side end a segment and begin another; a single one at the end means that nothing follows it
    in the window. Otherwise the text after the last pair is cut off, and is written again by the next window.
    """
    first = vocabulary.first_timestamp
    stamps = [token >= first for token in tokens]
    pairs = [place for place in range(1, len(tokens)) if stamps[place] and stamps[place - 1]]
    single_end = len(tokens) >= 2 and stamps[-1] and not stamps[-2]

    def seconds(token: int) -> float:
        return (token - first) * SECONDS_PER_TIMESTAMP

    if pairs:
        ends = [*pairs, len(tokens)] if single_end else pairs
        pieces, start = [], 0
        for end in ends:
            part = list(tokens[start:end])
            pieces.append((seconds(part[0]), seconds(part[-1]), part))
            start = end
        if single_end:
            return pieces, frames
        return pieces, round(seconds(tokens[start - 1]) * frames_per_second)
    length = frames / frames_per_second
    found = [token for token in tokens if token >= first]
    if found and found[-1] != first:
        length = min(seconds(found[-1]), length)
    begin = seconds(found[0]) if len(found) > 1 else 0.0
    return [(begin if begin < length else 0.0, length, list(tokens))], frames


def _share_out(words: list[Word], texts: list[str]) -> list[list[Word]]:
    """The words of each text, in order, by the letters they hold."""
    shared: list[list[Word]] = []
    rest = list(words)
    for number, text in enumerate(texts):
        if number == len(texts) - 1:
            shared.append(rest)
            break
        length, own = len(text.replace(" ", "")), []
        while rest and length > 0:
            own.append(rest.pop(0))
            length -= len(own[-1].text.replace(" ", ""))
        shared.append(own)
    return shared


def _transcript(recording: _Recording) -> Transcript:
    return Transcript(
        "".join(segment.text for segment in recording.segments).strip(),
        recording.language or "en",
        recording.probability,
        round(recording.duration, 3),
        tuple(recording.segments),
    )
