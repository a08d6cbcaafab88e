"""Networks in other sizes: as many parameters as were asked for, at the shape of the first."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tests.training.conftest import small_config

from polyformer.core import Config
from polyformer.core.linear import Embedding
from polyformer.errors import ConfigError
from polyformer.families import find_family
from polyformer.training.recipe import ModelSection
from polyformer.training.scaling.shapes import count_without_embeddings, scaled_to, shape_of

LENGTH = 64
LLAMA = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352}
SECTIONS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "config": LLAMA},
    "grouped": {"family": "llama", "config": {**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 2}},
    "one key": {"family": "llama", "config": {**LLAMA, "num_key_value_heads": 1}},
    "gpt2": {"family": "gpt2", "config": {"n_embd": 128, "n_layer": 4, "n_head": 4}},
    "bert": {
        "family": "bert",
        "config": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512},
        "architecture": "BertForMaskedLM",
    },
    "t5": {"family": "t5", "config": {"d_model": 128, "d_ff": 512, "num_layers": 3, "num_heads": 4, "d_kv": 32}},
    "gemma3": {
        "family": "gemma3_text",
        "config": {
            **LLAMA,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        },
    },
    "recurrent": {
        "network": {"kind": "RecurrentLM", "vocab_size": "tokenizer", "hidden_size": 128, "num_layers": 2},
    },
    "tree": {"network": small_config(hidden=64, layers=4).to_dict()},
}


@pytest.fixture(autouse=True)
def _baselines() -> None:
    import polyformer.baselines  # noqa: F401 (their configs become known by name)


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("wanted", [150_000, 3_000_000])
def test_the_number_is_nearly_what_was_asked_for(name: str, wanted: int) -> None:
    section = ModelSection(**SECTIONS[name])
    sized = scaled_to(section, wanted, LENGTH)
    assert sized.parameters == pytest.approx(wanted, rel=0.15)
    assert sized.parameters == count_without_embeddings(sized.section, LENGTH)
    assert (sized.section.family, sized.section.architecture) == (section.family, section.architecture)
    assert sized.shape.depth >= 1


@pytest.mark.parametrize("name", ["llama", "grouped", "gpt2", "bert", "tree"])
def test_the_shape_stays(name: str) -> None:
    section = ModelSection(**SECTIONS[name])
    sized = [scaled_to(section, wanted, LENGTH).shape for wanted in (1e6, 1e7, 1e8)]
    base = shape_of({**SECTIONS[name].get("config", {}), **SECTIONS[name].get("network", {})})
    for shape in sized:
        slender = (shape.width / shape.depth) / (base.width / base.depth)
        assert 0.5 < slender < 2.0
        assert shape.heads * shape.head * base.width == shape.width * base.heads * base.head
        assert shape.heads % shape.groups == 0 and base.head / 2 <= shape.head <= base.head * 2
    assert [shape.width for shape in sized] == sorted({shape.width for shape in sized})
    assert [shape.depth for shape in sized] == sorted({shape.depth for shape in sized})


def test_the_recipe_keeps_all_else() -> None:
    config = {**LLAMA, "rope_theta": 5e5, "tie_word_embeddings": True, "vocab_size": 900}
    scaled = scaled_to(ModelSection(family="llama", config=config), 2e6, LENGTH).section
    assert scaled.config["rope_theta"] == 5e5 and scaled.config["vocab_size"] == 900
    built = find_family("llama").read_config({**scaled.config, "max_position_embeddings": LENGTH}, "test")
    assert built.head.tied and built.vocab_size == 900
    ratio = scaled.config["intermediate_size"] / scaled.config["hidden_size"]
    assert ratio == pytest.approx(352 / 128, rel=0.03)


def test_the_same_size_is_the_same_network() -> None:
    section = ModelSection(family="llama", config=LLAMA)
    count = count_without_embeddings(section, LENGTH)
    sized = scaled_to(section, count, LENGTH)
    assert sized.parameters == count
    assert {name: sized.section.config[name] for name in LLAMA} == LLAMA


def test_a_pattern_of_layers_goes_on() -> None:
    sized = scaled_to(ModelSection(**SECTIONS["gemma3"]), 1.2e7, LENGTH)
    pattern = sized.section.config["layer_types"]
    assert len(pattern) == sized.shape.depth > 4
    assert pattern[:8] == [*SECTIONS["gemma3"]["config"]["layer_types"] * 2][: len(pattern[:8])]


def test_a_scale_of_the_embedding_follows_the_width() -> None:
    tree = small_config(hidden=64, layers=4).to_dict()
    tree["embedding"]["scale"] = math.sqrt(64)
    sized = scaled_to(ModelSection(network=tree), 1e6, LENGTH)
    assert sized.section.network is not None
    config = Config.from_dict(sized.section.network)
    assert config.embedding.scale == pytest.approx(math.sqrt(sized.shape.width)) and sized.shape.width != 64


def test_embeddings_do_not_count() -> None:
    for tied in (True, False):
        config = {**LLAMA, "tie_word_embeddings": tied}
        one, two = (
            count_without_embeddings(ModelSection(family="llama", config={**config, "vocab_size": size}), LENGTH)
            for size in (100, 5000)
        )
        assert one == two
    network = (
        find_family("llama").read_config({**LLAMA, "vocab_size": 100, "tie_word_embeddings": True}, "test").build()
    )
    tables = sum(part.weight.numel() for part in network.modules() if isinstance(part, Embedding))
    assert one == sum(parameter.numel() for parameter in network.parameters()) - tables


def test_a_public_size_becomes_its_family() -> None:
    sized = scaled_to(ModelSection(size="gpt2"), 1e6, LENGTH)
    assert sized.section.size is None and sized.section.family == "gpt2"
    assert sized.section.config["vocab_size"] == 50257 and sized.parameters == pytest.approx(1e6, rel=0.15)


@pytest.mark.parametrize(
    ("section", "wanted", "message"),
    [
        ({"start_from": "somewhere"}, 1e6, "new networks"),
        ({"family": "llama", "config": LLAMA}, 50, "none so small"),
        ({"family": "llama", "config": LLAMA}, 2000, "the nearest has"),
        ({"network": {"kind": "Linear", "in_features": 4, "out_features": 4}}, 1e6, "nothing to scale"),
    ],
)
def test_what_cannot_be_scaled_is_refused(section: dict[str, Any], wanted: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scaled_to(ModelSection(**section), wanted, LENGTH)
