from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from polyformer.errors import ConfigError
from polyformer.families import find_family

# GPTNeoSelfAttention computes its scores in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5


def settings(**changes: Any) -> GPTNeoConfig:
    values = dict(
        vocab_size=131,
        max_position_embeddings=64,
        hidden_size=48,
        num_layers=4,
        num_heads=6,
        intermediate_size=88,
        attention_types=[[["global", "local"], 2]],
        window_size=7,  # shorter than the 29 tokens of the proof
        layer_norm_epsilon=3e-2,
        resid_dropout=0.2,
        embed_dropout=0.3,
        attention_dropout=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoConfig(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "in turn, tied": {},
    "untied, four times as wide": dict(tie_word_embeddings=False, intermediate_size=None),
    "uneven": dict(attention_types=[[["local"], 2], [["global"], 1], [["local"], 1]], window_size=3),
    "all global, exact gelu": dict(attention_types=[[["global"], 4]], activation_function="gelu"),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(GPTNeoForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(
        network, find_family("gpt_neo"), tmp_path / "ours", GPTNeoForCausalLM, tolerance=ROUNDED_TO_FLOAT32
    )


def test_float32(tmp_path: Path) -> None:
    prove_float32(GPTNeoForCausalLM, settings(), tmp_path)


def test_dropouts_are_where_the_config_says() -> None:
    config = find_family("gpt_neo").read_config(settings().to_dict())
    for layer in config.stack.layers:
        assert (layer.dropout, config.embedding.dropout, layer.attention.dropout) == (0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(attention_types=[[["global", "lokal"], 2]]), "holds 'lokal', which is not supported"),
        (dict(num_layers=5), "describes 4 layers, but num_layers is 5"),
        (dict(attention_types=["global"]), "must be a list of \\[kinds, times\\]"),
        (dict(window_size=0), "window_size is 0"),
        (dict(activation_function="geglu"), "activation_function='geglu' is not supported"),
    ],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        find_family("gpt_neo").read_config({**settings().to_dict(), **changes})
