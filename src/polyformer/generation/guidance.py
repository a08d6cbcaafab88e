"""Classifier-free guidance for text."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor


def guide(logits: Tensor, negative_logits: Tensor, scale: float | Tensor) -> Tensor:
    """Move log-probabilities away from what a negative prompt makes likely (Sanchez et al. 2023, equation 7).

    The result is negative + scale x (positive - negative), all in log-probabilities: scale 1 is the prompt alone, 0 the
    negative prompt alone, above 1 the prompt gains weight. The result is not normalized.

    Args:
        logits: [rows, vocab], after the prompt and the text so far.
        negative_logits: [rows, vocab], after the negative prompt and the same text.
        scale: a number, or [rows, 1].
    """
    positive = functional.log_softmax(logits, dim=-1)
    negative = functional.log_softmax(negative_logits, dim=-1)
    return negative + scale * (positive - negative)
