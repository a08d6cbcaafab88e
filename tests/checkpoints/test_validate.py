"""Reports about whole and broken checkpoints, from headers alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from polyformer.checkpoints import validate as module
from polyformer.checkpoints.saving import save_network
from polyformer.checkpoints.validate import Report, validate
from polyformer.families import find_family

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def write_tokenizer(folder: Path, *, lower: bool = False) -> None:
    """A tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if lower:
        from tokenizers import normalizers

        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = find_family("llama").read_config(LLAMA).build()
    save_network(network, find_family("llama"), tmp_path / "model")
    write_tokenizer(tmp_path / "model")
    return tmp_path / "model"


def statuses(report: Report) -> dict[str, str]:
    return {check.name: check.status for check in report.checks}


def details(report: Report, name: str) -> str:
    return "\n".join(next(check for check in report.checks if check.name == name).details)


def test_a_sound_folder(folder: Path) -> None:
    report = validate(folder)
    assert report.ok
    assert statuses(report) == dict.fromkeys(["files", "config", "tokenizer", "weights", "memory"], "ok")
    assert "float32)" in details(report, "files")
    assert details(report, "config") == "llama, vocabulary of 300, 64 tokens of context"
    assert details(report, "tokenizer") == "256 tokens, without a chat template"
    assert details(report, "weights") == "all 21 fit by name and shape"
    count = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert f"{count:,} parameters" in details(report, "memory")
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True
    assert len(report.lines()) == 5


def test_no_tokenizer_is_only_a_note(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    report = validate(folder)
    assert report.ok
    assert statuses(report)["tokenizer"] == "note"


def test_a_tokenizer_that_changes_text_is_a_note(folder: Path) -> None:
    write_tokenizer(folder, lower=True)
    report = validate(folder)
    assert report.ok
    assert "'Hello, world!' comes back as 'hello, world!'" in details(report, "tokenizer")


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.update({f"extra{number}": len(vocabulary) + number for number in range(100)})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    report = validate(folder)
    assert not report.ok
    assert "the tokenizer has 356 tokens, and the network 300" in details(report, "tokenizer")


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    report = validate(folder)
    assert statuses(report)["tokenizer"] == "failed"
    assert "tokenizer.json" in details(report, "tokenizer")
    assert statuses(report)["weights"] == "ok"


def test_weights_that_do_not_fit(folder: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    del tensors["model.norm.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 32)
    tensors["surprise"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors")
    report = validate(folder)
    assert not report.ok
    text = details(report, "weights")
    assert "missing     model.norm.weight" in text
    assert "unexpected  surprise" in text
    assert "model.layers.0.mlp.up_proj.weight: the file has [3, 32], the network needs [48, 32]" in text


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    report = validate(folder)
    found = statuses(report)
    assert found == {"files": "failed", "config": "ok", "tokenizer": "ok", "weights": "skipped", "memory": "ok"}
    assert "model.safetensors is damaged or cut short" in details(report, "files")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, "'lama' is not known; the nearest are llama"),
        ({"hidden_size": None}, "has no 'hidden_size'"),
        ({"hidden_act": "swishy"}, "hidden_act='swishy' is not supported"),
        ({"num_attention_heads": "four"}, "must be a whole number"),
    ],
)
def test_a_config_that_cannot_be(folder: Path, change: dict[str, Any], message: str) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **change}))
    report = validate(folder)
    assert statuses(report)["config"] == "failed"
    assert statuses(report)["weights"] == statuses(report)["memory"] == "skipped"
    assert message in details(report, "config")


def test_keys_that_are_not_known_are_noted(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "warp_drive": 9}))
    report = validate(folder)
    assert report.ok
    assert "keys of config.json that are not known here: warp_drive" in details(report, "config")


def test_nothing_there(tmp_path: Path) -> None:
    report = validate(tmp_path / "nowhere")
    assert not report.ok
    assert "nowhere does not exist" in details(report, "files")
    report = validate(tmp_path)
    assert not report.ok
    assert "holds no weights" in details(report, "files")


