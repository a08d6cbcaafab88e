"""One public size: what it is called, who published how many parameters, and its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_UNITS = {"M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class Size:
    """One public size.

    Attributes:
        name: what it is called here, such as ``"llama-2-7b"``.
        family: its model_type.
        published: its parameter count as published: exact ("124,439,808") or rounded ("6.7B").
        source: who says so.
        digits: how many digits of a rounded count mean something ("350M" has two, it seems); None means all.
        values: its ``config.json``.
    """

    name: str
    family: str
    published: str
    source: str
    digits: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_exact(self) -> bool:
        """Whether the count was published to the last parameter."""
        return self.published[-1] not in _UNITS

    def agrees(self, count: int) -> bool:
        """Whether ``count`` parameters are the published number: exactly, or rounded or cut to its digits."""
        if self.is_exact:
            return count == int(self.published.replace(",", ""))
        number, unit = self.published[:-1], _UNITS[self.published[-1]]
        whole, _, fraction = number.partition(".")
        digits = self.digits or len(whole + fraction)
        step = unit * 10 ** (len(whole) - digits) if digits <= len(whole) else unit / 10 ** (digits - len(whole))
        stated = round(float(number) * unit / step)
        return stated in (round(count / step), int(count / step))


def weights(repository: str) -> str:
    """The source of a count that was taken from the published weights themselves."""
    return f"number of parameters in the weights of {repository}"
