from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from polyformer import core
from polyformer.core import config as config_module
from polyformer.core.config import Config, require
from polyformer.core.rotary import (
    DynamicNTKScaling,
    FactorScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    YaRNScaling,
)
from polyformer.errors import ConfigError

SCALINGS = [
    LinearScaling(2.0),
    FactorScaling((1.0, 2.5, 3.0)),
    DynamicNTKScaling(2.0, 64),
    YaRNScaling(4.0, 64, 16.0, 2.0, 0.9, False),
    Llama3Scaling(8.0, 1.0, 4.0, 64),
    LongRoPEScaling((1.0, 1.0, 1.0), (2.0, 3.0, 4.0), 64, 1.1),
]
ATTENTIONS: list[dict[str, Any]] = [
    *({"positions": core.Rotary.Config(6, 500.0, True, scaling)} for scaling in SCALINGS),
    {"mask": core.SlidingWindow(3, 1), "query_key_norm": core.LayerNorm.Config(6, bias=False), "soft_cap": 3.0},
    {"mask": core.BlockLocal(2), "positions": core.Relative.Config(6, 4, values=True), "bias": True, "key_bias": False},
    {"mask": core.PrefixCausal(), "sinks": True, "dropout": 0.1, "output_dropout": 0.2, "scale": 0.25},
    {"mask": core.Bidirectional(), "query_key_norm": core.RMSNorm.Config(24)},
]
MIXTURE = core.MixtureOfExperts.Config(core.FeedForward.Config(16, 8, "relu", bias=True), 4, 2, False)


@pytest.fixture
def configs(make_config: Any) -> list[Any]:
    """Networks in which every kind of config of the core occurs."""
    first = make_config(
        ATTENTIONS,
        embedding={"positions": core.Learned.Config(32, 16, 2), "scale": 4.0, "norm": core.LayerNorm.Config(16)},
        stack={"bias": core.RelativeBias.Config(4, 8, 16)},
        head={"tied": False, "bias": True, "soft_cap": 30.0},
    )
    second = make_config(
        embedding={"positions": core.Sinusoidal.Config(16, interleaved=False), "dropout": 0.1},
        stack={"bias": core.ALiBi.Config(4)},
        layer={"placement": "sandwich"},
        feedforward=MIXTURE,
    )
    parts = [core.Linear.Config(3, 4, True), core.Embedding.Config(5, 6)]
    cross = core.Attention.Config(16, 4, source_size=8, mask=core.Bidirectional())
    stack = replace(second.stack, layers=tuple(replace(layer, cross_attention=cross) for layer in second.stack.layers))
    return [first, second, stack, *parts, *readers()]


def readers() -> list[Any]:
    """An encoder-decoder that listens, and a dual encoder of texts and pictures, with every head."""
    norm, feedforward = core.LayerNorm.Config(16), core.FeedForward.Config(16, 20, bias=True)
    near = core.Attention.Config(16, 4, mask=core.BidirectionalWindow(2), bias=True)
    reading = core.Stack.Config((core.Layer.Config(near, feedforward, norm),))
    cross = core.Attention.Config(16, 4, source_size=16, mask=core.Bidirectional())
    writing = core.Layer.Config(core.Attention.Config(16, 4), feedforward, norm, cross_attention=cross)
    tokens = core.TokenEmbedding.Config(29, 16)
    frames = core.FrameEmbedding.Config(16, 5, core.Sinusoidal.Config(16, interleaved=False))
    listener = core.EncoderDecoder.Config(
        core.Encoder.Config(frames, reading),
        core.Decoder.Config(tokens, core.Stack.Config((writing,))),
        core.Head.Config(16, 29),
    )
    text = core.Encoder.Config(
        core.TokenEmbedding.Config(29, 12, token_types=2, projection=core.Linear.Config(12, 16)), reading
    )
    transform = core.Transform.Config(16, 12, "gelu", core.LayerNorm.Config(12))
    guesser = core.EncoderOnly.Config(
        text,
        "pretraining",
        pooling=core.Pooling.Config("first"),
        masked_head=core.MaskedTokenHead.Config(transform, core.Head.Config(12, 29, bias=True)),
        sequence_head=core.SequenceHead.Config(16, 2),
    )
    tagger = core.EncoderOnly.Config(text, "token-classification", token_head=core.TokenHead.Config(16, 3))
    pictures = core.Encoder.Config(core.PatchEmbedding.Config(16, (4, 4), (8, 12), registers=2), reading)
    pair = core.DualEncoder.Config(
        core.Tower.Config(text, core.Pooling.Config("largest_id"), core.Linear.Config(16, 10)),
        core.Tower.Config(pictures, core.AttentionPooling.Config(cross, norm, feedforward), core.Linear.Config(16, 10)),
        logit_scale=2.0,
        logit_bias=-1.0,
    )
    return [listener, guesser, tagger, pair]


