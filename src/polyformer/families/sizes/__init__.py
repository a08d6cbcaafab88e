"""The public sizes of the public families: config values, and the parameter count that was published for each.

A size is what its authors released or described: the values of its ``config.json`` (without those that only matter to a
tokenizer or a training run), read by the family's own reader. `build_config` gives a network config to train from
scratch, to count, or to estimate memory with; weights are another matter.

What a size builds is the network as it was pretrained, with the head of that: a decoder scores the next token; BERT
guesses masked tokens and tells whether a sentence follows, its relatives only guess masked tokens; ELECTRA's
discriminator tells which tokens were replaced and its generator guesses masked ones; an encoder-decoder writes. ViT
gives pictures the labels of ImageNet, CLIP and SigLIP compare pictures with texts.

The sizes stand in a file for each kind of network. One more kind is one more file with a tuple ``SIZES``, and a line in
`TABLES`.

In the sources "model card" and "weights" mean those under the owner's name on the Hugging Face hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from polyformer.errors import ConfigError
from polyformer.families import find_family
from polyformer.families.sizes import decoders, encoder_decoders, encoders, pictures
from polyformer.families.sizes.size import Size

__all__ = ["SIZES", "TABLES", "Size", "build_config", "find_size", "size_names"]

TABLES: Mapping[str, tuple[Size, ...]] = MappingProxyType(
    {
        "decoders": decoders.SIZES,
        "encoders": encoders.SIZES,
        "encoder-decoders": encoder_decoders.SIZES,
        "pictures": pictures.SIZES,
    }
)
"""Kind of network -> its sizes, family by family."""

SIZES: Mapping[str, Size] = MappingProxyType({size.name: size for table in TABLES.values() for size in table})
"""Name -> size."""


def size_names() -> list[str]:
    """Every name that `find_size` knows, family by family, small to large."""
    return list(SIZES)


def find_size(name: str) -> Size:
    """The public size called ``name`` (capitals do not matter).

    Raises:
        ConfigError: there is none; the nearest names are given.
    """
    size = SIZES.get(name.lower())
    if size is None:
        near = difflib.get_close_matches(name.lower(), list(SIZES), n=3, cutoff=0.5)
        hint = f"; the nearest are {', '.join(near)}" if near else f"; there are {', '.join(SIZES)}"
        raise ConfigError(f"there is no public size {name!r}{hint}")
    return size


def build_config(name: str) -> Any:
    """The network config of a public size; ``.build()`` makes the network, with random weights.

    Raises:
        ConfigError: there is no size of that name.
    """
    size = find_size(name)
    return find_family(size.family).read_config(size.values, f"the size {size.name}")
