"""SmolLM2 from the catalogue: the real file, pulled once into the cache."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from polyformer.checkpoints.gguf import GGUFFile
from polyformer.checkpoints.loading import open_checkpoint
from polyformer.checkpoints.pull import pull
from polyformer.checkpoints.validate import validate

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return pull("smollm2-135m-instruct")


def test_every_tensor_and_key_equals_the_reference_reader(smollm2: Path) -> None:
    theirs = gguf.GGUFReader(smollm2)
    ours = GGUFFile(smollm2)
    assert ours.names() == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.load(tensor.name).numpy(), expected), tensor.name
    keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
    assert list(ours.metadata) == keys
    assert ours.metadata["llama.attention.head_count_kv"] == theirs.fields["llama.attention.head_count_kv"].contents()
    assert ours.metadata["tokenizer.ggml.merges"] == theirs.fields["tokenizer.ggml.merges"].contents()


def test_it_knows_the_capital_of_france(smollm2: Path) -> None:
    checkpoint = open_checkpoint(smollm2)
    network = checkpoint.load(dtype=torch.float32)
    tokens: list[str] = checkpoint.values["tokenizer.ggml.tokens"]
    ids = [tokens.index(token) for token in ("The", "Ġcapital", "Ġof", "ĠFrance", "Ġis")]
    with torch.no_grad():
        best = network(torch.tensor([ids])).logits[0, -1].argmax()
    assert tokens[int(best)] == "ĠParis"


def test_it_is_valid(smollm2: Path) -> None:
    report = validate(smollm2)
    assert report.ok, report.lines()
    assert all(check.status == "ok" or check.name == "memory" for check in report.checks), report.lines()
