"""Sound as frames of a log-mel spectrogram: the front end of Whisper (Radford et al., 2022, section 2.2)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyformer.errors import TokenizerError

PREPROCESSOR_FILE = "preprocessor_config.json"
_FEATURE_EXTRACTOR = "WhisperFeatureExtractor"


@dataclass(frozen=True)
class AudioProcessor:
    """Samples to frames.

    Attributes:
        mel_bins: numbers in a frame.
        rate: samples a second.
        window: samples under each transform.
        hop: samples from one frame to the next.
        seconds: what the network reads at once.
    """

    mel_bins: int = 80
    rate: int = 16000
    window: int = 400
    hop: int = 160
    seconds: int = 30

    def __post_init__(self) -> None:
        for name in ("mel_bins", "rate", "window", "hop", "seconds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TokenizerError(f"{name} is {value!r}, but it must be a whole number of at least 1")

    @property
    def frames(self) -> int:
        """Frames that the network reads at once."""
        return self.seconds * self.rate // self.hop

    @property
    def frames_per_second(self) -> int:
        return self.rate // self.hop

    def log_mel(self, samples: np.ndarray[Any, Any] | Tensor, *, padding: int = 0) -> Tensor:
        """[mel_bins, frames] of a sound of any length, log10 of the energies, scaled as the network wants it.

        The loudest frame sets the floor, eight powers of ten below it, so it depends on how much is given at once.

        Args:
            samples: [samples].
            padding: so many samples of silence follow.

        Raises:
            TokenizerError: not one channel.
        """
        wave = torch.as_tensor(samples, dtype=torch.float32)
        if wave.dim() != 1:
            raise TokenizerError(f"samples must be [samples], but they are {list(wave.shape)}")
        if padding:
            wave = torch.nn.functional.pad(wave, (0, padding))
        shortest = self.window // 2 + 1
        if len(wave) < shortest:  # a sound is mirrored at its ends, so it must have something to mirror
            wave = torch.nn.functional.pad(wave, (0, shortest - len(wave)))
        spectrum = torch.stft(
            wave, self.window, self.hop, window=torch.hann_window(self.window), return_complex=True, pad_mode="reflect"
        )
        power = spectrum[:, :-1].abs() ** 2
        energies = mel_filters(self.mel_bins, self.window // 2 + 1, self.rate) @ power
        logs = energies.clamp(min=1e-10).log10()
        logs = torch.maximum(logs, logs.max() - 8.0)
        return (logs + 4.0) / 4.0

    def fill(self, features: Tensor) -> Tensor:
        """[..., mel_bins, frames] cut or filled with zeros to what the network reads at once."""
        missing = self.frames - features.shape[-1]
        return torch.nn.functional.pad(features, (0, missing)) if missing > 0 else features[..., : self.frames]

    def __call__(self, samples: np.ndarray[Any, Any] | Tensor) -> Tensor:
        """``input_features`` [mel_bins, frames] of one sound, cut or filled up with silence to ``seconds``."""
        wave = torch.as_tensor(samples, dtype=torch.float32)[: self.seconds * self.rate]
        return self.log_mel(wave, padding=self.seconds * self.rate - len(wave))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``preprocessor_config.json``, as transformers reads it."""
        values = {
            "feature_extractor_type": _FEATURE_EXTRACTOR,
            "feature_size": self.mel_bins,
            "sampling_rate": self.rate,
            "n_fft": self.window,
            "hop_length": self.hop,
            "chunk_length": self.seconds,
            "n_samples": self.seconds * self.rate,
            "nb_max_frames": self.frames,
            "padding_value": 0.0,
            "padding_side": "right",
            "return_attention_mask": False,
        }
        (Path(folder) / PREPROCESSOR_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_audio_processor(folder: str | os.PathLike[str]) -> AudioProcessor | None:
    """The front end that a folder describes; None if it describes none.

    Raises:
        TokenizerError: the file is damaged, or asks for another front end.
    """
    path = Path(folder) / PREPROCESSOR_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} is not readable JSON ({error}): fetch it again") from None
    kind = values.get("feature_extractor_type", _FEATURE_EXTRACTOR) if isinstance(values, dict) else None
    if kind != _FEATURE_EXTRACTOR:
        raise TokenizerError(f"{path}: the front end {kind!r} is not supported; supported: {_FEATURE_EXTRACTOR}")
    if values.get("dither"):
        raise TokenizerError(f"{path}: dither={values['dither']} is not supported: set it to 0")
    return AudioProcessor(
        mel_bins=values.get("feature_size", 80),
        rate=values.get("sampling_rate", 16000),
        window=values.get("n_fft", 400),
        hop=values.get("hop_length", 160),
        seconds=values.get("chunk_length", 30),
    )


@lru_cache
def mel_filters(bins: int, frequencies: int, rate: int) -> Tensor:
    """Triangles [bins, frequencies] over the spectrum, spaced on Slaney's mel scale and of equal area (Slaney, 1998,
    "Auditory Toolbox"): linear up to 1,000 Hz, logarithmic above."""
    edges = _to_hertz(np.linspace(0.0, _to_mel(rate / 2), bins + 2))
    places = np.linspace(0.0, rate / 2, frequencies)
    rising = (places[None, :] - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - places[None, :]) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    triangles *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.tensor(triangles, dtype=torch.float32)


_LINEAR_HERTZ = 200.0 / 3  # a mel below 1,000 Hz
_LOGARITHMIC_STEP = np.log(6.4) / 27  # the logarithm of the frequency in a mel above


def _to_mel(hertz: float) -> float:
    if hertz < 1000.0:
        return hertz / _LINEAR_HERTZ
    return 15.0 + float(np.log(hertz / 1000.0)) / float(_LOGARITHMIC_STEP)


def _to_hertz(mels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.where(mels < 15.0, mels * _LINEAR_HERTZ, 1000.0 * np.exp(_LOGARITHMIC_STEP * (mels - 15.0)))
