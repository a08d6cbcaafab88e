from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama_cpp_names, prove_gguf, usual_metadata, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import GemmaConfig, GemmaForCausalLM

from polyformer.errors import ConfigError
from polyformer.families import find_family

# GemmaRMSNorm, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("gemma")


def settings(**changes: Any) -> GemmaConfig:
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
    )
    return GemmaConfig(**{**values, **changes})


VARIANTS = {
    "tied": {},
    "untied, biases, one key head": dict(tie_word_embeddings=False, attention_bias=True, num_key_value_heads=1),
    "another base": dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(GemmaForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", GemmaForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(GemmaForCausalLM, settings(), tmp_path)


def test_the_first_checkpoints_say_gelu_and_mean_its_approximation() -> None:
    values = settings().to_dict()
    assert FAMILY.read_config({**values, "hidden_act": "gelu"}) == FAMILY.read_config(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"hidden_activation": "relu"}, "hidden_activation='relu' is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def test_gguf(tmp_path: Path) -> None:
    """The converter adds the one to the norms. (transformers reads no GGUF file of this architecture.)"""
    model = saved(GemmaForCausalLM, settings(), tmp_path / "hf")
    stored = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    tensors = llama_cpp_names("gemma", stored, 3)
    shifted = {name: tensor + 1 if name.endswith("norm.weight") else tensor for name, tensor in tensors.items()}
    metadata = usual_metadata(model.config)
    del metadata["rope.freq_base"]  # this converter does not write it
    path = write_gguf(tmp_path / "model.gguf", "gemma", metadata, shifted, vocab_size=131)
    prove_gguf(path, model)
