"""Opening checkpoints of every kind, and what is said of those that are broken."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from polyformer.checkpoints.sources import open_tensors
from polyformer.errors import CheckpointError


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        "a.weight": torch.randn(7, 5),
        "b.weight": torch.randn(4, 3, dtype=torch.bfloat16),
        "c.mask": torch.tensor([True, False]),
        "d.numbers": torch.arange(6).view(2, 3),
        "e.scalar": torch.tensor(2.5),
        "f.empty": torch.empty(0, 3),
    }


def write_folder(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    tensors = some_tensors()
    first = {name: tensors[name] for name in list(tensors)[:2]}
    second = {name: tensors[name] for name in list(tensors)[2:]}
    if kind == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    elif kind == "safetensors shards":
        save_file(first, folder / "model-00001-of-00002.safetensors")
        save_file(second, folder / "model-00002-of-00002.safetensors")
        weight_map = dict.fromkeys(first, "model-00001-of-00002.safetensors")
        weight_map |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    elif kind == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif kind == "old pickle":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif kind == "pickle shards":
        torch.save(first, folder / "pytorch_model-00001-of-00002.bin")
        torch.save(second, folder / "pytorch_model-00002-of-00002.bin")
        weight_map = dict.fromkeys(first, "pytorch_model-00001-of-00002.bin")
        weight_map |= dict.fromkeys(second, "pytorch_model-00002-of-00002.bin")
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


KINDS = ["safetensors", "safetensors shards", "pickle", "old pickle", "pickle shards"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep_mapped", [True, False])
def test_every_kind_gives_the_same_tensors(tmp_path: Path, kind: str, keep_mapped: bool) -> None:
    tensors = write_folder(tmp_path, kind)
    with open_tensors(tmp_path) as source:
        assert sorted(source.names()) == sorted(tensors)
        loaded = {name: source.load(name, keep_mapped=keep_mapped) for name in source.names()}
        for name, tensor in tensors.items():
            assert source.shape(name) == tuple(tensor.shape)
            assert source.dtype(name) == tensor.dtype
            assert source.nbytes(name) == tensor.nbytes
            half = source.load(name, torch.float16)
            assert torch.equal(half, tensor.half() if tensor.is_floating_point() else tensor)
        with pytest.raises(CheckpointError, match="no tensor called x"):
            source.load("x")
    for name, tensor in tensors.items():  # they outlive the source
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    save_file({"right": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"wrong": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert open_tensors(tmp_path).names() == ["right"]


def test_single_files(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "some.safetensors")
    torch.save({"state_dict": {"y": torch.ones(2)}}, tmp_path / "some.pt")
    assert open_tensors(tmp_path / "some.safetensors").names() == ["x"]
    assert open_tensors(tmp_path / "some.pt").names() == ["y"]


def test_a_mapped_tensor_does_not_touch_the_file(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(4096)}, tmp_path / "model.safetensors")
    source = open_tensors(tmp_path)
    source.load("x").fill_(5)
    assert torch.equal(open_tensors(tmp_path).load("x"), torch.zeros(4096))


def expect(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_tensors(path)
    assert "\n" not in str(caught.value)


def test_missing_things(tmp_path: Path) -> None:
    expect(tmp_path / "nowhere", "does not exist")
    expect(tmp_path, "holds no weights")
    (tmp_path / "notes.txt").write_text("hello")
    expect(tmp_path / "notes.txt", "not a kind of weights file")
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    expect(tmp_path, r"several GGUF files \(a.gguf, b.gguf\)")


@pytest.mark.parametrize("length", [0, 4, 8, 100, -1])
def test_truncated_safetensors(tmp_path: Path, length: int) -> None:
    write_folder(tmp_path, "safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    expect(tmp_path, r"model\.safetensors is damaged or cut short .*fetch it again")


def test_bad_safetensors_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((20).to_bytes(8, "little") + b"this is not json....")
    expect(tmp_path, "damaged or cut short")
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    expect(tmp_path, "damaged or cut short")


def test_missing_shard(tmp_path: Path) -> None:
    write_folder(tmp_path, "safetensors shards")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    expect(tmp_path, r"model-00002-of-00002\.safetensors is missing \(4 tensors are in it\)")


@pytest.mark.parametrize("content", ["not json", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}'])
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_bad_index(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    expect(tmp_path, f"{name} (is not a readable JSON index|has no)")


def test_index_that_leaves_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    expect(tmp_path, "points outside the folder")


def test_index_that_does_not_fit_the_shards(tmp_path: Path) -> None:
    write_folder(tmp_path, "safetensors shards")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    wrong = {**index, "weight_map": {**index["weight_map"], "ghost": "model-00001-of-00002.safetensors"}}
    path.write_text(json.dumps(wrong))
    expect(tmp_path, "places ghost in .* but it is in no shard")
    del index["weight_map"]["a.weight"]
    path.write_text(json.dumps(index))
    expect(tmp_path, r"not in the index, such as a\.weight")


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    tensors = write_folder(tmp_path, "safetensors shards")
    save_file(tensors, tmp_path / "model-00001-of-00002.safetensors")
    expect(tmp_path, "is in model-00001-of-00002.safetensors and again in")


class Payload:
    """Unpickling this object would write a file: the proof that code ran."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.proof,))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "it-ran"
    content = {"weight": torch.ones(2), "payload": Payload(proof)}
    torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    expect(tmp_path, "holds more than weights, so it could run code, and is refused")
    assert not proof.exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert proof.exists()  # the payload does work where it is let


def test_a_bare_pickle_with_code_is_refused(tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(proof), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_tensors(tmp_path)
    assert not proof.exists()


def test_damaged_pickles(tmp_path: Path) -> None:
    write_folder(tmp_path, "pickle")
    path = tmp_path / "pytorch_model.bin"
    content = path.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:length])
        expect(tmp_path, r"pytorch_model\.bin (is damaged|is not a readable)")
    torch.save([torch.ones(2)], path)
    expect(tmp_path, "not a table of named tensors")
