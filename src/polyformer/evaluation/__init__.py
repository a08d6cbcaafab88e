"""How good a model is, on documents that it has not been trained on: one measure a file."""

from __future__ import annotations

from polyformer.evaluation.base import Evaluation
from polyformer.evaluation.evaluate import MEASURES, evaluate

__all__ = ["MEASURES", "Evaluation", "evaluate"]
