from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as turn_interleaved
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as turn_halves

from polyformer import core
from polyformer.core.masks import Span
from polyformer.core.rotary import (
    DynamicNTKScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    Scaling,
    YaRNScaling,
)
from polyformer.errors import ConfigError

SIZE, BASE = 16, 500.0
PAIRS = SIZE // 2
SHORT = tuple(1 + 0.1 * pair for pair in range(PAIRS))
LONG = tuple(2 + pair**1.5 for pair in range(PAIRS))


def plain(pair: int) -> float:
    return BASE ** (-2 * pair / SIZE)


def dynamic(factor: float, original: int) -> Callable[[int, int], float]:
    """The base of "dynamic NTK" is that of NTK-aware interpolation, b · s^(d/(d-2)), with s grown from the length."""

    def angle(pair: int, length: int) -> float:
        stretch = factor * max(length, original) / original - (factor - 1)
        return (BASE * stretch ** (SIZE / (SIZE - 2))) ** (-2 * pair / SIZE)

    return angle


def yarn(factor: float, original: int, fast: float, slow: float, truncate: bool) -> Callable[[int, int], float]:
    """YaRN as its authors run it: a ramp over pair numbers, between the pairs that turn ``fast`` and ``slow`` times.

    A pair i turns original · b^(-2i/d) / 2π times: solved for i, that is where the ramp ends.
    """

    def place(turns: float) -> float:
        return SIZE / 2 * math.log(original / (2 * math.pi * turns), BASE)

    low, high = place(fast), place(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, SIZE - 1)

    def angle(pair: int, length: int) -> float:
        if high == low:
            kept = 1.0 if pair <= low else 0.0
        else:
            kept = 1 - min(1.0, max(0.0, (pair - low) / (high - low)))
        return plain(pair) * kept + plain(pair) / factor * (1 - kept)

    return angle


def llama3(factor: float, low: float, high: float, original: int) -> Callable[[int, int], float]:
    """By wavelength, as its authors published it."""

    def angle(pair: int, length: int) -> float:
        wave = 2 * math.pi / plain(pair)
        if wave < original / high:
            return plain(pair)
        if wave > original / low:
            return plain(pair) / factor
        smooth = (original / wave - low) / (high - low)
        return (1 - smooth) * plain(pair) / factor + smooth * plain(pair)

    return angle


def long_rope(pair: int, length: int) -> float:
    return plain(pair) / (LONG if length > 64 else SHORT)[pair]


# scaling, formula of (pair, length), what transformers calls it, magnitude
CASES: dict[str, tuple[Scaling | None, Callable[[int, int], float], dict[str, Any], float]] = {
    "none": (None, lambda pair, length: plain(pair), {}, 1.0),
    "linear": (
        LinearScaling(3.0),
        lambda pair, length: plain(pair) / 3,
        {"rope_type": "linear", "factor": 3.0},
        1.0,
    ),
    "factors": (FactorScaling(LONG), lambda pair, length: plain(pair) / LONG[pair], {}, 1.0),
    "dynamic": (DynamicNTKScaling(2.5, 64), dynamic(2.5, 64), {"rope_type": "dynamic", "factor": 2.5}, 1.0),
    "YaRN": (
        YaRNScaling(4.0, 512),
        yarn(4.0, 512, 32, 1, True),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        0.1 * math.log(4) + 1,
    ),
    "YaRN, not truncated": (
        YaRNScaling(8.0, 512, beta_fast=20.0, beta_slow=2.0, truncate=False),
        yarn(8.0, 512, 20, 2, False),
        {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 512,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        0.1 * math.log(8) + 1,
    ),
    "YaRN, own factor": (
        YaRNScaling(4.0, 512, attention_factor=0.7),
        yarn(4.0, 512, 32, 1, True),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "attention_factor": 0.7},
        0.7,
    ),
    "YaRN, ramp of no width": (
        YaRNScaling(4.0, 8, beta_fast=400.0, beta_slow=300.0),
        yarn(4.0, 8, 400, 300, True),
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 8,
            "beta_fast": 400.0,
            "beta_slow": 300.0,
        },
        0.1 * math.log(4) + 1,
    ),
    "Llama-3": (
        Llama3Scaling(8.0, 1.0, 4.0, 256),
        llama3(8.0, 1.0, 4.0, 256),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        1.0,
    ),
    "LongRoPE": (
        LongRoPEScaling(SHORT, LONG, 64, attention_factor=1.3),
        long_rope,
        {
            "rope_type": "longrope",
            "short_factor": list(SHORT),
            "long_factor": list(LONG),
            "original_max_position_embeddings": 64,
            "attention_factor": 1.3,
        },
        1.3,
    ),
}


def turned(vectors: torch.Tensor, positions: torch.Tensor, angle: Callable[[int, int], float], **options: Any) -> Any:
    """The paper's equation with complex numbers: pair i at position p is multiplied by m · e^(i p θ)."""
    size, interleaved = options["size"], options["interleaved"]
    length, magnitude = options["length"], options["magnitude"]
    result = vectors.clone()
    for pair in range(size // 2):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + size // 2)
        complex_numbers = torch.complex(vectors[..., first], vectors[..., second])
        turn = torch.polar(
            torch.full_like(positions, magnitude, dtype=torch.float64), positions.double() * angle(pair, length)
        )
        product = complex_numbers * turn[:, None]
        result[..., first], result[..., second] = product.real, product.imag
    return result


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head_dim", [SIZE, SIZE + 6])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("length", [20, 64, 65, 200])
def test_rotary(name: str, interleaved: bool, head_dim: int, length: int) -> None:
    scaling, angle, _, magnitude = CASES[name]
    rotary = core.Rotary.Config(SIZE, BASE, interleaved, scaling).build()
    assert not list(rotary.parameters()) and not list(rotary.buffers())
    span = Span.of(length)
    vectors = torch.randn(2, 3, length, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = turned(
        vectors, span.queries, angle, size=SIZE, interleaved=interleaved, length=length, magnitude=magnitude
    )
    torch.testing.assert_close(rotary(vectors, span.queries, span), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [20, 65, 200])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2]])
