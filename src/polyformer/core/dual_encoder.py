"""Two encoders whose vectors can be compared: text and pictures in one space (Radford et al., 2021)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from polyformer.core import config as core
from polyformer.core.config import require
from polyformer.core.encoder import Encoder
from polyformer.core.heads import AttentionPooling, Pooling
from polyformer.core.linear import Linear, initialize
from polyformer.core.masks import Span
from polyformer.core.network import Network
from polyformer.core.transformer import Output


class Tower(core.Module):
    """An encoder, one vector of what it read, and a map of that into the space that is shared.

    Args of the config:
        encoder: what reads.
        pooling: makes the one vector.
        projection: into the shared space; None where the vector is in it already.

    What maps into the shared space starts as N(0, 1/inputs), as in the code of CLIP and SigLIP.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        encoder: Encoder.Config
        pooling: Pooling.Config | AttentionPooling.Config
        projection: Linear.Config | None = None

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.pooling = config.pooling.build()
        self.projection = config.projection.build() if config.projection else None
        transform = self.pooling.transform if isinstance(self.pooling, Pooling) else None
        last = self.projection or (transform and transform.linear)
        if last is not None:
            initialize(last.weight, last.config.in_features**-0.5)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool | Collection[int] = (),
    ) -> tuple[Tensor, Output]:
        """The vectors in the shared space, [batch, size], not normalized, and the encoder's output with
        ``pooler_output``."""
        output: Output = self.encoder(
            input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        hidden = output.last_hidden_state
        span = Span.of(hidden.shape[1], attention_mask, device=hidden.device)
        pooled = self.pooling(hidden, span, input_ids)
        output.pooler_output = pooled
        return (pooled if self.projection is None else self.projection(pooled)), output


@dataclass
class DualOutput:
    """What a dual encoder gives. Parts of a tower that got nothing to read are None.

    Attributes:
        text_embeds: [texts, size], of length 1.
        image_embeds: [images, size], of length 1.
        logits_per_text: [texts, images], how well they fit.
        logits_per_image: the transpose.
        text_output, image_output: of the two encoders.
    """

    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    logits_per_text: Tensor | None = None
    logits_per_image: Tensor | None = None
    text_output: Output | None = None
    image_output: Output | None = None


class DualEncoder(Network):
    """A text tower and a picture tower, or one of the two alone.

    How well a text fits a picture is the cosine of their vectors times exp(``logit_scale``), plus ``logit_bias``.

    Args of the config:
        text, image: the towers; one may be None.
        logit_scale: the number that the learned scale starts from (a logarithm); None without (one tower alone).
        logit_bias: the same for the bias (Zhai et al., 2023); None without.
        max_positions: the longest text; None without a limit.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        text: Tower.Config | None = None
        image: Tower.Config | None = None
        logit_scale: float | None = None
        logit_bias: float | None = None
        max_positions: int | None = None

        def __post_init__(self) -> None:
            require(self.text is not None or self.image is not None, "a dual encoder needs at least one tower")
            require(
                (self.logit_scale is not None) == (self.text is not None and self.image is not None),
                "logit_scale is for two towers: give it with both, and leave it out with one",
            )

        @property
        def vocab_size(self) -> int | None:
            return None if self.text is None else self.text.encoder.vocab_size

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.text = config.text.build() if config.text else None
        self.image = config.image.build() if config.image else None
        self.logit_scale = self._number(config.logit_scale)
        self.logit_bias = self._number(config.logit_bias)

    @staticmethod
    def _number(start: float | None) -> nn.Parameter | None:
        return None if start is None else nn.Parameter(torch.full((), start))

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool | Collection[int] = (),
    ) -> DualOutput:
        """
        Args:
            input_ids, attention_mask: [texts, columns].
            pixel_values: [images, channels, height, width].
            output_hidden_states, output_attentions: as in `DecoderOnly.forward`, of both towers.

        Raises:
            ConfigError: nothing to read, or something that no tower reads.
        """
        require(input_ids is not None or pixel_values is not None, "give input_ids, pixel_values or both")
        output = DualOutput()
        if input_ids is not None:
            require(self.text is not None, "this network has no text tower: leave input_ids out")
            embeds, output.text_output = self.text(  # type: ignore[misc]
                input_ids,
                attention_mask=attention_mask,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )
            output.text_embeds = functional.normalize(embeds, dim=-1)
        if pixel_values is not None:
            require(self.image is not None, "this network has no picture tower: leave pixel_values out")
            embeds, output.image_output = self.image(  # type: ignore[misc]
                pixel_values=pixel_values,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )
            output.image_embeds = functional.normalize(embeds, dim=-1)
        if output.text_embeds is not None and output.image_embeds is not None and self.logit_scale is not None:
            logits = output.text_embeds @ output.image_embeds.mT * self.logit_scale.exp()
            output.logits_per_text = logits if self.logit_bias is None else logits + self.logit_bias
            output.logits_per_image = output.logits_per_text.mT
        return output
