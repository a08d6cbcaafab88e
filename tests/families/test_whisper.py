"""Whisper against transformers, from both kinds of files."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof import close
from proof_encoder_decoder import BATCH, prove_encoder_decoder, saved_pair
from torch import Tensor

from polyformer.checkpoints.ctranslate2 import CTranslate2File
from polyformer.checkpoints.loading import open_checkpoint
from polyformer.errors import CheckpointError, ConfigError
from polyformer.families import find_family


def make_config(**options: Any) -> transformers.WhisperConfig:
    values = {
        "vocab_size": 61,
        "num_mel_bins": 11,
        "d_model": 24,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 3,
        "encoder_ffn_dim": 37,
        "decoder_ffn_dim": 29,
        "max_source_positions": 19,
        "max_target_positions": 30,
        "activation_function": "gelu_new",
        "dropout": 0.1,
        "decoder_start_token_id": 3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "begin_suppress_tokens": [2],
    }
    return transformers.WhisperConfig(**{**values, **options})


def sound(frames: int = 38) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {"input_features": torch.randn(BATCH, 11, frames, generator=generator, dtype=torch.float64)}


@pytest.mark.parametrize("name", ["WhisperForConditionalGeneration", "WhisperModel"])
def test_whisper(name: str, tmp_path: Path) -> None:
    prove_encoder_decoder(getattr(transformers, name), make_config(), tmp_path, source=sound())


def test_shorter_sound_reads_the_first_positions(tmp_path: Path) -> None:
    """transformers insists on whole windows; a shorter one must be what the first positions make of it."""
    saved_pair(transformers.WhisperForConditionalGeneration, make_config(), tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        network: Any = checkpoint.load()
    features = sound(20)["input_features"]
    with torch.no_grad():
        states = network.encode(input_features=features).last_hidden_state
    assert states.shape == (BATCH, 10, 24)
    with pytest.raises(ConfigError, match="make 20 vectors, but this network has positions for 19"):
        network.encode(input_features=sound(40)["input_features"])


def test_positions_of_the_sound_begin_as_published_and_stay() -> None:
    network: Any = find_family("whisper").read_config(make_config().to_dict()).build()
    theirs = transformers.WhisperModel(make_config()).get_encoder().embed_positions.weight
    positions = network.encoder.embedding.positions.weight
    close(positions, theirs, 1e-6, "positions")
    assert not positions.requires_grad and not theirs.requires_grad
    assert network.decoder.embedding.positions.weight.requires_grad


def test_what_is_refused() -> None:
    values = make_config().to_dict()
    with pytest.raises(ConfigError, match="scale_embedding=True is not supported"):
        find_family("whisper").read_config({**values, "scale_embedding": True})


# --- CTranslate2's file ---------------------------------------------------------------------------------------------

KINDS = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.int32: 3, torch.float16: 4}


def write_ctranslate2(path: Path, spec: str, variables: Mapping[str, Tensor], aliases: Mapping[str, str]) -> None:
    """The file as its specification describes it."""

    def text(value: str) -> bytes:
        data = value.encode() + b"\0"
        return struct.pack("<H", len(data)) + data

    out = struct.pack("<I", 6) + text(spec) + struct.pack("<II", 3, len(variables))
    for name, tensor in variables.items():
        out += text(name) + struct.pack("<B", tensor.dim()) + b"".join(struct.pack("<I", size) for size in tensor.shape)
        data = tensor.contiguous().numpy().tobytes()
        out += struct.pack("<BI", KINDS[tensor.dtype], len(data)) + data
    out += struct.pack("<I", len(aliases)) + b"".join(text(a) + text(b) for a, b in aliases.items())
    path.write_bytes(out)


def their_variables(network: Any, family: Any) -> dict[str, Tensor]:
    parameters = dict(network.named_parameters())
    variables: dict[str, Tensor] = {}
    for step in family.ctranslate2.weight_table(network.config).steps(set(parameters)):
        made = step.to_theirs([parameters[name].detach().float() for name in step.ours])
        variables.update(zip(step.theirs, made, strict=True))
    variables["encoder/num_heads"] = torch.tensor(4, dtype=torch.int16)
    variables["decoder/num_heads"] = torch.tensor(3, dtype=torch.int16)
    return variables


@pytest.fixture
def ctranslate2_folder(tmp_path: Path) -> tuple[Path, Any, dict[str, Tensor]]:
    # The file does not name the activation, so that of the paper is meant.
    config = make_config(activation_function="gelu")
    saved_pair(transformers.WhisperForConditionalGeneration, config, tmp_path / "hf", torch.float32)
    with open_checkpoint(tmp_path / "hf") as checkpoint:
        network: Any = checkpoint.load()
        variables = their_variables(network, checkpoint.family)
    folder = tmp_path / "ct2"
    folder.mkdir()
    (folder / "config.json").write_text('{"suppress_ids": [4, 5], "alignment_heads": [[1, 0]]}')
    aliases = {"decoder/projection/weight": "decoder/embeddings/weight"}
    write_ctranslate2(folder / "model.bin", "WhisperSpec", variables, aliases)
    return folder, network, variables


def test_ctranslate2(ctranslate2_folder: tuple[Path, Any, dict[str, Tensor]]) -> None:
    folder, network, _ = ctranslate2_folder
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.family.name == "whisper"
        assert checkpoint.values["suppress_tokens"] == [4, 5] and checkpoint.values["alignment_heads"] == [[1, 0]]
        again: Any = checkpoint.load()
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_ctranslate2_is_validated(ctranslate2_folder: tuple[Path, Any, dict[str, Tensor]]) -> None:
    from polyformer.checkpoints.validate import validate

    folder, _, variables = ctranslate2_folder
    found = {check.name: check for check in validate(folder).checks}
    assert found["files"].status == found["config"].status == found["weights"].status == "ok"
    assert found["config"].details[0] == "whisper, vocabulary of 61, 30 tokens of context"
    del variables["decoder/layer_1/ffn/linear_0/bias"]
    write_ctranslate2(folder / "model.bin", "WhisperSpec", variables, {})
    found = {check.name: check for check in validate(folder).checks}
    assert found["weights"].status == "failed" and "1 missing" in found["weights"].details[0]


def test_ctranslate2_in_eight_bits(ctranslate2_folder: tuple[Path, Any, dict[str, Tensor]]) -> None:
    folder, network, variables = ctranslate2_folder
    small: dict[str, Tensor] = {}
    for name, tensor in variables.items():
        if tensor.dim() == 2 and name.endswith("weight"):
            scale = 127 / tensor.abs().amax(1)
            small[name] = (tensor * scale[:, None]).round().to(torch.int8)
            small[f"{name}_scale"] = scale
        else:
            small[name] = tensor
    write_ctranslate2(folder / "model.bin", "WhisperSpec", small, {})
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.is_quantized
        again: Any = checkpoint.load(dtype=torch.float32)
    for name, parameter in network.named_parameters():
        close(again.get_parameter(name), parameter, 0.02, name)


def test_a_key_bias_is_not_dropped_in_silence(ctranslate2_folder: tuple[Path, Any, dict[str, Tensor]]) -> None:
    folder, _, variables = ctranslate2_folder
    variables["decoder/layer_0/self_attention/linear_0/bias"][30] = 1
    write_ctranslate2(folder / "model.bin", "WhisperSpec", variables, {})
    with open_checkpoint(folder) as checkpoint, pytest.raises(CheckpointError, match="should be zero, but is not"):
        checkpoint.load()


def test_damaged_files(ctranslate2_folder: tuple[Path, Any, dict[str, Tensor]]) -> None:
    folder, _, variables = ctranslate2_folder
    path = folder / "model.bin"
    whole = path.read_bytes()
    for length in (0, 3, 10, 100, 1000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut short|is empty"):
            CTranslate2File(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(CheckpointError, match="4 bytes follow its end"):
        CTranslate2File(path)
    path.write_bytes(struct.pack("<I", 5) + whole[4:])
    with pytest.raises(CheckpointError, match=r"no CTranslate2 file of version 6 \(it says 5\)"):
        open_checkpoint(folder)
    write_ctranslate2(path, "TransformerSpec", variables, {})
    with pytest.raises(ConfigError, match="models of the kind 'TransformerSpec' are not read"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("[]")
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        open_checkpoint(folder)
