from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import (
    llama_cpp_names,
    load_gguf,
    permuted,
    prove_gguf,
    prove_gguf_against_transformers,
    usual_metadata,
    write_gguf,
)
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from polyformer.core.rotary import FactorScaling, Llama3Scaling
from polyformer.errors import ConfigError
from polyformer.families import find_family

# LlamaRMSNorm and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("llama")


def settings(**changes: Any) -> LlamaConfig:
    values = dict(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=64,
        rms_norm_eps=3e-5,
        tie_word_embeddings=False,
    )
    return LlamaConfig(**{**values, **changes})


VARIANTS = {
    "grouped": {},
    "multi-head, tied": dict(num_key_value_heads=6, tie_word_embeddings=True),
    "multi-query, biases": dict(num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "code llama's base": dict(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "gelu": dict(hidden_act="gelu_pytorch_tanh"),
    "linear": dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
    "dynamic": dict(
        rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, max_position_embeddings=16
    ),
    "yarn": dict(
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 1e4,
        }
    ),
    "llama3": dict(
        rope_parameters={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 5e5,
        }
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(LlamaForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32, by_length=name == "dynamic")
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", LlamaForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(LlamaForCausalLM, settings(), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "silly"}, "hidden_act='silly' is not supported.*did you mean 'silu'"),
        ({"rope_interleaved": True}, "rope_interleaved=True is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type 'spiral' is not supported"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_scaling has no 'factor'"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "'LlamaForSequenceClassification' is not supported"),
        ({"num_key_value_heads": 4}, "num_heads 6 is not a multiple of num_key_value_heads 4"),
        ({"num_attention_heads": None}, "has no 'num_attention_heads'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def test_a_network_of_another_kind_is_not_written() -> None:
    gemma = find_family("gemma")
    config = gemma.read_config({**settings().to_dict(), "architectures": None})
    with pytest.raises(ConfigError, match="a 'llama' config cannot express"):
        FAMILY.write_config(config)


def gguf_file(model: Any, path: Path, extra: dict[str, Tensor] | None = None, **more: Any) -> Path:
    config = model.config
    metadata = {
        **usual_metadata(config),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": config.head_dim,
    }
    tensors = llama_cpp_names("llama", model.state_dict(), config.num_hidden_layers)
    for name in list(tensors):
        for part, heads in (("attn_q.", config.num_attention_heads), ("attn_k.", config.num_key_value_heads)):
            if part in name:
                tensors[name] = permuted(tensors[name], heads)
    if config.tie_word_embeddings:
        del tensors["output.weight"]
    everything = {**tensors, **(extra or {})}
    return write_gguf(path, "llama", {**metadata, **more}, everything, vocab_size=config.vocab_size)


@pytest.mark.parametrize("name", ["grouped", "multi-head, tied", "code llama's base"])
def test_gguf(name: str, tmp_path: Path) -> None:
    model = saved(LlamaForCausalLM, settings(**VARIANTS[name]), tmp_path / "hf")
    path = gguf_file(model, tmp_path / "model.gguf")
    prove_gguf(path, model)
    prove_gguf_against_transformers(path, LlamaForCausalLM)


def test_gguf_with_biases(tmp_path: Path) -> None:
    model = saved(LlamaForCausalLM, settings(attention_bias=True, mlp_bias=True), tmp_path / "hf")
    prove_gguf(gguf_file(model, tmp_path / "model.gguf"), model)


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_gguf_stretched_linearly(key: str, tmp_path: Path) -> None:
    """Under the name of today and that of the first files, which have no type."""
    model = saved(LlamaForCausalLM, settings(**VARIANTS["linear"]), tmp_path / "hf")
    prove_gguf(gguf_file(model, tmp_path / "model.gguf", **{key: 4.0}), model)


@pytest.mark.parametrize(("original", "known"), [(8192, Llama3Scaling), (16, FactorScaling)])
def test_gguf_of_llama3_has_a_factor_a_pair(original: int, known: type, tmp_path: Path) -> None:
    """The converter works the factors out. Those of the public models are recognised, so that they can be exported."""
    scaling = {**VARIANTS["llama3"]["rope_parameters"], "original_max_position_embeddings": original}
    model = saved(
        LlamaForCausalLM, settings(rope_parameters=scaling, max_position_embeddings=2 * original), tmp_path / "hf"
    )
    factors = []
    for pair in range(5):
        wavelength = 2 * math.pi * scaling["rope_theta"] ** (pair / 5)
        smooth = (original / wavelength - 1.0) / (4.0 - 1.0)
        between = 1 / ((1 - smooth) / 8.0 + smooth)
        factors.append(1.0 if wavelength < original / 4.0 else 8.0 if wavelength > original else between)
    extra = {"rope_freqs.weight": torch.tensor(factors)}
    network = prove_gguf(gguf_file(model, tmp_path / "model.gguf", extra), model, length=61)
    assert isinstance(network.config.stack.layers[0].attention.positions.scaling, known)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"rope.scaling.type": "spiral"}, "rope.scaling.type='spiral' is not supported"),
        ({"rope.scaling.type": "yarn", "rope.scaling.attn_factor": 1.5}, "attn_factor=1.5 is not supported"),
        ({"attention.value_length": 12}, "attention.value_length=12 is not supported"),
        ({"attention.causal": False}, "attention.causal=False is not supported"),
    ],
)
def test_gguf_refuses_by_name(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = saved(LlamaForCausalLM, settings(num_hidden_layers=1), tmp_path / "hf")
    with pytest.raises(ConfigError, match=said):
        load_gguf(gguf_file(model, tmp_path / "model.gguf", **more))
