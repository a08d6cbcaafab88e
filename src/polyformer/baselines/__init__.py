"""What came before the transformer, to compare it with: n-grams, recurrent networks, convolutions.

The networks are called, trained, saved and generated from as those of the core are.
"""

from __future__ import annotations

from polyformer.baselines.convolution import ConvolutionLM as ConvolutionLM
from polyformer.baselines.ngram import NGram as NGram
from polyformer.baselines.recurrent import RecurrentLM as RecurrentLM
from polyformer.baselines.translator import RecurrentTranslator as RecurrentTranslator
