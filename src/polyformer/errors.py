"""The errors a user can cause or mend. Each message says what was wrong, where, and what to do, in one line."""

from __future__ import annotations


class PolyformerError(Exception):
    """Base of every error that Polyformer raises on purpose. The command line prints it and exits with 2."""


class ConfigError(PolyformerError, ValueError):
    """A configuration holds a value that cannot be, or an option that is not supported."""


class CheckpointError(PolyformerError, ValueError):
    """A file of weights is missing, damaged, or does not fit the network."""


class TokenizerError(PolyformerError, ValueError):
    """A tokenizer file is missing or damaged, or a text or template cannot be processed."""


class GenerationError(PolyformerError, ValueError):
    """A generation setting is out of range, or the request cannot be served by this network."""


class DownloadError(PolyformerError, OSError):
    """A download failed, was corrupted, or did not fit on the disk."""


class TruncationWarning(UserWarning):
    """Texts were longer than the model reads and lost their end, as was asked. The command line prints it as a note."""


class CapabilityError(PolyformerError, ValueError):
    """The model cannot do what was asked; the message lists what it can do."""


class DataError(PolyformerError, ValueError):
    """Data to train on is missing, damaged, empty or not of the kind that was asked for."""


class TrainingError(PolyformerError, RuntimeError):
    """Training cannot begin or go on: the loss is not a number, a run's folder is not its own, devices do not agree."""
