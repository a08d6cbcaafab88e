"""Layers that are not all alike: sliding windows in some of them, and how configs say which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from polyformer.core import Causal, DecoderOnly, Layer, SlidingWindow
from polyformer.core.masks import Mask
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader

# A value of layer_types -> whether the layer slides a window
_LAYER_TYPES = {"full_attention": False, "sliding_attention": True}


def with_layers(config: DecoderOnly.Config, layers: Sequence[Layer.Config]) -> DecoderOnly.Config:
    """The same network with other layers."""
    return replace(config, stack=replace(config.stack, layers=tuple(layers)))


def with_attention(layer: Layer.Config, **changes: Any) -> Layer.Config:
    """The same layer with other attention."""
    return replace(layer, attention=replace(layer.attention, **changes))


def read_layer_types(config: ConfigReader, default: Sequence[bool]) -> list[bool]:
    """Which layers slide a window, out of ``layer_types``; ``default`` where there is no such key.

    Raises:
        ConfigError: an unknown type of layer, or not one type a layer.
    """
    types = config("layer_types", None, kind=list)
    if types is None:
        return list(default)
    for kind in types:
        if kind not in _LAYER_TYPES:
            names = ", ".join(_LAYER_TYPES)
            raise ConfigError(f"{config.where}: layer_types holds {kind!r}, which is not supported; supported: {names}")
    if len(types) != len(default):
        raise ConfigError(f"{config.where}: layer_types holds {len(types)} types, but there are {len(default)} layers")
    return [_LAYER_TYPES[kind] for kind in types]


def with_windows(
    config: DecoderOnly.Config, sliding: Sequence[bool], window: int | None, where: str
) -> DecoderOnly.Config:
    """The same network with a window in the layers that slide.

    Raises:
        ConfigError: a layer slides, but there is no window.
    """
    if any(sliding) and window is None:
        raise ConfigError(f"{where}: layers are of type 'sliding_attention', but sliding_window is null")
    masks = [SlidingWindow(window) if slides and window else Causal() for slides in sliding]
    return with_layers(
        config, [with_attention(layer, mask=mask) for layer, mask in zip(config.stack.layers, masks, strict=True)]
    )


def window_of(mask: Mask) -> int | None:
    """The window of a mask that a ``sliding_window`` key can express; None for a plain causal one.

    Raises:
        ConfigError: it is another mask.
    """
    if type(mask) is Causal:
        return None
    if isinstance(mask, SlidingWindow) and not mask.sinks:
        return mask.window
    raise ConfigError(f"the mask is {mask.kind}, which this family cannot express: save it as 'polyformer'")


def write_layer_types(config: DecoderOnly.Config) -> dict[str, Any]:
    """``layer_types`` and ``sliding_window`` of a network whose windows are all alike.

    Raises:
        ConfigError: they are not.
    """
    windows = [window_of(layer.attention.mask) for layer in config.stack.layers]
    sizes = sorted({window for window in windows if window is not None})
    if len(sizes) > 1:
        raise ConfigError(f"the layers have windows of {sizes}, but this family has one: save it as 'polyformer'")
    types = ["full_attention" if window is None else "sliding_attention" for window in windows]
    return {"layer_types": types, "sliding_window": sizes[0] if sizes else None}