def test_readers_run() -> None:
    listener, guesser, tagger, pair = (config.build().eval() for config in readers())
    ids = torch.tensor([[3, 7, 28, 0], [5, 28, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    assert listener(input_features=torch.randn(2, 5, 9), decoder_input_ids=ids).logits.shape == (2, 4, 29)
    output = guesser(ids, attention_mask=mask, token_type_ids=mask)
    assert output.logits.shape == (2, 4, 29) and output.sequence_logits.shape == (2, 2)
    assert tagger(ids).logits.shape == (2, 4, 3)
    both = pair(ids, attention_mask=mask, pixel_values=torch.randn(3, 3, 8, 12))
    assert both.logits_per_text.shape == (2, 3) and torch.equal(both.logits_per_image, both.logits_per_text.mT)
    assert torch.allclose(both.text_embeds.norm(dim=-1), torch.ones(2))
    expected = both.text_embeds @ both.image_embeds.mT * torch.tensor(2.0).exp() - 1
    assert torch.allclose(both.logits_per_text, expected)
    # Another size of picture has more patches: positions are interpolated, the class token and registers stay.
    larger = pair(pixel_values=torch.randn(1, 3, 16, 12)).image_output.last_hidden_state
    assert larger.shape == (1, 1 + 2 + 4 * 3, 16)
    with pytest.raises(ConfigError, match="give input_ids, pixel_values or both"):
        pair()
    with pytest.raises(ConfigError, match="this encoder reads input_ids, but pixel_values was given"):
        tagger(pixel_values=torch.randn(1, 3, 8, 8))


def kinds_of_the_core() -> set[str]:
    """All but the bases that are never used by themselves."""
    known = config_module._registry.items()
    ours = {kind for kind, each in known if each.__module__.startswith("polyformer.core.")}
    return ours - {"Mask", "Scaling"}


def test_every_kind_is_tested_here(configs: list[Any]) -> None:
    assert {part.kind for config in configs for _, part in config.traverse()} == kinds_of_the_core()


def test_every_config_builds_and_runs(configs: list[Any], random_module: Any) -> None:
    for config in configs[:2]:
        network = random_module(config)
        lengths = torch.tensor([2, 3]) if any(part.kind == "PrefixCausal" for _, part in config.traverse()) else None
        assert network(torch.arange(10).view(2, 5), prefix_lengths=lengths).logits.shape == (2, 5, 29)
    for config in configs:
        for _, part in config.traverse():
            if part.owner is None:
                with pytest.raises(ConfigError, match=f"{part.kind} is data, not a module: it cannot be built"):
                    part.build()
            else:
                module = part.build()
                assert type(module) is part.owner
                assert module.config is part


def test_round_trip_through_json(configs: list[Any]) -> None:
    for config in configs:
        for _, part in config.traverse():
            text = json.dumps(part.to_dict())
            again = Config.from_dict(json.loads(text))
            assert again == part
            assert hash(again) == hash(part)
            assert type(again) is type(part)
            assert json.loads(text)["kind"] == part.kind


def test_configs_are_frozen_compared_hashed_copied_pickled(configs: list[Any]) -> None:
    for config in configs:
        for _, part in config.traverse():
            for field in dataclasses.fields(part):
                with pytest.raises(dataclasses.FrozenInstanceError):
                    setattr(part, field.name, None)
            for twin in (copy.deepcopy(part), pickle.loads(pickle.dumps(part)), replace(part)):
                assert twin == part
                assert hash(twin) == hash(part)
    assert core.RMSNorm.Config(4) != core.RMSNorm.Config(5)
    assert core.RMSNorm.Config(4) != core.LayerNorm.Config(4, 1e-6)
    assert core.Causal() != core.Bidirectional()
    assert len({core.SlidingWindow(3), core.SlidingWindow(3), core.SlidingWindow(4)}) == 2


def test_traverse_gives_paths(make_config: Any) -> None:
    config = make_config({"positions": core.Rotary.Config(6, scaling=SCALINGS[0])}, feedforward=MIXTURE)
    found = dict(config.traverse())
    assert found[""] is config
    assert found["stack.layers.1.attention.positions.scaling"] == SCALINGS[0]
    assert found["stack.layers.0.feedforward.expert"] == MIXTURE.expert
    assert found["embedding"] is config.embedding
    for path, part in found.items():
        here: Any = config
        for name in filter(None, path.split(".")):
            here = here[int(name)] if name.isdigit() else getattr(here, name)
        assert here is part
    assert dict(config.head.traverse("head")) == {"head": config.head}


def test_paths_are_those_of_the_built_modules(make_config: Any) -> None:
    """What a rewrite of the config names is what `get_submodule` finds, where the part is a module of its own."""
    config = make_config({"query_key_norm": None, "positions": core.Relative.Config(6, 3)})
    network = config.build()
    for path, part in config.traverse():
        if part.kind in ("Attention", "FeedForward", "Layer", "Relative", "Stack", "TokenEmbedding", "Head"):
            assert network.get_submodule(path).config is part


def test_rewrite(make_config: Any) -> None:
    config = make_config(layers=3)
    order: list[str] = []

    def widen(path: str, part: Config) -> Config:
        order.append(path)
        if isinstance(part, core.FeedForward.Config) and path.startswith("stack.layers.1."):
            return replace(part, intermediate_size=99)
        return part

    changed = config.rewrite(widen)
    assert [layer.feedforward.intermediate_size for layer in changed.stack.layers] == [24, 99, 24]
    assert config.stack.layers[1].feedforward.intermediate_size == 24
    assert order[-1] == ""
    assert order.index("stack.layers.0.attention.mask") < order.index("stack.layers.0.attention")
    assert sorted(order) == sorted(path for path, _ in config.traverse())
    assert config.rewrite(lambda path, part: part) == config


def test_a_rewrite_is_checked_like_any_config(make_config: Any) -> None:
    config = make_config()
    with pytest.raises(ConfigError, match=r"stack\.layers\.0\.attention is made for vectors of 8"):
        config.rewrite(
            lambda _, part: replace(part, hidden_size=8) if isinstance(part, core.Attention.Config) else part
        )


def test_rewrite_can_put_one_module_in_the_place_of_another(make_config: Any) -> None:
    """How adapters and quantization come in: the tree says what is built, and the core need not know it."""

    class Doubled(core.FeedForward):
        @dataclasses.dataclass(frozen=True)
        class Config(core.FeedForward.Config):
            pass

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    def double(path: str, part: Config) -> Config:
        return Doubled.Config(**vars(part)) if isinstance(part, core.FeedForward.Config) else part

    config = make_config(layers=1)
    changed = config.rewrite(double)
    assert type(changed.build().stack.layers[0].feedforward) is Doubled
    assert type(config.build().stack.layers[0].feedforward) is core.FeedForward
    assert Config.from_dict(changed.to_dict()) == changed


def test_building_on_the_meta_device_takes_no_memory(configs: list[Any]) -> None:
    for config in configs:
        with torch.device("meta"):
            module = config.build()
        real = config.build()
        assert {name: tensor.shape for name, tensor in module.state_dict().items()} == {
            name: tensor.shape for name, tensor in real.state_dict().items()
        }
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        assert not list(module.buffers())  # nothing to repair after weights are put in


def test_a_network_built_on_the_meta_device_computes_once_it_has_weights(
    configs: list[Any], random_module: Any
) -> None:
    config = configs[1]
    network = random_module(config)
    with torch.device("meta"):
        empty = config.build().eval()
    empty.load_state_dict(network.state_dict(), assign=True)
    ids = torch.arange(6).view(1, 6)
    assert torch.equal(empty(ids).logits, network(ids).logits)


def test_a_large_network_is_counted_without_memory() -> None:
    """GPT-3 (Brown et al., 2020, table 2.1): 96 layers of 12,288, 96 heads, 175 billion parameters."""
    hidden = 12288
    layer = core.Layer.Config(
        core.Attention.Config(hidden, 96, bias=True),
        core.FeedForward.Config(hidden, 4 * hidden, bias=True),
        core.LayerNorm.Config(hidden),
    )
    config = core.DecoderOnly.Config(
        core.TokenEmbedding.Config(50257, hidden, core.Learned.Config(2048, hidden)),
        core.Stack.Config((layer,) * 96, core.LayerNorm.Config(hidden)),
        core.Head.Config(hidden, 50257),
    )
    with torch.device("meta"):
        network = config.build()
    count = sum(parameter.numel() for parameter in network.parameters())
    per_layer = 4 * hidden**2 + 4 * hidden + 8 * hidden**2 + 5 * hidden + 4 * hidden
    assert count == 96 * per_layer + (50257 + 2048 + 2) * hidden
    assert count == pytest.approx(175e9, rel=0.003)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "RMSNrom", "size": 4}, r"config kind 'RMSNrom' is not known; did you mean RMSNorm"),
        ({"kind": "Zzxqj"}, r"config kind 'Zzxqj' is not known$"),
        ({"size": 4}, r"config kind None is not known"),
        ({"kind": ["RMSNorm"]}, r"config kind \['RMSNorm'\] is not known"),
        ({"kind": "RMSNorm", "size": 4, "epsilon": 1e-5}, r"RMSNorm has no field 'epsilon'; did you mean eps"),
        ({"kind": "RMSNorm"}, r"RMSNorm: .*size"),
        ({"kind": "SlidingWindow", "window": 0}, r"window is 0"),
        (
            {"kind": "Layer", "norm": {"kind": "RMSNorm", "size": 4, "offest": 1}},
            r"RMSNorm has no field 'offest'; did you mean offset",
        ),
        (
            {"kind": "Attention", "hidden_size": "x", "num_heads": 2},
            r"Attention.hidden_size is 'x', but it must be int$",
        ),
        ({"kind": "RMSNorm", "size": True}, r"RMSNorm.size is True, but it must be int"),
        ({"kind": "RMSNorm", "size": 4.5}, r"RMSNorm.size is 4.5, but it must be int"),
        (
            {"kind": "FactorScaling", "factors": [1, "2"]},
            r"FactorScaling.factors is .*, but it must be a list of float",
        ),
        ({"kind": "Linear", "in_features": 1, "out_features": 1, "bias": 1}, r"Linear.bias is 1, but it must be bool"),
        (
            {"kind": "Rotary", "rotary_dim": 4, "scaling": {"kind": "Causal"}},
            r"Rotary.scaling is Causal\(\), but it must be Scaling or null",
        ),
        (
            {"kind": "Attention", "hidden_size": 4, "num_heads": 2, "soft_cap": "high"},
            r"Attention.soft_cap is 'high', but it must be float or null",
        ),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Config.from_dict(data)
    assert "\n" not in str(caught.value)


def test_two_configs_of_one_name_are_refused() -> None:
    class Attention(config_module.Module):
        pass

    with pytest.raises(TypeError, match="two configs are called"):
        type("Config", (Config,), {"__qualname__": "Attention.Config", "__module__": "elsewhere"})
    assert config_module._registry["Attention"] is core.Attention.Config


def test_require() -> None:
    require(True, "never said")
    with pytest.raises(ConfigError, match=r"^why$"):
        require(False, "why")
