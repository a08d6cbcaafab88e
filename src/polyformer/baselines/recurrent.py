"""The recurrent language model (Mikolov et al., 2010; with LSTM: Sundermeyer et al., 2012; Zaremba et al., 2014)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyformer.baselines.language_model import StatefulLanguageModel
from polyformer.baselines.recurrence import Recurrence, unit_embedding
from polyformer.baselines.texts import Texts
from polyformer.core import config as core


class RecurrentLM(StatefulLanguageModel):
    """Token by token into a state, and out of the state the next token.

    Args of the config:
        vocab_size: tokens.
        hidden_size: of the embedding and of the state of every layer.
        num_layers: recurrent layers.
        cell: "rnn", "lstm" or "gru"; see `Recurrence`.
        dropout: on the embedding, between layers and on what comes out, in training; never on the way from token to
            token (Zaremba et al., 2014).
        tied: the head's matrix is the embedding's table (Press and Wolf, 2017; Inan et al., 2017).
        max_positions: the longest text that it should be given; None where there is no limit.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        vocab_size: int
        hidden_size: int
        num_layers: int = 2
        cell: str = "lstm"
        dropout: float = 0.0
        tied: bool = True
        max_positions: int | None = None

        def __post_init__(self) -> None:
            _ = self.recurrence  # says what cannot be

        @property
        def recurrence(self) -> Recurrence.Config:
            """The layers."""
            return Recurrence.Config(self.hidden_size, self.hidden_size, self.num_layers, self.cell, self.dropout)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self._build_ends(unit_embedding(config.vocab_size, config.hidden_size, config.dropout))
        self.recurrence = config.recurrence.build()

    def read(self, hidden: Tensor, texts: Texts, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs, after = self.recurrence(hidden, texts, state)
        return outputs, after
