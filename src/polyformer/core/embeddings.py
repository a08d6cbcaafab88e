"""What a network reads, as vectors: token ids, patches of a picture, frames of sound."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core
from polyformer.core.activations import activation
from polyformer.core.config import require
from polyformer.core.linear import INITIAL_STANDARD_DEVIATION, Embedding, Linear, initialize
from polyformer.core.normalization import LayerNorm, RMSNorm
from polyformer.core.positions import Learned, Sinusoidal


class TokenEmbedding(core.Module):
    """Ids to vectors, with the positions that act on embeddings.

    Args of the config:
        vocab_size, hidden_size: the table.
        positions: `Learned` or `Sinusoidal`, added; None where positions act elsewhere.
        scale: the token vectors are multiplied by it (√hidden_size in the original Transformer and Gemma), rounded to
            the network's dtype as those who trained with it did.
        norm: after the sum.
        dropout: after that, in training.
        standard_deviation: of the table before training (1 in PaLM, section 5, where logits are scaled down instead).
        token_types: kinds of tokens that have a vector each, added too (the two segments of BERT); 0 without.
        projection: after all that, to the width of the layers where it is another (ELECTRA, section 3.1).
    """

    input_name = "input_ids"

    @dataclass(frozen=True)
    class Config(core.Config):
        vocab_size: int
        hidden_size: int
        positions: Learned.Config | Sinusoidal.Config | None = None
        scale: float | None = None
        norm: LayerNorm.Config | RMSNorm.Config | None = None
        dropout: float = 0.0
        standard_deviation: float = INITIAL_STANDARD_DEVIATION
        token_types: int = 0
        projection: Linear.Config | None = None

        def __post_init__(self) -> None:
            require(
                self.projection is None or self.projection.in_features == self.hidden_size,
                f"the projection takes vectors of {self.projection and self.projection.in_features}, but the table "
                f"has {self.hidden_size}",
            )

        @property
        def output_size(self) -> int:
            """The width of what comes out."""
            return self.hidden_size if self.projection is None else self.projection.out_features

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.tokens = Embedding.Config(config.vocab_size, config.hidden_size, config.standard_deviation).build()
        self.positions = config.positions.build() if config.positions else None
        types = Embedding.Config(config.token_types, config.hidden_size, config.standard_deviation)
        self.token_types = types.build() if config.token_types else None
        self.norm = config.norm.build() if config.norm else None
        self.projection = config.projection.build() if config.projection else None

    def forward(self, input_ids: Tensor, positions: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """
        Args:
            input_ids: [batch, new].
            positions: [rows, new].
            token_type_ids: [batch, new]; None means type 0 everywhere.

        Returns:
            [batch, new, output_size].

        Raises:
            ConfigError: token types for a network without any.
        """
        hidden = self.tokens(input_ids)
        if self.config.scale is not None:
            hidden = hidden * torch.tensor(self.config.scale, dtype=hidden.dtype)
        if self.token_types is not None:
            # One type for all tokens is one row of the table, which broadcasts.
            hidden = hidden + (
                self.token_types.weight[0] if token_type_ids is None else self.token_types(token_type_ids)
            )
        else:
            require(
                token_type_ids is None,
                "token_type_ids were given, but this network does not tell types of tokens apart: leave them out",
            )
        if self.positions is not None:
            hidden = hidden + self.positions(positions, hidden.dtype)
        if self.norm is not None:
            hidden = self.norm(hidden)
        if self.config.dropout:
            hidden = functional.dropout(hidden, self.config.dropout, self.training)
        return hidden if self.projection is None else self.projection(hidden)


class PatchEmbedding(core.Module):
    """A picture as a sequence: each patch is one linear map of its pixels (Dosovitskiy et al., 2021, equation 1).

    The sequence is [class token, registers, patches in rows]. A picture of another size than ``image_size`` has more
    or fewer patches; the positions of the grid are then interpolated (section 3.2 there).

    Args of the config:
        hidden_size: width of the vectors.
        patch_size: (height, width) of a patch in pixels.
        image_size: (height, width) of the pictures that the positions were learned on.
        channels: 3 for red, green and blue.
        class_token: whether a learned vector stands first, to gather what the picture shows.
        registers: how many more learned vectors, without positions, stand after it (Darcet et al., 2024).
        mask_token: whether there is a vector that replaces masked patches (Bao et al., 2022; Oquab et al., 2024).
        bias: of the linear map.
        norm: after the sum with the positions (CLIP).
        dropout: after that, in training.
        antialias: interpolation of positions to a smaller grid averages instead of skipping.
        standard_deviation: of positions, class token and registers before training.
        patch_deviation: of the map of a patch before training.
    """

    input_name = "pixel_values"

    @dataclass(frozen=True)
    class Config(core.Config):
        hidden_size: int
        patch_size: tuple[int, ...]
        image_size: tuple[int, ...]
        channels: int = 3
        class_token: bool = True
        registers: int = 0
        mask_token: bool = False
        bias: bool = True
        norm: LayerNorm.Config | RMSNorm.Config | None = None
        dropout: float = 0.0
        antialias: bool = False
        standard_deviation: float = INITIAL_STANDARD_DEVIATION
        patch_deviation: float = INITIAL_STANDARD_DEVIATION

        def __post_init__(self) -> None:
            require(
                len(self.patch_size) == len(self.image_size) == 2
                and min(self.patch_size) >= 1
                and all(size >= patch for size, patch in zip(self.image_size, self.patch_size)),
                f"patch_size {self.patch_size} and image_size {self.image_size} must be (height, width) in pixels, and "
                "a picture no smaller than a patch",
            )

        @property
        def output_size(self) -> int:
            return self.hidden_size

        @property
        def grid(self) -> tuple[int, int]:
            """Patches of a picture of ``image_size``: (rows, columns)."""
            return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

        @property
        def leading(self) -> int:
            """Vectors before the first patch."""
            return int(self.class_token) + self.registers

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        height, width = config.patch_size
        self.weight = nn.Parameter(torch.empty(config.hidden_size, config.channels, height, width))
        initialize(self.weight, config.patch_deviation)
        self.bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.bias else None
        rows, columns = config.grid
        count = rows * columns + int(config.class_token)
        deviation = config.standard_deviation
        self.positions = Learned.Config(count, config.hidden_size, standard_deviation=deviation).build()
        self.class_token = self._vectors(1) if config.class_token else None
        self.registers = self._vectors(config.registers) if config.registers else None
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size)) if config.mask_token else None
        self.norm = config.norm.build() if config.norm else None

    def _vectors(self, count: int) -> nn.Parameter:
        vectors = nn.Parameter(torch.empty(count, self.config.hidden_size))
        initialize(vectors, self.config.standard_deviation)
        return vectors

    def forward(self, pixel_values: Tensor, masked_patches: Tensor | None = None) -> Tensor:
        """
        Args:
            pixel_values: [batch, channels, height, width], normalized as the network wants them.
            masked_patches: [batch, patches], true where a patch is replaced by the mask token.

        Returns:
            [batch, leading + patches, hidden_size].

        Raises:
            ConfigError: pictures of the wrong shape, or masks without a mask token.
        """
        config = self.config
        require(
            pixel_values.dim() == 4
            and pixel_values.shape[1] == config.channels
            and all(size >= patch for size, patch in zip(pixel_values.shape[2:], config.patch_size)),
            f"pixel_values must be [batch, {config.channels}, height, width] of at least one patch "
            f"{config.patch_size}, but they are {list(pixel_values.shape)}",
        )
        patches = functional.conv2d(pixel_values, self.weight, self.bias, stride=tuple(config.patch_size))
        grid = (patches.shape[2], patches.shape[3])
        hidden = patches.flatten(2).mT.contiguous()  # the layers would keep the order of the convolution
        if masked_patches is not None:
            require(self.mask_token is not None, "masked_patches were given, but this network has no mask token")
            assert self.mask_token is not None
            hidden = torch.where(masked_patches.bool()[..., None], self.mask_token, hidden)
        first, others = self.position_rows(grid)
        hidden = hidden + others
        leading = [] if self.class_token is None else [self.class_token + first]
        if self.registers is not None:
            leading.append(self.registers)
        if leading:
            hidden = torch.cat([*(part.expand(len(hidden), -1, -1) for part in leading), hidden], dim=1)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return functional.dropout(hidden, config.dropout, self.training) if config.dropout else hidden

    def position_rows(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Positions of the class token, [0 or 1, hidden_size], and of a ``grid`` of patches, [rows * columns,
        hidden_size].

        A grid of another shape than the learned one gets them by bicubic interpolation.
        """
        table: Tensor = self.positions.weight
        count = int(self.config.class_token)
        first, learned = table[:count], table[count:]
        if grid == self.config.grid:
            return first, learned
        plane = learned.reshape(1, *self.config.grid, -1).permute(0, 3, 1, 2)
        # Bicubic weights in 16 bits would move the positions.
        precise = plane.float() if plane.element_size() < 4 else plane
        resized = functional.interpolate(
            precise, size=grid, mode="bicubic", align_corners=False, antialias=self.config.antialias
        )
        return first, resized.to(learned.dtype).permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)


