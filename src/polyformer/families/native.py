"""Any network of the core or the baselines, saved as it is: the config tree as plain data, the weights under our own
names.

For networks that no public architecture describes: a composition of one's own, or PaLM, which has no public class.
"""

from __future__ import annotations

from typing import Any

import polyformer.baselines  # noqa: F401 (their configs become known by name)
from polyformer.core.config import Config
from polyformer.families.base import ConfigReader, Family
from polyformer.families.weights import Rule, Step, WeightTable


class _SameNames(WeightTable):
    """Every parameter under its own name."""

    def steps(self, our_names: Any) -> list[Step]:
        return [step for name in our_names for step in Rule(name, name).bind({name})]


def read(config: ConfigReader) -> Any:
    return Config.from_dict(config("network", kind=dict))


def write(config: Config) -> dict[str, Any]:
    return {"network": config.to_dict()}


family = Family("polyformer", ("PolyformerNetwork",), read, write, lambda config: _SameNames(()))
