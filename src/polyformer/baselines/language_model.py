"""What the language models that carry a state have in common: an embedding, what makes it one, and a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from polyformer.baselines.state import StateCache
from polyformer.baselines.texts import Texts
from polyformer.core.config import require
from polyformer.core.embeddings import TokenEmbedding
from polyformer.core.heads import Head
from polyformer.core.network import Network
from polyformer.core.transformer import Output


class StatefulLanguageModel(Network):
    """Base of language models whose state has a fixed size. It is called as `DecoderOnly` is.

    Subclasses have a config with ``vocab_size``, ``hidden_size``, ``dropout`` and ``tied``, and say in `read` what they
    do between embedding and head.
    """

    config: Any

    def _build_ends(self, embedding: TokenEmbedding.Config) -> None:
        config = self.config
        self.embedding = embedding.build()
        self.head = Head.Config(config.hidden_size, config.vocab_size, tied=config.tied, bias=True).build()

    def _pack_rest(self) -> None:
        self.head.pack_table(self.embedding.tokens.weight)

    def new_cache(self, kind: str = "dense", *, capacity: int | None = None) -> StateCache:
        """An empty cache; it holds the state, whose size does not depend on the text.

        Raises:
            ConfigError: another kind than "dense".
        """
        return StateCache(kind, capacity=capacity)

    def read(self, hidden: Tensor, texts: Texts, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Args:
            hidden: [batch, columns, hidden_size], the embeddings.
            texts: which texts they are.
            state: tensors [batch, ...], before the first column; None at the beginning of a text.

        Returns:
            [batch, columns, hidden_size], and the state after the last token of each row.
        """
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: StateCache | None = None,
        with_logits: bool = True,
        logits_to_keep: int = 0,
    ) -> Output:
        """
        Args:
            input_ids: [batch, new].
            attention_mask: [batch, new], true (or 1) where there is a token. Padding leaves the state as it is.
            document_ids: [batch, new], which document each token of a packed row belongs to: a document is a run of
                neighbours with the same id, and -1 is padding. The state begins anew in each.
            cache: the state after earlier tokens; it moves on past the new ones.
            with_logits: False leaves ``logits`` out; `score` makes them of hidden states.
            logits_to_keep: only the logits of the last so many columns are computed; 0 computes all.

        Raises:
            ConfigError: shapes that do not fit, or document_ids together with a cache.
        """
        require(logits_to_keep >= 0, f"logits_to_keep is {logits_to_keep}, but it must be at least 0")
        require(
            document_ids is None or cache is None,
            "document_ids are for packed rows that are read once: they go with no cache",
        )
        texts = Texts(input_ids, attention_mask, document_ids)
        if cache is not None:
            cache.check_room(*input_ids.shape)
        positions = torch.zeros_like(input_ids)  # there are none: the order of tokens is in the state
        before = cache.parts if cache is not None and cache.parts else None
        hidden, after = self.read(self.embedding(input_ids, positions), texts, before)
        hidden = functional.dropout(hidden, self.config.dropout, self.training)
        if cache is not None:
            cache.advance(after, texts.tokens(), input_ids.shape[1])
        output = Output(last_hidden_state=hidden)
        if with_logits:
            output.logits = self.score(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return output

    def score(self, hidden: Tensor) -> Tensor:
        """``last_hidden_state``, or any of its vectors, [..., hidden_size] -> logits [..., vocab_size]."""
        logits: Tensor = self.head(hidden, self.embedding.tokens.weight)
        return logits
