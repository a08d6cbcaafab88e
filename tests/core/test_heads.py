from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from polyformer import core
from polyformer.core.masks import Span
from polyformer.errors import ConfigError

HIDDEN, END = 6, 8
RIGHT = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
LEFT = RIGHT.flip(1)
MIDDLE = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]])


def assert_same(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def pool(method: str, hidden: torch.Tensor, mask: Any = None, ids: Any = None, **options: Any) -> torch.Tensor:
    pooling = core.Pooling.Config(method, **options).build()
    return pooling(hidden, Span.of(hidden.shape[1], mask), ids)


# ---------------------------------------------------------------------------------------------------------------
# Scores over a vocabulary


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_scores_over_a_vocabulary(tied: bool, bias: bool, random_module: Any) -> None:
    head = random_module(core.Head.Config(HIDDEN, 9, tied=tied, bias=bias, scale=0.5, soft_cap=2.0))
    hidden, table = random(2, 3, HIDDEN), random(9, HIDDEN)
    assert ("weight" in head.state_dict(), "bias" in head.state_dict()) == (not tied, bias)
    scores = hidden @ (table if tied else head.weight).T + (head.bias if bias else 0)
    assert_same(head(hidden, table), 2 * (scores * 0.5 / 2).tanh())


@pytest.mark.parametrize("norm", [None, core.LayerNorm.Config(4), core.RMSNorm.Config(4)], ids=["no", "layer", "RMS"])
@pytest.mark.parametrize("name", [None, "gelu", "tanh"])
@pytest.mark.parametrize("bias", [False, True])
def test_transform(bias: bool, name: str | None, norm: Any, random_module: Any) -> None:
    transform = random_module(core.Transform.Config(HIDDEN, 4, name, norm, bias))
    hidden = random(2, 3, HIDDEN)
    expected = hidden @ transform.linear.weight.T + (transform.linear.bias if bias else 0)
    if name is not None:
        expected = {"gelu": functional.gelu, "tanh": torch.tanh}[name](expected)
    if isinstance(norm, core.LayerNorm.Config):
        expected = functional.layer_norm(expected, (4,), transform.norm.weight, transform.norm.bias)
    elif norm is not None:
        expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-6).sqrt() * transform.norm.weight
    assert_same(transform(hidden), expected)


def test_the_masked_token_head_scores_with_the_table_after_its_transform(random_module: Any) -> None:
    config = core.MaskedTokenHead.Config(
        core.Transform.Config(HIDDEN, 4, "gelu", core.LayerNorm.Config(4)), core.Head.Config(4, 9, bias=True)
    )
    head, hidden, table = random_module(config), random(2, 3, HIDDEN), random(9, 4)
    assert_same(head(hidden, table), head.transform(hidden) @ table.T + head.head.bias)
    plain = random_module(core.MaskedTokenHead.Config(None, core.Head.Config(4, 9)))
    assert not list(plain.parameters())
    assert_same(plain(random(2, 3, 4), table), random(2, 3, 4) @ table.T)


# ---------------------------------------------------------------------------------------------------------------
# Scores over labels


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("transformed", [False, True])
def test_scores_over_labels_for_every_token(transformed: bool, bias: bool, random_module: Any) -> None:
    transform = core.Transform.Config(HIDDEN, 4, "tanh") if transformed else None
    head, hidden = random_module(core.TokenHead.Config(HIDDEN, 3, transform, bias=bias)), random(2, 5, HIDDEN)
    inner = (hidden @ head.transform.linear.weight.T + head.transform.linear.bias).tanh() if transformed else hidden
    assert_same(head(hidden), inner @ head.linear.weight.T + (head.linear.bias if bias else 0))


@pytest.mark.parametrize("bias", [False, True])
def test_scores_over_labels_for_a_sequence(bias: bool, random_module: Any) -> None:
    head, pooled = random_module(core.SequenceHead.Config(HIDDEN, 3, bias=bias)), random(2, HIDDEN)
    assert_same(head(pooled), pooled @ head.linear.weight.T + (head.linear.bias if bias else 0))


