from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_files import llama_cpp_names, prove_gguf, round_matrices, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

from polyformer.errors import ConfigError
from polyformer.families import find_family

# GPTBigCodeAttention computes its softmax in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5


def settings(**changes: Any) -> GPTBigCodeConfig:
    values = dict(
        vocab_size=131,
        n_positions=64,
        n_embd=48,
        n_layer=3,
        n_head=6,
        n_inner=88,
        layer_norm_epsilon=3e-2,
        resid_pdrop=0.2,
        embd_pdrop=0.3,
        attn_pdrop=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTBigCodeConfig(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "multi-query": {},
    "multi-head": dict(multi_query=False),
    "multi-query, untied, exact gelu": dict(tie_word_embeddings=False, n_inner=None, activation_function="gelu"),
    "multi-head, unscaled scores": dict(multi_query=False, scale_attn_weights=False),
    "one head": dict(n_head=1, attention_softmax_in_fp32=False, scale_attention_softmax_in_fp32=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(GPTBigCodeForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, find_family("gpt_bigcode"), tmp_path / "ours", GPTBigCodeForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(GPTBigCodeForCausalLM, settings(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(add_cross_attention=True), "add_cross_attention=True is not supported"),
        (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True is not supported"),
        (dict(num_key_value_heads=2), "num_key_value_heads=2 is not supported"),
        (dict(multi_query="yes"), "multi_query is 'yes', but it must be of type bool"),
    ],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        find_family("gpt_bigcode").read_config({**settings().to_dict(), **changes})


def test_every_key_of_starcoder_is_understood() -> None:
    values = dict(
        activation_function="gelu",
        architectures=["GPTBigCodeForCausalLM"],
        attention_softmax_in_fp32=True,
        attn_pdrop=0.1,
        inference_runner=0,
        layer_norm_epsilon=1e-5,
        max_batch_size=None,
        multi_query=True,
        n_embd=6144,
        n_head=48,
        n_inner=24576,
        n_layer=40,
        n_positions=8192,
        pre_allocate_kv_cache=False,
        scale_attention_softmax_in_fp32=True,
        scale_attn_weights=True,
        summary_type="cls_index",
        validate_runner_input=True,
        vocab_size=49152,
    )
    assert find_family("gpt_bigcode").unread_keys(values) == []


def test_refuses_to_write_groups() -> None:
    family = find_family("gpt_bigcode")
    grouped = find_family("starcoder2").read_config(
        dict(hidden_size=8, num_attention_heads=4, intermediate_size=8, vocab_size=9, num_hidden_layers=1)
    )
    with pytest.raises(ConfigError, match="one key/value head or 4"):
        family.write_config(grouped)


def as_gguf(model: GPTBigCodeForCausalLM, path: Path, **options: Any) -> Path:
    """As convert_hf_to_gguf.py does: names mapped, nothing turned."""
    config = model.config
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    metadata = {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": 4 * config.n_embd,
        "block_count": config.n_layer,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": 1,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }
    tensors = llama_cpp_names("starcoder", state, config.n_layer)
    return write_gguf(path, "starcoder", metadata, tensors, vocab_size=config.vocab_size, **options)


@pytest.mark.parametrize("tied", [True, False])
def test_gguf(tied: bool, tmp_path: Path) -> None:
    model = saved(GPTBigCodeForCausalLM, settings(n_inner=None, tie_word_embeddings=tied), tmp_path)
    prove_gguf(as_gguf(model, tmp_path / "model.gguf"), model)


def test_gguf_q8_0(tmp_path: Path) -> None:
    model = saved(GPTBigCodeForCausalLM, settings(n_embd=64, n_head=4, n_inner=None), tmp_path)
    kind = gguf.GGMLQuantizationType.Q8_0
    prove_gguf(as_gguf(model, tmp_path / "model.gguf", kind=kind), round_matrices(model, kind))
