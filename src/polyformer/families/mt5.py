"""mT5 (Xue et al., 2021): T5 v1.1 for a hundred languages."""

from polyformer.families.t5 import make_family

family = make_family("mt5", "MT5")
