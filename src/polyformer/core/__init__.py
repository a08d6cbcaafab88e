"""The transformer core: tensors and configs only. No files, no text, no names of public models.

Read in this order: `linear`, `normalization`, `feedforward`, `masks`, `positions` and `rotary`, `backends`,
`attention`, `cache`, `embeddings`, `heads`, `transformer`, `encoder`, `encoder_decoder`, `dual_encoder`.
"""

from __future__ import annotations

from polyformer.core.attention import Attention as Attention
from polyformer.core.backends import attention_backend as attention_backend
from polyformer.core.cache import Cache as Cache
from polyformer.core.config import Config as Config
from polyformer.core.config import Module as Module
from polyformer.core.dual_encoder import DualEncoder as DualEncoder
from polyformer.core.dual_encoder import DualOutput as DualOutput
from polyformer.core.dual_encoder import Tower as Tower
from polyformer.core.embeddings import FrameEmbedding as FrameEmbedding
from polyformer.core.embeddings import PatchEmbedding as PatchEmbedding
from polyformer.core.embeddings import TokenEmbedding as TokenEmbedding
from polyformer.core.encoder import Encoder as Encoder
from polyformer.core.encoder import EncoderOnly as EncoderOnly
from polyformer.core.encoder_decoder import Decoder as Decoder
from polyformer.core.encoder_decoder import EncoderDecoder as EncoderDecoder
from polyformer.core.encoder_decoder import SourceDecoder as SourceDecoder
from polyformer.core.feedforward import FeedForward as FeedForward
from polyformer.core.feedforward import MixtureOfExperts as MixtureOfExperts
from polyformer.core.heads import TEXT_POOLINGS as TEXT_POOLINGS
from polyformer.core.heads import AttentionPooling as AttentionPooling
from polyformer.core.heads import Head as Head
from polyformer.core.heads import MaskedTokenHead as MaskedTokenHead
from polyformer.core.heads import Pooling as Pooling
from polyformer.core.heads import SequenceHead as SequenceHead
from polyformer.core.heads import TokenHead as TokenHead
from polyformer.core.heads import Transform as Transform
from polyformer.core.linear import Embedding as Embedding
from polyformer.core.linear import Linear as Linear
from polyformer.core.masks import Bidirectional as Bidirectional
from polyformer.core.masks import BidirectionalWindow as BidirectionalWindow
from polyformer.core.masks import BlockLocal as BlockLocal
from polyformer.core.masks import Causal as Causal
from polyformer.core.masks import PrefixCausal as PrefixCausal
from polyformer.core.masks import SlidingWindow as SlidingWindow
from polyformer.core.masks import Span as Span
from polyformer.core.normalization import LayerNorm as LayerNorm
from polyformer.core.normalization import RMSNorm as RMSNorm
from polyformer.core.positions import ALiBi as ALiBi
from polyformer.core.positions import Learned as Learned
from polyformer.core.positions import Relative as Relative
from polyformer.core.positions import RelativeBias as RelativeBias
from polyformer.core.positions import Sinusoidal as Sinusoidal
from polyformer.core.rotary import Rotary as Rotary
from polyformer.core.transformer import DecoderOnly as DecoderOnly
from polyformer.core.transformer import Layer as Layer
from polyformer.core.transformer import Output as Output
from polyformer.core.transformer import Source as Source
from polyformer.core.transformer import Stack as Stack
