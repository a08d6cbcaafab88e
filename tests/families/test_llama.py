from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from proof import prove, prove_float32, saved
from transformers import LlamaConfig, LlamaForCausalLM

# LlamaRMSNorm and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5


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
    prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32, by_length=name == "dynamic")


def test_float32(tmp_path: Path) -> None:
    prove_float32(LlamaForCausalLM, settings(), tmp_path)
