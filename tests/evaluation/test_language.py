"""Bits per character: every token is scored once, with what stands before it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import polyformer
from polyformer.baselines import RecurrentLM
from polyformer.errors import CapabilityError, ConfigError, DataError
from polyformer.evaluation import evaluate
from polyformer.tokenizers.training import train_tokenizer

TEXT = "It was the best of times, it was the worst of times; it was the age of wisdom. " * 4


@pytest.fixture(scope="module")
def model() -> Any:
    made = polyformer.build(RecurrentLM.Config(300, 16, 1, "gru"), seed=0)
    with torch.no_grad():  # far from uniform
        for parameter in made.network.parameters():
            parameter.mul_(3)
    made.tokenizer = train_tokenizer([TEXT], "bpe", 300)
    return made


def surprise(model: Any, ids: list[int], length: int, stride: int) -> float:
    """Token by token, each in the first window that holds it."""
    total = math.log(300)
    for place in range(1, len(ids)):
        start = 0
        while place >= start + length:
            start += stride
        logits = model.network(torch.tensor([ids[start : place + 1]])).logits[0, -2].detach()
        total -= float(logits.double().log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize(("length", "stride"), [(16, 8), (16, 15), (7, 3), (1000, 500), (2, 1)])
def test_windows(model: Any, length: int, stride: int) -> None:
    found = evaluate(model, [{"text": TEXT}, {"text": "it was"}], length=length, stride=stride)
    nats = sum(surprise(model, model.tokenizer.encode(text), length, stride) for text in (TEXT, "it was"))
    assert found.values["nats_per_token"] * found.values["tokens"] == pytest.approx(nats, rel=1e-5)
    characters = len(TEXT) + len("it was")
    assert found.values["bits_per_character"] == pytest.approx(nats / math.log(2) / characters, rel=1e-5)
    assert found.values["tokens"] == len(model.tokenizer.encode(TEXT)) + len(model.tokenizer.encode("it was"))
    assert found.values["perplexity"] == pytest.approx(math.exp(found.values["nats_per_token"]))


def test_the_default_window_overlaps_by_half(model: Any) -> None:
    whole = evaluate(model, [{"text": TEXT}])
    assert whole.notes == ["windows of 1024 tokens, 512 apart"]
    assert whole.values == pytest.approx(evaluate(model, [{"text": TEXT}], length=1024, stride=512).values)


def test_bytes_are_not_characters(model: Any) -> None:
    values = evaluate(model, [{"text": "naïve café"}]).values
    assert values["bits_per_character"] * 10 == pytest.approx(values["bits_per_byte"] * 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1}, "length is 1, but a window has at least 2 tokens"),
        ({"length": 8, "stride": 8}, "stride is 8, but it must be from 1 to 7"),
        ({"strid": 8}, "has no option 'strid': did you mean stride"),
    ],
)
def test_what_cannot_be(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(model, [{"text": TEXT}], **options)


def test_longer_than_the_context() -> None:
    made = polyformer.build(RecurrentLM.Config(300, 8, max_positions=64), seed=0)
    made.tokenizer = train_tokenizer([TEXT], "bpe", 300)
    with pytest.raises(ConfigError, match="at most 64, the model's context"):
        evaluate(made, [{"text": TEXT}], length=65)
    assert evaluate(made, [{"text": TEXT}]).notes == ["windows of 64 tokens, 32 apart"]


def test_what_has_no_text(model: Any) -> None:
    with pytest.raises(DataError, match="document 2 is empty"):
        evaluate(model, [{"text": TEXT}, {"text": ""}])
    with pytest.raises(DataError, match="document 1 has no field 'text'; it has txt"):
        evaluate(model, [{"txt": TEXT}])
    with pytest.raises(DataError, match="text is int, not a text"):
        evaluate(model, [{"text": 7}])
    with pytest.raises(CapabilityError, match="no tokenizer"):
        evaluate(polyformer.build(RecurrentLM.Config(300, 8), seed=0), [{"text": TEXT}])
