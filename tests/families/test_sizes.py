"""The public sizes: parameters counted on the meta device against the published numbers."""

from __future__ import annotations

import pytest
import torch

from polyformer.errors import ConfigError
from polyformer.families import all_families, find_family
from polyformer.families.sizes import _TABLE, SIZES, Size, build_config, find_size, size_names

EXACT = [name for name in SIZES if SIZES[name].is_exact]
ROUNDED = [name for name in SIZES if not SIZES[name].is_exact]


def count(name: str) -> int:
    with torch.device("meta"):
        network = build_config(name).build()
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", EXACT)
def test_count_is_the_published_one(name: str) -> None:
    assert f"{count(name):,}" == SIZES[name].published


@pytest.mark.parametrize("name", ROUNDED)
def test_count_rounds_to_the_published_one(name: str) -> None:
    number = count(name)
    assert SIZES[name].agrees(number), f"{number:,} parameters, but {SIZES[name].published} were published"
    assert not SIZES[name].agrees(2 * number)


@pytest.mark.parametrize("name", SIZES)
def test_every_value_is_understood_and_written_back(name: str) -> None:
    size = SIZES[name]
    family = find_family(size.family)
    assert family.unread_keys(size.values) == []
    config = build_config(name)
    assert family.read_config(family.write_config(config)) == config


def test_what_agrees_with_a_rounded_number() -> None:
    def agrees(published: str, number: float, digits: int | None = None) -> bool:
        return Size("x", "llama", published, "nobody", digits).agrees(round(number))

    assert agrees("6.7B", 6.738e9)
    assert agrees("6.7B", 6.799e9)  # cut
    assert agrees("6.7B", 6.651e9)  # rounded
    assert not agrees("6.7B", 6.64e9)
    assert not agrees("6.7B", 6.81e9)
    assert agrees("0.6B", 596e6)
    assert not agrees("0.6B", 540e6)
    assert not agrees("350M", 356e6)
    assert agrees("350M", 356e6, 2)
    assert agrees("1,234", 1234)
    assert not agrees("1,234", 1235)


def test_names_are_listed_once_and_found_in_capitals() -> None:
    assert len(size_names()) == len(set(size_names())) == len(_TABLE)
    assert find_size("LLaMA-2-7B") is SIZES["llama-2-7b"]


def test_every_public_family_has_sizes() -> None:
    """Of those that write text by themselves; sizes of encoders and encoder-decoders are not listed yet."""
    writers = {
        family.name for family in all_families() if family.architectures[0].endswith(("LMHeadModel", "CausalLM"))
    }
    assert {size.family for size in SIZES.values()} == writers
    assert len(writers) == 18


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"no public size 'gpt2-huge'; the nearest are gpt2"):
        build_config("gpt2-huge")
