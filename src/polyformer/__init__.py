"""Polyformer: one transformer, many forms.

    >>> import polyformer
    >>> model = polyformer.load("smollm2-135m-instruct")
    >>> model.generate("The capital of France is", max_new_tokens=16, temperature=0).text

Importing this package is cheap: the names below are fetched, and PyTorch with them, when they are first used.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # true for type checkers, which know the name; `typing` itself takes a while to import
if TYPE_CHECKING:
    from polyformer.model import Model, build, load

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "build", "load"]

# public name -> the module that holds it
_LAZY = {"Model": "polyformer.model", "build": "polyformer.model", "load": "polyformer.model"}


def __getattr__(name: str) -> object:
    module = _LAZY.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