def with_identity(config: Any) -> Any:
    """Its last map gives back what it reads."""
    module = config.build().double()
    linear = getattr(module, "linear", None) or module.transform.linear
    with torch.no_grad():
        linear.weight.copy_(torch.eye(HIDDEN))
    return module


@pytest.mark.parametrize("name", ["tokens", "tokens after a transform", "sequence", "pooling"])
def test_dropout_stands_before_the_last_map_and_only_in_training(name: str) -> None:
    straight = core.Transform.Config(HIDDEN, HIDDEN, bias=False)
    if name == "pooling":
        module = with_identity(core.Pooling.Config("first", transform=straight, dropout=0.25))
        inputs: tuple[Any, ...] = (random(500, 2, HIDDEN), Span.of(2))
        read = inputs[0][:, 0]
    elif name == "sequence":
        module = with_identity(core.SequenceHead.Config(HIDDEN, HIDDEN, dropout=0.25, bias=False))
        inputs = (random(500, HIDDEN),)
        read = inputs[0]
    else:
        transform = replace(straight, activation="tanh") if "transform" in name else None
        module = with_identity(core.TokenHead.Config(HIDDEN, HIDDEN, transform, dropout=0.25, bias=False))
        inputs = (random(500, 1, HIDDEN),)
        read = inputs[0] if transform is None else module.transform(inputs[0])
    assert_same(module.eval()(*inputs), read)
    torch.manual_seed(0)
    dropped = module.train()(*inputs)
    gone = dropped == 0
    assert gone.double().mean().item() == pytest.approx(0.25, abs=4 * (0.1875 / gone.numel()) ** 0.5)
    assert_same(dropped[~gone], read[~gone] / 0.75)


# ---------------------------------------------------------------------------------------------------------------
# One vector for a sequence


@pytest.mark.parametrize("mask", [None, RIGHT, LEFT, MIDDLE], ids=["none", "right", "left", "middle"])
@pytest.mark.parametrize("method", ["first", "last", "mean"])
def test_pooling_of_real_tokens(method: str, mask: torch.Tensor | None) -> None:
    hidden = random(3, 5, HIDDEN)
    choose = {"first": lambda rows: rows[0], "last": lambda rows: rows[-1], "mean": lambda rows: rows.mean(0)}[method]
    real = torch.ones(3, 5) if mask is None else mask
    assert_same(pool(method, hidden, mask), torch.stack([choose(row[r.bool()]) for row, r in zip(hidden, real)]))


