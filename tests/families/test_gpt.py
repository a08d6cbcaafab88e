from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from polyformer.errors import ConfigError
from polyformer.families import find_family

IN_FLOAT64 = 1e-8


def settings(**changes: Any) -> OpenAIGPTConfig:
    values = dict(
        vocab_size=131,
        n_positions=64,
        n_embd=48,
        n_layer=3,
        n_head=6,
        layer_norm_epsilon=3e-2,
        resid_pdrop=0.2,
        embd_pdrop=0.3,
        attn_pdrop=0.4,
    )
    return OpenAIGPTConfig(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, relu": dict(tie_word_embeddings=False, afn="relu"),
    "one head, silu": dict(n_head=1, afn="silu"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(OpenAIGPTLMHeadModel, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=IN_FLOAT64)
    prove_loads_in_transformers(
        network, find_family("openai-gpt"), tmp_path / "ours", OpenAIGPTLMHeadModel, tolerance=IN_FLOAT64
    )


def test_float32(tmp_path: Path) -> None:
    prove_float32(OpenAIGPTLMHeadModel, settings(), tmp_path)


def test_dropouts_are_where_the_config_says() -> None:
    config = find_family("openai-gpt").read_config(settings().to_dict())
    layer = config.stack.layers[1]
    assert (layer.dropout, config.embedding.dropout, layer.attention.dropout) == (0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("changes", "named"), [(dict(afn="sillu"), "afn='sillu' is not supported"), (dict(n_layer=0), "n_layer is 0")]
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        find_family("openai-gpt").read_config({**settings().to_dict(), **changes})
