from __future__ import annotations

import pytest

from polyformer.errors import ConfigError
from polyformer.families import all_families, find_family, find_gguf_family


def test_every_family_of_the_table_exists_under_its_name() -> None:
    for family in all_families():
        assert find_family(family.name) is family
        assert family.architectures


@pytest.mark.parametrize(
    ("name", "nearest"), [("gpt-neo", "gpt_neo"), ("falkon", "falcon"), ("starcoder", "starcoder2"), ("gpt3", "gpt2")]
)
def test_an_unknown_architecture_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"architecture {name!r} is not known; the nearest are .*{nearest}"):
        find_family(name)


def test_gguf_architectures() -> None:
    known = {
        "gpt2": "gpt2",
        "gptj": "gptj",
        "gptneox": "gpt_neox",
        "falcon": "falcon",
        "starcoder": "gpt_bigcode",
        "starcoder2": "starcoder2",
    }
    for architecture, name in known.items():
        family = find_gguf_family(architecture)
        assert family.name == name
        assert family.gguf is not None
        assert family.gguf.architecture == architecture
    with pytest.raises(ConfigError, match="GGUF architecture 'falcoon' is not known; the nearest are falcon"):
        find_gguf_family("falcoon")
