"""What families that read pictures share: sizes in configs, and labels of pictures."""

from __future__ import annotations

from typing import Any

from polyformer.core import PatchEmbedding, Pooling, SequenceHead
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, only_kind
from polyformer.families.heads import count_labels
from polyformer.families.weights import Reshape, Rule


def read_pair(config: ConfigReader, key: str, default: int) -> tuple[int, int]:
    """(height, width) in pixels, of one number for both or of two.

    Raises:
        ConfigError: it is neither.
    """
    value = config(key, default)
    both = value if isinstance(value, (list, tuple)) else [value, value]
    if len(both) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in both):
        raise ConfigError(
            f"{config.where}: {key} is {value!r}, but it must be a whole number, or two: height and width"
        )
    return both[0], both[1]


def written_pair(pair: tuple[int, ...]) -> int | list[int]:
    return pair[0] if pair[0] == pair[1] else list(pair)


def written_patches(embedding: Any) -> dict[str, Any]:
    """What the configs say of pictures and patches."""
    embedding = only_kind(embedding, PatchEmbedding.Config, "the embedding")
    return {
        "image_size": written_pair(embedding.image_size),
        "patch_size": written_pair(embedding.patch_size),
        "num_channels": embedding.channels,
    }


def classifier(config: ConfigReader, hidden: int, method: str, leading: int) -> dict[str, Any]:
    """Pooling and head of a network that gives pictures labels, as arguments of `EncoderOnly.Config`."""
    width = 2 * hidden if method == "first_and_mean_patches" else hidden
    return {
        "pooling": Pooling.Config(method, leading=leading),
        "sequence_head": SequenceHead.Config(width, count_labels(config)),
    }


def patch_rules(embedding: PatchEmbedding.Config, prefix: str) -> list[Rule]:
    """The names of ViT's embedding, which DINOv2 shares."""
    rows, columns = embedding.grid
    hidden, count = embedding.hidden_size, rows * columns + int(embedding.class_token)
    names = {
        "positions.weight": ("position_embeddings", (count, hidden), (1, count, hidden)),
        "class_token": ("cls_token", (1, hidden), (1, 1, hidden)),
        "registers": ("register_tokens", (embedding.registers, hidden), (1, embedding.registers, hidden)),
        "mask_token": ("mask_token", (hidden,), (1, hidden)),
    }
    return [
        *(
            Rule(f"encoder.embedding.{kind}", f"{prefix}patch_embeddings.projection.{kind}")
            for kind in ("weight", "bias")
        ),
        *(
            Rule(f"encoder.embedding.{ours}", f"{prefix}{theirs}", Reshape(shape, their_shape))
            for ours, (theirs, shape, their_shape) in names.items()
        ),
    ]
