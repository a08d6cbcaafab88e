"""Sound files and the log-mel front end, against transformers and on what people have lying around."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperFeatureExtractor

from polyformer.errors import TokenizerError
from polyformer.tokenizers.audio import AudioProcessor, load_audio_processor, mel_filters
from polyformer.tokenizers.audio_files import read_sound


def speech_like(seconds: float, rate: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Chirps and noise that come and go."""
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(seed).standard_normal(len(time))
    chirp = np.sin(2 * np.pi * (200 + 300 * time) * time)
    return ((0.6 * chirp + 0.05 * noise) * np.abs(np.sin(3 * time))).astype(np.float32)


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("seconds", [0.0001, 0.1, 3.7, 30.0, 41.3])
def test_the_front_end_is_the_references(bins: int, seconds: float) -> None:
    samples = speech_like(max(seconds, 1 / 16000), 16000)
    theirs = WhisperFeatureExtractor(feature_size=bins)(samples, sampling_rate=16000, return_tensors="pt")
    ours = AudioProcessor(mel_bins=bins)(samples)
    assert ours.shape == (bins, 3000)
    assert (ours - theirs.input_features[0]).abs().max() <= 1e-5


def test_silence() -> None:
    silence = np.zeros(16000, dtype=np.float32)
    theirs = WhisperFeatureExtractor()(silence, sampling_rate=16000, return_tensors="pt").input_features[0]
    assert torch.equal(AudioProcessor()(silence), theirs)


def test_long_sound_and_windows() -> None:
    processor = AudioProcessor()
    features = processor.log_mel(speech_like(41.3, 16000), padding=480_000)
    assert features.shape[1] == int(41.3 * 100) + 3000
    assert processor.fill(features[:, 4000:4100]).shape == (80, 3000)
    assert bool((processor.fill(features[:, 4000:4100])[:, 100:] == 0).all())
    assert torch.equal(processor.fill(features), features[:, :3000])


def test_mel_filters_have_equal_areas() -> None:
    filters = mel_filters(80, 201, 16000)
    assert filters.shape == (80, 201) and bool((filters >= 0).all())
    assert float(filters[40:].sum(1).std() / filters[40:].sum(1).mean()) < 0.02


def test_settings_survive(tmp_path: Path) -> None:
    processor = AudioProcessor(mel_bins=128)
    processor.save(tmp_path)
    assert load_audio_processor(tmp_path) == processor
    theirs = WhisperFeatureExtractor.from_pretrained(tmp_path)
    assert (theirs.feature_size, theirs.n_samples, theirs.nb_max_frames) == (128, 480000, 3000)
    assert load_audio_processor(tmp_path / "elsewhere") is None
    (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "EncodecFeatureExtractor"}')
    with pytest.raises(TokenizerError, match="front end 'EncodecFeatureExtractor' is not supported"):
        load_audio_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(TokenizerError, match="not readable JSON"):
        load_audio_processor(tmp_path)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "PCM_U8"), ("FLAC", "PCM_16"), ("WAV", "ULAW")]
)
def test_lossless_kinds(kind: str, subtype: str, tmp_path: Path) -> None:
    samples = speech_like(0.5, 16000)
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, samples, 16000, subtype=subtype, format=kind)
    tolerance = {"PCM_16": 1e-4, "PCM_U8": 1e-2, "ULAW": 3e-2}[subtype]
    assert np.abs(read_sound(path) - samples).max() <= tolerance
    assert np.array_equal(read_sound(path.read_bytes()), read_sound(str(path)))


@pytest.mark.parametrize("kind", ["MP3", "OGG"])
@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_lossy_kinds_at_other_rates(kind: str, rate: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, speech_like(1.5, rate), rate, format=kind)
    ours = read_sound(file.getvalue())
    assert abs(len(ours) - 24000) < 1500
    clean = speech_like(1.5, 16000)
    low = slice(0, 8000)
    length = min(len(ours), len(clean))
    spectra = [np.abs(np.fft.rfft(one[:length]))[low] for one in (ours, clean)]
    assert np.corrcoef(*spectra)[0, 1] > 0.95


def test_channels_are_averaged_and_arrays_taken() -> None:
    left, right = speech_like(0.2, 16000), speech_like(0.2, 16000, seed=1)
    both = np.stack([left, right], axis=1)
    assert np.allclose(read_sound((both, 16000)), (left + right) / 2, atol=1e-6)
    whole = (left * 32767).astype(np.int16)
    assert np.abs(read_sound((whole, 16000)) - left).max() < 1e-3
    unsigned = ((left + 1) * 127.5).astype(np.uint8)
    assert np.abs(read_sound((unsigned, 16000)) - left).max() < 2e-2
    assert len(read_sound((left, 8000))) == 2 * len(left)


def damaged_flac() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech_like(3, 16000), 16000, format="FLAC")
    return file.getvalue()[:20000]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is a text", "is no sound that is read; known: wav, flac, mp3"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no sound that is read"),
        (b"\x00\x00\x00\x20ftypisom" + bytes(200), "is a video or a container .* ffmpeg"),
        (b"\x1aE\xdf\xa3" + b"B\x82\x88matroska" + bytes(200), "is a video or a container"),
        (b"\x00\x00\x00\x08wide\x00\x00\x10\x00mdat" + bytes(200), "is a video or a container"),
        (b"ID3" + bytes(300), "is damaged|holds no sound"),
        (b"RIFF" + bytes(100), "is damaged"),
        (damaged_flac(), "is damaged"),
    ],
)
def test_what_is_no_sound(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_sound(data)
    (tmp_path / "file.mp3").write_bytes(data)
    with pytest.raises(TokenizerError, match=f"file.mp3.*({message})"):
        read_sound(tmp_path / "file.mp3")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_half_a_wav_is_damaged(subtype: str) -> None:
    """The library reads what is there; the header knows how much there was."""
    file = io.BytesIO()
    soundfile.write(file, np.stack([speech_like(2, 16000)] * 2, axis=1), 16000, format="WAV", subtype=subtype)
    whole = file.getvalue()
    assert len(read_sound(whole)) == 32000
    with pytest.raises(TokenizerError, match=r"is damaged: only 1\.0 of 2\.0 seconds can be read"):
        read_sound(whole[: len(whole) // 2])
    # A program that writes into a pipe cannot know: it states the largest number.
    place = whole.index(b"data") + 4
    unknown = whole[:place] + b"\xff\xff\xff\xff" + whole[place + 4 :]
    assert len(read_sound(unknown)) == 32000


def test_numbers_that_are_none_in_a_file(tmp_path: Path) -> None:
    samples = speech_like(0.1, 16000)
    samples[7] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(TokenizerError, match=r"nan\.wav holds infinity or NaN: mend the recording"):
        read_sound(tmp_path / "nan.wav")


def test_other_mistakes(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="cannot be read: No such file"):
        read_sound(tmp_path / "missing.wav")
    with pytest.raises(TokenizerError, match="is a folder"):
        read_sound(tmp_path)
    with pytest.raises(TokenizerError, match="for an array give its rate"):
        read_sound(np.zeros(10))  # type: ignore[arg-type]
    with pytest.raises(TokenizerError, match="the rate is 16"):
        read_sound((np.zeros(10), 16))
    with pytest.raises(TokenizerError, match="not the transpose"):
        read_sound((np.zeros((2, 1000)), 16000))
    with pytest.raises(TokenizerError, match="infinity or NaN"):
        read_sound((np.full(10, np.nan), 16000))
    with pytest.raises(TokenizerError, match="mel_bins is 0"):
        AudioProcessor(mel_bins=0)
