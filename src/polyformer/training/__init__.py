"""Training: recipes, data and the loop.

    >>> from polyformer.training import read_recipe, train
    >>> summary = train(read_recipe("recipe.yaml"))

Importing this package is cheap: the names below are fetched, and PyTorch with them, when they are first used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from polyformer.training.recipe import Recipe, parse_recipe, read_recipe
    from polyformer.training.run import Summary, check_recipe, train

__all__ = ["Recipe", "Summary", "check_recipe", "parse_recipe", "read_recipe", "train"]

# public name -> the module that holds it
_LAZY = {
    "Recipe": "recipe",
    "parse_recipe": "recipe",
    "read_recipe": "recipe",
    "Summary": "run",
    "check_recipe": "run",
    "train": "run",
}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value
