from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_files import (
    llama_cpp_names,
    load_gguf,
    prove_gguf,
    prove_gguf_against_transformers,
    usual_metadata,
    write_gguf,
)
from proof import hard_ids, prove, prove_float32, prove_loads_in_transformers, saved
from transformers import Qwen2Config, Qwen2ForCausalLM

from polyformer.core import Causal, SlidingWindow
from polyformer.errors import ConfigError
from polyformer.families import find_family

# Qwen2RMSNorm, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("qwen2")


def settings(**changes: Any) -> Qwen2Config:
    values = dict(
        vocab_size=131,
        hidden_size=60,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=3e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    return Qwen2Config(**{**values, **changes})


VARIANTS = {
    "grouped": {},
    "tied, another width of heads": dict(tie_word_embeddings=True, head_dim=12),
    "windows in the last layers": dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "windows by type": dict(
        use_sliding_window=True,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "yarn": dict(
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 1e6,
        }
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(Qwen2ForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", Qwen2ForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(Qwen2ForCausalLM, settings(), tmp_path)


def test_older_configs_say_windows_without_layer_types() -> None:
    values = settings(use_sliding_window=True, sliding_window=6, max_window_layers=2).to_dict()
    del values["layer_types"]
    masks = [layer.attention.mask for layer in FAMILY.read_config(values).stack.layers]
    assert masks == [Causal(), Causal(), SlidingWindow(6)]
    off = FAMILY.read_config({**values, "use_sliding_window": False})
    assert all(layer.attention.mask == Causal() for layer in off.stack.layers)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_types": ["full_attention", "chunked_attention", "full_attention"]}, "'chunked_attention'"),
        ({"layer_types": ["full_attention"]}, "1 types, but there are 3 layers"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding_window is null"),
        ({"attention_bias": False}, "attention_bias=False is not supported"),
        ({"mlp_bias": True}, "mlp_bias=True is not supported"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def gguf_file(model: Any, path: Path, metadata: dict[str, Any] | None = None, **options: Any) -> Path:
    tensors = llama_cpp_names("qwen2", model.state_dict(), model.config.num_hidden_layers)
    if model.config.tie_word_embeddings:
        del tensors["output.weight"]
    values = {**usual_metadata(model.config), **(metadata or {})}
    return write_gguf(path, "qwen2", values, tensors, vocab_size=model.config.vocab_size, **options)


@pytest.mark.parametrize("tied", [False, True])
def test_gguf(tied: bool, tmp_path: Path) -> None:
    model = saved(Qwen2ForCausalLM, settings(tie_word_embeddings=tied), tmp_path / "hf")
    path = gguf_file(model, tmp_path / "model.gguf")
    prove_gguf(path, model)
    prove_gguf_against_transformers(path, Qwen2ForCausalLM)


def test_gguf_with_yarn(tmp_path: Path) -> None:
    model = saved(Qwen2ForCausalLM, settings(**VARIANTS["yarn"]), tmp_path / "hf")
    scaling = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 16,
    }
    prove_gguf(gguf_file(model, tmp_path / "model.gguf", scaling), model)


def test_quantized_gguf(tmp_path: Path) -> None:
    """Q8_0 where rows have whole blocks of 32: the same numbers as transformers on the same file."""
    config = settings(hidden_size=96, intermediate_size=64)
    model = saved(Qwen2ForCausalLM, config, tmp_path / "hf")
    path = gguf_file(model, tmp_path / "model.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    prove_gguf_against_transformers(path, Qwen2ForCausalLM)
    plain = load_gguf(gguf_file(model, tmp_path / "plain.gguf"))(hard_ids(131)).logits
    rounded = load_gguf(path)(hard_ids(131)).logits
    assert 1e-4 < (plain - rounded).abs().max() / plain.abs().max() < 0.2  # it was quantized
