from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.autograd import gradcheck
from transformers import T5Config
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention
from transformers.models.whisper.modeling_whisper import sinusoids

from polyformer import core
from polyformer.core.masks import Span
from polyformer.errors import ConfigError

PADDED = Span.of(7, torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0]]))
CACHED = Span(torch.arange(5, 8)[None], torch.arange(8)[None], 5)


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------
# On the embeddings


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("base", [10000.0, 100.0])
def test_sinusoidal(interleaved: bool, base: float) -> None:
    part = core.Sinusoidal.Config(8, base, interleaved).build()
    positions = torch.tensor([[0, 1, 2, 1000], [7, 6, 5, 4]])
    expected = torch.zeros(2, 4, 8, dtype=torch.float64)
    for row in range(2):
        for column in range(4):
            for pair in range(4):
                angle = positions[row, column].item() / base ** (2 * pair / 8)
                sine, cosine = (2 * pair, 2 * pair + 1) if interleaved else (pair, 4 + pair)
                expected[row, column, sine], expected[row, column, cosine] = math.sin(angle), math.cos(angle)
    assert_same(part(positions, torch.float64), expected)
    assert part(positions, torch.bfloat16).dtype == torch.bfloat16


def test_sinusoids_of_whisper() -> None:
    """Whisper spreads the same rates so that the last is exactly 1/base: our formula with another base."""
    size, longest = 16, 10000.0
    part = core.Sinusoidal.Config(size, longest ** (size / (size - 2)), interleaved=False).build()
    # The reference works in float32.
    torch.testing.assert_close(
        part(torch.arange(50)[None], torch.float32)[0], sinusoids(50, size, longest), atol=1e-5, rtol=0
    )


def test_an_odd_size_has_no_sinusoids() -> None:
    with pytest.raises(ConfigError, match="hidden_size is 7, but sinusoids need an even one"):
        core.Sinusoidal.Config(7)


@pytest.mark.parametrize("offset", [0, 2])
def test_learned(offset: int, random_module: Any) -> None:
    part = random_module(core.Learned.Config(5, 3, offset))
    assert part.weight.shape == (5 + offset, 3)
    positions = torch.tensor([[0, 4, 2], [1, 1, 3]])
    assert torch.equal(part(positions, torch.float64), part.weight[positions + offset])


@pytest.mark.parametrize("offset", [0, 2])
def test_fixed_vectors_are_sinusoids(offset: int) -> None:
    part = core.Learned.Config(1500, 8, offset, fixed=True).build()
    assert not part.weight.requires_grad
    table = part(torch.tensor([[0, 1, 1499]]), torch.float32)[0]
    assert table[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    rates = torch.tensor([1, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4], dtype=torch.float64)
    expected = torch.cat([(1499 * rates).sin(), (1499 * rates).cos()])
    torch.testing.assert_close(table[2], expected.float(), atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="hidden_size is 5, but sinusoids need an even one above 2"):
        core.Learned.Config(10, 5, fixed=True)


# ---------------------------------------------------------------------------------------------------------------
# On the scores


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 12), (10, 40), (32, 20)])
def test_buckets(bidirectional: bool, buckets: int, longest: int) -> None:
    part = core.RelativeBias.Config(2, buckets, longest, bidirectional).build()
    distance = torch.arange(-300, 301)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, longest)
    assert torch.equal(part.buckets(distance), expected)
    assert part.buckets(distance).unique().tolist() == expected.unique().tolist()


@pytest.mark.parametrize("bidirectional", [False, True])
def test_relative_bias_against_t5(bidirectional: bool, random_module: Any) -> None:
    part = random_module(core.RelativeBias.Config(3, 8, 12, bidirectional))
    config = T5Config(
        d_model=12, num_heads=3, d_kv=4, relative_attention_num_buckets=8, relative_attention_max_distance=12
    )
    config.is_decoder = not bidirectional
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    theirs.relative_attention_bias.weight = torch.nn.Parameter(part.weight)
    expected = theirs.compute_bias(20, 20)
    assert_same(part(Span.of(20), torch.float64), expected)
    late = Span(torch.arange(15, 20)[None], torch.arange(20)[None], 15)
    assert_same(part(late, torch.float64), expected[:, :, 15:])


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 71])
def test_alibi_slopes(heads: int) -> None:
    """A geometric series from 2^(-8/n) with that ratio; else also every other slope of 2n's series."""
    slopes = core.ALiBi.Config(heads).build().slopes()
    power = 2 ** int(math.log2(heads))
    expected = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    expected += [2 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1)][::2][: heads - power]
    assert slopes == pytest.approx(expected, rel=1e-14)
    # transformers' bias is slope * key position, in float32: one row of keys shows the slopes.
    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)
    torch.testing.assert_close(torch.tensor(slopes), theirs[:, 0, 1], rtol=1e-5, atol=0)


def test_alibi_slopes_are_scaled() -> None:
    assert core.ALiBi.Config(4, scale=0.5).build().slopes() == [2**-3, 2**-5, 2**-7, 2**-9]


