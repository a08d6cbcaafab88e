"""Recurrent layers: a state that is carried from token to token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from polyformer.baselines.texts import Texts
from polyformer.core import config as core
from polyformer.core.config import require
from polyformer.core.embeddings import TokenEmbedding

CELLS: dict[str, Callable[..., nn.RNNBase]] = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}

State = tuple[Tensor, ...]
"""[batch, layers x directions, size] each: the hidden state, and the cell of an LSTM."""


class Recurrence(core.Module):
    """Recurrent layers one above the other.

    Args of the config:
        input_size: of the vectors that come in.
        hidden_size: of the state, and of what each direction puts out.
        num_layers: one above the other.
        cell: what a step does.
            "rnn": tanh(W x + U h + b) (Elman, 1990).
            "lstm": a cell with input, forget and output gate (Hochreiter and Schmidhuber, 1997; Gers et al., 2000). The
            bias of the forget gate starts at 1, so that it remembers at first (Jozefowicz et al., 2015).
            "gru": update and reset gate (Cho et al., 2014).
        dropout: between layers, in training (Zaremba et al., 2014).
        bidirectional: one more recurrence from the end to the beginning; their outputs stand side by side.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        input_size: int
        hidden_size: int
        num_layers: int = 1
        cell: str = "lstm"
        dropout: float = 0.0
        bidirectional: bool = False

        def __post_init__(self) -> None:
            require(self.cell in CELLS, f"cell {self.cell!r} is not one of {', '.join(CELLS)}")
            require(self.num_layers >= 1, f"num_layers is {self.num_layers}, but it must be at least 1")
            require(self.hidden_size >= 1, f"hidden_size is {self.hidden_size}, but it must be at least 1")
            require(0 <= self.dropout < 1, f"dropout is {self.dropout}, but it must be at least 0 and below 1")

        @property
        def output_size(self) -> int:
            """Of what comes out."""
            return self.hidden_size * (2 if self.bidirectional else 1)

        @property
        def state_parts(self) -> int:
            """Tensors of a state."""
            return 2 if self.cell == "lstm" else 1

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.cells = CELLS[config.cell](
            config.input_size,
            config.hidden_size,
            config.num_layers,
            batch_first=True,
            dropout=config.dropout if config.num_layers > 1 else 0.0,
            bidirectional=config.bidirectional,
        )
        self._initialize()

    def _initialize(self) -> None:
        """Of every gate: input weights that keep the size of what comes in (Glorot and Bengio, 2010), recurrent weights
        that keep the size of the state (orthogonal: Saxe et al., 2014), biases of 0. With PyTorch's own numbers the
        signal fades from layer to layer, and learning begins very late."""
        size = self.config.hidden_size
        with torch.no_grad():
            for name, parameter in self.cells.named_parameters():
                if parameter.is_meta:
                    continue
                for gate in parameter.split(size):
                    if name.startswith("weight_hh"):
                        nn.init.orthogonal_(gate)
                    elif name.startswith("weight_ih"):
                        nn.init.xavier_normal_(gate)
                    else:
                        nn.init.zeros_(gate)
                if self.config.cell == "lstm" and name.startswith("bias_ih"):
                    nn.init.ones_(parameter[size : 2 * size])  # the gates are: input, forget, cell, output

    def forward(self, inputs: Tensor, texts: Texts, state: State | None = None) -> tuple[Tensor, State]:
        """
        Args:
            inputs: [batch, columns, input_size].
            texts: which texts they are.
            state: before the first column; None is all zeros. Rows of several documents have none.

        Returns:
            [batch, columns, output_size], zeros at padding; and the state after the last token of each row, or of the
            last document of each.
        """
        if inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            # Few CPUs train recurrent layers in 16 bits, and none of the others is faster so: they stay in float32.
            with torch.autocast("cpu", enabled=False):
                return self._run(inputs.float(), texts, state)
        return self._run(inputs, texts, state)

    def _run(self, inputs: Tensor, texts: Texts, state: State | None) -> tuple[Tensor, State]:
        before = self._zeros(inputs) if state is None else tuple(part.to(inputs.dtype) for part in state)
        if texts.whole:
            outputs, last = self.cells(inputs, self._as_cells_take(before))
            return outputs, self._as_we_keep(last)
        assert texts.rows is not None and texts.lengths is not None
        if not len(texts.rows):
            return inputs.new_zeros(*inputs.shape[:2], self.config.output_size), before
        packed = pack_padded_sequence(texts.gather(inputs), texts.lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs, last = self.cells(packed, self._as_cells_take(tuple(part[texts.rows] for part in before)))
        outputs, _ = pad_packed_sequence(outputs, batch_first=True)
        after = tuple(texts.carry(old, new) for old, new in zip(before, self._as_we_keep(last), strict=True))
        return texts.scatter(outputs), after

    def _zeros(self, inputs: Tensor) -> State:
        config = self.config
        count = config.num_layers * (2 if config.bidirectional else 1)
        return (inputs.new_zeros(len(inputs), count, config.hidden_size),) * config.state_parts

    def _as_cells_take(self, state: State) -> Tensor | State:
        turned = tuple(part.transpose(0, 1).contiguous() for part in state)
        return turned if len(turned) > 1 else turned[0]

    def _as_we_keep(self, last: Tensor | State) -> State:
        return tuple(part.transpose(0, 1) for part in ((last,) if isinstance(last, Tensor) else last))


def unit_embedding(vocab_size: int, hidden_size: int, dropout: float) -> TokenEmbedding.Config:
    """An embedding whose vectors have numbers of about 1, while its table has those that a tied head takes (Vaswani et
    al., 2017, section 3.4)."""
    return TokenEmbedding.Config(
        vocab_size, hidden_size, scale=hidden_size**0.5, dropout=dropout, standard_deviation=hidden_size**-0.5
    )
