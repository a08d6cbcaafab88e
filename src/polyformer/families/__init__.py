"""Public architectures, one a file: how their configs and weight names translate to the core and back."""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from typing import Any

from polyformer.errors import ConfigError
from polyformer.families.base import Family

# model_type of config.json -> the module that holds `family`
_MODULES = {
    "openai-gpt": "gpt",
    "gpt2": "gpt2",
    "gpt_neo": "gpt_neo",
    "gpt_neox": "gpt_neox",
    "gptj": "gptj",
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "falcon": "falcon",
    "palm": "palm",
    "gpt_bigcode": "gpt_bigcode",
    "starcoder2": "starcoder2",
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "xlm_roberta",
    "camembert": "camembert",
    "distilbert": "distilbert",
    "electra": "electra",
    "modernbert": "modernbert",
    "marian": "marian",
    "t5": "t5",
    "mt5": "mt5",
    "bart": "bart",
    "mbart": "mbart",
    "pegasus": "pegasus",
    "whisper": "whisper",
    "vit": "vit",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2_with_registers",
    "clip": "clip",
    "clip_text_model": "clip_text_model",
    "clip_vision_model": "clip_vision_model",
    "siglip": "siglip",
    "siglip_text_model": "siglip_text_model",
    "siglip_vision_model": "siglip_vision_model",
    "vision-encoder-decoder": "vision_encoder_decoder",
    "polyformer": "native",
}

# general.architecture of a GGUF file -> model_type
_GGUF = {
    "gpt2": "gpt2",
    "gptj": "gptj",
    "gptneox": "gpt_neox",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "falcon": "falcon",
    "starcoder": "gpt_bigcode",
    "starcoder2": "starcoder2",
}

# What a CTranslate2 file calls its kind of model -> model_type
_CTRANSLATE2 = {"WhisperSpec": "whisper"}


@cache
def find_family(model_type: str) -> Family:
    """The family of a ``model_type``.

    Raises:
        ConfigError: there is none; the nearest names are given.
    """
    if model_type not in _MODULES:
        raise ConfigError(f"architecture {model_type!r} is not known{_nearest(model_type, list(_MODULES))}")
    return importlib.import_module(f"polyformer.families.{_MODULES[model_type]}").family


@cache
def find_gguf_family(architecture: str) -> Family:
    """The family of a GGUF file's ``general.architecture``.

    Raises:
        ConfigError: there is none; the nearest names are given.
    """
    if architecture not in _GGUF:
        raise ConfigError(f"GGUF architecture {architecture!r} is not known{_nearest(architecture, list(_GGUF))}")
    return find_family(_GGUF[architecture])


@cache
def find_ctranslate2_family(spec: str) -> Family:
    """The family of a CTranslate2 file's kind of model.

    Raises:
        ConfigError: there is none.
    """
    if spec not in _CTRANSLATE2:
        raise ConfigError(f"CTranslate2 models of the kind {spec!r} are not read; known: {', '.join(_CTRANSLATE2)}")
    return find_family(_CTRANSLATE2[spec])


def find_writer(family: Family, config: Any) -> Family:
    """The family to write a network as that was read from a GGUF file, whose architecture several may share.

    Args:
        family: that of the file.
        config: the network's.

    Returns:
        ``family`` if its ``config.json`` can express the network; else the first that can of those with the same GGUF
        format (Mixtral for a "llama" file with experts); else ``family``.
    """
    if _can_write(family, config):
        return family
    others = (other for other in all_families() if other.gguf is family.gguf)
    return next((other for other in others if _can_write(other, config)), family)


def _can_write(family: Family, config: Any) -> bool:
    try:
        family.write_config(config)
    except ConfigError:
        return False
    return True


@cache
def all_families() -> tuple[Family, ...]:
    """Every family, in the order of their table."""
    return tuple(find_family(model_type) for model_type in _MODULES)


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(near)}" if near else f"; known: {', '.join(known)}"
