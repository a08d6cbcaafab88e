"""What a family is: a translation of a public config, and a reversible table of weight names."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from polyformer.core.config import Config
from polyformer.errors import ConfigError
from polyformer.families.weights import WeightTable

_REQUIRED = object()

# Keys that describe the training run, the tokenizer or a runtime, and never change what the network computes.
_HARMLESS = frozenset(
    """
    _name_or_path architectures model_type torch_dtype dtype transformers_version use_cache initializer_range
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id auto_map
    task_specific_params pretraining_tp gradient_checkpointing id2label label2id num_labels problem_type return_dict
    output_attentions output_hidden_states torchscript tokenizer_class name_or_path _attn_implementation
    attn_implementation chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention
    cross_attention_hidden_size finetuning_task prefix prune_heads pruned_heads use_bfloat16 tf_legacy_loss
    remove_invalid_values quantization_config _commit_hash max_length min_length do_sample temperature top_k top_p
    typical_p repetition_penalty num_beams num_beam_groups diversity_penalty length_penalty no_repeat_ngram_size
    early_stopping bad_words_ids encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id suppress_tokens begin_suppress_tokens num_return_sequences output_scores
    return_dict_in_generate tie_encoder_decoder is_llama_config rope_interleaved use_return_dict generation_config
    transformers.js_config _from_model_config n_ctx summary_type summary_use_proj summary_activation
    init_std initializer_factor summary_proj_to_labels summary_first_dropout classifier_dropout predict_special_tokens
    """.split()  # noqa: SIM905 (a list of eighty quoted strings reads worse)
)


class ConfigReader:
    """Reads a public config key by key, and remembers what was read.

    Args:
        values: the decoded ``config.json``, or the metadata of a GGUF file.
        where: what to call it in messages.
    """

    def __init__(self, values: Mapping[str, Any], where: str = "config.json"):
        self.values = values
        self.where = where
        self._read: set[str] = set()
        self._sections: dict[str, ConfigReader] = {}

    def section(self, *keys: str) -> ConfigReader:
        """A reader of the dictionary under the first of ``keys`` that has one; of an empty one where none has."""
        found = {key: self(key, None, kind=dict) for key in keys}
        key = next((key for key in keys if found[key] is not None), keys[-1])
        values = found[key] or {}
        return self._sections.setdefault(key, ConfigReader(values, f"{self.where}: {key}"))

    def __call__(self, key: str, default: Any = _REQUIRED, *, kind: type | tuple[type, ...] | None = None) -> Any:
        """The value of ``key``; ``null`` counts as absent.

        Raises:
            ConfigError: the key is absent and has no default, or its value is not of ``kind``.
        """
        self._read.add(key)
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                near = difflib.get_close_matches(key, [str(name) for name in self.values], n=1)
                hint = f"; the nearest key there is {near[0]!r}" if near else ""
                raise ConfigError(f"{self.where} has no {key!r}, which this architecture needs{hint}")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if kind is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            wanted = getattr(kind, "__name__", str(kind))
            raise ConfigError(f"{self.where}: {key} is {value!r}, but it must be of type {wanted}")
        return value

    def assume(self, **defaults: Any) -> ConfigReader:
        """What this architecture takes a key for that is not there at all; an explicit ``null`` stays ``null``."""
        self._read.update(defaults.keys() - self.values.keys())  # the config did not say them: nothing to warn of
        self.values = {**defaults, **self.values}
        return self

    def integer(self, key: str, default: Any = _REQUIRED, *, least: int | None = 1) -> Any:
        """A whole number of at least ``least``, or the default."""
        value = self(key, default, kind=None)
        if value is default:
            return default
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            limit = "" if least is None else f" of at least {least}"
            raise ConfigError(f"{self.where}: {key} is {value!r}, but it must be a whole number{limit}")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A real number, or the default."""
        value = self(key, default)
        if value is default:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{self.where}: {key} is {value!r}, but it must be a number")
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        """True or false, or the default."""
        return self(key, default, kind=bool)

    def only(self, key: str, *allowed: Any) -> None:
        """Accept an absent key or one of ``allowed``; refuse every other value by name.

        Raises:
            ConfigError: the config asks for something this library does not do.
        """
        value = self(key, None)
        if value is not None and value not in allowed:
            names = ", ".join(repr(item) for item in allowed)
            raise ConfigError(f"{self.where}: {key}={value!r} is not supported; supported: {names}")

    def choose(self, key: str, table: Mapping[str, Any], default: Any = _REQUIRED) -> Any:
        """Translate the value of ``key`` through ``table``.

        Raises:
            ConfigError: the value is not in the table; the nearest is named.
        """
        value = self(key, default)
        if value is default and value not in table:
            return default
        if value not in table:
            near = difflib.get_close_matches(str(value), list(table), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{self.where}: {key}={value!r} is not supported; supported: {', '.join(table)}{hint}")
        return table[value]

    def unread(self) -> list[str]:
        """Keys nobody read that may change what the network computes (unknown ones; false and null never do), those
        of sections as ``section.key``."""
        inner = [f"{name}.{key}" for name, section in self._sections.items() for key in section.unread()]
        return sorted(inner) + sorted(
            key
            for key, value in self.values.items()
            if key not in self._read and key not in _HARMLESS and value not in (None, False) and key[:1] != "_"
        )


class GGUFContents(Protocol):
    """What a family may ask of an open GGUF file."""

    metadata: dict[str, Any]

    def names(self) -> list[str]: ...

    def load(self, name: str, dtype: torch.dtype | None = None) -> Tensor: ...


@dataclass(frozen=True)
class GGUFFormat:
    """How a family looks inside a GGUF file.

    Attributes:
        architecture: the value of ``general.architecture``.
        read: reader of the metadata (whose keys it gives without the architecture's prefix), the open file -> network
            config.
        weight_table: network config -> table of the file's weight names.
    """

    architecture: str
    read: Callable[[ConfigReader, GGUFContents], Any]
    weight_table: Callable[[Any], WeightTable]

    def read_config(self, file: GGUFContents) -> Any:
        """The network config that the file's metadata (``llama.block_count``, ...) and tensors describe.

        Raises:
            ConfigError: a key is missing or malformed, or asks for something that is not supported.
        """
        prefix = f"{self.architecture}."
        values = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
        return self.read(ConfigReader(values, f"GGUF metadata {prefix}*"), file)


class CTranslate2Contents(Protocol):
    """What a family may ask of an open CTranslate2 file."""

    numbers: dict[str, float]

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class CTranslate2Format:
    """How a family looks inside a CTranslate2 file, whose config is in the shapes of its weights.

    Attributes:
        spec: what the file calls the kind of model.
        read: the open file -> network config.
        weight_table: network config -> table of the file's weight names.
        config_values: network config, their ``config.json`` -> what a ``config.json`` of Hugging Face would say about
            generation.
    """

    spec: str
    read: Callable[[CTranslate2Contents], Any]
    weight_table: Callable[[Any], WeightTable]
    config_values: Callable[[Any, Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Family:
    """One public architecture.

    Attributes:
        name: the ``model_type`` of its ``config.json``.
        architectures: the class names that ``config.json`` may list.
        read: reader of ``config.json`` -> network config.
        write: network config -> the dictionary for ``config.json`` (without model_type and architectures).
        weight_table: network config -> table of weight names.
        gguf: how it looks in a GGUF file, or None.
        ctranslate2: how it looks in a CTranslate2 file, or None.
    """

    name: str
    architectures: tuple[str, ...]
    read: Callable[[ConfigReader], Any]
    write: Callable[[Any], dict[str, Any]]
    weight_table: Callable[[Any], WeightTable]
    gguf: GGUFFormat | None = None
    ctranslate2: CTranslate2Format | None = None

    def read_config(self, values: Mapping[str, Any], where: str = "config.json") -> Any:
        """
        Returns:
            The network config that ``values`` describes.

        Raises:
            ConfigError: a key is missing or malformed, or asks for something that is not supported (it is named).
        """
        reader = ConfigReader(values, where)
        architectures = reader("architectures", [])
        if architectures and not set(architectures) & set(self.architectures):
            raise ConfigError(
                f"{where}: architecture {architectures[0]!r} is not supported for model_type {self.name!r}; "
                f"supported: {', '.join(self.architectures)}"
            )
        try:
            return self.read(reader)
        except ConfigError as error:
            raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from None

    def unread_keys(self, values: Mapping[str, Any]) -> list[str]:
        """Keys of a config that this family does not know: worth a warning, since they may mean something."""
        reader = ConfigReader(values)
        self.read(reader)
        return reader.unread()

    def write_config(self, config: Any) -> dict[str, Any]:
        """The whole ``config.json`` of a network config, as transformers reads it.

        Raises:
            ConfigError: the network uses parts that this family cannot express.
        """
        values = {"architectures": [self.architectures[0]], "model_type": self.name, **self.write(config)}
        if self.read_config(values) != config:
            raise ConfigError(
                f"this network has parts that a {self.name!r} config cannot express: save it as 'polyformer'"
            )
        return values


def only_kind(config: Any, kind: type[Config], where: str) -> Any:
    """``config`` itself if it is a ``kind``.

    Raises:
        ConfigError: it is another part; the family cannot express it.
    """
    if not isinstance(config, kind):
        raise ConfigError(f"{where} is {type(config).__qualname__}, which this family cannot express")
    return config
