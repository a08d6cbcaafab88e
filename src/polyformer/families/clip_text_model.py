"""The text tower of CLIP alone, with or without the projection (what Stable Diffusion reads prompts with)."""

from polyformer.families.clip import tower_family

family = tower_family("text")
