"""The transformer: layers in a stack, and the language model that is a stack between an embedding and a head."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from polyformer.core import config as core
from polyformer.core.attention import Attention
from polyformer.core.cache import Cache, Store
from polyformer.core.config import require
from polyformer.core.embeddings import TokenEmbedding
from polyformer.core.feedforward import FeedForward, MixtureOfExperts
from polyformer.core.heads import Head
from polyformer.core.linear import INITIAL_STANDARD_DEVIATION, Linear, initialize, keep_size
from polyformer.core.masks import PrefixCausal, Span
from polyformer.core.network import Network
from polyformer.core.normalization import LayerNorm, RMSNorm
from polyformer.core.positions import ALiBi, Learned, RelativeBias, Sinusoidal
from polyformer.errors import ConfigError

PLACEMENTS = ("pre", "post", "sandwich", "parallel")
INITIALIZATIONS = ("normal", "width", "xavier", "fan-in")


class Layer(core.Module):
    """Attention, then (optionally) cross-attention, then feed-forward, each around a residual path.

    Args of the config:
        attention: self-attention.
        feedforward: two linear maps, or a mixture of experts.
        norm: the normalization at every place that has one.
        placement: where it stands.
            "pre": x + f(norm(x)) (GPT-2; Xiong et al., 2020).
            "post": norm(x + f(x)) (Vaswani et al., 2017).
            "sandwich": x + norm(f(norm(x))) (Ding et al., 2021; Gemma 2).
            "parallel": x + attention(norm(x)) + feedforward(norm(x)) (GPT-J; PaLM, section 2).
        parallel_norms: in the parallel form, whether the two branches have a norm each (Falcon 40B) or share one.
        attention_norm: whether there is a norm around attention (ModernBERT's first layer has none: the embedding
            ends with one).
        layer_scale: each branch is multiplied by a learned vector (Touvron et al., 2021, section 2).
        cross_attention: attention to a source; None without one.
        dropout: on the result of each branch, in training.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        attention: Attention.Config
        feedforward: FeedForward.Config | MixtureOfExperts.Config
        norm: LayerNorm.Config | RMSNorm.Config
        placement: str = "pre"
        parallel_norms: bool = False
        cross_attention: Attention.Config | None = None
        dropout: float = 0.0
        attention_norm: bool = True
        layer_scale: bool = False

        def __post_init__(self) -> None:
            require(self.placement in PLACEMENTS, f"placement {self.placement!r} is not one of {', '.join(PLACEMENTS)}")
            require(
                self.cross_attention is None or self.placement != "parallel",
                "a parallel layer has no place for cross-attention: use another placement",
            )
            require(
                self.placement == "parallel" or not self.parallel_norms,
                f"parallel_norms needs placement 'parallel', but it is {self.placement!r}",
            )
            require(
                self.placement == "pre" or (self.attention_norm and not self.layer_scale),
                f"attention_norm=False and layer_scale need placement 'pre', but it is {self.placement!r}",
            )
            require(
                self.cross_attention is None or not self.layer_scale,
                "layer_scale has no vector for cross-attention: use one or the other",
            )

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        sandwich = config.placement == "sandwich"
        cross = config.cross_attention
        self.attention_norm = config.norm.build() if config.attention_norm else None
        self.attention = config.attention.build()
        self.attention_output_norm = config.norm.build() if sandwich else None
        self.cross_attention_norm = config.norm.build() if cross else None
        self.cross_attention = cross.build() if cross else None
        self.cross_attention_output_norm = config.norm.build() if cross and sandwich else None
        own_norm = config.placement != "parallel" or config.parallel_norms
        self.feedforward_norm = config.norm.build() if own_norm else None
        self.feedforward = config.feedforward.build()
        self.feedforward_output_norm = config.norm.build() if sandwich else None
        self.attention_scale = nn.Parameter(torch.ones(config.norm.size)) if config.layer_scale else None
        self.feedforward_scale = nn.Parameter(torch.ones(config.norm.size)) if config.layer_scale else None

    def forward(
        self,
        hidden: Tensor,
        span: Span,
        *,
        store: Store | None = None,
        source: Tensor | None = None,
        source_span: Span | None = None,
        source_store: Store | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """hidden [batch, new, hidden_size] -> the same shape, and the weights of self- and cross-attention if asked
        for."""
        if self.config.placement == "parallel":
            return self._parallel(hidden, span, store, need_weights)
        cross_weights = None
        inputs = self._before(hidden, self.attention_norm)
        branch, weights = self.attention(inputs, span, store=store, need_weights=need_weights)
        if self.attention_scale is not None:
            branch = branch * self.attention_scale
        hidden = self._after(hidden, branch, self.attention_norm, self.attention_output_norm)
        if self.cross_attention is not None:
            if source_span is None:
                raise ConfigError("this layer has cross-attention, but no source was given")
            inputs = self._before(hidden, self.cross_attention_norm)
            branch, cross_weights = self.cross_attention(
                inputs, source_span, store=source_store, source=source, need_weights=need_weights
            )
            hidden = self._after(hidden, branch, self.cross_attention_norm, self.cross_attention_output_norm)
        branch = self.feedforward(self._before(hidden, self.feedforward_norm))
        if self.feedforward_scale is not None:
            branch = branch * self.feedforward_scale
        return self._after(hidden, branch, self.feedforward_norm, self.feedforward_output_norm), weights, cross_weights

    def _before(self, hidden: Tensor, norm: nn.Module | None) -> Tensor:
        return hidden if norm is None or self.config.placement == "post" else norm(hidden)

    def _after(self, hidden: Tensor, branch: Tensor, norm: nn.Module | None, output_norm: nn.Module | None) -> Tensor:
        if output_norm is not None:
            branch = output_norm(branch)
        hidden = hidden + self._drop(branch)
        return norm(hidden) if norm is not None and self.config.placement == "post" else hidden

    def _parallel(
        self, hidden: Tensor, span: Span, store: Store | None, need_weights: bool
    ) -> tuple[Tensor, Tensor | None, None]:
        assert self.attention_norm is not None
        inputs = self.attention_norm(hidden)
        attended, weights = self.attention(inputs, span, store=store, need_weights=need_weights)
        fed = self.feedforward(inputs if self.feedforward_norm is None else self.feedforward_norm(hidden))
        return hidden + self._drop(attended) + self._drop(fed), weights, None

    def _drop(self, branch: Tensor) -> Tensor:
        return functional.dropout(branch, self.config.dropout, self.training) if self.config.dropout else branch


@dataclass
class Output:
    """What a forward pass gives. Parts that were not asked for are None.

    Attributes:
        last_hidden_state: [batch, new, hidden_size], after the final norm.
        logits: [batch, kept, vocab_size]; of other heads, see the network.
        hidden_states: the embeddings, then the output of every layer; the last one is ``last_hidden_state``.
        attentions: layer number -> weights [batch, num_heads, new, columns].
        cross_attentions: the same for cross-attention, columns being those of the source.
        cache: the cache that was given, now longer.
        pooler_output: [batch, size], one vector for each sequence.
        sequence_logits: [batch, labels], where ``logits`` are those of another head.
        encoder: of an encoder-decoder: what its encoder gave.
    """

    last_hidden_state: Tensor
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: dict[int, Tensor] | None = None
    cross_attentions: dict[int, Tensor] | None = None
    cache: Cache | None = None
    pooler_output: Tensor | None = None
    sequence_logits: Tensor | None = None
    encoder: Output | None = None

    @property
    def encoder_last_hidden_state(self) -> Tensor | None:
        """[batch, source columns, hidden_size] of the encoder."""
        return None if self.encoder is None else self.encoder.last_hidden_state


class Stack(core.Module):
    """Layers one after the other, and a norm.

    Args of the config:
        layers: one config a layer; they may differ (local and global attention in turn, experts every n-th).
        norm: after the last layer; None without.
        bias: positions that act on the scores of every layer alike.
        initialization: of the matrices before training.
            "normal": N(0, 0.02²), and what each branch adds shrunk by 1/√(branches), so that the sum keeps its size
            (Radford et al., 2019, section 2.3).
            "width": N(0, 1/hidden_size), half that variance in the first map of the feed-forward part, and what each
            branch adds shrunk as in "normal" (the code of CLIP).
            "xavier": N(0, 2/(inputs + outputs)) (Glorot and Bengio, 2010, equation 12; the code of SigLIP).
            "fan-in": N(0, 1/inputs); queries smaller where scores are not divided by √head_dim, so that scores begin
            as if they were (T5's code in Mesh TensorFlow; PaLM, section 5). It goes with embeddings of N(0, 1).

    Attributes:
        checkpoint_layers: in training, a layer keeps only its input, and is computed once more for the gradients (Chen
            et al., 2016). False at first; whoever trains sets it.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        layers: tuple[Layer.Config, ...]
        norm: LayerNorm.Config | RMSNorm.Config | None = None
        bias: RelativeBias.Config | ALiBi.Config | None = None
        initialization: str = "normal"

        def __post_init__(self) -> None:
            require(len(self.layers) >= 1, "a stack needs at least one layer")
            require(
                self.initialization in INITIALIZATIONS,
                f"initialization is {self.initialization!r}, but it must be one of {', '.join(INITIALIZATIONS)}",
            )
            for number, layer in enumerate(self.layers):
                require(
                    self.bias is None or self.bias.num_heads == layer.attention.num_heads,
                    f"the bias has {self.bias and self.bias.num_heads} heads, but the attention of layer {number} "
                    f"has {layer.attention.num_heads}",
                )

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(layer.build() for layer in config.layers)
        self.norm = config.norm.build() if config.norm else None
        self.bias = config.bias.build() if config.bias else None
        self.checkpoint_layers = False
        if config.initialization == "normal":
            self._scale_residual_outputs(INITIAL_STANDARD_DEVIATION)
        elif config.initialization == "width":
            self._scale_by_width()
        elif config.initialization == "xavier":
            keep_size(*(module for module in self.modules() if isinstance(module, Linear)))
        else:
            self._scale_by_inputs()

    def _scale_residual_outputs(self, deviation: float) -> None:
        branches = sum(2 if layer.cross_attention is None else 3 for layer in self.config.layers)
        for name, module in self.named_modules():
            if isinstance(module, Linear) and name.rpartition(".")[2] in ("output", "down"):
                initialize(module.weight, deviation / branches**0.5)

    def _scale_by_width(self) -> None:
        width = self.config.layers[0].attention.hidden_size
        for name, module in self.named_modules():
            if isinstance(module, Linear):
                initialize(module.weight, (2 * width if ".feedforward." in name else width) ** -0.5)
        self._scale_residual_outputs(width**-0.5)

    def _scale_by_inputs(self) -> None:
        for module in self.modules():
            if isinstance(module, Linear):
                initialize(module.weight, module.config.in_features**-0.5)
        for module in self.modules():
            if isinstance(module, Attention):
                one = module.config
                initialize(module.query.weight, one.hidden_size**-0.5 * one.head_dim**-0.5 / one.scale)
        if isinstance(self.bias, RelativeBias):
            initialize(self.bias.weight, self.config.layers[0].attention.hidden_size ** -0.5)

    def new_cache(self, kind: str = "dense", *, capacity: int | None = None) -> Cache:
        """An empty cache that fits these layers; see `Cache`."""
        layers = self.config.layers
        masks = [layer.attention.mask for layer in layers]
        cross = [layer.cross_attention is not None for layer in layers]
        return Cache(masks, kind, capacity=capacity, cross_attention=cross)

    def forward(
        self,
        hidden: Tensor,
        spans: Sequence[Span],
        *,
        cache: Cache | None = None,
        source: Tensor | None = None,
        source_span: Span | None = None,
        output_hidden_states: bool = False,
        output_attentions: Collection[int] = (),
    ) -> Output:
        """
        Args:
            hidden: [batch, new, hidden_size].
            spans: the span of each layer; layers alike share one.
            source, source_span: what cross-attention looks at, [batch, columns, source_size], and who is there.
            output_attentions: numbers of the layers whose weights are wanted; the others keep the fused path.
        """
        if self.bias is not None:
            for span in {id(span): span for span in spans}.values():
                span.bias = self.bias(span, hidden.dtype)
        again = self.checkpoint_layers and self.training and cache is None and torch.is_grad_enabled()
        if again:  # what layers share has gradients of its own: it must not be made inside one of them
            for config, span in zip(self.config.layers, spans):
                config.attention.mask.bias_of(span)
        states = [hidden] if output_hidden_states else None
        attentions: dict[int, Tensor] = {}
        cross_attentions: dict[int, Tensor] = {}
        for number, layer in enumerate(self.layers):
            hidden, weights, cross_weights = (_computed_again if again else _computed)(
                layer,
                hidden,
                spans[number],
                store=cache.stores[number] if cache else None,
                source=source,
                source_span=source_span,
                source_store=cache.cross_stores[number] if cache else None,
                need_weights=number in output_attentions,
            )
            if weights is not None:
                attentions[number] = weights
            if cross_weights is not None:
                cross_attentions[number] = cross_weights
            if states is not None:
                states.append(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
            if states is not None:
                states[-1] = hidden
        return Output(
            last_hidden_state=hidden,
            hidden_states=tuple(states) if states is not None else None,
            attentions=attentions or None,
            cross_attentions=cross_attentions or None,
            cache=cache,
        )


def _computed(layer: nn.Module, *args: Any, **options: Any) -> Any:
    return layer(*args, **options)


def _computed_again(layer: nn.Module, *args: Any, **options: Any) -> Any:
    return checkpoint(layer, *args, use_reentrant=False, **options)


class DecoderOnly(Network):
    """A language model: embeddings, a stack of causal layers, a head (GPT and everything after it).

    Args of the config:
        embedding, stack, head: the three parts.
        max_positions: the longest sequence the model was made for; None where there is no limit.
    """

    @dataclass(frozen=True)
    class Config(core.Config):
        embedding: TokenEmbedding.Config
        stack: Stack.Config
        head: Head.Config
        max_positions: int | None = None

        def __post_init__(self) -> None:
            hidden = self.embedding.hidden_size
            require(self.embedding.projection is None, "a decoder-only embedding has no projection: give its width")
            check_widths(self, hidden)
            for number, layer in enumerate(self.stack.layers):
                require(
                    layer.cross_attention is None, f"layer {number} has cross-attention: a decoder-only has no source"
                )
            require(
                (self.head.hidden_size, self.head.vocab_size) == (hidden, self.embedding.vocab_size),
                f"the head is {self.head.hidden_size} -> {self.head.vocab_size}, but the embedding is "
                f"{self.embedding.vocab_size} x {hidden}",
            )

        @property
        def vocab_size(self) -> int:
            return self.embedding.vocab_size

        @property
        def hidden_size(self) -> int:
            return self.embedding.hidden_size

        @property
        def num_layers(self) -> int:
            return len(self.stack.layers)

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = config.embedding.build()
        self.stack = config.stack.build()
        self.head = config.head.build()

    def _pack_rest(self) -> None:
        self.head.pack_table(self.embedding.tokens.weight)

    def new_cache(self, kind: str = "dense", *, capacity: int | None = None) -> Cache:
        """An empty cache for this network.

        Args:
            kind: "dense" keeps keys and values as they are, "int8" in eight bits. Layers with a sliding window keep
                only it.
            capacity: tokens there will ever be, allocated at once; None grows as needed.
        """
        return self.stack.new_cache(kind, capacity=capacity)

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        prefix_lengths: Tensor | None = None,
        document_ids: Tensor | None = None,
        with_logits: bool = True,
        logits_to_keep: int = 0,
        output_hidden_states: bool = False,
        output_attentions: bool | Collection[int] = (),
    ) -> Output:
        """
        Args:
            input_ids: [batch, new].
            attention_mask: [batch, new], true (or 1) where there is a token, false where there is padding, on any
                side. With a cache it speaks of the new tokens only; the cache remembers the old.
            cache: keys and values of earlier tokens; it grows by the new ones.
            prefix_lengths: [batch], for prefix-LM masks.
            document_ids: [batch, new], which document each token of a packed row belongs to: a document is a run of
                neighbours with the same id, and -1 is padding. Nobody looks into another document, and positions begin
                anew in each.
            with_logits: False leaves ``logits`` out; `score` makes them of hidden states.
            logits_to_keep: only the logits of the last so many columns are computed; 0 computes all.
            output_hidden_states: also return every layer's output.
            output_attentions: layer numbers (negative from the end) whose weights to return; True means all.

        Raises:
            ConfigError: shapes that do not fit, a layer number that does not exist, a sequence longer than a learned
                table of positions, or document_ids together with a cache or prefix_lengths.
        """
        require(logits_to_keep >= 0, f"logits_to_keep is {logits_to_keep}, but it must be at least 0")
        output = read_tokens(
            self.embedding,
            self.stack,
            input_ids,
            attention_mask=attention_mask,
            cache=cache,
            prefix_lengths=prefix_lengths,
            document_ids=document_ids,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        if with_logits:
            hidden = output.last_hidden_state
            output.logits = self.score(hidden[:, -logits_to_keep:] if logits_to_keep else hidden)
        return output

    def score(self, hidden: Tensor) -> Tensor:
        """``last_hidden_state``, or any of its vectors, [..., hidden_size] -> logits [..., vocab_size]."""
        logits: Tensor = self.head(hidden, self.embedding.tokens.weight)
        return logits


@dataclass(frozen=True)
class Source:
    """What cross-attention looks at.

    Args:
        states: [batch, columns, source_size].
        attention_mask: [batch, columns], true where there is something; None means everywhere.
    """

    states: Tensor
    attention_mask: Tensor | None = None

    def __post_init__(self) -> None:
        mask = self.attention_mask
        require(
            self.states.dim() == 3 and (mask is None or mask.shape == self.states.shape[:2]),
            f"a source must be [batch, columns, size] and its attention_mask [batch, columns], but they are "
            f"{list(self.states.shape)} and {None if mask is None else list(mask.shape)}",
        )

    def select(self, rows: Tensor) -> Source:
        """The rows ``rows`` [any number] of it, in that order."""
        mask = self.attention_mask
        return Source(self.states[rows], None if mask is None else mask[rows])


def read_tokens(
    embedding: TokenEmbedding,
    stack: Stack,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    cache: Cache | None = None,
    prefix_lengths: Tensor | None = None,
    document_ids: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    source: Source | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool | Collection[int] = (),
) -> Output:
    """Token ids through an embedding and a stack. Arguments as in `DecoderOnly.forward`.

    Args:
        source: for cross-attention. Its keys and values are kept in the cache, where there is one, at the first call;
            later calls may leave it out.
    """
    check_tokens(input_ids, attention_mask)
    batch, new = input_ids.shape
    _check_prefix(stack, prefix_lengths, batch)
    if document_ids is not None:
        require(
            document_ids.shape == input_ids.shape,
            f"document_ids are {list(document_ids.shape)}, but input_ids are {list(input_ids.shape)}",
        )
        require(
            cache is None and prefix_lengths is None and source is None,
            "document_ids are for packed rows that are read once: leave out the cache, prefix_lengths and the source",
        )
    started_source = False
    if cache is not None:
        if source is not None and not cache.has_source:
            cache.set_source(source.states.shape[1], input_ids.device, source.attention_mask)
            started_source = True
        try:
            spans = cache.advance(batch, new, input_ids.device, attention_mask, prefix_lengths)
        except BaseException:  # no room: the source is not kept either
            if started_source:
                cache.source.clear()
            raise
    else:
        span = Span.of(
            new,
            attention_mask,
            device=input_ids.device,
            prefix_lengths=prefix_lengths,
            document_ids=document_ids,
        )
        spans = [span] * len(stack.layers)
    try:
        _check_positions(embedding, spans[0])
        output: Output = stack(
            embedding(input_ids, spans[0].queries, token_type_ids),
            spans,
            cache=cache,
            source=None if source is None else source.states,
            source_span=_source_span(source, cache),
            output_hidden_states=output_hidden_states,
            output_attentions=layer_numbers(output_attentions, len(stack.layers)),
        )
    except BaseException:  # an error, or someone's Ctrl-C: the cache stays good for the next call
        if cache is not None:
            cache.undo()
            if started_source:
                cache.source.clear()
        raise
    return output


def _source_span(source: Source | None, cache: Cache | None) -> Span | None:
    if cache is not None:
        return cache.source_span() if cache.has_source else None
    if source is None:
        return None
    return Span.over(Span.of(source.states.shape[1], source.attention_mask, device=source.states.device))


def check_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """
    Raises:
        ConfigError: these are not [batch, new] tokens with a mask of the same shape.
    """
    require(input_ids.dim() == 2, f"input_ids must be [batch, new], but they are {list(input_ids.shape)}")
    require(input_ids.shape[1] >= 1, "input_ids hold no token")
    if attention_mask is not None:
        require(
            attention_mask.shape == input_ids.shape,
            f"attention_mask is {list(attention_mask.shape)}, but input_ids are {list(input_ids.shape)} (with a cache, "
            "it speaks of the new tokens only)",
        )


def _check_prefix(stack: Stack, prefix_lengths: Tensor | None, batch: int) -> None:
    if prefix_lengths is None:
        return
    masks = [layer.attention.mask for layer in stack.config.layers]
    require(
        any(isinstance(mask, PrefixCausal) for mask in masks),
        "prefix_lengths were given, but no layer of this network has a PrefixCausal mask",
    )
    require(
        tuple(prefix_lengths.shape) == (batch,),
        f"prefix_lengths must be [{batch}], one per row, but they are {list(prefix_lengths.shape)}",
    )


def _check_positions(embedding: TokenEmbedding, span: Span) -> None:
    table = embedding.config.positions
    if isinstance(table, Learned.Config):
        last = span.start + span.new if span.start is not None else int(span.queries.max()) + 1
        require(
            last <= table.max_positions,
            f"the sequence has {last} tokens, but this network has positions for {table.max_positions}",
        )


def layer_numbers(wanted: bool | Collection[int], count: int) -> frozenset[int]:
    """The numbers of layers, counted from 0, that ``output_attentions`` asks for.

    Raises:
        ConfigError: there is no such layer.
    """
    if isinstance(wanted, bool):
        return frozenset(range(count)) if wanted else frozenset()
    for number in wanted:
        require(-count <= number < count, f"there is no layer {number}: this network has layers 0 to {count - 1}")
    return frozenset(number % count for number in wanted)


def check_widths(config: core.Config, hidden: int) -> None:
    """
    Raises:
        ConfigError: a part of an embedding or of a stack is made for vectors of another size than ``hidden``.
    """
    for path, part in config.traverse():
        if isinstance(part, (Attention.Config, FeedForward.Config, Learned.Config, Sinusoidal.Config)):
            size = part.hidden_size
        elif path.rpartition(".")[2] == "norm" and isinstance(part, (LayerNorm.Config, RMSNorm.Config)):
            size = part.size
        else:
            size = hidden
        require(size == hidden, f"{path} is made for vectors of {size}, but the embedding's have {hidden}")
