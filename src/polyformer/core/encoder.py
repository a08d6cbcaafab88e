"""Encoders: networks that read a whole sequence at once, every part of it seeing every other."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from polyformer.core import config as core
from polyformer.core.config import require
from polyformer.core.embeddings import FrameEmbedding, PatchEmbedding, TokenEmbedding
from polyformer.core.heads import AttentionPooling, MaskedTokenHead, Pooling, SequenceHead, TokenHead
from polyformer.core.masks import Span
from polyformer.core.network import Network
from polyformer.core.positions import Learned
from polyformer.core.transformer import Output, Stack, check_widths, layer_numbers, read_tokens

TASKS = (
    "features",
    "masked-lm",
    "pretraining",
    "next-sentence",
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "replaced-token-detection",
)


class Encoder(core.Module):
    """An embedding of what is read (tokens, a picture, sound) and a stack over it.

    Args of the config:
        embedding: what is read.
        stack: the layers; without cross-attention.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        embedding: TokenEmbedding.Config | PatchEmbedding.Config | FrameEmbedding.Config
        stack: Stack.Config

        def __post_init__(self) -> None:
            check_widths(self.embedding, self.embedding.hidden_size)
            check_widths(self.stack, self.hidden_size)
            for number, layer in enumerate(self.stack.layers):
                require(layer.cross_attention is None, f"layer {number} has cross-attention: an encoder has no source")

        @property
        def hidden_size(self) -> int:
            """Width of the layers."""
            return self.embedding.output_size

        @property
        def input_name(self) -> str:
            """What `Encoder.forward` takes: input_ids, pixel_values or input_features."""
            owner = self.embedding.owner
            assert owner is not None
            return str(owner.input_name)  # type: ignore[attr-defined]

        @property
        def num_layers(self) -> int:
            return len(self.stack.layers)

        @property
        def vocab_size(self) -> int | None:
            """Of an encoder of tokens; None of another."""
            return self.embedding.vocab_size if isinstance(self.embedding, TokenEmbedding.Config) else None

        @property
        def max_positions(self) -> int | None:
            """The longest sequence of tokens that the positions allow; None without a limit."""
            positions = self.embedding.positions if isinstance(self.embedding, TokenEmbedding.Config) else None
            return positions.max_positions if isinstance(positions, Learned.Config) else None

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = config.embedding.build()
        self.stack = config.stack.build()

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_patches: Tensor | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool | Collection[int] = (),
    ) -> Output:
        """
        Args:
            input_ids: [batch, columns], for an encoder of text.
            pixel_values: [batch, channels, height, width], for one of pictures.
            input_features: [batch, features, frames], for one of sound.
            attention_mask: [batch, columns] of the tokens, true (or 1) where there is one; others have none.
            document_ids: [batch, columns], which document each token of a packed row belongs to; as in
                `DecoderOnly.forward`.
            token_type_ids: [batch, columns], where types of tokens are told apart.
            masked_patches: [batch, patches], true where a patch is replaced by the mask token.
            output_hidden_states, output_attentions: as in `DecoderOnly.forward`.

        Raises:
            ConfigError: not the one kind of input that this encoder reads, or wrong shapes.
        """
        given = {"input_ids": input_ids, "pixel_values": pixel_values, "input_features": input_features}
        inputs = given[self.config.input_name]
        names = [name for name, value in given.items() if value is not None]
        require(
            names == [self.config.input_name],
            f"this encoder reads {self.config.input_name}, but {' and '.join(names) or 'nothing'} was given",
        )
        assert inputs is not None
        if isinstance(self.embedding, TokenEmbedding):
            require(masked_patches is None, "masked_patches are for pictures, but this encoder reads text")
            return read_tokens(
                self.embedding,
                self.stack,
                inputs,
                attention_mask=attention_mask,
                document_ids=document_ids,
                token_type_ids=token_type_ids,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )
        require(
            attention_mask is None and token_type_ids is None and document_ids is None,
            "attention_mask, document_ids and token_type_ids are for text, but this encoder reads "
            f"{self.config.input_name}",
        )
        if isinstance(self.embedding, PatchEmbedding):
            hidden = self.embedding(inputs, masked_patches)
        else:
            require(masked_patches is None, "masked_patches are for pictures, but this encoder reads sound")
            hidden = self.embedding(inputs)
        span = Span.of(hidden.shape[1], device=hidden.device)
        output: Output = self.stack(
            hidden,
            [span] * len(self.stack.layers),
            output_hidden_states=output_hidden_states,
            output_attentions=layer_numbers(output_attentions, len(self.stack.layers)),
        )
        return output


