"""SigLIP's tower of pictures alone."""

from polyformer.families.siglip import tower_family

family = tower_family("vision")
