"""What objectives over a vocabulary share: which columns predict what, and the loss of those."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor, nn

from polyformer.core import Attention, DecoderOnly, DualEncoder, EncoderDecoder, EncoderOnly
from polyformer.core.config import Config
from polyformer.core.masks import Mask
from polyformer.objectives.base import Batch, Loss, demand, places_of
from polyformer.objectives.cross_entropy import Tally, cross_entropy

# What a network is called with, of all that a batch holds.
_ARGUMENTS = ("input_ids", "attention_mask", "document_ids", "token_type_ids", "pixel_values", "input_features")


def arguments(batch: Batch) -> dict[str, Tensor]:
    """What a network is called with, of all that a batch holds."""
    return {name: batch[name] for name in _ARGUMENTS if name in batch}


def predicting(ids: np.ndarray, documents: np.ndarray | None) -> np.ndarray:
    """[length], true where a token is followed by another of its document."""
    follows = np.zeros(len(ids), bool)
    follows[:-1] = True if documents is None else (documents[1:] == documents[:-1]) & (documents[1:] >= 0)
    return follows


def next_tokens(input_ids: Tensor, masks: Sequence[np.ndarray]) -> Batch:
    """``places`` [predictions], the columns of ``input_ids`` [rows, columns] where the masks are true, as indices into
    [rows * columns]; ``labels`` [predictions], what stands in the column after each."""
    places = places_of(masks, input_ids.shape[1])
    return {"places": places, "labels": input_ids.flatten()[places + 1]}


def judge(
    network: nn.Module,
    hidden: Tensor,
    batch: Batch,
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    rows_at_once: int | None = None,
    accuracy: bool = False,
) -> Loss:
    """The loss of the hidden states [rows, columns, size] at ``places``, which should predict ``labels``.

    Only these are scored. Metrics: "cross_entropy" (neither smoothed nor with the z-loss), "predictions" (judged
    tokens a row), and where it is asked for "accuracy", which costs one more look at all scores.
    """
    labels = batch["labels"]
    count = len(labels)
    tally = Tally()
    total, entropy = cross_entropy(
        network.score,  # type: ignore[arg-type]  # `check` has seen to it
        hidden.flatten(0, 1).index_select(0, batch["places"]),
        labels,
        z_loss=z_loss,
        label_smoothing=label_smoothing,
        rows_at_once=rows_at_once,
        watch=[tally] if accuracy else [],
    )
    metrics: dict[str, tuple[float | Tensor, float]] = {
        "cross_entropy": (entropy, count),
        "predictions": (count, len(hidden)),
    }
    if accuracy:
        metrics["accuracy"] = (tally.right, count)
    return Loss(total, count, metrics)


# ---------------------------------------------------------------------------------------------------------------
# Checking


def check_factors(owner: str, z_loss: float, rows_at_once: int | None) -> None:
    """
    Raises:
        ConfigError: a number is out of range.
    """
    demand(z_loss >= 0, f"{owner}: z_loss is {z_loss}, but it must be at least 0")
    demand(
        rows_at_once is None or rows_at_once >= 1,
        f"{owner}: rows_at_once is {rows_at_once}, but it must be at least 1",
    )


def check_writer(owner: str, config: Config) -> None:
    """
    Raises:
        ConfigError: this is no network that scores the next token of a text by itself.
    """
    others = (EncoderOnly.Config, EncoderDecoder.Config, DualEncoder.Config)
    fits = isinstance(config, DecoderOnly.Config) or (not isinstance(config, others) and hasattr(config.owner, "score"))
    demand(fits, f"{owner} trains language models such as DecoderOnly, but this network is {config.kind}")


def check_guesser(owner: str, config: Config) -> None:
    """
    Raises:
        ConfigError: this is no encoder with a head over its vocabulary.
    """
    demand(
        isinstance(config, EncoderOnly.Config) and config.masked_head is not None,
        f"{owner} trains encoders that score their vocabulary (EncoderOnly with a masked_head), but this network is "
        f"{config.kind}{' without one' if isinstance(config, EncoderOnly.Config) else ''}",
    )


def masks_of(config: Config) -> Iterator[tuple[str, Mask]]:
    """Path and mask of every self-attention of a network."""
    for path, part in config.traverse():
        if isinstance(part, Attention.Config) and part.source_size is None:
            yield path, part.mask
