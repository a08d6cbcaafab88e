"""PaLM has no public code or weights: the reference here is the paper's section 2, written out once more."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from proof import close, hard_ids, randomise
from torch import Tensor

from polyformer.core import DecoderOnly
from polyformer.errors import ConfigError
from polyformer.families import find_family

SETTINGS: dict[str, Any] = dict(
    vocab_size=131,
    hidden_size=40,
    num_hidden_layers=3,
    num_attention_heads=6,
    head_dim=10,
    intermediate_size=72,
    layer_norm_epsilon=3e-2,
    rope_theta=3e3,
)


def built(**changes: Any) -> DecoderOnly:
    network = find_family("palm").read_config({**SETTINGS, **changes}).build().double().eval()
    randomise(network)
    return network


def normalized(vector: Tensor, gain: Tensor) -> Tensor:
    centred = vector - vector.mean()
    return centred / math.sqrt(float((centred**2).mean()) + SETTINGS["layer_norm_epsilon"]) * gain


def turned(vector: Tensor, position: int) -> Tensor:
    """Neighbouring numbers are a complex number, turned by e^(i · position · base^(-2k/d))."""
    pairs = torch.complex(vector[0::2].contiguous(), vector[1::2].contiguous())
    count = len(pairs)
    angles = torch.tensor(
        [position * SETTINGS["rope_theta"] ** (-k / count) for k in range(count)], dtype=torch.float64
    )
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


def reference(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Logits of one sequence, token by token and head by head."""
    heads, size = SETTINGS["num_attention_heads"], SETTINGS["head_dim"]
    embedding = weights["embedding.tokens.weight"]
    states = [embedding[token] for token in ids]
    for number in range(SETTINGS["num_hidden_layers"]):
        layer = {name.removeprefix(f"stack.layers.{number}."): tensor for name, tensor in weights.items()}
        keys: list[Tensor] = []
        values: list[Tensor] = []
        after = []
        for position, state in enumerate(states):
            inputs = normalized(state, layer["attention_norm.weight"])
            keys.append(turned(layer["attention.key.weight"] @ inputs, position))
            values.append(layer["attention.value.weight"] @ inputs)
            queries = (layer["attention.query.weight"] @ inputs).view(heads, size)
            attended = []
            for head in range(heads):
                query = turned(queries[head], position)
                scores = torch.stack([query @ key for key in keys]) / math.sqrt(size)
                chances = torch.exp(scores - scores.max())
                chances = chances / chances.sum()
                attended.append(sum(chance * value for chance, value in zip(chances, values, strict=True)))
            gate = layer["feedforward.gate.weight"] @ inputs
            inner = gate / (1 + torch.exp(-gate)) * (layer["feedforward.up.weight"] @ inputs)  # Swish(xW) · xV
            after.append(
                state
                + layer["attention.output.weight"] @ torch.cat(attended)
                + layer["feedforward.down.weight"] @ inner
            )
        states = after
    final = [normalized(state, weights["stack.norm.weight"]) for state in states]
    return torch.stack([embedding @ state for state in final]) / math.sqrt(SETTINGS["hidden_size"])


def test_equals_the_paper() -> None:
    network = built()
    ids = hard_ids(131, 13, 2)
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}
    with torch.no_grad():
        logits = network(ids).logits
    for row in range(2):
        close(logits[row], reference(weights, ids[row].tolist()), 1e-10, f"logits of row {row}")


def test_cached_and_padded() -> None:
    network = built()
    ids = hard_ids(131, 13, 2)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    with torch.no_grad():
        whole = network(ids).logits
        cache = network.new_cache()
        pieces = [network(piece, cache=cache).logits for piece in ids.split(5, dim=1)]
        close(torch.cat(pieces, dim=1), whole, 1e-10, "cached")
        alone = network(ids[:1, 4:]).logits[0]
        close(network(ids, attention_mask=mask).logits[0, 4:], alone, 1e-10, "padded on the left")


def test_from_scratch() -> None:
    """The embedding starts at N(0, 1), so that logits, scaled down, start near N(0, 1) too; gradients reach all."""
    torch.manual_seed(0)
    network = find_family("palm").read_config({**SETTINGS, "hidden_size": 256, "intermediate_size": None}).build()
    assert float(network.embedding.tokens.weight.detach().std()) == pytest.approx(1.0, abs=0.02)
    assert network.stack.layers[0].feedforward.up.weight.shape == (1024, 256)
    logits = network(hard_ids(131, 11, 2)).logits
    assert 0.5 < float(logits.detach().std()) < 2.0
    logits.logsumexp(-1).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


def test_no_bias_anywhere() -> None:
    assert not [name for name, _ in built().named_parameters() if name.endswith("bias")]


def test_config_round_trip() -> None:
    family = find_family("palm")
    config = family.read_config(SETTINGS)
    values = family.write_config(config)
    assert values["model_type"] == "palm"
    assert family.read_config(values) == config
    assert family.unread_keys(values) == []


def test_default_head_is_256_wide() -> None:
    config = find_family("palm").read_config({**SETTINGS, "head_dim": None})
    assert config.stack.layers[0].attention.head_dim == 256


@pytest.mark.parametrize(
    ("changes", "named"),
    [(dict(head_dim=9), "rotary_dim is 9, but it must be even"), (dict(hidden_size=0), "hidden_size is 0")],
)
def test_refuses(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        find_family("palm").read_config({**SETTINGS, **changes})


def test_refuses_to_write_other_networks() -> None:
    family = find_family("palm")
    gptj = find_family("gptj").read_config(dict(vocab_size=9, n_embd=8, n_layer=1, n_head=2, rotary_dim=2))
    with pytest.raises(ConfigError, match="cannot express"):
        family.write_config(gptj)
