from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import llama_cpp_names, prove_gguf, write_gguf
from proof import prove, prove_float32, prove_loads_in_transformers, saved
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from polyformer.errors import CheckpointError, ConfigError
from polyformer.families import find_family

# The rotary angles and the softmax are computed in float32 whatever the model's dtype.
ROUNDED_TO_FLOAT32 = 1e-5


def settings(**changes: Any) -> GPTNeoXConfig:
    values = dict(
        vocab_size=131,
        hidden_size=48,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        layer_norm_eps=3e-2,
        rotary_pct=0.5,
        rotary_emb_base=3e4,
        attention_dropout=0.4,
        hidden_dropout=0.2,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPTNeoXConfig(**{**values, **changes})


VARIANTS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "in sequence": dict(use_parallel_residual=False),
    "tied, without biases in attention": dict(tie_word_embeddings=True, attention_bias=False),
    "the whole head turned, tanh gelu": dict(rotary_pct=1.0, hidden_act="gelu_new"),
    "linear rotary scaling": dict(rope_scaling={"rope_type": "linear", "factor": 4.0}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_equals_hugging_face(name: str, tmp_path: Path) -> None:
    model = saved(GPTNeoXForCausalLM, settings(**VARIANTS[name]), tmp_path)
    network = prove(model, tmp_path, tolerance=ROUNDED_TO_FLOAT32)
    prove_loads_in_transformers(
        network, find_family("gpt_neox"), tmp_path / "ours", GPTNeoXForCausalLM, tolerance=ROUNDED_TO_FLOAT32
    )


def test_float32(tmp_path: Path) -> None:
    prove_float32(GPTNeoXForCausalLM, settings(), tmp_path)


def test_dropouts_are_where_the_config_says() -> None:
    config = find_family("gpt_neox").read_config(settings().to_dict())
    layer = config.stack.layers[1]
    assert (layer.dropout, config.embedding.dropout, layer.attention.dropout) == (0.2, 0.2, 0.4)


def test_older_files_name_the_rotary_settings_otherwise() -> None:
    """Pythia's own ``config.json`` has no ``rope_parameters``; what it leaves out has the class's defaults."""
    newer = settings().to_dict()
    older = {key: value for key, value in newer.items() if key != "rope_parameters"}
    family = find_family("gpt_neox")
    assert family.read_config({**older, "rotary_pct": 0.5, "rotary_emb_base": 30000}) == family.read_config(newer)
    rotary = family.read_config({**older, "hidden_size": 64}).stack.layers[0].attention.positions
    assert (rotary.rotary_dim, rotary.base) == (4, 10000.0)


def test_masks_stored_in_old_files_are_no_weights() -> None:
    network = find_family("gpt_neox").read_config(settings().to_dict()).build()
    table = find_family("gpt_neox").weight_table(network.config)
    ours = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    theirs: dict[str, tuple[int, ...]] = {}
    for step in table.steps(ours):
        made = step.to_theirs([torch.empty(ours[name], device="meta") for name in step.ours])
        theirs.update((name, tuple(tensor.shape)) for name, tensor in zip(step.theirs, made, strict=True))
    masks = {
        "gpt_neox.layers.0.attention.bias": (1, 1, 64, 64),
        "gpt_neox.layers.0.attention.masked_bias": (),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": (3,),
    }
    table.plan(ours, {**theirs, **masks}).raise_if_broken()
    with pytest.raises(CheckpointError, match=r"unexpected  gpt_neox\.layers\.0\.attention\.biases"):
        table.plan(ours, {**theirs, "gpt_neox.layers.0.attention.biases": (48,)}).raise_if_broken()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(hidden_act="gelux"), "hidden_act='gelux' is not supported"),
        (dict(rope_parameters={"partial_rotary_factor": 0.25}), "rotary_dim is 3, but it must be even"),
        (dict(rope_parameters={"partial_rotary_factor": 2.0}), "rotary_dim 24 is larger than head_dim 12"),
        (dict(rope_parameters={"partial_rotary_factor": 0.5, "rope_type": "spiral"}), "rope_type 'spiral' is not"),
        (dict(num_attention_heads=5), "hidden_size 48 is not a multiple of num_heads 5"),
        (dict(use_parallel_residual="yes"), "use_parallel_residual is 'yes', but it must be of type bool"),
        (dict(architectures=["GPTNeoXForTokenClassification"]), "'GPTNeoXForTokenClassification' is not supported"),
    ],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        find_family("gpt_neox").read_config({**settings().to_dict(), **changes})


GGUF_VARIANTS: dict[str, dict[str, Any]] = {
    "parallel": {},
    "in sequence, tied": dict(use_parallel_residual=False, tie_word_embeddings=True),
    "without biases in attention, another base": dict(attention_bias=False, rotary_emb_base=1e4),
}


@pytest.mark.parametrize("name", GGUF_VARIANTS)
def test_gguf(name: str, tmp_path: Path) -> None:
    """As convert_hf_to_gguf.py does: the fused projection is laid out as all queries, all keys, all values."""
    config = settings(**GGUF_VARIANTS[name])
    model = saved(GPTNeoXForCausalLM, config, tmp_path)
    size, heads = config.hidden_size // config.num_attention_heads, config.num_attention_heads
    state = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if "query_key_value" in key:
            tensor = tensor.reshape(heads, 3, size, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)
        state[key.replace("lm_head", "embed_out")] = tensor
    metadata = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": size // 2,
        "attention.head_count": heads,
        "use_parallel_residual": config.use_parallel_residual,
        "attention.layer_norm_epsilon": config.layer_norm_eps,
    }
    base = config.rope_parameters["rope_theta"]
    if base != 1e4:  # what a reader takes where the file says nothing
        metadata["rope.freq_base"] = base
    tensors = llama_cpp_names("gptneox", state, config.num_hidden_layers)
    path = write_gguf(tmp_path / "model.gguf", "gptneox", metadata, tensors, vocab_size=config.vocab_size)
    prove_gguf(path, model)
