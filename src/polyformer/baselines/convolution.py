"""The convolutional language model: dilated causal convolutions with gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.baselines.language_model import StatefulLanguageModel
from polyformer.baselines.texts import Texts
from polyformer.core import config as core
from polyformer.core.config import require
from polyformer.core.embeddings import TokenEmbedding
from polyformer.core.linear import Linear
from polyformer.core.normalization import LayerNorm


class GatedConvolution(core.Module):
    """x + W (tanh(F * u) · sigmoid(G * u)) with u = norm(x), where * looks at the present vector and at earlier ones
    only, ``dilation`` apart (van den Oord et al., 2016, section 2.3 and equation 2).

    The norm at the beginning of the residual branch is not theirs; it lets deep stacks be trained as a transformer is.

    Args of the config:
        size: of the vectors.
        kernel_size: vectors that a convolution looks at.
        dilation: how far apart they are.
        dropout: on the result of the branch, in training.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        size: int
        kernel_size: int = 2
        dilation: int = 1
        dropout: float = 0.0

        def __post_init__(self) -> None:
            require(self.size >= 1, f"the size of vectors is {self.size}, but it must be at least 1")
            require(self.kernel_size >= 2, f"kernel_size is {self.kernel_size}, but it must be at least 2")
            require(self.dilation >= 1, f"dilation is {self.dilation}, but it must be at least 1")
            require(0 <= self.dropout < 1, f"dropout is {self.dropout}, but it must be at least 0 and below 1")

        @property
        def reach(self) -> int:
            """How far back it looks."""
            return (self.kernel_size - 1) * self.dilation

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.norm = LayerNorm.Config(config.size).build()
        # Both convolutions as one map of the vectors that they look at, the earliest first.
        self.filters = Linear.Config(config.kernel_size * config.size, 2 * config.size, bias=True).build()
        self.output = Linear.Config(config.size, config.size, bias=True).build()

    def forward(self, hidden: Tensor, lengths: Tensor | None, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """
        Args:
            hidden: [texts, columns, size].
            lengths: [texts], columns that hold a token; None means all.
            before: [texts, reach, size], the last inputs of the convolutions; None at the beginning of a text.

        Returns:
            The same shape as ``hidden``, and what ``before`` is for the next columns.
        """
        config, columns = self.config, hidden.shape[1]
        inputs = self.norm(hidden)
        if before is None:
            before = inputs.new_zeros(len(inputs), config.reach, config.size)
        known = torch.cat([before, inputs], dim=1)
        seen = [known[:, start : start + columns] for start in range(0, config.reach + 1, config.dilation)]
        filtered, gate = self.filters(torch.cat(seen, dim=-1)).chunk(2, dim=-1)
        branch = self.output(torch.tanh(filtered) * torch.sigmoid(gate))
        if lengths is None:
            after = known[:, columns:]
        else:
            last = lengths[:, None] + torch.arange(config.reach, device=known.device)
            after = known[torch.arange(len(known), device=known.device)[:, None], last]
        return hidden + functional.dropout(branch, config.dropout, self.training), after


class ConvolutionLM(StatefulLanguageModel):
    """Gated causal convolutions whose dilation doubles from layer to layer (WaveNet: van den Oord et al., 2016; for
    text: Kalchbrenner et al., 2016; Bai et al., 2018).

    All columns of a text are computed at once; how far back the network looks is fixed: ``receptive_field``.

    Args of the config:
        vocab_size: tokens.
        hidden_size: of the vectors.
        num_layers: convolutions.
        kernel_size: vectors that each looks at.
        dilation_cycle: after so many layers the dilation begins again at 1 (1, 2, 4, ..., 512 in WaveNet: 10).
        dropout: on the embedding, on every branch and on what comes out, in training.
        tied: the head's matrix is the embedding's table.
        max_positions: the longest text that it should be given; None where there is no limit.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        vocab_size: int
        hidden_size: int
        num_layers: int = 10
        kernel_size: int = 2
        dilation_cycle: int = 10
        dropout: float = 0.0
        tied: bool = True
        max_positions: int | None = None

        def __post_init__(self) -> None:
            require(self.num_layers >= 1, f"num_layers is {self.num_layers}, but it must be at least 1")
            require(1 <= self.dilation_cycle <= 24, f"dilation_cycle is {self.dilation_cycle}, but it must be 1 to 24")
            _ = self.layers  # says what cannot be

        @property
        def layers(self) -> tuple[GatedConvolution.Config, ...]:
            return tuple(
                GatedConvolution.Config(
                    self.hidden_size, self.kernel_size, 2 ** (number % self.dilation_cycle), self.dropout
                )
                for number in range(self.num_layers)
            )

        @property
        def receptive_field(self) -> int:
            """Tokens that a prediction depends on."""
            return 1 + sum(layer.reach for layer in self.layers)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        # The branches are normalized, so the vectors need no size of their own: the table is drawn for the head (about
        # as by Merity et al., 2018, section 5).
        self._build_ends(
            TokenEmbedding.Config(
                config.vocab_size, config.hidden_size, dropout=config.dropout, standard_deviation=0.06
            )
        )
        self.layers = nn.ModuleList(layer.build() for layer in config.layers)
        self.norm = LayerNorm.Config(config.hidden_size).build()

    def read(self, hidden: Tensor, texts: Texts, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        apart, after = texts.gather(hidden), []
        for number, layer in enumerate(self.layers):
            before = None if state is None else state[number]
            of_texts = before if before is None or texts.rows is None else before[texts.rows]
            apart, last = layer(apart, texts.lengths, of_texts)
            after.append(texts.carry(before, last))
        return texts.scatter(self.norm(apart)), tuple(after)
