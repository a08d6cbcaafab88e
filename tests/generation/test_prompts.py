"""Few-shot prompts, as text and as messages."""

from __future__ import annotations

from typing import Any

import pytest

from polyformer.errors import GenerationError
from polyformer.generation import few_shot_messages, few_shot_prompt

EXAMPLES = [("2 + 2", "4"), ("3 + 5", "8")]


def test_plain() -> None:
    assert few_shot_prompt("Add.", EXAMPLES, "1 + 1") == (
        "Add.\n\nInput: 2 + 2\nOutput: 4\n\nInput: 3 + 5\nOutput: 8\n\nInput: 1 + 1\nOutput:"
    )


def test_labels_separator_and_zero_shot() -> None:
    prompt = few_shot_prompt(None, EXAMPLES[:1], "1 + 1", input_label="Q:", output_label="A:", separator="\n###\n")
    assert prompt == "Q: 2 + 2\nA: 4\n###\nQ: 1 + 1\nA:"
    assert few_shot_prompt("Add.", [], "1 + 1", input_label="") == "Add.\n\n1 + 1\nOutput:"
    assert few_shot_prompt("", [("a", "b")], "c", input_label="", output_label="") == "a\nb\n\nc\n"


def test_messages() -> None:
    messages = few_shot_messages("Add.", EXAMPLES, "1 + 1")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [message["content"] for message in messages] == ["Add.", "2 + 2", "4", "3 + 5", "8", "1 + 1"]
    assert few_shot_messages(None, [], "hi") == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("examples", [["ab"], [("a",)], [("a", 3)], [("a", "b", "c")]])
def test_bad_examples(examples: Any) -> None:
    with pytest.raises(GenerationError, match=r"example 1 must be a pair \(input, output\)"):
        few_shot_prompt("Add.", examples, "q")
    with pytest.raises(GenerationError, match="example 1 must be a pair"):
        few_shot_messages("Add.", examples, "q")


def test_empty_separator() -> None:
    with pytest.raises(GenerationError, match="separator is empty"):
        few_shot_prompt("Add.", EXAMPLES, "q", separator="")
