"""Whisper's real weights on real speech: the reference's tokens, words in their places, long recordings."""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import polyformer
from polyformer.errors import CapabilityError, GenerationError, TokenizerError
from polyformer.model import Model
from polyformer.tasks.transcription import detect_language
from polyformer.tasks.transcription.decoding import DecodingOptions
from polyformer.tasks.transcription.transcribe import _Transcriber
from polyformer.tokenizers.audio_files import read_sound

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apt-get") is None, reason="the recordings are in a package of Debian"),
]


def all_clips() -> list[Any]:
    spec = importlib.util.spec_from_file_location("sounds", Path(__file__).parents[3] / "benchmarks" / "sounds.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["sounds"] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    found: list[Any] = module.clips("en")
    return found


@pytest.fixture(scope="module")
def model() -> Model:
    return polyformer.load("whisper-tiny.en", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def files() -> list[Path]:
    names = ("confbridge-remove-last-out", "agent-alreadyon", "vm-options", "privacy-incorrect")
    return [one.path for name in names for one in all_clips() if one.path.stem == name]


def test_the_same_tokens_as_the_reference(model: Model, files: list[Path], tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    model.save(tmp_path)
    reference = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    for file in files:
        features = model.audio_processor(read_sound(file))[None]
        with torch.no_grad():
            theirs = reference.generate(features, do_sample=False, max_new_tokens=200)[0].tolist()
        ours = model.transcribe(file, temperature=0, timestamps=False)
        written = [token for segment in ours.segments for token in segment.token_ids]
        assert written == [token for token in theirs if token < 50256]
    # With timestamps it may go on in a second window, whose tokens it does not keep apart: one window is compared.
    features = model.audio_processor(read_sound(files[0]))[None]
    with torch.no_grad():
        theirs = reference.generate(features, return_timestamps=True, do_sample=False, max_new_tokens=200)[0].tolist()
    ours = model.transcribe(files[0], temperature=0)
    written = [token for segment in ours.segments for token in segment.token_ids]
    assert written == [token for token in theirs if token != 50256 and token != 50257][: len(written)]
    assert len(written) > 10


def test_words_lie_in_order_inside_the_sound(model: Model, files: list[Path]) -> None:
    result = model.transcribe(files[0], word_timestamps=True)
    words = [word for segment in result.segments for word in segment.words]
    assert "".join(word.text for word in words).strip() == result.text
    assert [word.text.strip(" .,").lower() for word in words][:4] == ["to", "remove", "the", "participant"]
    places = [place for word in words for place in (word.start, word.end)]
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= result.duration + 0.1
    assert all(0 < word.probability <= 1 for word in words)
    # The last word is spoken in the last third, the second one in the first third.
    assert words[-1].start > result.duration / 2 and words[1].start < result.duration / 3


def test_together_is_alone(model: Model, files: list[Path]) -> None:
    together = model.transcribe(files)
    for file, one in zip(files, together, strict=True):
        assert model.transcribe(file).text == one.text
    assert "conference" in together[0].text


def test_frames_of_a_window(model: Model, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the sound as if silence followed, and zeros beyond its end, also where it is shorter than a frame."""
    transcriber = _Transcriber(model, decoding=DecodingOptions())
    given = {}

    def encode(input_features: torch.Tensor) -> SimpleNamespace:
        given["features"] = input_features
        return SimpleNamespace(last_hidden_state=input_features)

    monkeypatch.setattr(transcriber.network, "encode", encode)
    samples = read_sound(files[3], 16000)
    padded = np.pad(samples, (0, 30 * 16000))
    for sound in (samples, padded[: 29 * 16000 + 77], padded, samples[:50]):
        recording = transcriber.read(0, (sound, 16000))
        transcriber.encode([recording])
        features = given["features"][0]
        count = max(1, len(sound) // 160)
        expected = model.audio_processor.log_mel(sound, padding=30 * 16000)[:, : min(count, 3000)]
        assert recording.frames == count and features.shape == (80, 3000)
        torch.testing.assert_close(features[:, : expected.shape[1]], expected, atol=1e-6, rtol=0)
        assert not features[:, expected.shape[1] :].any()


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def longest_clips() -> list[Any]:
    return sorted((one for one in all_clips() if one.text), key=lambda one: -one.path.stat().st_size)[:6]


def long_sound() -> tuple[Any, int]:
    """The longest clips with half a second between them, and the rate."""
    pieces = []
    for one in longest_clips():
        samples, rate = soundfile.read(one.path, dtype="float32")
        pieces += [samples, np.zeros(rate // 2, dtype=np.float32)]
    return np.concatenate(pieces), rate


def test_a_long_recording(model: Model) -> None:
    """More than two windows: nothing is lost or said twice where one ends."""
    longest, sound = longest_clips(), long_sound()
    rate = sound[1]
    seconds = len(sound[0]) / rate
    assert seconds > 61
    result = model.transcribe(sound)
    said, heard = words_of(" ".join(one.text for one in longest)), words_of(result.text)
    assert difflib.SequenceMatcher(None, said, heard, autojunk=False).ratio() > 0.9
    starts = [segment.start for segment in result.segments]
    assert starts == sorted(starts) and result.segments[-1].end <= seconds + 0.1
    assert [segment.text for segment in model.stream_segments(sound)] == [one.text for one in result.segments]


def test_timestamps_of_many_windows_are_the_references(model: Model, tmp_path: Path) -> None:
    """transformers' own algorithm for long recordings makes the same segments of three windows.

    Its words lie elsewhere by a little, for two reasons: it takes what the decoder looks at from the generation itself,
    timestamps among the text, where the first implementation (and this library) reads the text once more without them;
    and it sees how far a weight is above the usual among the rows of the text only.
    """
    from transformers import WhisperForConditionalGeneration

    model.save(tmp_path)
    reference = WhisperForConditionalGeneration.from_pretrained(tmp_path)
    reference.generation_config.max_length = 448
    reference.generation_config.pad_token_id = 50256
    sound, rate = long_sound()
    samples = read_sound((sound[: 62 * rate], rate), 16000)
    processor = model.audio_processor
    features = processor.log_mel(samples, padding=processor.window)[:, : len(samples) // processor.hop]
    with torch.no_grad():
        made = reference.generate(
            features[None],
            attention_mask=torch.ones(1, features.shape[1], dtype=torch.long),
            condition_on_prev_tokens=True,
            temperature=0.0,
            return_segments=True,
            return_timestamps=True,
            return_token_timestamps=True,
        )
    theirs = made["segments"][0]
    ours = model.transcribe((samples, 16000), temperature=0, word_timestamps=True).segments
    plain = model.transcribe((samples, 16000), temperature=0).segments
    assert [segment.token_ids for segment in plain] == [segment.token_ids for segment in ours]
    # Where no text follows a pair of timestamps, it keeps both.
    assert [list(segment.token_ids) for segment in plain] == [
        tokens[:-1] if tokens[-2] >= 50363 else tokens for tokens in (segment["tokens"].tolist() for segment in theirs)
    ]
    assert [(segment.start, segment.end) for segment in plain] == [
        (pytest.approx(float(segment["start"])), pytest.approx(float(segment["end"]))) for segment in theirs
    ]
    # The first character of each of its tokens -> where that is spoken
    starts, text = {}, ""
    for segment in theirs:
        for token, start in zip(segment["tokens"].tolist(), segment["token_timestamps"].tolist(), strict=True):
            starts[len(text)] = start
            text += model.tokenizer.decode([token] if token < 50256 else [])
    words = [word for segment in ours for word in segment.words or ()]
    assert "".join(word.text for word in words) == text
    places = np.cumsum([0] + [len(word.text) for word in words[:-1]])
    distances = [abs(word.start - starts[place]) for word, place in zip(words, places, strict=True)]
    assert len(words) > 100 and np.median(distances) <= 0.04 and np.mean(np.array(distances) <= 0.3) >= 0.8, distances


def test_silence_says_nothing(model: Model) -> None:
    result = model.transcribe((np.zeros(16000, dtype=np.float32), 16000))
    assert result.text in ("", "you", "You", ".", "Thank you.")  # tiny.en is not always sure that it hears nothing
    assert result.duration == 1.0


def test_what_is_refused(model: Model, tmp_path: Path) -> None:
    silence = (np.zeros(16000, dtype=np.float32), 16000)
    with pytest.raises(GenerationError, match="knows English only: it cannot transcribe german"):
        model.transcribe(silence, language="de")
    with pytest.raises(GenerationError, match="knows English only: it cannot translate"):
        model.transcribe(silence, task="translate")
    with pytest.raises(GenerationError, match="task 'sing' is not one of"):
        model.transcribe(silence, task="sing")
    with pytest.raises(GenerationError, match="unknown option 'beams'"):
        model.transcribe(silence, beams=3)
    with pytest.raises(GenerationError, match=r"initial prompt has .* tokens, but there is room for 223: shorten it"):
        model.transcribe(silence, initial_prompt="many words " * 200)
    with pytest.raises(CapabilityError, match="knows English only"):
        detect_language(model, silence)
    with pytest.raises(CapabilityError, match="this whisper model cannot generate; it can transcribe"):
        model.generate("hello")
    (tmp_path / "no.wav").write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"no\.wav is empty"):
        model.transcribe(tmp_path / "no.wav")


def test_the_command(files: list[Path], tmp_path: Path) -> None:
    def run(*arguments: Any) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "polyformer", "transcribe", "whisper-tiny.en", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = run(*files[:2], "--format", "srt", "--output-dir", tmp_path / "subtitles")
    assert code == 0 and len(out.splitlines()) == 2
    assert (tmp_path / "subtitles" / f"{files[0].stem}.srt").read_text().startswith("1\n00:00:00,000 --> ")
    code, out, _ = run(files[0], "--json", "--word-timestamps", "--num-beams", "2")
    assert code == 0 and json.loads(out)["segments"][0]["words"]
    code, _, error = run(files[0], "--word-timestamps")
    assert code == 2 and "--word-timestamps needs" in error
    (tmp_path / "text.wav").write_text("hello")
    code, _, error = run(tmp_path / "text.wav")
    assert code == 2 and "is no sound that is read" in error and "Traceback" not in error
