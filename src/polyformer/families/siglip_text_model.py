"""The text tower of SigLIP alone."""

from polyformer.families.siglip import tower_family

family = tower_family("text")
