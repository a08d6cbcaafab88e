"""`polyformer convert` writes a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch


def test_it_writes_what_transformers_loads(run: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = run("convert", tiny_llama, tmp_path / "out", "--dtype", "bfloat16")
    assert result == (0, f"{tmp_path / 'out'}\n", "")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama).to(torch.bfloat16).state_dict()
    assert network.dtype == torch.bfloat16
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("the cat").input_ids == [261, 270]


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_it_does_not_write_over_what_is_there(run: Callable, tiny_llama: Path, tmp_path: Path, taken: str) -> None:
    place = tmp_path / "place"
    if taken == "file":
        place.write_text("precious")
    else:
        place.mkdir()
        (place / "precious").write_text("")
    before = sorted(tmp_path.rglob("*"))
    result = run("convert", tiny_llama, place)
    assert result.code == 2 and str(place) in result.err and result.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_overwrite_is_a_word_to_say(run: Callable, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("")
    assert run("convert", tiny_llama, tmp_path, "--overwrite").code == 0
    assert (tmp_path / "model.safetensors").is_file()
