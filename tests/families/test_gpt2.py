from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import llama_cpp_names, prove_gguf, prove_gguf_against_transformers, round_matrices, write_gguf
from proof import load_folder, prove, prove_float32, prove_loads_in_transformers, saved
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from polyformer.errors import ConfigError
from polyformer.families import find_family

IN_FLOAT64 = 1e-8


def settings(**changes: Any) -> GPT2Config:
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
    return GPT2Config(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, four times as wide": dict(tie_word_embeddings=False, n_inner=None),
    "one head, relu": dict(n_head=1, activation_function="relu"),
    "unscaled scores": dict(scale_attn_weights=False),
    "scores by layer": dict(scale_attn_by_inverse_layer_idx=True),
    "unscaled but by layer": dict(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    "exact gelu": dict(activation_function="gelu"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(GPT2LMHeadModel, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=IN_FLOAT64)
    prove_loads_in_transformers(network, find_family("gpt2"), tmp_path / "ours", GPT2LMHeadModel, tolerance=IN_FLOAT64)


@pytest.mark.parametrize("upcast", [False, True])
def test_float32(upcast: bool, tmp_path: Path) -> None:
    """Upcast scores change only how low precision is rounded; transformers refuses them in float64."""
    options = dict(reorder_and_upcast_attn=upcast, scale_attn_by_inverse_layer_idx=upcast)
    prove_float32(GPT2LMHeadModel, settings(**options), tmp_path)


def test_dropouts_are_where_the_config_says() -> None:
    config = find_family("gpt2").read_config(settings().to_dict())
    layer = config.stack.layers[1]
    assert (layer.dropout, config.embedding.dropout, layer.attention.dropout) == (0.2, 0.3, 0.4)


def test_names_without_prefix_and_with_masks(tmp_path: Path) -> None:
    """The oldest files leave out "transformer." and hold the causal mask as if it were a weight."""
    saved(GPT2LMHeadModel, settings(), tmp_path)
    _, network, tensors = load_folder(tmp_path)
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(3):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, tmp_path / "model.safetensors")
    assert set(load_file(tmp_path / "model.safetensors")) == set(old)
    _, again, _ = load_folder(tmp_path)
    ids = torch.arange(20)[None]
    assert torch.equal(again(ids).logits, network(ids).logits)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(activation_function="gelu_neww"), "did you mean 'gelu_new'"),
        (dict(add_cross_attention=True), "add_cross_attention=True is not supported"),
        (dict(n_head=7), "hidden_size 48 is not a multiple of num_heads 7"),
        (dict(n_embd="48"), "n_embd is '48', but it must be a whole number"),
        (dict(architectures=["GPT2ForSequenceClassification"]), "'GPT2ForSequenceClassification' is not supported"),
    ],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        find_family("gpt2").read_config({**settings().to_dict(), **changes})
    assert named in str(error.value)
    assert str(error.value).startswith("config.json")


def test_refuses_to_write_what_it_cannot_say() -> None:
    llama = find_family("llama").read_config(
        json.loads('{"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}')
        | {"num_hidden_layers": 1}
    )
    with pytest.raises(ConfigError, match="cannot express"):
        find_family("gpt2").write_config(llama)


def as_gguf(model: GPT2LMHeadModel, path: Path, **options: Any) -> Path:
    """As convert_hf_to_gguf.py does: the Conv1D matrices transposed, the names mapped, the tied head left out."""
    config = model.config
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith((".attn.bias", "lm_head.weight"))
    }
    if not config.tie_word_embeddings:
        state["lm_head.weight"] = model.lm_head.weight
    for name, tensor in state.items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            state[name] = tensor.T
    metadata = {
        "block_count": config.n_layer,
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "feed_forward_length": 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }
    tensors = llama_cpp_names("gpt2", state, config.n_layer)
    return write_gguf(path, "gpt2", metadata, tensors, vocab_size=config.vocab_size, **options)


@pytest.mark.parametrize("tied", [True, False])
def test_gguf(tied: bool, tmp_path: Path) -> None:
    model = saved(GPT2LMHeadModel, settings(n_inner=None, tie_word_embeddings=tied), tmp_path)
    prove_gguf(as_gguf(model, tmp_path / "model.gguf"), model)


def test_gguf_q8_0(tmp_path: Path) -> None:
    model = saved(GPT2LMHeadModel, settings(n_embd=64, n_head=4, n_inner=None), tmp_path)
    kind = gguf.GGMLQuantizationType.Q8_0
    path = as_gguf(model, tmp_path / "model.gguf", kind=kind)
    prove_gguf(path, round_matrices(model, kind, ("c_attn.weight", "c_proj.weight", "c_fc.weight")))


def test_gguf_as_transformers_reads_it(tmp_path: Path) -> None:
    # transformers takes the number of positions from its default, whatever the file says
    model = saved(GPT2LMHeadModel, settings(n_positions=1024, n_inner=None), tmp_path / "model")
    (tmp_path / "gguf").mkdir()
    prove_gguf_against_transformers(as_gguf(model, tmp_path / "gguf" / "model.gguf"), GPT2LMHeadModel)
