"""From one text to another before the Transformer: a recurrent encoder and decoder with attention between them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polyformer.baselines.recurrence import Recurrence, unit_embedding
from polyformer.baselines.state import StateCache
from polyformer.baselines.texts import Texts
from polyformer.core import config as core
from polyformer.core.config import require
from polyformer.core.encoder_decoder import SourceDecoder
from polyformer.core.heads import Head
from polyformer.core.linear import Linear, keep_size
from polyformer.core.network import Network
from polyformer.core.transformer import Output, Source


class RecurrentEncoder(core.Module):
    """Reads a source in both directions (Schuster and Paliwal, 1997; Bahdanau et al., 2015, section 3.2).

    Args of the config:
        vocab_size: tokens of the source.
        hidden_size: of the embedding, and of the two directions together.
        num_layers, cell, dropout: see `Recurrence`.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        vocab_size: int
        hidden_size: int
        num_layers: int = 2
        cell: str = "lstm"
        dropout: float = 0.0

        def __post_init__(self) -> None:
            require(
                self.hidden_size % 2 == 0,
                f"hidden_size is {self.hidden_size}, but it must be even: each direction has a half of it",
            )
            _ = self.recurrence  # says what cannot be

        @property
        def recurrence(self) -> Recurrence.Config:
            half = self.hidden_size // 2
            return Recurrence.Config(
                self.hidden_size, half, self.num_layers, self.cell, self.dropout, bidirectional=True
            )

        @property
        def input_name(self) -> str:
            """What it reads."""
            return "input_ids"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = unit_embedding(config.vocab_size, config.hidden_size, config.dropout).build()
        self.recurrence = config.recurrence.build()

    def forward(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Output:
        """[batch, columns] -> ``last_hidden_state`` [batch, columns, hidden_size], zeros at padding."""
        hidden = self.embedding(input_ids, torch.zeros_like(input_ids))
        states, _ = self.recurrence(hidden, Texts(input_ids, attention_mask))
        return Output(last_hidden_state=functional.dropout(states, self.config.dropout, self.training))


class SourceAttention(core.Module):
    """tanh(W [c; h]), c being the mean of the source's states weighted by softmax(hᵀ W_a s) (Luong et al., 2015,
    equations 5 to 8, "general").

    Args of the config:
        size: of the states of both sides.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        size: int

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.key = Linear.Config(config.size, config.size).build()
        self.output = Linear.Config(2 * config.size, config.size).build()
        keep_size(self.key, self.output)

    def forward(self, hidden: Tensor, keys: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            hidden: [batch, new, size] of the target.
            keys: [batch, columns, size], ``key`` of the states.
            states: [batch, columns, size] of the source.
            mask: [batch, columns], true where the source holds something.

        Returns:
            [batch, new, size].
        """
        scores = hidden @ keys.mT
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        context = scores.softmax(-1) @ states
        return torch.tanh(self.output(torch.cat([context, hidden], dim=-1)))


class RecurrentTranslator(Network):
    """A recurrent encoder and decoder with attention (Sutskever et al., 2014; Bahdanau et al., 2015; Luong et al.,
    2015). It is called as `EncoderDecoder` is.

    Attention looks at the source from the decoder's states and is not fed back into them (Luong et al. without input
    feeding), so that a whole target is read at once in training. The decoder starts from the mean of the source's
    states (Sennrich et al., 2017, section 3).

    Args of the config:
        source_vocab_size, vocab_size: tokens of the source and of the target.
        hidden_size: of embeddings and states.
        num_layers: of the encoder, and of the decoder.
        cell: "rnn", "lstm" or "gru"; see `Recurrence`.
        dropout: on embeddings, between layers and on what comes out, in training.
        tied: the head's matrix is the table of the target's embedding.
        shared_embedding: source and target have one table.
        decoder_start_token_id: what every target begins with; None where the caller always says.
        max_positions, max_source_positions: the longest target and source that it should be given; None where there is
            no limit.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        source_vocab_size: int
        vocab_size: int
        hidden_size: int
        num_layers: int = 2
        cell: str = "lstm"
        dropout: float = 0.0
        tied: bool = True
        shared_embedding: bool = False
        decoder_start_token_id: int | None = None
        max_positions: int | None = None
        max_source_positions: int | None = None

        def __post_init__(self) -> None:
            require(
                not self.shared_embedding or self.source_vocab_size == self.vocab_size,
                f"a shared embedding needs one vocabulary, but the source has {self.source_vocab_size} tokens and the "
                f"target {self.vocab_size}",
            )
            _ = self.encoder  # says what cannot be

        @property
        def encoder(self) -> RecurrentEncoder.Config:
            return RecurrentEncoder.Config(
                self.source_vocab_size, self.hidden_size, self.num_layers, self.cell, self.dropout
            )

        @property
        def decoder(self) -> Recurrence.Config:
            return Recurrence.Config(self.hidden_size, self.hidden_size, self.num_layers, self.cell, self.dropout)

        @property
        def task(self) -> str:
            """What it is trained for."""
            return "generation"

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.embedding = unit_embedding(config.vocab_size, config.hidden_size, config.dropout).build()
        if config.shared_embedding:
            self.embedding.tokens = self.encoder.embedding.tokens
        self.start = Linear.Config(config.hidden_size, config.num_layers * config.hidden_size, bias=True).build()
        keep_size(self.start)
        self.decoder = config.decoder.build()
        self.attention = SourceAttention.Config(config.hidden_size).build()
        self.head = Head.Config(config.hidden_size, config.vocab_size, tied=config.tied, bias=True).build()

    def _pack_rest(self) -> None:
        self.head.pack_table(self.embedding.tokens.weight)

    def new_cache(self, kind: str = "dense", *, capacity: int | None = None) -> StateCache:
        """An empty cache for the decoder; it also keeps what is made of the source.

        Raises:
            ConfigError: another kind than "dense".
        """
        return StateCache(kind, capacity=capacity)

    def encode(self, input_ids: Tensor, *, attention_mask: Tensor | None = None) -> Output:
        """The encoder's output for a source; see `RecurrentEncoder.forward`."""
        output: Output = self.encoder(input_ids, attention_mask=attention_mask)
        return output

    def with_source(self, states: Tensor, attention_mask: Tensor | None = None) -> SourceDecoder:
        """The decoder with a source in place; as `EncoderDecoder.with_source`."""
        return SourceDecoder(self, Source(states, attention_mask))  # type: ignore[arg-type]

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        cache: StateCache | None = None,
        with_logits: bool = True,
        logits_to_keep: int = 0,
    ) -> Output:
        """
        Args:
            input_ids: [batch, columns], the source. With a cache that holds a source already, it is left out.
            attention_mask: [batch, columns] of the source.
            decoder_input_ids: [batch, new], the target so far.
            decoder_attention_mask: [batch, new].
            cache: of the decoder.
            with_logits, logits_to_keep: as in `StatefulLanguageModel.forward`.

        Returns:
            The decoder's output; ``encoder`` is the encoder's.

        Raises:
            ConfigError: no source or two, no target, or wrong shapes.
        """
        read_already = cache is not None and cache.has_source
        require(not (read_already and input_ids is not None), "the cache holds a source already: leave input_ids out")
        require(
            decoder_input_ids is not None,
            "decoder_input_ids are missing: give the target so far, at first the start token "
            f"{self.config.decoder_start_token_id}",
        )
        assert decoder_input_ids is not None
        encoded, source = None, None
        if not read_already:
            require(input_ids is not None, "input_ids are missing: give the source")
            assert input_ids is not None
            encoded = self.encode(input_ids, attention_mask=attention_mask)
            source = Source(encoded.last_hidden_state, attention_mask)
        output = self.decode(
            decoder_input_ids,
            attention_mask=decoder_attention_mask,
            cache=cache,
            source=source,
            with_logits=with_logits,
            logits_to_keep=logits_to_keep,
        )
        output.encoder = encoded
        return output

    def decode(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: StateCache | None = None,
        source: Source | None = None,
        with_logits: bool = True,
        logits_to_keep: int = 0,
    ) -> Output:
        """The decoder on a target.

        Args:
            input_ids: [batch, new].
            attention_mask: [batch, new].
            cache: the state after earlier tokens.
            source: what it looks at; left out where the cache holds it.
            with_logits, logits_to_keep: as in `forward`.

        Raises:
            ConfigError: no source, or shapes that do not fit.
        """
        require(logits_to_keep >= 0, f"logits_to_keep is {logits_to_keep}, but it must be at least 0")
        texts = Texts(input_ids, attention_mask)
        looked_at = self._source_of(source, cache)
        require(
            len(looked_at[0]) == len(input_ids),
            f"the target has {len(input_ids)} rows, but the source {len(looked_at[0])}",
        )
        if cache is not None:
            cache.check_room(*input_ids.shape)
        keys, states, mask = looked_at
        before = cache.parts if cache is not None and cache.parts else self._start_from(states, mask)
        hidden = self.embedding(input_ids, torch.zeros_like(input_ids))
        hidden, after = self.decoder(hidden, texts, before)
        hidden = self.attention(hidden, keys, states, mask)
        hidden = functional.dropout(hidden, self.config.dropout, self.training)
        if cache is not None:
            cache.source = looked_at
            cache.advance(after, texts.tokens(), input_ids.shape[1])
        output = Output(last_hidden_state=hidden)
        if with_logits:
            output.logits = self.score(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return output

    def score(self, hidden: Tensor) -> Tensor:
        """``last_hidden_state``, or any of its vectors, [..., hidden_size] -> logits [..., vocab_size]."""
        logits: Tensor = self.head(hidden, self.embedding.tokens.weight)
        return logits

    def _source_of(self, source: Source | None, cache: StateCache | None) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, states and mask of what attention looks at."""
        if cache is not None and cache.has_source:
            keys, states, mask = cache.source
            return keys, states, mask
        require(source is not None, "this decoder looks at a source, but none was given")
        assert source is not None
        given = source.attention_mask
        everywhere = torch.ones(source.states.shape[:2], dtype=torch.bool, device=source.states.device)
        return self.attention.key(source.states), source.states, everywhere if given is None else given.bool()

    def _start_from(self, states: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The decoder's first state: of every layer a map of the mean of the source; the cells of an LSTM are empty."""
        config = self.config
        count = mask.sum(-1, keepdim=True).clamp(min=1).to(states.dtype)
        mean = states.masked_fill(~mask[..., None], 0).sum(1) / count
        first = torch.tanh(self.start(mean)).view(-1, config.num_layers, config.hidden_size)
        return (first, *(torch.zeros_like(first) for _ in range(config.decoder.state_parts - 1)))
