"""CLIP's tower of pictures alone, with or without the projection."""

from polyformer.families.clip import tower_family

family = tower_family("vision")
