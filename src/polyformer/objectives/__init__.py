"""Objectives: what a network is trained for. Each is one small class that says its source.

An objective is a frozen dataclass. It disturbs single examples (`prepare`), puts them together (`collate`), and says
how wrong a network is about the batch: ``objective(network, batch)`` gives a `Loss`. `OBJECTIVES` finds them by name.
"""

from __future__ import annotations

from polyformer.objectives.base import Batch as Batch
from polyformer.objectives.base import Example as Example
from polyformer.objectives.base import Loss as Loss
from polyformer.objectives.base import Objective as Objective
from polyformer.objectives.causal import CausalLM as CausalLM
from polyformer.objectives.causal import FillInTheMiddle as FillInTheMiddle
from polyformer.objectives.causal import PrefixLM as PrefixLM
from polyformer.objectives.masked import GeneratorDiscriminator as GeneratorDiscriminator
from polyformer.objectives.masked import MaskedLM as MaskedLM
from polyformer.objectives.masked import ReplacedTokens as ReplacedTokens

OBJECTIVES: dict[str, type[Objective]] = {
    "causal-lm": CausalLM,
    "fill-in-the-middle": FillInTheMiddle,
    "masked-lm": MaskedLM,
    "replaced-tokens": ReplacedTokens,
    "prefix-lm": PrefixLM,
}
