from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama_cpp_names, prove_gguf, prove_gguf_against_transformers, usual_metadata, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import Gemma2Config, Gemma2ForCausalLM

from polyformer.core import Causal, SlidingWindow
from polyformer.errors import ConfigError
from polyformer.families import find_family

# Gemma2RMSNorm, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("gemma2")


def settings(**changes: Any) -> Gemma2Config:
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
        sliding_window=6,
        query_pre_attn_scalar=17,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=5.0,
    )
    return Gemma2Config(**{**values, **changes})


VARIANTS = {
    "every other layer local": {},
    "untied, biases, local last": dict(
        tie_word_embeddings=False,
        attention_bias=True,
        num_key_value_heads=1,
        layer_types=["full_attention", "full_attention", "sliding_attention"],
    ),
    "no caps": dict(attn_logit_softcapping=None, final_logit_softcapping=None),
    "all global, exact gelu": dict(layer_types=["full_attention"] * 3, hidden_activation="gelu"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(Gemma2ForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", Gemma2ForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(Gemma2ForCausalLM, settings(), tmp_path)


def test_older_configs_have_no_layer_types() -> None:
    values = settings().to_dict()
    del values["layer_types"]
    masks = [layer.attention.mask for layer in FAMILY.read_config(values).stack.layers]
    assert masks == [SlidingWindow(6), Causal(), SlidingWindow(6)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"hidden_activation": "geglu"}, "hidden_activation='geglu' is not supported"),
        ({"sliding_window": None}, "sliding_window is null"),
        ({"layer_types": ["full_attention"] * 2}, "2 types, but there are 3 layers"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def gguf_file(model: Any, path: Path) -> Path:
    config = model.config
    stored = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    tensors = llama_cpp_names("gemma2", stored, config.num_hidden_layers)
    shifted = {name: tensor + 1 if name.endswith("norm.weight") else tensor for name, tensor in tensors.items()}
    metadata = {
        **usual_metadata(config),
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "attention.sliding_window": config.sliding_window,
    }
    del metadata["rope.freq_base"]  # this converter does not write it
    return write_gguf(path, "gemma2", metadata, shifted, vocab_size=config.vocab_size)


def test_gguf(tmp_path: Path) -> None:
    model = saved(Gemma2ForCausalLM, settings(query_pre_attn_scalar=10), tmp_path / "hf")
    prove_gguf(gguf_file(model, tmp_path / "model.gguf"), model)


def test_gguf_against_transformers(tmp_path: Path) -> None:
    """It reads neither caps nor the scale out of such a file, and takes the defaults of the class."""
    config = settings(
        head_dim=256,
        num_attention_heads=2,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )
    model = saved(Gemma2ForCausalLM, config, tmp_path / "hf")
    path = gguf_file(model, tmp_path / "model.gguf")
    prove_gguf(path, model)
    prove_gguf_against_transformers(path, Gemma2ForCausalLM)


def test_gguf_of_the_27b_model_scales_by_hidden_size(tmp_path: Path) -> None:
    config = settings(
        num_hidden_layers=46, query_pre_attn_scalar=8, hidden_size=16, num_attention_heads=2, intermediate_size=8
    )
    model = saved(Gemma2ForCausalLM, config, tmp_path / "hf")
    prove_gguf(gguf_file(model, tmp_path / "model.gguf"), model, tolerance=1e-4)  # float32 through 46 layers
