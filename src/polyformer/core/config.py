"""Config builds module: every module owns a frozen dataclass, and ``config.build()`` makes the module.

A network is a tree of configs. The tree can be walked (`Config.traverse`), rewritten (`Config.rewrite`), written as
plain data and read back (`Config.to_dict`, `Config.from_dict`); it is compared with ``==``.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import nn

from polyformer.errors import ConfigError

_registry: dict[str, type[Config]] = {}
ConfigType = TypeVar("ConfigType", bound="Config")


@dataclass(frozen=True)
class Config:
    """Base of every config.

    Attributes:
        owner: the module class that the config builds; None for a part that is only data (a mask, a scaling).
        kind: the name of the config in plain data, such as ``"Attention"``.
    """

    owner: ClassVar[type[Module] | None] = None
    kind: ClassVar[str] = "Config"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kind = cls.__qualname__.removesuffix(".Config")
        known = _registry.setdefault(cls.kind, cls)
        if known.__module__ != cls.__module__:
            raise TypeError(f"two configs are called {cls.kind}: in {known.__module__} and in {cls.__module__}")
        _registry[cls.kind] = cls

    def build(self) -> Any:
        """The module that this config describes, freshly initialised, on torch's current default device and dtype.

        Raises:
            ConfigError: the config is only data.
        """
        if self.owner is None:
            raise ConfigError(f"{self.kind} is data, not a module: it cannot be built")
        return self.owner(self)

    def traverse(self, path: str = "") -> Iterator[tuple[str, Config]]:
        """This config and every config below it, each with its dotted path (``layers.0.attention``)."""
        yield path, self
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            here = f"{path}.{field.name}" if path else field.name
            if isinstance(value, Config):
                yield from value.traverse(here)
            elif isinstance(value, tuple):
                for number, item in enumerate(value):
                    if isinstance(item, Config):
                        yield from item.traverse(f"{here}.{number}")

    def rewrite(self: ConfigType, change: Callable[[str, Config], Config], path: str = "") -> ConfigType:
        """A new tree in which every config, leaves first, was replaced by ``change(path, config)``."""
        updates: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            here = f"{path}.{field.name}" if path else field.name
            if isinstance(value, Config):
                updates[field.name] = value.rewrite(change, here)
            elif isinstance(value, tuple) and any(isinstance(item, Config) for item in value):
                updates[field.name] = tuple(
                    item.rewrite(change, f"{here}.{number}") if isinstance(item, Config) else item
                    for number, item in enumerate(value)
                )
        return change(path, dataclasses.replace(self, **updates))  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """Plain data (strings, numbers, lists, dictionaries) that `from_dict` reads back to an equal tree."""
        values = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return {"kind": self.kind, **values}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Any:
        """
        Raises:
            ConfigError: an unknown kind or field (the nearest names are given), a field that is missing, or a value of
                another type than the field's.
        """
        values = dict(data)
        kind = values.pop("kind", None)
        if not isinstance(kind, str) or kind not in _registry:
            raise ConfigError(f"config kind {kind!r} is not known{_nearest(str(kind), list(_registry))}")
        config_class = _registry[kind]
        fields = {field.name for field in dataclasses.fields(config_class)}
        for name in values:
            if name not in fields:
                raise ConfigError(f"{kind} has no field {name!r}{_nearest(name, sorted(fields))}")
        parsed = {name: _parsed(value) for name, value in values.items()}
        hints = typing.get_type_hints(config_class)
        for field in dataclasses.fields(config_class):
            if field.name in parsed and parsed[field.name] is not field.default:
                value, hint = parsed[field.name], hints[field.name]
                require(_fits(value, hint), f"{kind}.{field.name} is {value!r}, but it must be {_words(hint)}")
        try:
            return config_class(**parsed)
        except TypeError as error:
            raise ConfigError(f"{kind}: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _parsed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Config.from_dict(value)
    if isinstance(value, list):
        return tuple(_parsed(item) for item in value)
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value``, from plain data, has the type that a field is declared with."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def _words(hint: Any) -> str:
    if typing.get_origin(hint) is None:
        return (
            hint.kind if isinstance(hint, type) and issubclass(hint, Config) else getattr(hint, "__name__", str(hint))
        )
    words = [_words(argument) for argument in typing.get_args(hint) if argument is not Ellipsis]
    return (
        f"a list of {words[0]}" if typing.get_origin(hint) is tuple else " or ".join(words).replace("NoneType", "null")
    )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


class Module(nn.Module):
    """A module that owns a nested ``Config``: ``Attention.Config(...).build()`` makes an ``Attention``."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("Config")
        if own is not None:
            own.owner = cls


def require(condition: bool, message: str) -> None:
    """
    Raises:
        ConfigError: the condition does not hold; ``message`` says what was wrong.
    """
    if not condition:
        raise ConfigError(message)
