from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import llama_cpp_names, prove_gguf, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import GPTJConfig, GPTJForCausalLM

from polyformer.errors import ConfigError
from polyformer.families import find_family

# GPTJAttention computes its scores, and the angles of its positions, in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5


def settings(**changes: Any) -> GPTJConfig:
    values = dict(
        vocab_size=131,
        n_positions=64,
        n_embd=48,
        n_layer=3,
        n_head=4,
        rotary_dim=6,
        n_inner=88,
        layer_norm_epsilon=3e-2,
        resid_pdrop=0.2,
        embd_pdrop=0.3,
        attn_pdrop=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTJConfig(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied, four times as wide": dict(tie_word_embeddings=True, n_inner=None),
    "the whole head turned, relu": dict(rotary_dim=12, activation_function="relu"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(GPTJForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(
        network, find_family("gptj"), tmp_path / "ours", GPTJForCausalLM, tolerance=ROUNDED_TO_FLOAT32
    )


def test_float32(tmp_path: Path) -> None:
    prove_float32(GPTJForCausalLM, settings(), tmp_path)


def test_dropouts_are_where_the_config_says() -> None:
    config = find_family("gptj").read_config(settings().to_dict())
    layer = config.stack.layers[1]
    assert (layer.dropout, config.embedding.dropout, layer.attention.dropout) == (0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(rotary_dim=14), "rotary_dim 14 is larger than head_dim 12"),
        (dict(rotary_dim=5), "rotary_dim is 5, but it must be even"),
        (dict(rotary=False), "rotary=False is not supported"),
        (dict(scale_attn_weights=False), "scale_attn_weights=False is not supported"),
    ],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        find_family("gptj").read_config({**settings().to_dict(), **changes})


@pytest.mark.parametrize("tied", [True, False])
def test_gguf(tied: bool, tmp_path: Path) -> None:
    """There is no converter for it; names are those of the gguf package, keys those of the GGUF specification."""
    config = settings(tie_word_embeddings=tied, n_inner=None)
    model = saved(GPTJForCausalLM, config, tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight" or not tied}
    metadata = {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
        "rope.dimension_count": config.rotary_dim,
    }
    tensors = llama_cpp_names("gptj", state, config.n_layer)
    path = write_gguf(tmp_path / "model.gguf", "gptj", metadata, tensors, vocab_size=config.vocab_size)
    prove_gguf(path, model)
