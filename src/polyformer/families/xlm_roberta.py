"""XLM-RoBERTa (Conneau et al., 2020): RoBERTa on a hundred languages."""

from polyformer.families.roberta import make_family

family = make_family("xlm-roberta", "XLMRoberta")
