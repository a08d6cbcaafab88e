from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama_cpp_names, prove_gguf, prove_gguf_against_transformers, usual_metadata, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import Qwen3Config, Qwen3ForCausalLM

from polyformer.errors import ConfigError
from polyformer.families import find_family

# Qwen3RMSNorm, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("qwen3")


def settings(**changes: Any) -> Qwen3Config:
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
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return Qwen3Config(**{**values, **changes})


VARIANTS = {
    "grouped": {},
    "tied, biases": dict(tie_word_embeddings=True, attention_bias=True, num_key_value_heads=1),
    "windows": dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(Qwen3ForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", Qwen3ForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(Qwen3ForCausalLM, settings(), tmp_path)


def test_the_width_of_heads_is_128_where_the_config_does_not_say() -> None:
    values = settings().to_dict()
    del values["head_dim"]
    assert FAMILY.read_config(values).stack.layers[0].attention.head_dim == 128


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "'linear_attention'"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"hidden_act": "swoosh"}, "hidden_act='swoosh' is not supported"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def test_gguf(tmp_path: Path) -> None:
    # transformers reads no head_dim out of such a file and takes 128
    model = saved(Qwen3ForCausalLM, settings(head_dim=128, num_attention_heads=2), tmp_path / "hf")
    tensors = llama_cpp_names("qwen3", model.state_dict(), 3)
    path = write_gguf(tmp_path / "model.gguf", "qwen3", usual_metadata(model.config), tensors, vocab_size=131)
    prove_gguf(path, model)
    prove_gguf_against_transformers(path, Qwen3ForCausalLM)
