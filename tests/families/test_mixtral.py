from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import llama_cpp_names, permuted, prove_gguf, usual_metadata, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from safetensors.torch import load_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from polyformer.checkpoints.gguf import GGUFFile
from polyformer.core import MixtureOfExperts
from polyformer.errors import ConfigError
from polyformer.families import find_family, find_gguf_family, find_writer

# MixtralRMSNorm, the router, the softmax and the rotary angles are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5
FAMILY = find_family("mixtral")


def settings(**changes: Any) -> MixtralConfig:
    values = dict(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=64,
        rms_norm_eps=3e-5,
        num_local_experts=5,
        num_experts_per_tok=3,
    )
    return MixtralConfig(**{**values, **changes})


VARIANTS = {
    "three of five": {},
    "one of four, a window": dict(num_local_experts=4, num_experts_per_tok=1, sliding_window=7),
    "all, tied": dict(num_local_experts=2, num_experts_per_tok=2, tie_word_embeddings=True),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(MixtralForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, FAMILY, tmp_path / "export", MixtralForCausalLM)


def test_gradients_of_experts(tmp_path: Path) -> None:
    """The class fuses its experts in memory, so their gradients are compared here: fused again, or stacked."""
    model = saved(MixtralForCausalLM, settings(), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    for number, layer in enumerate(network.stack.layers):
        theirs = model.model.layers[number].mlp
        experts = layer.feedforward.experts
        fused = torch.stack([torch.cat([expert.gate.weight.grad, expert.up.weight.grad]) for expert in experts])
        assert torch.allclose(fused, theirs.experts.gate_up_proj.grad, atol=1e-6)
        down = torch.stack([expert.down.weight.grad for expert in experts])
        assert torch.allclose(down, theirs.experts.down_proj.grad, atol=1e-6)
        assert torch.allclose(layer.feedforward.router.weight.grad, theirs.gate.weight.grad, atol=1e-6)
        assert theirs.experts.down_proj.grad.abs().max() > 1e-3


def test_float32(tmp_path: Path) -> None:
    prove_float32(MixtralForCausalLM, settings(), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"router_jitter_noise": 0.1}, "router_jitter_noise=0.1 is not supported"),
        ({"num_experts_per_tok": 6}, "top_k is 6"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
    ],
)
def test_refuses_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FAMILY.read_config({**settings().to_dict(), **change})


def gguf_file(model: nn.Module, folder: Path, path: Path, **more: Any) -> Path:
    """From the file's tensors, not the model's: it fuses them in memory."""
    config = model.config
    metadata = {
        **usual_metadata(config),
        "vocab_size": config.vocab_size,
        "rope.dimension_count": config.head_dim,
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
    }
    stored = load_file(folder / "model.safetensors")
    for layer in range(config.num_hidden_layers):
        block = f"model.layers.{layer}.block_sparse_moe"
        for part in ("w1", "w2", "w3"):
            names = [f"{block}.experts.{number}.{part}.weight" for number in range(config.num_local_experts)]
            stored[f"{block}.experts.{part}.weight"] = torch.stack([stored.pop(name) for name in names])
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            stored[name] = permuted(stored[name], heads)
    tensors = llama_cpp_names("llama", stored, config.num_hidden_layers)
    return write_gguf(path, "llama", {**metadata, **more}, tensors, vocab_size=config.vocab_size)


def test_gguf(tmp_path: Path) -> None:
    model = saved(MixtralForCausalLM, settings(), tmp_path / "hf")
    network = prove_gguf(gguf_file(model, tmp_path / "hf", tmp_path / "model.gguf"), model)
    assert isinstance(network.config.stack.layers[0].feedforward, MixtureOfExperts.Config)
    writer = find_writer(find_gguf_family("llama"), network.config)
    assert writer is FAMILY
    prove_loads_in_transformers(network, writer, tmp_path / "export", MixtralForCausalLM)


def test_gguf_with_another_router_is_refused(tmp_path: Path) -> None:
    model = saved(MixtralForCausalLM, settings(), tmp_path / "hf")
    path = gguf_file(model, tmp_path / "hf", tmp_path / "model.gguf", expert_gating_func=2)
    form = find_gguf_family("llama").gguf
    assert form is not None
    with pytest.raises(ConfigError, match="expert_gating_func=2 is not supported"):
        form.read_config(GGUFFile(path))


def test_gguf_with_experts_one_by_one_is_refused(tmp_path: Path) -> None:
    metadata = {
        "context_length": 8,
        "embedding_length": 4,
        "block_count": 1,
        "feed_forward_length": 4,
        "attention.head_count": 1,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "expert_count": 2,
    }
    tensors = {"blk.0.ffn_gate.0.weight": torch.zeros(4, 4)}
    path = write_gguf(tmp_path / "old.gguf", "llama", metadata, tensors, vocab_size=5)
    form = find_gguf_family("llama").gguf
    assert form is not None
    with pytest.raises(ConfigError, match="convert the model anew"):
        form.read_config(GGUFFile(path))
