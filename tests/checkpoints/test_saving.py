"""From networks to files: bit-equal, whole or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from polyformer.checkpoints import saving
from polyformer.checkpoints.disk import DiskFullError
from polyformer.checkpoints.loading import open_checkpoint
from polyformer.checkpoints.saving import save_network
from polyformer.checkpoints.sources import open_tensors
from polyformer.errors import CheckpointError
from polyformer.families import find_family

LLAMA = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def make_network(*, tied: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = find_family("llama").read_config({**LLAMA, "tie_word_embeddings": tied}).build()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    result: torch.nn.Module = network.to(dtype).eval()
    return result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_loads_it_bit_equal(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    network = make_network(tied=tied, dtype=dtype)
    save_network(network, find_family("llama"), tmp_path / "out")
    assert names(tmp_path / "out") == ["config.json", "model.safetensors"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert ("lm_head.weight" in written) != tied
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.dtype == dtype
    state = theirs.state_dict()
    for name, tensor in written.items():
        assert torch.equal(state[name], tensor), name
    ids = torch.tensor([[1, 2, 96]])
    with torch.no_grad():
        ours, expected = network(ids).logits, theirs(ids).logits
    assert torch.allclose(ours.float(), expected.float(), atol=1e-5 if dtype == torch.float32 else 0.05)
    assert same(open_checkpoint(tmp_path / "out").load(), network)


def test_a_family_that_transposes_and_fuses_comes_back_bit_equal(tmp_path: Path) -> None:
    """From transformers, through us, and back: every tensor of the file is what it was."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(2)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=61, n_positions=24))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    network = open_checkpoint(tmp_path / "theirs").load()
    save_network(network, find_family("gpt2"), tmp_path / "ours")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in theirs.state_dict().items())


def test_the_native_family_comes_back_bit_equal(tmp_path: Path) -> None:
    """The native family keeps our own names; the round trip must be exact there too."""
    network = make_network(tied=False)
    save_network(network, find_family("polyformer"), tmp_path / "native")
    assert same(open_checkpoint(tmp_path / "native").load(), network)


def test_shards_and_index(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    network = make_network()
    save_network(network, find_family("llama"), tmp_path / "out", shard_bytes=20_000)
    files = names(tmp_path / "out")
    shards = [name for name in files if name.startswith("model-")]
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in network.parameters())
    assert sorted(set(index["weight_map"].values())) == shards
    for shard in shards:
        tensors = load_file(tmp_path / "out" / shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 20_000
    assert same(open_checkpoint(tmp_path / "out").load(), network)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    table = theirs.state_dict()["model.embed_tokens.weight"]
    assert torch.equal(table, network.get_parameter("embedding.tokens.weight"))


def test_saving_over_an_earlier_save(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save_network(make_network(), find_family("llama"), out, shard_bytes=20_000)
    (out / "notes.txt").write_text("mine")
    other = make_network(seed=1)
    save_network(other, find_family("llama"), out)
    assert names(out) == ["config.json", "model.safetensors", "notes.txt"]
    assert same(open_checkpoint(out).load(), other)


def test_saving_over_the_files_the_network_is_mapped_from(tmp_path: Path) -> None:
    out = tmp_path / "out"
    network = make_network()
    save_network(network, find_family("llama"), out)
    mapped = open_checkpoint(out).load()
    with torch.no_grad():
        mapped.get_parameter("stack.norm.weight").add_(1)
    save_network(mapped, find_family("llama"), out)
    again = open_checkpoint(out).load()
    assert same(again, mapped)
    assert not same(again, network)


class Tokenizer:
    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_companions(tmp_path: Path) -> None:
    save_network(
        make_network(),
        find_family("llama"),
        tmp_path / "deep" / "out",
        writers=[Tokenizer().save],
        generation_config={"eos_token_id": [1, 2]},
    )
    assert names(tmp_path / "deep" / "out") == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    text = (tmp_path / "deep" / "out" / "generation_config.json").read_text()
    assert json.loads(text) == {"eos_token_id": [1, 2]}


def test_no_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 0))
    with pytest.raises(DiskFullError, match="no disk space: saving to out needs"):
        save_network(make_network(), find_family("llama"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


FAILURES: list[BaseException] = [
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("failure", FAILURES, ids=["safetensors", "os", "ctrl-c"])
@pytest.mark.parametrize("existed", [True, False])
def test_a_failure_on_the_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, existed: bool
) -> None:
    out = tmp_path / "out"
    network = make_network()
    if existed:
        save_network(network, find_family("llama"), out)
    real, calls = saving.save_file, []

    def fail_on_the_second(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise failure
        real(*args, **options)

    monkeypatch.setattr(saving, "save_file", fail_on_the_second)
    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else DiskFullError
    with pytest.raises(expected):
        save_network(make_network(seed=1), find_family("llama"), out, shard_bytes=20_000)
    assert len(calls) == 2
    assert names(tmp_path) == (["out"] if existed else [])
    if existed:
        assert names(out) == ["config.json", "model.safetensors"]
        assert same(open_checkpoint(out).load(), network)


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(CheckpointError, match="is a file: name a folder"):
        save_network(make_network(), find_family("llama"), tmp_path / "out")


def test_the_files_are_readable_one_by_one(tmp_path: Path) -> None:
    save_network(make_network(), find_family("llama"), tmp_path / "out")
    with open_tensors(tmp_path / "out") as source:
        assert source.shape("model.embed_tokens.weight") == (97, 32)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_the_weights_may_be_read_by_whoever_may_read_the_config(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_network(make_network(), find_family("llama"), tmp_path / "out", shard_bytes=10_000)
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").iterdir()}
    assert len(modes) > 3
    assert set(modes.values()) == {"0o640"}, modes
