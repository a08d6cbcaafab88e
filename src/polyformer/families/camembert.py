"""CamemBERT (Martin et al., 2020): RoBERTa on French."""

from polyformer.families.roberta import make_family

family = make_family("camembert", "Camembert")
