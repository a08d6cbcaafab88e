from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import llama_cpp_names, prove_gguf, prove_gguf_against_transformers, round_matrices, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from torch import Tensor
from transformers import FalconConfig, FalconForCausalLM

from polyformer.errors import ConfigError
from polyformer.families import find_family

IN_FLOAT64 = 1e-8
ROUNDED_TO_FLOAT32 = 1e-5  # the angles of rotary positions, whatever the model's dtype


def settings(**changes: Any) -> FalconConfig:
    values = dict(
        vocab_size=131,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        ffn_hidden_size=88,
        max_position_embeddings=64,
        layer_norm_epsilon=3e-2,
        hidden_dropout=0.2,
        attention_dropout=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return FalconConfig(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "7B: multi-query": {},
    "7B untied, biases, four times as wide": dict(tie_word_embeddings=False, bias=True, ffn_hidden_size=None),
    "40B: groups, two norms": dict(new_decoder_architecture=True, num_kv_heads=2),
    "40B, biases": dict(new_decoder_architecture=True, num_kv_heads=3, bias=True, activation="gelu_pytorch_tanh"),
    "11B: groups, one norm": dict(new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
    "multi-head, parallel": dict(multi_query=False, rope_parameters={"rope_type": "default", "rope_theta": 3e4}),
    "multi-query, in sequence": dict(parallel_attn=False, bias=True),
    "linear rotary scaling": dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}),
}
ALIBI: dict[str, dict[str, Any]] = {
    "RW: ALiBi, in sequence": dict(multi_query=False, parallel_attn=False, bias=True),
    "ALiBi, multi-query, parallel": dict(num_attention_heads=4),
    "ALiBi, groups": dict(new_decoder_architecture=True, num_kv_heads=3),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(FalconForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, find_family("falcon"), tmp_path / "ours", FalconForCausalLM)


@pytest.mark.parametrize("name", ALIBI)
def test_alibi_equals_hugging_face(name: str, tmp_path: Path) -> None:
    """Against its fused attention: its plain one adds ALiBi twice, to the mask and to the scores. Slopes pass through
    bfloat16 there, which for four and six heads (powers of two) loses nothing."""
    model = saved(FalconForCausalLM, settings(alibi=True, **ALIBI[name]), tmp_path)
    model.config._attn_implementation = "sdpa"
    network = prove(model, tmp_path, tolerance=IN_FLOAT64)
    family = find_family("falcon")
    prove_loads_in_transformers(
        network, family, tmp_path / "ours", FalconForCausalLM, tolerance=IN_FLOAT64, attention="sdpa"
    )


def test_float32(tmp_path: Path) -> None:
    prove_float32(FalconForCausalLM, settings(new_decoder_architecture=True, num_kv_heads=2), tmp_path)


def test_dropouts_are_where_the_config_says() -> None:
    layer = find_family("falcon").read_config(settings().to_dict()).stack.layers[1]
    assert (layer.dropout, layer.attention.dropout) == (0.2, 0.4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(new_decoder_architecture=True, parallel_attn=False), "parallel_attn=False is not supported"),
        (dict(num_ln_in_parallel_attn=2), "num_ln_in_parallel_attn=2 is not supported"),
        (dict(new_decoder_architecture=True, num_ln_in_parallel_attn=3), "num_ln_in_parallel_attn=3 is not supported"),
        (dict(multi_query=False, num_kv_heads=2), "num_kv_heads=2 is not supported"),
        (dict(apply_residual_connection_post_layernorm=True), "apply_residual_connection_post_layernorm=True"),
        (dict(ff_factor=3), "ff_factor=3 is not supported"),
        (dict(activation="gelux"), "did you mean 'gelu'"),
        (dict(rope_parameters={"rope_type": "spiral"}), "rope_type 'spiral' is not supported"),
    ],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_family("falcon").read_config({**settings().to_dict(), **changes})
    assert named in str(error.value)


def as_gguf(model: FalconForCausalLM, path: Path, **options: Any) -> Path:
    """As convert_hf_to_gguf.py does: queries, keys and values of all groups sorted, one block each."""
    config = model.config
    heads, shared = config.num_attention_heads, config.num_kv_heads if config.new_decoder_architecture else 1
    size = config.hidden_size // heads

    def sort(fused: Tensor) -> Tensor:
        groups = fused.view(shared, heads // shared + 2, size, config.hidden_size)
        return torch.cat([groups[:, :-2].flatten(0, 2), groups[:, -2].flatten(0, 1), groups[:, -1].flatten(0, 1)])

    state = {
        name: sort(tensor) if "query_key_value" in name else tensor
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    metadata = {
        "context_length": config.max_position_embeddings,
        "tensor_data_layout": "jploski",
        "embedding_length": config.hidden_size,
        "feed_forward_length": 4 * config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": heads,
        "attention.head_count_kv": shared,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }
    tensors = llama_cpp_names("falcon", state, config.num_hidden_layers)
    return write_gguf(path, "falcon", metadata, tensors, vocab_size=config.vocab_size, **options)


GGUF_VARIANTS: dict[str, dict[str, Any]] = {
    "7B": {},
    "40B": dict(new_decoder_architecture=True, num_kv_heads=2),
    "11B, untied": dict(
        new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, tie_word_embeddings=False
    ),
}


@pytest.mark.parametrize("name", GGUF_VARIANTS)
def test_gguf(name: str, tmp_path: Path) -> None:
    model = saved(FalconForCausalLM, settings(ffn_hidden_size=None, **GGUF_VARIANTS[name]), tmp_path)
    prove_gguf(as_gguf(model, tmp_path / "model.gguf"), model)


def test_gguf_q8_0(tmp_path: Path) -> None:
    options = dict(ffn_hidden_size=None, hidden_size=64, num_attention_heads=4)
    model = saved(FalconForCausalLM, settings(**options), tmp_path)
    kind = gguf.GGMLQuantizationType.Q8_0
    prove_gguf(as_gguf(model, tmp_path / "model.gguf", kind=kind), round_matrices(model, kind))


def test_gguf_as_transformers_reads_it(tmp_path: Path) -> None:
    # transformers takes epsilon from its default, whatever the file says
    options = dict(ffn_hidden_size=None, layer_norm_epsilon=1e-5)
    model = saved(FalconForCausalLM, settings(**options), tmp_path / "model")
    (tmp_path / "gguf").mkdir()
    prove_gguf_against_transformers(as_gguf(model, tmp_path / "gguf" / "model.gguf"), FalconForCausalLM)