def test_angles_against_transformers(name: str, length: int) -> None:
    scaling, _, theirs, magnitude = CASES[name]
    parameters = {"rope_theta": BASE, **theirs}
    config = LlamaConfig(
        hidden_size=4 * SIZE, num_attention_heads=4, max_position_embeddings=64, rope_parameters=parameters
    )
    expected, factor = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu", seq_len=length)
    assert scaling is not None
    exponents = torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE
    ours = scaling.frequencies(BASE, exponents, torch.tensor([[[length]]])).flatten()
    # The reference works in float32.
    torch.testing.assert_close(ours.float(), expected.flatten(), rtol=1e-5, atol=0)
    assert scaling.magnitude == pytest.approx(factor, rel=1e-6) == pytest.approx(magnitude, rel=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_against_transformers(interleaved: bool) -> None:
    """Their functions take cosines and sines; in float64 they stay there."""
    rotary = core.Rotary.Config(8, interleaved=interleaved).build()
    positions = torch.tensor([[3, 1, 0, 70, 8]])
    span = Span(positions, positions, None)
    vectors = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    angles = positions[..., None] * 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    if interleaved:
        expected = turn_interleaved(vectors.transpose(1, 2), angles.sin(), angles.cos()).transpose(1, 2)
    else:
        both = torch.cat([angles, angles], dim=-1)
        expected, _ = turn_halves(vectors, vectors, both.cos(), both.sin())
    torch.testing.assert_close(rotary(vectors, positions, span), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["dynamic", "LongRoPE"])
def test_each_row_has_its_own_length(name: str) -> None:
    scaling, angle, _, magnitude = CASES[name]
    rotary = core.Rotary.Config(SIZE, BASE, scaling=scaling).build()
    mask = torch.ones(2, 100)
    mask[0, :60] = 0  # forty tokens beside a hundred
    span = Span.of(100, mask)
    vectors = torch.randn(2, 1, 100, SIZE, dtype=torch.float64)
    result = rotary(vectors, span.queries, span)
    for row, length in enumerate([40, 100]):
        options = {"size": SIZE, "interleaved": False, "length": length, "magnitude": magnitude}
        expected = turned(vectors[row : row + 1], span.queries[row : row + 1], angle, **options)
        torch.testing.assert_close(result[row : row + 1], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_only_lengths_that_matter_keep_keys_unturned(name: str) -> None:
    scaling, angle, _, _ = CASES[name]
    changes = any(angle(pair, 10) != angle(pair, 1000) for pair in range(PAIRS))
    assert core.Rotary.Config(SIZE, BASE, scaling=scaling).build().turns_stored_keys == changes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_angles_are_worked_out_in_float32(dtype: torch.dtype) -> None:
    """At position 5000 a bfloat16 angle would be off by sixteen radians."""
    rotary = core.Rotary.Config(8).build()
    positions = torch.tensor([[5000, 4999]])
    span = Span(positions, positions, None)
    vectors = torch.randn(1, 1, 2, 8).to(dtype)
    exact = rotary(vectors.double(), positions, Span(positions, positions, None))
    result = rotary(vectors, positions, span)
    assert result.dtype == dtype
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=max(4 * torch.finfo(dtype).eps, 2e-3))


def test_only_distances_matter() -> None:
    """The reason for it all (Su et al., equation 11)."""
    rotary = core.Rotary.Config(8).build()
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    products = []
    for shift in (0, 17, 400):
        positions = torch.tensor([[shift + 9]]), torch.tensor([[shift + 4]])
        turned_query = rotary(query, positions[0], Span(positions[0], positions[0], None))
        turned_key = rotary(key, positions[1], Span(positions[1], positions[1], None))
        products.append((turned_query * turned_key).sum().item())
    assert products[1:] == pytest.approx([products[0]] * 2, rel=1e-10)


@pytest.mark.parametrize("name", ["none", "LongRoPE"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients(name: str, interleaved: bool) -> None:
    scaling = CASES[name][0]
    rotary = core.Rotary.Config(SIZE, BASE, interleaved, scaling).build()
    vectors = torch.randn(1, 1, 3, SIZE + 2, dtype=torch.float64, requires_grad=True)
    span = Span.of(3)
    assert gradcheck(lambda x: rotary(x, span.queries, span), (vectors,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotary_dim": 7}, "rotary_dim is 7, but it must be even and positive"),
        ({"rotary_dim": 0}, "rotary_dim is 0"),
        ({"rotary_dim": 8, "scaling": LongRoPEScaling(SHORT, LONG, 64)}, "has 8 factors, but rotary_dim 8 has 4 pairs"),
        ({"rotary_dim": 8, "scaling": FactorScaling((1.0,))}, "has 1 factors, but rotary_dim 8 has 4 pairs"),
        ({"rotary_dim": 2, "scaling": DynamicNTKScaling(2.0, 8)}, "dynamic NTK scaling needs a rotary_dim above 2"),
    ],
)
def test_impossible_configs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        core.Rotary.Config(**options)