def test_the_mean_of_nothing_is_zero() -> None:
    mask = torch.tensor([[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert torch.equal(pool("mean", random(3, 5, HIDDEN), mask)[0], torch.zeros(HIDDEN).double())


@pytest.mark.parametrize("leading", [0, 1, 3])
def test_pooling_of_patches(leading: int) -> None:
    hidden = random(3, 5, HIDDEN)
    mean = sum(hidden[:, column] for column in range(leading, 5)) / (5 - leading)
    assert_same(pool("mean_patches", hidden, leading=leading), mean)
    both = pool("first_and_mean_patches", hidden, leading=leading)
    assert_same(both, torch.cat([hidden[:, 0], mean], dim=1))


@given(st.data())
def test_pooling_of_a_token_that_is_looked_for(data: Any) -> None:
    """Padding may hold the end token too: it does not count, on whatever side it stands."""
    width = data.draw(st.integers(2, 7))
    rows = st.lists(st.integers(0, END), min_size=width, max_size=width)
    ids = torch.tensor(data.draw(st.lists(rows, min_size=1, max_size=4)))
    mask = torch.tensor(data.draw(st.lists(rows, min_size=len(ids), max_size=len(ids)))) > 3
    for row in range(len(ids)):
        column = data.draw(st.integers(0, width - 1))
        ids[row, column], mask[row, column] = END, True
    given_mask = None if data.draw(st.booleans()) else mask
    seen = torch.ones_like(mask) if given_mask is None else mask
    hidden = random(len(ids), width, HIDDEN)
    columns = [[c for c in range(width) if ids[r, c] == END and seen[r, c]] for r in range(len(ids))]
    first = torch.stack([hidden[r, found[0]] for r, found in enumerate(columns)])
    last = torch.stack([hidden[r, found[-1]] for r, found in enumerate(columns)])
    assert torch.equal(pool("end", hidden, given_mask, ids, end_token_id=END), first)
    assert torch.equal(pool("last_end", hidden, given_mask, ids, end_token_id=END), last)
    assert torch.equal(pool("largest_id", hidden, given_mask, ids), first)


@pytest.mark.parametrize("mask", [None, RIGHT], ids=["whole", "padded"])
def test_the_largest_id_need_not_be_an_end_token(mask: torch.Tensor | None) -> None:
    ids, hidden = torch.tensor([[1, 4, 2, 9, 9], [0, 3, 7, 7, 1], [0, 1, 1, 1, 1]]), random(3, 5, HIDDEN)
    columns = [3, 2, 1] if mask is None else [1, 2, 0]
    assert torch.equal(pool("largest_id", hidden, mask, ids), hidden[torch.arange(3), columns])


@pytest.mark.parametrize("method", ["end", "last_end"])
def test_a_sequence_without_an_end_token(method: str) -> None:
    ids = torch.tensor([[1, 8, 2, 1, 1], [8, 3, 7, 7, 8], [0, 8, 1, 1, 1]])
    assert pool(method, random(3, 5, HIDDEN), None, ids, end_token_id=8).shape == (3, HIDDEN)
    with pytest.raises(ConfigError, match="a sequence has no end token 8, whose vector stands for the whole: add it"):
        pool(method, random(3, 5, HIDDEN), RIGHT, ids, end_token_id=8)


@pytest.mark.parametrize("method", ["end", "last_end", "largest_id"])
def test_a_token_is_looked_for_among_ids(method: str) -> None:
    with pytest.raises(ConfigError, match=f"pooling '{method}' needs input_ids"):
        pool(method, random(3, 5, HIDDEN), end_token_id=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "middle"}, "pooling 'middle' is not one of first, last, mean, mean_patches, "),
        ({"method": "end"}, "pooling 'end' needs end_token_id"),
        ({"method": "last_end"}, "pooling 'last_end' needs end_token_id"),
    ],
)
def test_impossible_poolings(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        core.Pooling.Config(**options)


def test_what_is_pooled_is_normalized_then_transformed(random_module: Any) -> None:
    transform = core.Transform.Config(HIDDEN, 4, "tanh")
    pooling = random_module(core.Pooling.Config("mean", core.LayerNorm.Config(HIDDEN), transform))
    hidden = random(3, 5, HIDDEN)
    normal = functional.layer_norm(hidden.mean(1), (HIDDEN,), pooling.norm.weight, pooling.norm.bias)
    expected = (normal @ pooling.transform.linear.weight.T + pooling.transform.linear.bias).tanh()
    assert_same(pooling(hidden, Span.of(5)), expected)


POOLING = core.AttentionPooling.Config(
    core.Attention.Config(HIDDEN, 2, source_size=HIDDEN, mask=core.Bidirectional(), bias=True),
    core.LayerNorm.Config(HIDDEN),
    core.FeedForward.Config(HIDDEN, 10, "gelu", bias=True),
)


@pytest.mark.parametrize("mask", [None, RIGHT, LEFT, MIDDLE], ids=["none", "right", "left", "middle"])
def test_attention_pooling_against_torch_multihead_attention(mask: torch.Tensor | None, random_module: Any) -> None:
    pooling, hidden = random_module(POOLING), random(3, 5, HIDDEN)
    parts = [pooling.attention.query, pooling.attention.key, pooling.attention.value]
    reference = nn.MultiheadAttention(HIDDEN, 2, batch_first=True, dtype=torch.float64)
    reference.in_proj_weight = nn.Parameter(torch.cat([part.weight for part in parts]))
    reference.in_proj_bias = nn.Parameter(torch.cat([part.bias for part in parts]))
    reference.out_proj.load_state_dict(pooling.attention.output.state_dict())
    empty = None if mask is None else mask == 0
    looked = reference(pooling.probe.expand(3, 1, -1), hidden, hidden, key_padding_mask=empty)[0][:, 0]
    normal = functional.layer_norm(looked, (HIDDEN,), pooling.norm.weight, pooling.norm.bias)
    up, down = pooling.feedforward.up, pooling.feedforward.down
    fed = functional.gelu(normal @ up.weight.T + up.bias) @ down.weight.T + down.bias
    assert_same(pooling(hidden, Span.of(5, mask)), looked + fed)


def test_attention_pooling_to_another_width(random_module: Any) -> None:
    wide = replace(POOLING, attention=replace(POOLING.attention, source_size=10))
    assert random_module(wide)(random(3, 5, 10), Span.of(5)).shape == (3, HIDDEN)


def test_attention_pooling_needs_cross_attention() -> None:
    attention = core.Attention.Config(HIDDEN, 2, mask=core.Bidirectional())
    with pytest.raises(ConfigError, match="the attention of a pooling needs source_size"):
        replace(POOLING, attention=attention)


# ---------------------------------------------------------------------------------------------------------------
# All of them

TRANSFORM = core.Transform.Config(HIDDEN, 4, "gelu", core.LayerNorm.Config(4))
HEADS = {
    "masked token": core.MaskedTokenHead.Config(TRANSFORM, core.Head.Config(4, 9, tied=False, bias=True)),
    "token": core.TokenHead.Config(HIDDEN, 3, TRANSFORM),
    "sequence": core.SequenceHead.Config(HIDDEN, 3),
    "pooling": core.Pooling.Config("last_end", core.RMSNorm.Config(HIDDEN), TRANSFORM, end_token_id=8),
    "attention pooling": POOLING,
}


def arguments(name: str) -> tuple[Any, ...]:
    if "pooling" in name:
        ids = torch.tensor([[1, 8, 2, 1, 8], [8, 3, 7, 7, 8], [8, 8, 1, 1, 1]])
        return random(3, 5, HIDDEN).requires_grad_(), Span.of(5, RIGHT), ids
    if name == "masked token":
        return random(3, 5, HIDDEN).requires_grad_(), random(9, 4)
    return (random(3, HIDDEN).requires_grad_(),)


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns(name: str, random_module: Any) -> None:
    module, inputs = random_module(HEADS[name]), arguments(name)
    (module(*inputs) ** 3).sum().backward()
    for label, parameter in module.named_parameters():
        # A bias of the keys moves all scores of a row alike: its gradient is zero.
        if label != "attention.key.bias":
            assert parameter.grad is not None and parameter.grad.abs().max() > 1e-6, label
    if "pooling" in name:
        assert torch.equal(inputs[0].grad[RIGHT == 0], torch.zeros(6, HIDDEN).double())
    assert inputs[0].grad.abs().max() > 1e-6


@pytest.mark.parametrize("name", HEADS)
def test_written_and_read_back(name: str) -> None:
    assert core.Config.from_dict(HEADS[name].to_dict()) == HEADS[name]


def test_initialization() -> None:
    """A head of N(0, 0.02²) with biases of zero; a pooling by the sizes of its matrices, as SigLIP's code has it."""
    torch.manual_seed(0)
    wide = core.Attention.Config(1000, 2, source_size=10, mask=core.Bidirectional())
    config = core.AttentionPooling.Config(wide, core.LayerNorm.Config(1000), core.FeedForward.Config(1000, 10))
    pooling = config.build()
    assert pooling.probe.std().item() == pytest.approx((2 / 1001) ** 0.5, rel=0.1)
    assert pooling.attention.key.weight.std().item() == pytest.approx((2 / 1010) ** 0.5, rel=0.05)
    assert pooling.feedforward.down.weight.std().item() == pytest.approx((2 / 1010) ** 0.5, rel=0.05)
    head = core.Head.Config(100, 90, tied=False, bias=True).build()
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(head.bias, torch.zeros(90))
    probabilities = head(torch.randn(1, 100), torch.empty(90, 100)).log_softmax(-1)
    assert probabilities.mean().item() == pytest.approx(-math.log(90), rel=0.05)