def test_garbage_is_reported_and_never_raised(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 9)
    assert not validate(tmp_path / "x.gguf").ok
    (tmp_path / "config.json").write_bytes(bytes(range(256)))
    (tmp_path / "tokenizer.json").write_bytes(bytes(range(256)))
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    assert set(statuses(validate(tmp_path)).values()) == {"failed", "skipped"}
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_attention_heads": 10**30}))
    assert not validate(tmp_path).ok


def test_an_error_that_nobody_foresaw_is_reported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "plan_for", explode)
    report = validate(folder)
    assert details(report, "weights") == "ZeroDivisionError: a bug"


def write_sparse_shards(folder: Path, config: dict[str, Any]) -> int:
    """Safetensors with true headers and holes for weights: as long as a real checkpoint, and as short on disk."""
    from polyformer.checkpoints.loading import build_on_meta

    family = find_family("llama")
    tree = family.read_config(config)
    network = build_on_meta(tree)
    parameters = dict(network.named_parameters())
    shapes = {
        name: tuple(tensor.shape)
        for step in family.weight_table(tree).steps(parameters)
        for name, tensor in zip(step.theirs, step.to_theirs([parameters[ours] for ours in step.ours]), strict=True)
    }
    names, total, weight_map = sorted(shapes), 0, {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        header, offset = {}, 0
        file = f"model-0000{number}-of-00002.safetensors"
        for name in part:
            nbytes = torch.Size(shapes[name]).numel() * 2
            header[name] = {"dtype": "BF16", "shape": shapes[name], "data_offsets": [offset, offset + nbytes]}
            offset += nbytes
            weight_map[name] = file
        encoded = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(encoded).to_bytes(8, "little") + encoded)
            out.truncate(8 + len(encoded) + offset)
        total += offset
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    return total


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
def test_a_7b_folder_takes_seconds(tmp_path: Path) -> None:
    big = {**LLAMA, "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32}
    big |= {"num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": False}
    assert write_sparse_shards(tmp_path, big) == 6_738_415_616 * 2  # LLaMA 7B
    write_tokenizer(tmp_path)
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = validate(tmp_path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert report.ok
    assert "6,738,415,616 parameters: 13.5 GB as bfloat16" in details(report, "memory")
    assert "13.5 GB" in details(report, "files")
    assert grown < 500_000  # kB: only headers were read
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    report = validate(tmp_path)
    assert "model-00002-of-00002.safetensors is missing (146 tensors are in it)" in details(report, "files")


@pytest.mark.parametrize(("available", "status"), [(10**12, "ok"), (100_000, "note"), (1000, "note")])
def test_memory_that_does_not_suffice_is_noted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, available: int, status: str
) -> None:
    monkeypatch.setattr(module, "_available_memory", lambda: available)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = validate(folder)
    assert report.ok
    assert statuses(report)["memory"] == status


def test_networks_that_read_pictures(tmp_path: Path) -> None:
    import transformers
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    vision |= {"image_size": 8, "patch_size": 4}
    text = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"intermediate_size": 20, "max_position_embeddings": 9, "eos_token_id": 2}
    transformers.ViTForImageClassification(transformers.ViTConfig(**vision)).save_pretrained(tmp_path / "vit")
    config = transformers.CLIPConfig(text_config=text, vision_config=vision)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    report = validate(tmp_path / "vit")
    assert report.ok
    found = {check.name: check for check in report.checks}
    assert found["config"].details[0] == "vit, reads pictures"
    assert "there is no preprocessor_config.json" in found["config"].details[1]
    assert found["tokenizer"].details == ("none is needed: the network reads no text",)
    ViTImageProcessorPil().save_pretrained(tmp_path / "clip")
    found = {check.name: check for check in validate(tmp_path / "clip").checks}
    assert found["config"].status == "ok" and found["config"].details == (
        "clip, vocabulary of 30, 9 tokens of context",
    )
