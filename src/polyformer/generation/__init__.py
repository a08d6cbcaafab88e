"""Turning a network's logits into text: settings, processors, sampling, beam search, contrastive search, guidance.

The functions `generate`, `stream` and `stream_events` are in `polyformer.generation.generate`. The names below are
imported on first use, so that the settings can be read without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyformer.generation.outputs import Generation, StreamEvent, TokenLogprobs
    from polyformer.generation.prompts import few_shot_messages, few_shot_prompt
    from polyformer.generation.settings import GenerationSettings

_HOMES = {
    "GenerationSettings": "settings",
    "Generation": "outputs",
    "TokenLogprobs": "outputs",
    "StreamEvent": "outputs",
    "few_shot_prompt": "prompts",
    "few_shot_messages": "prompts",
}

__all__ = [
    "Generation",
    "GenerationSettings",
    "StreamEvent",
    "TokenLogprobs",
    "few_shot_messages",
    "few_shot_prompt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
