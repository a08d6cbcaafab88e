"""Where a network lives and in which precision, as people name them."""

from __future__ import annotations

import difflib
import os
import platform

import torch

from polyformer.core.config import require
from polyformer.core.packing import can_multiply
from polyformer.errors import ConfigError

_DTYPES = {
    "float64": torch.float64,
    "double": torch.float64,
    "float32": torch.float32,
    "fp32": torch.float32,
    "f32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp16": torch.float16,
    "f16": torch.float16,
}


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """
    Raises:
        ConfigError: it is not the name of a floating-point dtype that networks run in; the nearest is named.
    """
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.").lower()
    if name not in _DTYPES:
        near = difflib.get_close_matches(name, _DTYPES, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"dtype {name!r} is not known: choose float32, bfloat16, float16 or float64{hint}")
    return _DTYPES[name]


def parse_device(device: str | torch.device | None) -> torch.device:
    """
    Raises:
        ConfigError: there is no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        count = torch.cuda.device_count()
        here = "cpu" + "".join(f", cuda:{number}" for number in range(count))
        reason = str(error).split("\n")[0][:100]
        raise ConfigError(f"device {str(device)!r} cannot be used: {reason}; this machine has {here}") from None
    return place


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions that multiply bfloat16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return can_multiply(torch.bfloat16)


def require_memory(nbytes: int, device: torch.device, what: str) -> None:
    """
    Raises:
        ConfigError: the device has not as much memory in all.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "cpu" and hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    require(
        nbytes <= total,
        f"{what} take {nbytes / 1e9:.1f} GB, but {device} has {total / 1e9:.1f} GB: choose a smaller size or dtype",
    )
