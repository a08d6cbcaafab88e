from __future__ import annotations

import pytest
import torch

from polyformer.errors import CheckpointError
from polyformer.families.weights import (
    AddConstant,
    GroupedQueryKeyValue,
    InterleavedRotaryRows,
    Reshape,
    Rule,
    Split,
    Transform,
    Transpose,
    Unstack,
    WeightTable,
    chain,
)


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel()).reshape(shape).double()


TRANSFORMS: dict[str, tuple[Transform, tuple[int, ...]]] = {
    "none": (Transform(), (3, 4)),
    "transpose": (Transpose(), (3, 4)),
    "split": (Split((1, 2, 3)), (6, 4)),
    "unstack": (Unstack(), (3, 4, 5)),
    "reshape": (Reshape((12,), (3, 1, 4)), (3, 1, 4)),
    "add": (AddConstant(-1.0), (5,)),
    "rotary": (InterleavedRotaryRows(3), (12, 5)),
    "rotary bias": (InterleavedRotaryRows(3), (12,)),
    "grouped": (GroupedQueryKeyValue(6, 2, 4), (40, 5)),
    "chain": (chain(Transpose(), Split((2, 4))), (3, 6)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_there_and_back_is_bit_equal(name: str) -> None:
    transform, shape = TRANSFORMS[name]
    theirs = numbers(*shape)
    ours = transform.to_ours([theirs])
    (back,) = transform.to_theirs([tensor.clone() for tensor in ours])
    assert back.shape == theirs.shape
    assert torch.equal(back, theirs)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_shapes_on_the_meta_device_are_those_of_real_tensors(name: str) -> None:
    transform, shape = TRANSFORMS[name]
    real = [tuple(tensor.shape) for tensor in transform.to_ours([numbers(*shape)])]
    assert [tuple(t.shape) for t in transform.to_ours([torch.empty(shape, device="meta")])] == real


def test_rotary_rows_of_each_head_are_parted_into_halves() -> None:
    rows = InterleavedRotaryRows(2).to_ours([torch.arange(12)])[0]
    assert rows.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_grouped_projection_by_hand() -> None:
    """Two key heads of width 1, two query heads each: q q k v, q q k v."""
    query, key, value = GroupedQueryKeyValue(4, 2, 1).to_ours([torch.arange(8)])
    assert (query.tolist(), key.tolist(), value.tolist()) == ([0, 1, 4, 5], [2, 6], [3, 7])


TABLE = WeightTable(
    rules=(
        Rule("table.weight", "embed.weight"),
        Rule(["layers.{layer}.gate.weight", "layers.{layer}.up.weight"], "h.{layer}.fused.weight", Split((2, 2))),
        Rule("layers.{layer}.experts.{expert}.weight", "h.{layer}.e.{expert}.w"),
        Rule("layers.{layer}.gate.bias", "h.{layer}.bias"),
    ),
    ignored=(r".*\.mask",),
)
OURS = {
    "table.weight": (5, 3),
    "layers.0.gate.weight": (2, 3),
    "layers.0.up.weight": (2, 3),
    "layers.10.experts.7.weight": (3, 3),
}
THEIRS = {"embed.weight": (5, 3), "h.0.fused.weight": (4, 3), "h.10.e.7.w": (3, 3), "h.0.mask": (9,)}


def test_a_plan_binds_numbers_and_passes_over_parameters_that_are_not_there() -> None:
    plan = TABLE.plan(OURS, THEIRS)
    assert not plan.broken
    assert {step.theirs for step in plan.steps} == {("embed.weight",), ("h.0.fused.weight",), ("h.10.e.7.w",)}


def test_a_plan_says_what_is_missing_unexpected_and_misshaped() -> None:
    theirs = {"embeds.weight": (5, 3), "h.0.fused.weight": (5, 3), "h.10.e.7.w": (3, 3)}
    plan = TABLE.plan(OURS, theirs)
    assert plan.missing == ["embed.weight"]
    assert plan.unexpected == ["embeds.weight"]
    assert plan.misshaped == [("h.0.fused.weight", (5, 3), (4, 3))]
    with pytest.raises(CheckpointError) as error:
        plan.raise_if_broken("the file")
    text = str(error.value)
    assert "the file does not fit its config: weights 1 missing, 1 unexpected, 1 wrongly shaped" in text
    assert "missing     embed.weight   (nearest in the file: embeds.weight)" in text
    assert "h.0.fused.weight: the file has [5, 3], the network needs [4, 3]" in text


def test_a_parameter_without_a_rule_or_with_two_is_an_error() -> None:
    with pytest.raises(CheckpointError, match=r"no single rule for strange\.weight"):
        TABLE.steps({"strange.weight"})
    doubled = WeightTable((*TABLE.rules, Rule("table.weight", "again.weight")))
    with pytest.raises(CheckpointError, match=r"no single rule for table\.weight"):
        doubled.steps({"table.weight"})


def test_an_optional_prefix_may_be_left_out() -> None:
    table = WeightTable((Rule("table.weight", "transformer.wte.weight"),), optional_prefix="transformer.")
    assert not table.plan({"table.weight": (5, 3)}, {"wte.weight": (5, 3)}).broken
    assert not table.plan({"table.weight": (5, 3)}, {"transformer.wte.weight": (5, 3)}).broken
