from __future__ import annotations

from typing import Any

import pytest

from polyformer.errors import ConfigError
from polyformer.families import find_family
from polyformer.families.base import ConfigReader


def reader(**values: Any) -> ConfigReader:
    return ConfigReader(values, "here")


def test_null_counts_as_absent() -> None:
    assert reader(size=None).integer("size", 7) == 7
    with pytest.raises(ConfigError, match=r"here has no 'size'"):
        reader(size=None).integer("size")


def test_a_missing_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"here has no 'hidden_size'.*the nearest key there is 'hiden_size'"):
        reader(hiden_size=4)("hidden_size")


def test_assumed_values_stand_in_for_absent_keys_but_not_for_null() -> None:
    config = reader(window=None, heads=3).assume(window=9, heads=8, layers=2)
    assert config.integer("window", None) is None
    assert config.integer("heads") == 3
    assert config.integer("layers") == 2
    assert reader().assume(window=9).unread() == []


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, [3]])
def test_integers_are_whole_and_positive(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"here: size is .* must be a whole number of at least 1"):
        reader(size=value).integer("size")


def test_numbers_and_flags() -> None:
    assert reader(size=3.0).integer("size") == 3
    assert reader(rate=1).number("rate") == 1.0
    for wrong in (True, "0.1", []):
        with pytest.raises(ConfigError, match=r"here: rate is .* must be a number"):
            reader(rate=wrong).number("rate")
    with pytest.raises(ConfigError, match="here: tied is 1, but it must be of type bool"):
        reader(tied=1).flag("tied")


def test_only_and_choose_refuse_by_name() -> None:
    reader(mode=None).only("mode", "a")
    reader(mode="a").only("mode", "a", "b")
    with pytest.raises(ConfigError, match="here: mode='c' is not supported; supported: 'a', 'b'"):
        reader(mode="c").only("mode", "a", "b")
    assert reader(mode="a").choose("mode", {"a": 1}) == 1
    assert reader().choose("mode", {"a": 1}, 5) == 5
    with pytest.raises(ConfigError, match=r"here: mode='silo' is not supported; .* did you mean 'silu'"):
        reader(mode="silo").choose("mode", {"silu": 1, "gelu": 2})


def test_unread_keys_are_those_that_may_mean_something() -> None:
    config = reader(size=3, novelty=0.5, off=False, nothing=None, use_cache=True, _private=1)
    config("size")
    assert config.unread() == ["novelty"]


def test_errors_say_where() -> None:
    values = {"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3}
    with pytest.raises(ConfigError, match=r"^folder/config\.json"):
        find_family("llama").read_config(values, "folder/config.json")
