from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import (
    llama_cpp_names,
    permuted,
    prove_gguf,
    prove_gguf_against_transformers,
    usual_metadata,
    write_gguf,
)
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from torch import nn
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from polyformer.core import Causal, SlidingWindow
from polyformer.errors import ConfigError
from polyformer.families import find_family, find_gguf_family, find_writer

# MistralRMSNorm, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("mistral")


def settings(**changes: Any) -> MistralConfig:
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
        sliding_window=9,
    )
    return MistralConfig(**{**values, **changes})


VARIANTS = {
    "window": {},
    "no window, tied": dict(sliding_window=None, tie_word_embeddings=True, head_dim=None),
    "another base and activation": dict(
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, hidden_act="gelu", num_key_value_heads=1
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(MistralForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", MistralForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(MistralForCausalLM, settings(), tmp_path)


def test_a_missing_window_is_the_class_default_and_null_is_none() -> None:
    values = settings().to_dict()
    del values["sliding_window"]
    assert FAMILY.read_config(values).stack.layers[0].attention.mask == SlidingWindow(4096)
    assert FAMILY.read_config({**values, "sliding_window": None}).stack.layers[0].attention.mask == Causal()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"hidden_act": "snake"}, "hidden_act='snake' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ({"rope_scaling": {"rope_type": "wavy"}}, "rope_type 'wavy' is not supported"),
        ({"architectures": ["MistralForTokenClassification"]}, "MistralForTokenClassification"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    values = {**settings().to_dict(), **change}
    if "rope_scaling" in change:
        del values["rope_parameters"]
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config(values)


def gguf_file(model: nn.Module, path: Path, **more: Any) -> Path:
    config = model.config
    metadata = {
        **usual_metadata(config),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": config.head_dim,
    }
    tensors = llama_cpp_names("llama", model.state_dict(), config.num_hidden_layers)
    for name in list(tensors):
        if "attn_q." in name:
            tensors[name] = permuted(tensors[name], config.num_attention_heads)
        elif "attn_k." in name:
            tensors[name] = permuted(tensors[name], config.num_key_value_heads)
    return write_gguf(path, "llama", {**metadata, **more}, tensors, vocab_size=config.vocab_size)


def test_gguf(tmp_path: Path) -> None:
    model = saved(MistralForCausalLM, settings(sliding_window=None), tmp_path / "hf")
    path = gguf_file(model, tmp_path / "model.gguf")
    prove_gguf(path, model)
    prove_gguf_against_transformers(path, LlamaForCausalLM)  # it cannot read Mistral itself


def test_gguf_with_a_window(tmp_path: Path) -> None:
    model = saved(MistralForCausalLM, settings(), tmp_path / "hf")
    network = prove_gguf(gguf_file(model, tmp_path / "model.gguf", **{"attention.sliding_window": 9}), model)
    assert find_writer(find_gguf_family("llama"), network.config) is FAMILY
