from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import llama_cpp_names, load_gguf, prove_gguf, write_gguf
from proof import close, hard_ids, prove, prove_float32, prove_loads_in_transformers, saved
from transformers import Starcoder2Config, Starcoder2ForCausalLM

from polyformer.errors import ConfigError
from polyformer.families import find_family

# The rotary angles and the softmax are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5


def settings(**changes: Any) -> Starcoder2Config:
    values = dict(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        norm_epsilon=3e-2,
        rope_parameters={"rope_type": "default", "rope_theta": 3e4},
        attention_dropout=0.4,
        residual_dropout=0.2,
        embedding_dropout=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Starcoder2Config(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "a window shorter than the sequence": dict(sliding_window=7),
    "untied, without biases": dict(tie_word_embeddings=False, use_bias=False),
    "multi-query, wide heads, exact gelu": dict(num_key_value_heads=1, head_dim=10, hidden_act="gelu"),
    "multi-head, linear scaling": dict(
        num_key_value_heads=6, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(Starcoder2ForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(network, find_family("starcoder2"), tmp_path / "ours", Starcoder2ForCausalLM)


def test_float32(tmp_path: Path) -> None:
    prove_float32(Starcoder2ForCausalLM, settings(sliding_window=7), tmp_path)


def test_dropouts_are_where_the_config_says() -> None:
    config = find_family("starcoder2").read_config(settings().to_dict())
    layer = config.stack.layers[1]
    assert (layer.dropout, config.embedding.dropout, layer.attention.dropout) == (0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(norm_type="rms_norm"), "norm_type='rms_norm' is not supported"),
        (dict(mlp_type="gated"), "mlp_type='gated' is not supported"),
        (dict(hidden_act="gelux"), "hidden_act='gelux' is not supported"),
        (dict(num_key_value_heads=4), "num_heads 6 is not a multiple of num_key_value_heads 4"),
        (dict(sliding_window=0), "sliding_window is 0"),
    ],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        find_family("starcoder2").read_config({**settings().to_dict(), **changes})


def as_gguf(model: Starcoder2ForCausalLM, path: Path, **options: Any) -> Path:
    """As convert_hf_to_gguf.py does: names mapped, no row of queries and keys turned."""
    config = model.config
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    metadata = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_epsilon": config.norm_epsilon,
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    tensors = llama_cpp_names("starcoder2", state, config.num_hidden_layers)
    return write_gguf(path, "starcoder2", metadata, tensors, vocab_size=config.vocab_size, **options)


GGUF_VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied, no biases": dict(tie_word_embeddings=False, use_bias=False),
}


@pytest.mark.parametrize("name", GGUF_VARIANTS)
def test_gguf(name: str, tmp_path: Path) -> None:
    model = saved(Starcoder2ForCausalLM, settings(**GGUF_VARIANTS[name]), tmp_path)
    prove_gguf(as_gguf(model, tmp_path / "model.gguf"), model)


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0])
def test_gguf_as_transformers_reads_it(kind: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    # transformers takes vocabulary and rotary base from its defaults, whatever the file says: it gets the config
    config = settings(hidden_size=64, num_attention_heads=4, intermediate_size=96)
    model = saved(Starcoder2ForCausalLM, config, tmp_path / "model")
    (tmp_path / "gguf").mkdir()
    path = as_gguf(model, tmp_path / "gguf" / "model.gguf", kind=kind)
    reference = Starcoder2ForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = hard_ids(131)
    with torch.no_grad():
        close(load_gguf(path)(ids).logits, reference(ids, use_cache=False).logits, 1e-5, "logits of the GGUF file")
