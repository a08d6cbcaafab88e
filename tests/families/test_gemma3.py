from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama_cpp_names, prove_gguf, prove_gguf_against_transformers, usual_metadata, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from polyformer.core import Causal, SlidingWindow
from polyformer.errors import ConfigError
from polyformer.families import find_family

# Gemma3RMSNorm, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("gemma3_text")


def settings(**changes: Any) -> Gemma3TextConfig:
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
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )
    return Gemma3TextConfig(**{**values, **changes})


LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e5}

VARIANTS = {
    "two local to one global": {},
    "untied, biases, global first": dict(
        tie_word_embeddings=False,
        attention_bias=True,
        num_key_value_heads=1,
        layer_types=["full_attention", "sliding_attention", "sliding_attention"],
    ),
    "scaled globally": dict(
        rope_parameters={
            "full_attention": LINEAR,
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
        }
    ),
    "scaled both ways": dict(
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e5}, "sliding_attention": LINEAR}
    ),
    "five local to one global": dict(
        num_hidden_layers=6, layer_types=None, hidden_size=24, intermediate_size=32, hidden_activation="silu"
    ),
    "capped logits, all global": dict(final_logit_softcapping=5.0, layer_types=["full_attention"] * 3),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(Gemma3ForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", Gemma3ForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(Gemma3ForCausalLM, settings(), tmp_path)


def test_older_configs_have_a_pattern_and_two_bases() -> None:
    values = settings(
        rope_parameters={
            "full_attention": LINEAR,
            "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
        }
    ).to_dict()
    older = {key: value for key, value in values.items() if key not in ("layer_types", "rope_parameters")}
    older |= {
        "sliding_window_pattern": 3,
        "rope_theta": 2e5,
        "rope_local_base_freq": 3e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert FAMILY.read_config(older) == FAMILY.read_config(values)
    del older["sliding_window_pattern"], older["_sliding_window_pattern"]
    masks = [layer.attention.mask for layer in FAMILY.read_config({**older, "num_hidden_layers": 7}).stack.layers]
    assert masks == [*[SlidingWindow(6)] * 5, Causal(), SlidingWindow(6)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({"architectures": ["Gemma3ForConditionalGeneration"]}, "'Gemma3ForConditionalGeneration' is not supported"),
        ({"architectures": ["Gemma3TextModel"]}, "'Gemma3TextModel' is not supported"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters holds 'rope_theta'"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported"),
        ({"sliding_window": None}, "sliding_window is null"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def test_the_model_that_sees_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'gemma3' is not known; the nearest are .*gemma3_text"):
        find_family("gemma3")


def gguf_file(model: Any, path: Path, **more: Any) -> Path:
    config = model.config
    stored = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    tensors = llama_cpp_names("gemma3", stored, config.num_hidden_layers)
    shifted = {name: tensor + 1 if name.endswith("norm.weight") else tensor for name, tensor in tensors.items()}
    metadata = {
        **usual_metadata(config),
        "rope.freq_base": config.rope_parameters["full_attention"]["rope_theta"],
        "attention.sliding_window": config.sliding_window,
    }
    return write_gguf(path, "gemma3", {**metadata, **more}, shifted, vocab_size=config.vocab_size)


def test_gguf(tmp_path: Path) -> None:
    config = settings(
        query_pre_attn_scalar=10, rope_parameters={"full_attention": LINEAR, "sliding_attention": {"rope_theta": 3e3}}
    )
    model = saved(Gemma3ForCausalLM, config, tmp_path / "hf")
    more = {
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "rope.freq_base_swa": 3e3,
        "attention.sliding_window_pattern": [True, True, False],
    }
    prove_gguf(gguf_file(model, tmp_path / "model.gguf", **more), model)


def test_gguf_against_transformers(tmp_path: Path) -> None:
    """With what both take where the file says nothing: five local layers to one global, a local base of 10,000."""
    config = settings(
        head_dim=256,
        num_attention_heads=2,
        query_pre_attn_scalar=256,
        num_hidden_layers=6,
        layer_types=None,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}},
    )
    model = saved(Gemma3ForCausalLM, config, tmp_path / "hf")
    path = gguf_file(model, tmp_path / "model.gguf")
    prove_gguf(path, model)
    prove_gguf_against_transformers(path, Gemma3ForCausalLM)