@pytest.mark.parametrize("heads", [4, 6])
@pytest.mark.parametrize("span", [Span.of(6), PADDED, CACHED], ids=["whole", "padded", "cached"])
def test_alibi(heads: int, span: Span) -> None:
    part = core.ALiBi.Config(heads).build()
    bias = part(span, torch.float64)
    assert bias.dtype == torch.float64
    for row in range(span.queries.shape[0]):
        for i, query in enumerate(span.queries[row].tolist()):
            for j, key in enumerate(span.keys[row].tolist()):
                if 0 <= key <= query:
                    expected = [-slope * (query - key) for slope in part.slopes()]
                    assert bias[row, :, i, j].tolist() == pytest.approx(expected, rel=1e-12)
    assert part(span, torch.bfloat16).dtype == torch.bfloat16


def test_alibi_gives_the_attention_of_transformers() -> None:
    """Theirs differs from ours by a constant in each row, which softmax does not see."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    span = Span.of(7, mask)
    hidden = ~core.Causal().of(span)
    ours = core.ALiBi.Config(6).build()(span, torch.float64).masked_fill(hidden, -math.inf).softmax(-1)
    theirs = build_alibi_tensor(mask, 6, torch.float32).double().view(2, 6, 1, 7).expand(-1, -1, 7, -1)
    theirs = theirs.masked_fill(hidden, -math.inf).softmax(-1)
    real = mask.bool()[:, None, :].expand(-1, 6, -1)
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-5, atol=1e-6)  # their slopes are float32


# ---------------------------------------------------------------------------------------------------------------
# What a query says about a distance

RELATIVE = [
    core.Relative.Config(4, 3),
    core.Relative.Config(4, 3, values=True),
    core.Relative.Config(4, 3, num_heads=2, values=True),
    core.Relative.Config(4, 5, num_heads=2, causal=True),
    core.Relative.Config(4, 2, values=True, causal=True),
]


def vector(table: torch.Tensor, config: Any, head: int, distance: int) -> torch.Tensor:
    """The vector of a distance: Shaw's tables begin with -k, the Music Transformer's end with 0."""
    clipped = max(-config.max_distance, min(distance, 0 if config.causal else config.max_distance))
    return table[head if config.num_heads > 1 else 0, clipped + config.max_distance]


@pytest.mark.parametrize("config", RELATIVE, ids=str)
@pytest.mark.parametrize("span", [Span.of(6), PADDED, CACHED], ids=["whole", "padded", "cached"])
def test_relative(config: Any, span: Span, random_module: Any) -> None:
    """Equations 3 to 5 of Shaw et al., number by number."""
    part = random_module(config)
    assert part.keys.shape[1] == (config.max_distance + 1 if config.causal else 2 * config.max_distance + 1)
    rows, new, columns = span.queries.shape[0], span.new, span.columns
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, 2, new, 4, dtype=torch.float64, generator=generator)
    weights = torch.rand(rows, 2, new, columns, dtype=torch.float64, generator=generator)
    scores, added = torch.zeros(rows, 2, new, columns).double(), torch.zeros(rows, 2, new, 4).double()
    for row in range(rows):
        for head in range(2):
            for i, query in enumerate(span.queries[row].tolist()):
                for j, key in enumerate(span.keys[row].tolist()):
                    scores[row, head, i, j] = queries[row, head, i] @ vector(part.keys, config, head, key - query)
                    if config.values:
                        part_of = weights[row, head, i, j] * vector(part.values, config, head, key - query)
                        added[row, head, i] += part_of
    assert_same(part.scores(queries, span), scores)
    if config.values:
        assert_same(part.add_values(weights, span), added)
    else:
        assert part.values is None


def test_relative_against_the_skewing_of_the_music_transformer(random_module: Any) -> None:
    """Huang et al., 2018, section 3.4.1: pad, reshape, slice. It holds where no distance is clipped."""
    length = 6
    part = random_module(core.Relative.Config(4, length - 1, num_heads=2, causal=True))
    queries = torch.randn(1, 2, length, 4, dtype=torch.float64)
    padded = torch.nn.functional.pad(queries @ part.keys.mT, (1, 0))
    skewed = padded.reshape(1, 2, length + 1, length)[:, :, 1:]
    result = part.scores(queries, Span.of(length))
    seen = torch.ones(length, length).tril().bool()
    assert_same(result[..., seen], skewed[..., seen])


@pytest.mark.parametrize("config", RELATIVE[:3], ids=str)
def test_relative_gradients(config: Any, random_module: Any) -> None:
    part, span = random_module(config), Span.of(4)
    queries = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, table: part.scores(x, Span.of(4)), (queries, part.keys))
    if config.values:
        assert gradcheck(lambda x, table: part.add_values(x, span), (weights, part.values))


def test_dropped_weights_add_no_values(random_module: Any) -> None:
    """Dropout falls on a weight once, for the values and for what is added to them."""
    config = core.Attention.Config(
        8, 2, positions=core.Relative.Config(4, 3, values=True), dropout=0.5, mask=core.Bidirectional()
    )
    attention = random_module(config).train()
    with torch.no_grad():
        attention.positions.values.fill_(1.0)
        attention.value.weight.zero_()
        attention.output.weight.copy_(torch.eye(8))
    inputs = torch.randn(2, 9, 8, dtype=torch.float64)
    result, weights = attention(inputs, Span.of(9), need_weights=True)
    assert (weights == 0).double().mean().item() == pytest.approx(0.5, abs=0.1)
    expected = weights.sum(-1).transpose(1, 2)[..., None].expand(-1, -1, -1, 4).reshape(2, 9, 8)
    assert_same(result, expected)
