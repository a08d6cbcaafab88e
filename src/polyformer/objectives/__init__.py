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
from polyformer.objectives.contrastive import ContrastiveImages as ContrastiveImages
from polyformer.objectives.contrastive import ContrastivePairs as ContrastivePairs
from polyformer.objectives.contrastive import PairEncoder as PairEncoder
from polyformer.objectives.labels import Classification as Classification
from polyformer.objectives.labels import ImageClassification as ImageClassification
from polyformer.objectives.labels import MultiLabel as MultiLabel
from polyformer.objectives.labels import Regression as Regression
from polyformer.objectives.labels import Tagging as Tagging
from polyformer.objectives.masked import GeneratorDiscriminator as GeneratorDiscriminator
from polyformer.objectives.masked import MaskedLM as MaskedLM
from polyformer.objectives.masked import ReplacedTokens as ReplacedTokens
from polyformer.objectives.pairs import Captioning as Captioning
from polyformer.objectives.pairs import Denoising as Denoising
from polyformer.objectives.pairs import SequenceToSequence as SequenceToSequence
from polyformer.objectives.pairs import SpanCorruption as SpanCorruption

OBJECTIVES: dict[str, type[Objective]] = {
    "causal-lm": CausalLM,
    "fill-in-the-middle": FillInTheMiddle,
    "masked-lm": MaskedLM,
    "replaced-tokens": ReplacedTokens,
    "span-corruption": SpanCorruption,
    "denoising": Denoising,
    "prefix-lm": PrefixLM,
    "sequence-to-sequence": SequenceToSequence,
    "captioning": Captioning,
    "classification": Classification,
    "image-classification": ImageClassification,
    "regression": Regression,
    "multi-label": MultiLabel,
    "tagging": Tagging,
    "contrastive-pairs": ContrastivePairs,
    "contrastive-images": ContrastiveImages,
}
