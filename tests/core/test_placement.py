from __future__ import annotations

import pytest
import torch

from polyformer.core.placement import parse_device, parse_dtype, require_memory
from polyformer.errors import ConfigError


@pytest.mark.parametrize("name", ["bfloat16", "bf16", "BF16", "torch.bfloat16", torch.bfloat16])
def test_dtype_names(name: str | torch.dtype) -> None:
    assert parse_dtype(name) is torch.bfloat16


def test_no_dtype_is_no_choice() -> None:
    assert parse_dtype(None) is None


def test_misspelt_dtype_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'bfloat16'"):
        parse_dtype("bflot16")
    with pytest.raises(ConfigError, match="choose float32"):
        parse_dtype(torch.int8)


def test_device_that_is_not_here() -> None:
    assert parse_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="this machine has cpu"):
        parse_device("cuda:77")


def test_memory_that_is_not_there() -> None:
    require_memory(1, torch.device("cpu"), "one byte")
    with pytest.raises(ConfigError, match="choose a smaller size"):
        require_memory(10**18, torch.device("cpu"), "too many parameters")