class FrameEmbedding(core.Module):
    """Frames of a spectrogram to vectors: convolutions over time, then positions (Radford et al., 2022, section 2.2).

    Args of the config:
        hidden_size: width of the vectors.
        features: numbers in a frame (mel bins).
        positions: added after the convolutions.
        strides: one convolution for each; a stride of 2 halves the number of frames.
        kernel_size: frames that each convolution sees; an odd number.
        activation: after each convolution.
        dropout: at the end, in training.
    """

    input_name = "input_features"

    @dataclass(frozen=True)
    class Config(core.Config):
        hidden_size: int
        features: int
        positions: Learned.Config | Sinusoidal.Config
        strides: tuple[int, ...] = (1, 2)
        kernel_size: int = 3
        activation: str = "gelu"
        dropout: float = 0.0

        def __post_init__(self) -> None:
            require(self.kernel_size % 2 == 1, f"kernel_size is {self.kernel_size}, but it must be odd")
            require(len(self.strides) >= 1, "frames need at least one convolution: give its stride")

        @property
        def output_size(self) -> int:
            return self.hidden_size

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.activation = activation(config.activation)
        sizes = [config.features] + [config.hidden_size] * len(config.strides)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inner, outer, config.kernel_size, stride=stride, padding=config.kernel_size // 2)
            for inner, outer, stride in zip(sizes, sizes[1:], config.strides)
        )
        for convolution in self.convolutions:
            initialize(convolution.get_parameter("weight"))
        self.positions = config.positions.build()

    def forward(self, input_features: Tensor) -> Tensor:
        """input_features [batch, features, frames] -> [batch, frames / product of strides, hidden_size].

        Raises:
            ConfigError: the wrong number of features, or more frames than there are positions for.
        """
        require(
            input_features.dim() == 3 and input_features.shape[1] == self.config.features,
            f"input_features must be [batch, {self.config.features}, frames], but they are "
            f"{list(input_features.shape)}",
        )
        hidden = input_features
        for convolution in self.convolutions:
            hidden = self.activation(convolution(hidden))
        # In the order of the layers, which would keep that of the convolutions to their end, and be slower for it
        hidden = hidden.mT.contiguous()
        count = hidden.shape[1]
        if isinstance(self.config.positions, Learned.Config):
            longest = self.config.positions.max_positions
            require(
                count <= longest,
                f"the sound has {input_features.shape[2]} frames, which make {count} vectors, but this network has "
                f"positions for {longest}: cut it into shorter pieces",
            )
        hidden = hidden + self.positions(torch.arange(count, device=hidden.device)[None], hidden.dtype)
        return functional.dropout(hidden, self.config.dropout, self.training) if self.config.dropout else hidden
