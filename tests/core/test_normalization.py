from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from polyformer import core

INPUTS = torch.randn(3, 4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 + 1


@pytest.mark.parametrize("eps", [1e-5, 0.1])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_norm(eps: float, bias: bool, random_module: Any) -> None:
    norm = random_module(core.LayerNorm.Config(10, eps, bias))
    reference = nn.LayerNorm(10, eps, bias=bias, dtype=torch.float64)
    reference.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(INPUTS), reference(INPUTS), rtol=1e-12, atol=1e-12)
    centred = INPUTS - INPUTS.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * norm.weight
    torch.testing.assert_close(norm(INPUTS), expected + (norm.bias if bias else 0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eps", [1e-6, 0.1])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(eps: float, offset: float, random_module: Any) -> None:
    norm = random_module(core.RMSNorm.Config(10, eps, offset))
    expected = INPUTS / (INPUTS.square().mean(-1, keepdim=True) + eps).sqrt() * (norm.weight + offset)
    torch.testing.assert_close(norm(INPUTS), expected, rtol=1e-10, atol=1e-10)
    reference = (GemmaRMSNorm if offset else LlamaRMSNorm)(10, eps=eps).double()
    reference.load_state_dict(norm.state_dict())
    # The reference rounds its input to float32.
    torch.testing.assert_close(norm(INPUTS).float(), reference(INPUTS).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config", [core.LayerNorm.Config(10), core.RMSNorm.Config(10), core.RMSNorm.Config(10, offset=1.0)]
)
def test_norms_start_as_the_identity_on_normalized_vectors(config: Any) -> None:
    norm = config.build().double()
    signs = torch.tensor([1.0, -1.0] * 5, dtype=torch.float64)
    torch.testing.assert_close(norm(signs), signs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config", [core.LayerNorm.Config(10), core.RMSNorm.Config(10), core.RMSNorm.Config(10, offset=1.0)]
)
def test_gradients(config: Any, random_module: Any) -> None:
    norm = random_module(config)
    inputs = INPUTS[:1].clone().requires_grad_()
    assert gradcheck(lambda x, *parameters: norm(x), (inputs, *norm.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "config", [core.LayerNorm.Config(10), core.RMSNorm.Config(10), core.RMSNorm.Config(10, offset=1.0)]
)
def test_half_precision_rounds_once(config: Any, dtype: torch.dtype, random_module: Any) -> None:
    """Everything happens in float32, so that the result is the exact one, rounded: half a unit in the last place."""
    norm = random_module(config, dtype=dtype)
    inputs = INPUTS.to(dtype)
    result = norm(inputs)
    assert result.dtype == dtype
    exact = norm.double()(inputs.double())
    torch.testing.assert_close(result.double(), exact, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-6)
