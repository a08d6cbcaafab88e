"""Attention against equations written out head by head, and against classes of transformers that stay in float64."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from transformers import GptOssConfig, Qwen3Config
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from polyformer import core
from polyformer.core.masks import Span
from polyformer.core.rotary import LongRoPEScaling
from polyformer.errors import ConfigError

WIDTH = 12
PADDING = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0]])
ROTARY = core.Rotary.Config(4, base=50.0)
# By the length at which the long factors come in; the rows of these tests have 7 tokens, or 5 with padding.
LONG_ROPE = {switch: LongRoPEScaling((1.0, 1.5), (2.0, 7.0), switch, 1.3) for switch in (4, 7)}

OPTIONS: dict[str, dict[str, Any]] = {
    "multi-head": {"num_heads": 4},
    "multi-query": {"num_heads": 4, "num_key_value_heads": 1},
    "grouped": {"num_heads": 4, "num_key_value_heads": 2},
    "wide heads": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 7},
    "one head": {"num_heads": 1, "head_dim": 5},
    "bidirectional": {"num_heads": 2, "mask": core.Bidirectional()},
    "window": {"num_heads": 4, "num_key_value_heads": 2, "mask": core.SlidingWindow(3)},
    "window with sinks": {"num_heads": 4, "mask": core.SlidingWindow(2, sinks=1)},
    "block-local": {"num_heads": 4, "mask": core.BlockLocal(3)},
    "rotary": {"num_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "positions": ROTARY},
    "rotary of all numbers": {"num_heads": 2, "positions": core.Rotary.Config(6, base=50.0)},
    "LongRoPE, short": {"num_heads": 2, "positions": core.Rotary.Config(4, 50.0, scaling=LONG_ROPE[7])},
    "LongRoPE, long": {"num_heads": 2, "positions": core.Rotary.Config(4, 50.0, scaling=LONG_ROPE[4])},
    "norm of each head": {
        "num_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "query_key_norm": core.RMSNorm.Config(6),
        "positions": ROTARY,
    },
    "layer norm of each head": {"num_heads": 2, "query_key_norm": core.LayerNorm.Config(6)},
    "norm of all heads": {
        "num_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "query_key_norm": core.RMSNorm.Config(24, eps=0.01),
        "positions": ROTARY,
    },
    "norm of all heads, multi-query": {
        "num_heads": 4,
        "num_key_value_heads": 1,
        "query_key_norm": core.LayerNorm.Config(12),
    },
    "scale": {"num_heads": 4, "scale": 0.9},
    "soft cap": {"num_heads": 4, "num_key_value_heads": 2, "scale": 2.0, "soft_cap": 1.5},
    "sinks": {"num_heads": 4, "num_key_value_heads": 2, "sinks": True},
    "Shaw": {"num_heads": 4, "num_key_value_heads": 2, "positions": core.Relative.Config(3, 2, values=True)},
    "Music Transformer": {"num_heads": 4, "positions": core.Relative.Config(3, 5, num_heads=4, causal=True)},
    "everything": {
        "num_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 5,
        "bias": True,
        "mask": core.SlidingWindow(3, sinks=1),
        "positions": core.Relative.Config(5, 3, values=True),
        "query_key_norm": core.RMSNorm.Config(5),
        "scale": 0.7,
        "soft_cap": 2.0,
        "sinks": True,
    },
}


def normalized(vectors: torch.Tensor, norm: Any) -> torch.Tensor:
    if isinstance(norm, core.LayerNorm):
        centred = vectors - vectors.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + norm.config.eps).sqrt() * norm.weight + norm.bias
    return vectors / (vectors.square().mean(-1, keepdim=True) + norm.config.eps).sqrt() * norm.weight


def turned(vectors: torch.Tensor, positions: torch.Tensor, config: Any) -> torch.Tensor:
    """vectors [batch, tokens, head_dim]: pairs (i, i + half) of the first rotary_dim numbers turn in the plane."""
    half, result = config.rotary_dim // 2, vectors.clone()
    factors, size = (1.0,) * half, 1.0
    if config.scaling is not None:
        is_long = int(positions.max()) + 1 > config.scaling.original_max_positions
        factors = config.scaling.long_factors if is_long else config.scaling.short_factors
        size = config.scaling.attention_factor
    for pair in range(half):
        angle = positions.double() * config.base ** (-pair / half) / factors[pair]
        x, y = vectors[..., pair], vectors[..., half + pair]
        result[..., pair] = size * (x * angle.cos() - y * angle.sin())
        result[..., half + pair] = size * (x * angle.sin() + y * angle.cos())
    return result


def by_equations(
    attention: Any, inputs: torch.Tensor, span: Span, source: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vaswani et al., section 3.2, one head after the other, with an explicit matrix of scores."""
    config = attention.config
    size, group = config.head_dim, config.num_heads // config.num_key_value_heads
    source = inputs if source is None else source
    queries = inputs @ attention.query.weight.T + (attention.query.bias if config.bias else 0)
    keys = source @ attention.key.weight.T + (attention.key.bias if config.key_bias else 0)
    values = source @ attention.value.weight.T + (attention.value.bias if config.bias else 0)
    norms = (attention.query_norm, attention.key_norm)
    together = norms[0] is not None and config.query_key_norm.size != size
    if together:
        queries, keys = normalized(queries, norms[0]), normalized(keys, norms[1])
    seen = config.mask.of(span)
    seen = torch.ones(1, 1, span.new, span.columns, dtype=torch.bool) if seen is None else seen
    heads, weights_of_heads = [], []
    for head in range(config.num_heads):
        shared = head // group
        query, key = queries[..., head * size : (head + 1) * size], keys[..., shared * size : (shared + 1) * size]
        value = values[..., shared * size : (shared + 1) * size]
        if norms[0] is not None and not together:
            query, key = normalized(query, norms[0]), normalized(key, norms[1])
        if isinstance(config.positions, core.Rotary.Config):
            query, key = (turned(vector, span.queries, config.positions) for vector in (query, key))
        scores = query @ key.mT * config.scale
        if config.soft_cap is not None:
            scores = config.soft_cap * (scores / config.soft_cap).tanh()
        if isinstance(config.positions, core.Relative.Config):
            table = config.positions
            distance = span.keys[:, None, :] - span.queries[:, :, None]
            rows = distance.clamp(-table.max_distance, 0 if table.causal else table.max_distance) + table.max_distance
            vectors = attention.positions.keys[head if table.num_heads > 1 else 0][rows]
            scores = (
                scores + torch.einsum("bqd,bqkd->bqk", query, vectors.expand(len(query), -1, -1, -1)) * config.scale
            )
        numbers = scores.exp() * seen[:, 0]
        total = numbers.sum(-1, keepdim=True)
        if config.sinks:
            total = total + attention.sinks[head].exp()
        weights = numbers / total
        mixed = weights @ value
        if isinstance(config.positions, core.Relative.Config) and config.positions.values:
            vectors = attention.positions.values[head if config.positions.num_heads > 1 else 0][rows]
            mixed = mixed + torch.einsum("bqk,bqkd->bqd", weights, vectors.expand(len(query), -1, -1, -1))
        heads.append(mixed)
        weights_of_heads.append(weights)
    result = torch.cat(heads, dim=-1) @ attention.output.weight.T + (attention.output.bias if config.output_bias else 0)
    return result, torch.stack(weights_of_heads, dim=1)


