"""The guidance formula against transformers' and its fixed points. Whole generations are in test_generate.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from polyformer.generation.guidance import guide


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5, 7.0])
def test_equals_transformers(dtype: torch.dtype, scale: float) -> None:
    torch.manual_seed(0)
    logits, negative = torch.randn(2, 1, 50, dtype=dtype) * 4

    class Model:
        def __call__(self, *arguments: object, **options: object) -> object:
            return type("Output", (SimpleNamespace,), {"get": lambda self, *_: None})(logits=negative[:, None])

    processor = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, Model())
    expected = processor(torch.zeros(1, 1, dtype=torch.long), logits)
    torch.testing.assert_close(guide(logits, negative, scale), expected, rtol=0, atol=1e-5)
    column = torch.tensor([[scale]], dtype=dtype)
    torch.testing.assert_close(guide(logits, negative, column), expected, rtol=0, atol=1e-5)


def test_fixed_points() -> None:
    logits, negative = torch.randn(2, 3, 40, dtype=torch.float64)
    torch.testing.assert_close(guide(logits, negative, 1.0), logits.log_softmax(-1))
    torch.testing.assert_close(guide(logits, negative, 0.0), negative.log_softmax(-1))
