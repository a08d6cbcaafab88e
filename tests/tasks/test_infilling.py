"""Gaps in texts: how the model is asked, what is left out of long texts, and the measure on lines of modules."""

from __future__ import annotations

import ast
import warnings
from typing import Any

import numpy as np
import pytest

import polyformer
from polyformer.baselines import RecurrentLM
from polyformer.errors import CapabilityError, DataError, GenerationError, TruncationWarning
from polyformer.evaluation import evaluate
from polyformer.evaluation.infilling import first_line
from polyformer.objectives import FillInTheMiddle
from polyformer.tokenizers.training import train_tokenizer

MODULE = '''"""A module."""

import math


def area(radius):
    if radius < 0:
        raise ValueError("negative")
    return math.pi * radius**2
'''


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([MODULE] * 3, "bpe", 320, purpose="code")


@pytest.fixture
def model(tokenizer: Any) -> Any:
    made = polyformer.build(RecurrentLM.Config(tokenizer.vocab_size, 16, max_positions=64), seed=0)
    made.tokenizer = tokenizer
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompts that generation was given."""
    from polyformer.tasks import infilling

    prompts: list[list[int]] = []
    true = infilling.generate

    def watched(network: Any, given: Any, *rest: Any, **options: Any) -> Any:
        prompts.extend(given)
        return true(network, given, *rest, **options)

    monkeypatch.setattr(infilling, "generate", watched)
    return prompts


@pytest.mark.parametrize("suffix_first", [False, True])
def test_the_model_is_asked_as_it_was_trained(
    model: Any, tokenizer: Any, asked: list[list[int]], suffix_first: bool
) -> None:
    found = model.infill(("import math", "return radius"), max_new_tokens=4, suffix_first=suffix_first)
    marks = tokenizer.fill_in_the_middle_ids
    objective = FillInTheMiddle(
        prefix_token_id=marks["prefix"],
        suffix_token_id=marks["suffix"],
        middle_token_id=marks["middle"],
        eos_token_id=tokenizer.eos_token_id,
        rate=1.0,
        suffix_first_rate=float(suffix_first),
        max_length=99,
    )
    before, after = tokenizer.encode("import math"), tokenizer.encode("return radius")
    text = np.array([*before, *after])
    cut_there = np.random.default_rng(0)

    class Cuts:
        """Both cuts between the two texts."""

        def random(self) -> float:
            return float(cut_there.random()) * 0.5

        def integers(self, *_: Any) -> np.ndarray:
            return np.array([len(before), len(before)])

    trained = objective.prepare({"input_ids": text}, Cuts())["input_ids"].tolist()  # type: ignore[arg-type]
    if suffix_first:
        assert asked == [[marks["prefix"], marks["suffix"], *after, marks["middle"], *before]]
    else:
        assert asked == [[marks["prefix"], *before, marks["suffix"], *after, marks["middle"]]]
    assert trained == [*asked[0], tokenizer.eos_token_id]
    assert found.text == "import math" + found.middle + "return radius"


def test_many_gaps_of_unlike_length_are_each_filled_as_alone(model: Any) -> None:
    gaps = [("import", "math"), ("def area(radius):\n    if radius < 0", ""), ("", "return 1")]
    together = model.infill(gaps, max_new_tokens=5)
    assert [one.middle for one in together] == [model.infill(gap, max_new_tokens=5).middle for gap in gaps]
    assert [(one.prefix, one.suffix) for one in together] == gaps


def test_too_long(model: Any, tokenizer: Any, asked: list[list[int]]) -> None:
    with pytest.raises(GenerationError, match=r"gap 0 has \d+ tokens around it, but the model reads 51"):
        model.infill((MODULE, MODULE), max_new_tokens=10)
    with pytest.warns(TruncationWarning):
        found = model.infill((MODULE, MODULE), max_new_tokens=10, truncate=True)
    assert found.prefix == found.suffix == MODULE  # the whole text comes back
    ids = tokenizer.encode(MODULE)
    assert asked[0][1:27] == ids[-26:] and asked[0][28:-1] == ids[:25] and len(asked[0]) == 54
    with pytest.warns(TruncationWarning):
        model.infill((MODULE * 2, "x"), max_new_tokens=10, truncate=True)
    assert asked[1][1:-3] == tokenizer.encode(MODULE * 2)[-50:]  # what the suffix does not need is the prefix's


@pytest.mark.parametrize(
    ("gap", "options", "message"),
    [
        (("", ""), {}, "gap 0 has nothing before it and nothing behind it"),
        (("a", "b"), {"max_new_tokens": 61}, "leaves no room for a text: the model reads 64 tokens"),
        (("a", "b"), {"max_new_tokens": 4, "n": 2, "temperature": 1.0}, "a gap is filled once"),
        (("a", "b"), {"max_new_tokens": 4, "temprature": 1.0}, "temperature"),
    ],
)
def test_what_cannot_be(model: Any, gap: tuple[str, str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(GenerationError, match=message):
        model.infill(gap, **options)


def test_a_model_without_marks() -> None:
    plain = polyformer.build(RecurrentLM.Config(300, 8), seed=0)
    with pytest.raises(CapabilityError, match="cannot infill"):
        plain.infill(("a", "b"))
    plain.tokenizer = train_tokenizer([MODULE], "bpe", 300)
    assert "infill" not in plain.capabilities
    with pytest.raises(CapabilityError, match="cannot infill"):
        plain.infill(("a", "b"))


def test_lines_that_are_known_by_heart(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that writes the true line where it sees both sides, and nonsense where it sees one."""
    from polyformer.evaluation import infilling
    from polyformer.tasks.infilling import Infilling

    def known(_: Any, gaps: Any, **options: Any) -> list[Infilling]:
        whole = len(MODULE)
        middles = [
            MODULE[len(prefix) : whole - len(suffix)] + "\nmore" if suffix else "\n    )(" for prefix, suffix in gaps
        ]
        return [Infilling(gap[0], middle, gap[1], "eos") for gap, middle in zip(gaps, middles)]

    monkeypatch.setattr(infilling, "infill", known)
    found = evaluate(model, [{"text": MODULE}, {"text": "not ( python"}], "infilling", lines=3)
    assert found.documents == 1 and found.notes == ["1 documents are no Python, or have no such line"]
    assert found.values["exact"] == found.values["valid"] == 1.0 and found.values["lines"] == 3
    assert found.values["left_to_right_exact"] == found.values["left_to_right_valid"] == 0.0
    # Of the three lines below "def", the raise cannot be left out; the others can.
    assert found.values["valid_without"] == pytest.approx(sum(_valid_without(row) for row in (6, 7, 8)) / 3)


def _valid_without(row: int) -> bool:
    lines = MODULE.split("\n")
    try:
        ast.parse("\n".join(lines[:row] + lines[row + 1 :]))
    except SyntaxError:
        return False
    return True


def test_a_new_model_is_measured(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", TruncationWarning)
        values = evaluate(model, [{"text": MODULE * 3}], "infilling", lines=4, max_new_tokens=8).values
    assert values["lines"] == 4 and 0 <= values["exact"] <= values["valid"] <= 1
    again = evaluate(model, [{"text": MODULE * 3}], "infilling", lines=4, max_new_tokens=8).values
    assert values == again
    with pytest.raises(DataError, match="no document is Python"):
        evaluate(model, [{"text": "not ( python"}], "infilling")


def test_the_first_line_counts() -> None:
    assert first_line("\n\n    return 1  \nmore") == "    return 1"
    assert first_line(" \n") == ""
