"""Encoder-decoders: one stack reads a source, another writes while it looks at it (Vaswani et al., 2017)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polyformer.core import config as core
from polyformer.core.cache import Cache
from polyformer.core.config import require
from polyformer.core.embeddings import TokenEmbedding
from polyformer.core.encoder import Encoder
from polyformer.core.heads import Head, Pooling, SequenceHead, TokenHead
from polyformer.core.linear import Linear
from polyformer.core.masks import Span
from polyformer.core.network import Network
from polyformer.core.transformer import Output, Source, Stack, check_widths, read_tokens

TASKS = ("generation", "features", "sequence-classification", "question-answering")


class Decoder(core.Module):
    """An embedding of tokens and a stack whose layers look at a source.

    Args of the config:
        embedding, stack: the two parts.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        embedding: TokenEmbedding.Config
        stack: Stack.Config

        def __post_init__(self) -> None:
            check_widths(self.embedding, self.embedding.hidden_size)
            check_widths(self.stack, self.embedding.output_size)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = config.embedding.build()
        self.stack = config.stack.build()

    def forward(self, input_ids: Tensor, **options: Any) -> Output:
        """See `read_tokens`."""
        return read_tokens(self.embedding, self.stack, input_ids, **options)


class EncoderDecoder(Network):
    """A network that turns a source (text, a picture, sound) into tokens.

    Args of the config:
        encoder, decoder: the two stacks with their embeddings.
        head: scores over the decoder's vocabulary; None for a network that only gives states.
        shared_embedding: the decoder uses the encoder's table of tokens.
        bridge: a linear map of the encoder's states to the width that cross-attention takes; None without.
        decoder_start_token_id: what every target begins with; None where the caller always says.
        max_positions: the longest target; None where there is no limit.
        max_source_positions: the longest source of tokens; None where there is no limit.
        task: what it was trained for, one of `TASKS`.
        pooling, sequence_head: scores over labels for the decoder's states (BART's classification).
        token_head: scores over labels for each of them (BART's question answering).
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        encoder: Encoder.Config
        decoder: Decoder.Config
        head: Head.Config | None
        shared_embedding: bool = False
        bridge: Linear.Config | None = None
        decoder_start_token_id: int | None = None
        max_positions: int | None = None
        max_source_positions: int | None = None
        task: str = "generation"
        pooling: Pooling.Config | None = None
        sequence_head: SequenceHead.Config | None = None
        token_head: TokenHead.Config | None = None

        def __post_init__(self) -> None:
            require(self.task in TASKS, f"task {self.task!r} is not one of {', '.join(TASKS)}")
            width = self.encoder.hidden_size if self.bridge is None else self.bridge.out_features
            require(
                self.bridge is None or self.bridge.in_features == self.encoder.hidden_size,
                f"the bridge takes vectors of {self.bridge and self.bridge.in_features}, but the encoder gives "
                f"{self.encoder.hidden_size}",
            )
            for number, layer in enumerate(self.decoder.stack.layers):
                cross = layer.cross_attention
                require(
                    cross is None or cross.source_size == width,
                    f"decoder layer {number} takes a source of {cross and cross.source_size}, but gets {width}",
                )
            require(
                any(layer.cross_attention is not None for layer in self.decoder.stack.layers),
                "no layer of the decoder has cross-attention, so the source would not matter",
            )
            require(
                not self.shared_embedding
                or (
                    isinstance(self.encoder.embedding, TokenEmbedding.Config)
                    and self.encoder.embedding.vocab_size == self.decoder.embedding.vocab_size
                    and self.encoder.embedding.hidden_size == self.decoder.embedding.hidden_size
                ),
                "a shared embedding needs an encoder and a decoder with the same vocabulary and width",
            )
            require(
                self.head is None
                or (self.head.hidden_size, self.head.vocab_size)
                == (self.decoder.embedding.output_size, self.decoder.embedding.vocab_size),
                "the head must take the decoder's states and score the decoder's vocabulary",
            )
            require(
                self.sequence_head is None or self.pooling is not None,
                "a sequence head scores the pooled vector: give a pooling",
            )

        @property
        def vocab_size(self) -> int:
            """Of the decoder."""
            return self.decoder.embedding.vocab_size

        @property
        def hidden_size(self) -> int:
            """Of the decoder."""
            return self.decoder.embedding.output_size

        @property
        def num_layers(self) -> int:
            """Of the decoder."""
            return len(self.decoder.stack.layers)

        @property
        def num_labels(self) -> int | None:
            """Labels that the token or sequence head tells apart; None without such a head."""
            head = self.token_head or self.sequence_head
            return None if head is None else head.num_labels

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.decoder = config.decoder.build()
        if config.shared_embedding:
            self.decoder.embedding.tokens = self.encoder.embedding.tokens
        self.bridge = config.bridge.build() if config.bridge else None
        self.head = config.head.build() if config.head else None
        self.pooling = config.pooling.build() if config.pooling else None
        self.sequence_head = config.sequence_head.build() if config.sequence_head else None
        self.token_head = config.token_head.build() if config.token_head else None

    def _pack_rest(self) -> None:
        if self.head is not None:
            self.head.pack_table(self.decoder.embedding.tokens.weight)

    def new_cache(self, kind: str = "dense", *, capacity: int | None = None) -> Cache:
        """An empty cache for the decoder; see `DecoderOnly.new_cache`. It also keeps what is made of the source."""
        cache: Cache = self.decoder.stack.new_cache(kind, capacity=capacity)
        return cache

    def encode(self, input_ids: Tensor | None = None, **options: Any) -> Output:
        """The encoder's output for a source; arguments as `Encoder.forward`. ``last_hidden_state`` is what
        cross-attention takes: after the bridge, if there is one."""
        output: Output = self.encoder(input_ids, **options)
        if self.bridge is not None:
            output.last_hidden_state = self.bridge(output.last_hidden_state)
        return output

    def with_source(self, states: Tensor, attention_mask: Tensor | None = None) -> SourceDecoder:
        """The decoder with a source in place, to be called and generated from like a decoder-only network.

        Args:
            states: [rows, columns, size], ``last_hidden_state`` of `encode`.
            attention_mask: [rows, columns], true where the source holds something; None means everywhere.
        """
        return SourceDecoder(self, Source(states, attention_mask))

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        with_logits: bool = True,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_attentions: bool | Collection[int] = (),
    ) -> Output:
        """
        Args:
            input_ids, pixel_values, input_features: the source, [batch, ...]; see `Encoder.forward`. With a cache that
                holds a source already, it is left out.
            attention_mask: [batch, columns] of a source of tokens.
            decoder_input_ids: [batch, new], the target so far. The heads of classification and question answering read
                the source once more there: None then means the source, each row moved right by the start token.
            decoder_attention_mask: [batch, new].
            cache: of the decoder.
            with_logits, logits_to_keep, output_hidden_states, output_attentions: as in `DecoderOnly.forward`;
                attentions are those of the decoder and, where its layers have these numbers too, of the encoder.

        Returns:
            The decoder's output; ``encoder`` is the encoder's.

        Raises:
            ConfigError: no source, no target, or wrong shapes.
        """
        given = {"input_ids": input_ids, "pixel_values": pixel_values, "input_features": input_features}
        names = [name for name, value in given.items() if value is not None]
        read_already = cache is not None and cache.has_source
        require(not (read_already and names), f"the cache holds a source already: leave {' and '.join(names)} out")
        encoded, source = None, None
        if not read_already:
            encoded = self.encode(
                input_ids,
                pixel_values=pixel_values,
                input_features=input_features,
                attention_mask=attention_mask,
                output_hidden_states=output_hidden_states,
                output_attentions=self._of_encoder(output_attentions),
            )
            source = Source(encoded.last_hidden_state, attention_mask)
        if decoder_input_ids is None and input_ids is not None and self.config.task != "generation":
            decoder_input_ids, decoder_attention_mask = self._moved_right(input_ids, attention_mask)
        require(
            decoder_input_ids is not None,
            "decoder_input_ids are missing: give the target so far, at first the start token "
            f"{self.config.decoder_start_token_id}",
        )
        assert decoder_input_ids is not None
        output = self.decode(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            cache=cache,
            source=source,
            with_logits=with_logits,
            logits_to_keep=logits_to_keep,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        output.encoder = encoded
        if self.pooling is not None and input_ids is not None:
            hidden = output.last_hidden_state
            require(
                hidden.shape[1] == input_ids.shape[1],
                f"this network judges a text by what the decoder makes of it, so decoder_input_ids must be as long as "
                f"input_ids ({input_ids.shape[1]} columns), but have {hidden.shape[1]}: leave them out",
            )
            span = Span.of(hidden.shape[1], decoder_attention_mask, device=hidden.device)
            # The target is the source moved right: its states stand under the source's tokens.
            output.pooler_output = self.pooling(hidden, span, input_ids)
            if self.sequence_head is not None and with_logits:
                output.logits = self.sequence_head(output.pooler_output)
        return output

    def decode(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        with_logits: bool = True,
        logits_to_keep: int = 0,
        **options: Any,
    ) -> Output:
        """The decoder on a target, with the head over the vocabulary or the one over labels for every token.

        Arguments as `read_tokens`, ``with_logits`` and ``logits_to_keep`` as in `forward`."""
        require(logits_to_keep >= 0, f"logits_to_keep is {logits_to_keep}, but it must be at least 0")
        output: Output = self.decoder(input_ids, attention_mask=attention_mask, **options)
        if not with_logits:
            return output
        hidden = output.last_hidden_state
        if self.head is not None:
            output.logits = self.score(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        if self.token_head is not None:
            output.logits = self.token_head(hidden)
        return output

    def score(self, hidden: Tensor) -> Tensor:
        """The decoder's ``last_hidden_state``, or any of its vectors, [..., hidden_size] -> logits [..., vocab_size].

        Raises:
            ConfigError: there is no head over the vocabulary.
        """
        require(self.head is not None, "this network has no head over the vocabulary: it gives tokens no scores")
        assert self.head is not None
        logits: Tensor = self.head(hidden, self.decoder.embedding.tokens.weight)
        return logits

    def _moved_right(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        start = self.config.decoder_start_token_id
        require(start is not None, "this network has no decoder_start_token_id: give decoder_input_ids")
        moved = torch.cat([input_ids[:, :1], input_ids[:, :-1]], dim=1)
        if attention_mask is None:
            first = torch.arange(input_ids.shape[1], device=input_ids.device)[None] == 0
        else:  # the first token of each row, wherever the padding stands
            real = attention_mask.bool()
            first = real & (real.cumsum(1) == 1)
        return torch.where(first, start, moved), attention_mask  # type: ignore[arg-type]

    def _of_encoder(self, wanted: bool | Collection[int]) -> bool | Collection[int]:
        count = self.config.encoder.num_layers
        return wanted if isinstance(wanted, bool) else [number for number in wanted if -count <= number < count]


class SourceDecoder:
    """A decoder with its source in place. It is called like a `DecoderOnly`, and row i reads the source's row i.

    Attributes:
        network: the whole network.
        source: what it looks at.
    """

    def __init__(self, network: EncoderDecoder, source: Source):
        require(network.head is not None, "this network has no head over the vocabulary: it writes nothing")
        self.network = network
        self.source = source

    @property
    def config(self) -> EncoderDecoder.Config:
        """With ``vocab_size`` and ``max_positions`` of the decoder."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    def new_cache(self, kind: str = "dense", *, capacity: int | None = None) -> Cache:
        return self.network.new_cache(kind, capacity=capacity)

    def select(self, rows: Tensor) -> SourceDecoder:
        """The same decoder with the source's rows ``rows`` [any number] only."""
        return SourceDecoder(self.network, self.source.select(rows))

    def __call__(self, input_ids: Tensor, *, cache: Cache | None = None, **options: Any) -> Output:
        """As `DecoderOnly.forward`. The source is read at the first call with a cache, and is in it afterwards."""
        source = None if cache is not None and cache.has_source else self.source
        return self.network.decode(input_ids, cache=cache, source=source, **options)