class EncoderOnly(Network):
    """An encoder with what stands on top of it (BERT and its kin, vision transformers).

    Args of the config:
        encoder: what reads.
        task: what the heads were trained for, one of `TASKS`; it says what the scores mean.
        pooling: makes one vector of a sequence; None without.
        masked_head: scores over the vocabulary for every token.
        token_head: scores over labels for every token.
        sequence_head: scores over labels for the pooled vector.
        max_positions: the longest sequence of tokens the model was made for; None where there is no limit.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        encoder: Encoder.Config
        task: str = "features"
        pooling: Pooling.Config | AttentionPooling.Config | None = None
        masked_head: MaskedTokenHead.Config | None = None
        token_head: TokenHead.Config | None = None
        sequence_head: SequenceHead.Config | None = None
        max_positions: int | None = None

        def __post_init__(self) -> None:
            require(self.task in TASKS, f"task {self.task!r} is not one of {', '.join(TASKS)}")
            require(
                self.sequence_head is None or self.pooling is not None,
                "a sequence head scores the pooled vector: give a pooling",
            )
            require(
                self.masked_head is None or self.encoder.vocab_size is not None,
                "a masked head scores tokens, but this encoder does not read text",
            )
            require(
                self.masked_head is None or self.token_head is None,
                "a network has a masked head or a token head, not both",
            )

        @property
        def vocab_size(self) -> int | None:
            return self.encoder.vocab_size

        @property
        def hidden_size(self) -> int:
            return self.encoder.hidden_size

        @property
        def num_layers(self) -> int:
            return self.encoder.num_layers

        @property
        def num_labels(self) -> int | None:
            """Labels that the token or sequence head tells apart; None without such a head."""
            head = self.token_head or self.sequence_head
            return None if head is None else head.num_labels

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build()
        self.pooling = config.pooling.build() if config.pooling else None
        self.masked_head = config.masked_head.build() if config.masked_head else None
        self.token_head = config.token_head.build() if config.token_head else None
        self.sequence_head = config.sequence_head.build() if config.sequence_head else None

    def _pack_rest(self) -> None:
        if self.masked_head is not None:
            self.masked_head.head.pack_table(self.encoder.embedding.tokens.weight)

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        pixel_values: Tensor | None = None,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_patches: Tensor | None = None,
        with_logits: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool | Collection[int] = (),
    ) -> Output:
        """
        Args:
            As `Encoder.forward`. A multiple-choice network takes [batch, choices, columns] of ids, masks and types.
            with_logits: False leaves out what the heads would score; `score` does it for a masked head.

        Returns:
            ``last_hidden_state``; ``pooler_output`` [batch, size] where there is a pooling; ``logits`` of the head:
            [batch, columns, vocab_size] of the masked head, [batch, columns, labels] of the token head ([batch,
            columns] where it only tells replaced tokens), [batch, labels] of the sequence head ([batch, choices] in
            multiple choice). Beside a masked head, the sequence head's are ``sequence_logits``.

        Raises:
            ConfigError: as `Encoder.forward`; or document_ids where one vector stands for a whole row.
        """
        require(
            document_ids is None or self.pooling is None,
            "document_ids were given, but this network makes one vector of a whole row: give each document its own row",
        )
        choices = None
        if self.config.task == "multiple-choice" and input_ids is not None:
            require(
                input_ids.dim() == 3,
                f"multiple choice takes input_ids [batch, choices, columns], but they are {list(input_ids.shape)}",
            )
            choices = input_ids.shape[1]
            input_ids, attention_mask, token_type_ids = (
                None if part is None else part.flatten(0, 1) for part in (input_ids, attention_mask, token_type_ids)
            )
        output: Output = self.encoder(
            input_ids,
            pixel_values=pixel_values,
            input_features=input_features,
            attention_mask=attention_mask,
            document_ids=document_ids,
            token_type_ids=token_type_ids,
            masked_patches=masked_patches,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        hidden = output.last_hidden_state
        if self.pooling is not None:
            span = Span.of(hidden.shape[1], attention_mask, device=hidden.device)
            output.pooler_output = self.pooling(hidden, span, input_ids)
        if not with_logits:
            return output
        if self.masked_head is not None:
            output.logits = self.score(hidden)
        if self.token_head is not None:
            output.logits = self.token_head(hidden)
            if self.config.task == "replaced-token-detection":
                output.logits = output.logits.squeeze(-1)
        if self.sequence_head is not None:
            scores = self.sequence_head(output.pooler_output)
            scores = scores if choices is None else scores.view(-1, choices)
            if output.logits is None:
                output.logits = scores
            else:
                output.sequence_logits = scores
        return output

    def score(self, hidden: Tensor) -> Tensor:
        """``last_hidden_state``, or any of its vectors, [..., hidden_size] -> logits of the masked head, [...,
        vocab_size].

        Raises:
            ConfigError: there is no such head.
        """
        require(self.masked_head is not None, "this network has no masked head: it gives tokens no scores")
        assert self.masked_head is not None
        logits: Tensor = self.masked_head(hidden, self.encoder.embedding.tokens.weight)
        return logits