def assert_same(result: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_attention(name: str, padded: bool, random_module: Any) -> None:
    attention = random_module(core.Attention.Config(WIDTH, **OPTIONS[name]))
    inputs, mask = random(2, 7, WIDTH), PADDING if padded else None
    expected, expected_weights = by_equations(attention, inputs, Span.of(7, mask))
    result, none = attention(inputs, Span.of(7, mask))
    again, weights = attention(inputs, Span.of(7, mask), need_weights=True)
    real = PADDING.bool() if padded else torch.ones(2, 7, dtype=torch.bool)
    assert none is None
    assert result.isfinite().all()
    assert_same(result[real], expected[real])
    assert_same(again[real], expected[real])
    assert_same(weights.transpose(1, 2)[real], expected_weights.transpose(1, 2)[real])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_against_the_equations(name: str, padded: bool, random_module: Any) -> None:
    """Of the inputs and of every parameter, through the backend that is chosen."""
    attention = random_module(core.Attention.Config(WIDTH, **OPTIONS[name]))
    inputs, mask = random(2, 7, WIDTH).requires_grad_(), PADDING if padded else None
    real = (PADDING if padded else torch.ones(2, 7))[..., None]
    probe = random(2, 7, WIDTH) * real
    parameters = [inputs, *attention.parameters()]
    found = [
        torch.autograd.grad((result * probe).sum(), parameters)
        for result in (
            attention(inputs, Span.of(7, mask))[0],
            by_equations(attention, inputs, Span.of(7, mask))[0],
        )
    ]
    for (label, _), ours, theirs in zip([("inputs", None), *attention.named_parameters()], *found):
        # A bias of the keys moves all scores of a row alike, where positions do not turn it: its gradient is zero.
        torch.testing.assert_close(
            ours, theirs, rtol=1e-9, atol=1e-10, msg=lambda text, label=label: f"{label}: {text}"
        )


@pytest.mark.parametrize(
    "name", ["wide heads", "rotary", "norm of all heads", "soft cap", "sinks", "Shaw", "everything"]
)
def test_gradcheck(name: str, random_module: Any) -> None:
    attention = random_module(core.Attention.Config(WIDTH, **OPTIONS[name]))
    inputs = random(1, 3, WIDTH).requires_grad_()
    assert gradcheck(lambda x: attention(x, Span.of(3))[0], (inputs,))


@pytest.mark.parametrize(
    ("bias", "key_bias", "output_bias"),
    list(itertools.product([False, True], [None, False, True], [None, False, True])),
)
def test_biases(bias: bool, key_bias: bool | None, output_bias: bool | None, random_module: Any) -> None:
    config = core.Attention.Config(WIDTH, 4, bias=bias, key_bias=key_bias, output_bias=output_bias)
    attention = random_module(config)
    expected = {
        "query": bias,
        "key": bias if key_bias is None else key_bias,
        "value": bias,
        "output": bias if output_bias is None else output_bias,
    }
    names = {name for name, _ in attention.named_parameters()}
    assert {part: f"{part}.bias" in names for part in expected} == expected
    inputs = random(2, 5, WIDTH)
    assert_same(attention(inputs, Span.of(5))[0], by_equations(attention, inputs, Span.of(5))[0])


@pytest.mark.parametrize(
    "options", [{}, {"num_key_value_heads": 2, "head_dim": 5, "bias": True}], ids=["plain", "grouped"]
)
@pytest.mark.parametrize("padded", [False, True])
def test_cross_attention(padded: bool, options: Any, random_module: Any) -> None:
    config = core.Attention.Config(WIDTH, 4, source_size=9, mask=core.Bidirectional(), **options)
    attention = random_module(config)
    inputs, source = random(2, 4, WIDTH), random(2, 7, 9) + 1
    queries = Span.of(4).queries
    span = Span(queries, Span.of(7, PADDING).keys, None) if padded else Span(queries, torch.arange(7)[None], 0)
    result, weights = attention(inputs, span, source=source, need_weights=True)
    expected, expected_weights = by_equations(attention, inputs, span, source)
    assert_same(result, expected)
    assert_same(weights, expected_weights)
    assert weights.shape == (2, 4, 4, 7)
    with pytest.raises(ConfigError, match="cross-attention needs a source"):
        attention(inputs, span)


def test_against_torch_multihead_attention(random_module: Any) -> None:
    """PyTorch's own class knows multi-head attention with biases: an implementation that shares nothing with ours."""
    attention = random_module(core.Attention.Config(WIDTH, 3, bias=True))
    reference = nn.MultiheadAttention(WIDTH, 3, batch_first=True, dtype=torch.float64)
    projections = (attention.query, attention.key, attention.value)
    reference.in_proj_weight = nn.Parameter(torch.cat([part.weight for part in projections]))
    reference.in_proj_bias = nn.Parameter(torch.cat([part.bias for part in projections]))
    reference.out_proj.load_state_dict(attention.output.state_dict())
    inputs = random(2, 6, WIDTH)
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    expected, weights = reference(inputs, inputs, inputs, attn_mask=hidden, average_attn_weights=False)
    result, ours = attention(inputs, Span.of(6), need_weights=True)
    assert_same(result, expected)
    assert_same(ours, weights)


def causal_mask(window: int | None = None) -> torch.Tensor:
    seen = torch.ones(7, 7).tril().bool()
    if window is not None:
        seen &= torch.ones(7, 7).triu(1 - window).bool()
    return torch.zeros(7, 7, dtype=torch.float64).masked_fill(~seen, -math.inf)[None, None]


@pytest.mark.parametrize("window", [None, 3])
def test_sinks_against_gpt_oss(window: int | None, random_module: Any) -> None:
    mask = core.Causal() if window is None else core.SlidingWindow(window)
    config = core.Attention.Config(
        WIDTH, 4, 2, head_dim=6, bias=True, sinks=True, mask=mask, positions=core.Rotary.Config(6)
    )
    attention = random_module(config)
    their_config = GptOssConfig(
        hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=2, head_dim=6, attention_bias=True
    )
    their_config._attn_implementation = "eager"
    theirs = GptOssAttention(their_config, 1).double().eval()
    for ours, name in ((attention.query, "q"), (attention.key, "k"), (attention.value, "v"), (attention.output, "o")):
        getattr(theirs, f"{name}_proj").load_state_dict(ours.state_dict())
    theirs.sinks = nn.Parameter(attention.sinks.detach())
    inputs = random(2, 7, WIDTH)
    angles = torch.arange(7)[:, None] * 10000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    expected, weights = theirs(inputs, (angles.cos()[None], angles.sin()[None]), causal_mask(window))
    result, ours_weights = attention(inputs, Span.of(7), need_weights=True)
    assert_same(result, expected)
    assert_same(ours_weights, weights)
    assert (weights.sum(-1) < 0.999).all()


def test_query_key_norm_against_qwen3(random_module: Any) -> None:
    config = core.Attention.Config(
        WIDTH, 4, 2, head_dim=6, query_key_norm=core.RMSNorm.Config(6), positions=core.Rotary.Config(6)
    )
    attention = random_module(config)
    their_config = Qwen3Config(hidden_size=WIDTH, num_attention_heads=4, num_key_value_heads=2, head_dim=6)
    their_config._attn_implementation = "eager"
    theirs = Qwen3Attention(their_config, 0).double().eval()
    for ours, name in ((attention.query, "q"), (attention.key, "k"), (attention.value, "v"), (attention.output, "o")):
        getattr(theirs, f"{name}_proj").load_state_dict(ours.state_dict())
    theirs.q_norm.load_state_dict(attention.query_norm.state_dict())
    theirs.k_norm.load_state_dict(attention.key_norm.state_dict())
    inputs = random(2, 7, WIDTH)
    angles = torch.arange(7)[:, None] * 10000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    angles = torch.cat([angles, angles], dim=-1)[None]
    expected, weights = theirs(inputs, (angles.cos(), angles.sin()), causal_mask())
    result, ours_weights = attention(inputs, Span.of(7), need_weights=True)
    # The reference computes its norms and its softmax in float32.
    assert_same(result, expected, 1e-5)
    assert_same(ours_weights, weights, 1e-5)


def test_a_bias_for_all_layers_is_added_to_the_scores(random_module: Any) -> None:
    attention = random_module(core.Attention.Config(WIDTH, 4, 2, mask=core.SlidingWindow(3)))
    inputs, bias = random(2, 7, WIDTH), random(1, 4, 7, 7)
    span = Span.of(7)
    span.bias = bias
    result, _ = attention(inputs, span)
    heads = (inputs @ attention.query.weight.T).view(2, 7, 4, 3).transpose(1, 2)
    keys, values = (
        (inputs @ part.weight.T).view(2, 7, 2, 3).transpose(1, 2).repeat_interleave(2, dim=1)
        for part in (attention.key, attention.value)
    )
    scores = heads @ keys.mT / math.sqrt(3) + bias + causal_mask(3)
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(2, 7, WIDTH)
    assert_same(result, mixed @ attention.output.weight.T)


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_only_in_training(need_weights: bool, random_module: Any) -> None:
    config = core.Attention.Config(WIDTH, 4, 2, mask=core.Bidirectional(), dropout=0.25)
    attention = random_module(config)
    inputs, span = random(1, 40, WIDTH), Span.of(40)
    exact = attention(inputs, span)[0].detach()
    assert torch.equal(exact, random_module(replace(config, dropout=0.0)).train()(inputs, Span.of(40))[0])
    attention.train()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([attention(inputs, Span.of(40), need_weights=need_weights)[0] for _ in range(400)])
    assert (draws[0] - draws[1]).abs().max() > 1e-3
    error = (draws.mean(0) - exact) / (draws.std(0) / 20)
    assert error.abs().mean() < 1.2  # of a standard normal it is 0.8
    assert error.abs().max() < 5.5


def test_output_dropout_falls_on_the_result_and_only_in_training(random_module: Any) -> None:
    config = core.Attention.Config(WIDTH, 4, 2, bias=True, output_dropout=0.25)
    attention = random_module(config)
    inputs, span = random(9, 40, WIDTH), Span.of(40)
    exact = attention(inputs, span)[0]
    assert torch.equal(exact, random_module(replace(config, output_dropout=0.0)).train()(inputs, Span.of(40))[0])
    torch.manual_seed(0)
    dropped, weights = attention.train()(inputs, Span.of(40), need_weights=True)
    gone = dropped == 0
    assert gone.double().mean().item() == pytest.approx(0.25, abs=4 * (0.1875 / gone.numel()) ** 0.5)
    assert_same(dropped[~gone], exact[~gone] / 0.75)
    assert_same(weights.sum(-1), torch.ones(9, 4, 40).double())  # the weights are whole


def test_defaults_are_filled_in() -> None:
    config = core.Attention.Config(12, 4, bias=True)
    assert (config.num_key_value_heads, config.head_dim, config.key_bias, config.output_bias) == (4, 3, True, True)
    assert config.scale == pytest.approx(3**-0.5)
    assert config == core.Attention.Config(12, 4, 4, 3, bias=True, key_bias=True, output_bias=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "hidden_size 12 is not a multiple of num_heads 5: give head_dim"),
        ({"num_heads": 0}, "num_heads is 0, but it must be at least 1"),
        ({"num_heads": 4, "num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_key_value_heads 3"),
        ({"num_heads": 4, "num_key_value_heads": 0}, "not a multiple of num_key_value_heads 0"),
        ({"num_heads": 4, "positions": core.Rotary.Config(4)}, "rotary_dim 4 is larger than head_dim 3"),
        (
            {"num_heads": 4, "query_key_norm": core.RMSNorm.Config(5)},
            "query_key_norm has size 5, but it must be head_dim 3",
        ),
        ({"num_heads": 4, "positions": core.Relative.Config(4, 2)}, "Relative has head_dim 4 and 1 heads, but"),
        ({"num_heads": 4, "positions": core.Relative.Config(3, 2, num_heads=2)}, "Relative has head_dim 3 and 2 heads"),
        ({"num_heads": 4, "source_size": 12}, "cross-attention .* needs mask=Bidirectional"),
        (
            {"num_heads": 2, "source_size": 12, "mask": core.Bidirectional(), "positions": core.Rotary.Config(4)},
            "and positions=None",
        ),
        ({"num_heads": 4, "dropout": 1.0}, "dropout is 1.0, but it must be at least 0 and below 1"),
        ({"num_heads": 4, "output_dropout": -0.1}, "output_dropout is -0.1, but it must be at least 0 and below 1"),
    ],
)
def test_impossible_configs(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        core.Attention.Config(WIDTH, **options)


def test_cross_attention_in_sixteen_bits_keeps_the_source_in_thirty_two(random_module: Any) -> None:
    """In a cache on a CPU, where it is read at every step; the result is as exact as the inputs are."""
    config = core.Attention.Config(WIDTH, 2, source_size=WIDTH, mask=core.Bidirectional(), bias=True)
    exact = random_module(config)
    rounded = random_module(config).bfloat16()
    generator = torch.Generator().manual_seed(1)
    source = torch.randn(2, 9, WIDTH, generator=generator, dtype=torch.float64)
    inputs = torch.randn(2, 1, WIDTH, generator=generator, dtype=torch.float64)
    span = Span.over(Span.of(9))
    layer = core.Layer.Config(
        core.Attention.Config(WIDTH, 2), core.FeedForward.Config(WIDTH, 8), core.LayerNorm.Config(WIDTH)
    )
    stack = core.Stack.Config((replace(layer, cross_attention=config),)).build()
    expected, _ = exact(inputs, span, source=source)
    with torch.no_grad():
        cache = stack.new_cache()
        cache.set_source(9, torch.device("cpu"))
        store = cache.cross_stores[0]
        first, _ = rounded(inputs.bfloat16(), span, source=source.bfloat16(), store=store)
        again, _ = rounded(inputs.bfloat16(), span, store=store)
    assert store.read()[0].dtype == torch.float32
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, again)
    assert (first.double() - expected).abs().max() <= 0.03 * expected.abs().max()
