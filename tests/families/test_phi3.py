from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import (
    llama_cpp_names,
    load_gguf,
    prove_gguf,
    prove_gguf_against_transformers,
    usual_metadata,
    write_gguf,
)
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import Phi3Config, Phi3ForCausalLM

from polyformer.core import Causal, SlidingWindow
from polyformer.errors import ConfigError
from polyformer.families import find_family

# Phi3RMSNorm, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("phi3")


def settings(**changes: Any) -> Phi3Config:
    values = dict(
        vocab_size=131,
        hidden_size=96,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=64,
        rms_norm_eps=3e-5,
        pad_token_id=0,
    )
    return Phi3Config(**{**values, **changes})


def long_rope(pairs: int, **more: Any) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0 + 0.1 * pair for pair in range(pairs)],
        "long_factor": [2.0 + 0.7 * pair for pair in range(pairs)],
        **more,
    }


VARIANTS = {
    "grouped": {},
    "a window, tied": dict(sliding_window=6, tie_word_embeddings=True),
    "turned in part": dict(rope_parameters={"rope_theta": 5e3, "partial_rotary_factor": 0.5}),
    "long, beyond the original": dict(rope_parameters=long_rope(8), original_max_position_embeddings=16),
    "long, within the original": dict(rope_parameters=long_rope(8), original_max_position_embeddings=32),
    "long, in part, with its own attention factor": dict(
        rope_parameters=long_rope(6, partial_rotary_factor=0.75, attention_factor=1.3),
        original_max_position_embeddings=16,
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(Phi3ForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32, by_length=name.startswith("long"))
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", Phi3ForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(Phi3ForCausalLM, settings(), tmp_path)


def test_dropout_stands_where_the_config_says() -> None:
    config = FAMILY.read_config(
        {**settings().to_dict(), "resid_pdrop": 0.1, "embd_pdrop": 0.2, "attention_dropout": 0.3}
    )
    layer = config.stack.layers[0]
    assert (layer.dropout, config.embedding.dropout, layer.attention.dropout) == (0.1, 0.2, 0.3)


def test_early_configs_call_it_su_and_put_the_part_outside() -> None:
    values = settings(
        rope_parameters=long_rope(6, partial_rotary_factor=0.75), original_max_position_embeddings=16
    ).to_dict()
    early = {key: value for key, value in values.items() if key != "rope_parameters"}
    for kind in ("su", "yarn", "longrope"):
        scaling = {key: long_rope(6)[key] for key in ("short_factor", "long_factor")}
        early |= {"rope_scaling": {"type": kind, **scaling}, "rope_theta": 1e4, "partial_rotary_factor": 0.75}
        assert FAMILY.read_config(early) == FAMILY.read_config(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "rope_type='llama3' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_scaling has no 'short_factor'"),
        ({"rope_parameters": long_rope(5)}, "5 factors, but rotary_dim 16 has 8 pairs"),
        ({"rope_parameters": long_rope(8, short_mscale=1.2)}, "short_mscale=1.2 is not supported"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def gguf_file(model: Any, path: Path, **more: Any) -> Path:
    """Fused projections stay fused; LongRoPE's factors are tensors, written only if there are any."""
    config = model.config
    rotary = config.rope_parameters
    head_dim = config.hidden_size // config.num_attention_heads
    metadata = {
        **usual_metadata(config),
        "rope.dimension_count": int(head_dim * rotary["partial_rotary_factor"]),
        "rope.scaling.original_context_length": config.original_max_position_embeddings,
        "attention.sliding_window": config.sliding_window or 0,
    }
    tensors = llama_cpp_names("phi3", model.state_dict(), config.num_hidden_layers)
    if rotary["rope_type"] == "longrope":
        scale = config.max_position_embeddings / config.original_max_position_embeddings
        factor = math.sqrt(1 + math.log(scale) / math.log(config.original_max_position_embeddings))
        metadata["rope.scaling.attn_factor"] = factor
        for name in ("long", "short"):
            tensors[f"rope_factors_{name}.weight"] = torch.tensor(rotary[f"{name}_factor"])
    return write_gguf(path, "phi3", {**metadata, **more}, tensors, vocab_size=config.vocab_size)


def test_gguf(tmp_path: Path) -> None:
    model = saved(Phi3ForCausalLM, settings(), tmp_path / "hf")
    path = gguf_file(model, tmp_path / "model.gguf")
    prove_gguf(path, model)
    prove_gguf_against_transformers(path, Phi3ForCausalLM)


@pytest.mark.parametrize("name", ["a window, tied", "turned in part", "long, beyond the original"])
def test_gguf_of_variants(name: str, tmp_path: Path) -> None:
    changes = {**VARIANTS[name], "tie_word_embeddings": False}
    model = saved(Phi3ForCausalLM, settings(**changes), tmp_path / "hf")
    prove_gguf(gguf_file(model, tmp_path / "model.gguf"), model)


def test_the_first_gguf_files_of_4k_models_leave_out_their_window(tmp_path: Path) -> None:
    model = saved(Phi3ForCausalLM, settings(num_hidden_layers=1), tmp_path / "hf")
    for context, mask in ((4096, SlidingWindow(2047)), (64, Causal())):
        tensors = llama_cpp_names("phi3", model.state_dict(), 1)
        metadata = {**usual_metadata(model.config), "context_length": context}
        path = write_gguf(tmp_path / f"{context}.gguf", "phi3", metadata, tensors, vocab_size=131)
        assert load_gguf(path).config.stack.layers[0].attention.mask == mask
