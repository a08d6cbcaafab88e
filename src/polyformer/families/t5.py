"""T5 (Raffel et al., 2020), FLAN-T5 and mT5, in both versions: v1.0 with ReLU and scaled scores, v1.1 with a gated
feed-forward part and a head of its own."""

from __future__ import annotations

from functools import partial
from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Decoder,
    Encoder,
    EncoderDecoder,
    EncoderOnly,
    FeedForward,
    Head,
    Layer,
    RelativeBias,
    RMSNorm,
    Stack,
    TokenEmbedding,
)
from polyformer.errors import ConfigError
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.weights import Rule, WeightTable


def read(config: ConfigReader, name: str = "T5") -> EncoderDecoder.Config | EncoderOnly.Config:
    hidden, heads = config.integer("d_model", 512), config.integer("num_heads", 8)
    norm = RMSNorm.Config(hidden, config.number("layer_norm_epsilon", 1e-6))
    dropout = config.number("dropout_rate", 0.1)
    config.number("classifier_dropout", 0.0)
    gated, activation = _read_activation(config)
    attention = {
        "hidden_size": hidden,
        "num_heads": heads,
        "head_dim": config.integer("d_kv", 64),
        "scale": 1.0,  # the initial weights were smaller instead (section 2.1 refers to Mesh TensorFlow)
        "dropout": dropout,
    }
    feedforward = FeedForward.Config(hidden, config.integer("d_ff", 2048), activation, gated, dropout=dropout)
    buckets = config.integer("relative_attention_num_buckets", 32)
    distance = config.integer("relative_attention_max_distance", 128)
    count = config.integer("num_layers", 6)
    vocab_size = config.integer("vocab_size", 32128)
    embedding = TokenEmbedding.Config(vocab_size, hidden, dropout=dropout, standard_deviation=1.0)
    reading = Layer.Config(Attention.Config(**attention, mask=Bidirectional()), feedforward, norm, dropout=dropout)
    encoder = Encoder.Config(
        embedding,
        Stack.Config(
            (reading,) * count,
            norm,
            RelativeBias.Config(heads, buckets, distance, bidirectional=True),
            initialization="fan-in",
        ),
    )
    target_count = config.integer("num_decoder_layers", count)
    tied = config.flag("tie_word_embeddings", True)
    # transformers 5 writes "tied" for either version, and in this key which one it is.
    scaled = config.flag("scale_decoder_outputs", tied) and name != "MT5"  # which is always of version 1.1
    if f"{name}EncoderModel" in (config("architectures", None) or []):
        return EncoderOnly.Config(encoder)
    looking = Attention.Config(**attention, source_size=hidden, mask=Bidirectional())
    writing = Layer.Config(Attention.Config(**attention), feedforward, norm, cross_attention=looking, dropout=dropout)
    decoder = Decoder.Config(
        embedding,
        Stack.Config(
            (writing,) * target_count, norm, RelativeBias.Config(heads, buckets, distance), initialization="fan-in"
        ),
    )
    return EncoderDecoder.Config(
        encoder=encoder,
        decoder=decoder,
        head=Head.Config(hidden, vocab_size, tied=scaled, scale=hidden**-0.5 if scaled else None),
        shared_embedding=True,
        decoder_start_token_id=config.integer(
            "decoder_start_token_id", config.integer("pad_token_id", 0, least=0), least=0
        ),
    )


def _read_activation(config: ConfigReader) -> tuple[bool, str]:
    kind = config("feed_forward_proj", "relu", kind=str)
    config("dense_act_fn", None)  # said once more, in other words
    config("is_gated_act", None)
    name = kind.removeprefix("gated-")
    if name not in ACTIVATION_NAMES:
        raise ConfigError(f"{config.where}: feed_forward_proj={kind!r} is not supported; known: relu, gated-gelu")
    return kind != name, "gelu_tanh" if kind == "gated-gelu" else ACTIVATION_NAMES[name]


def write(config: EncoderDecoder.Config | EncoderOnly.Config, name: str = "T5") -> dict[str, Any]:
    embedding = only_kind(config.encoder.embedding, TokenEmbedding.Config, "the embedding")
    stack = config.encoder.stack
    layer = stack.layers[0]
    feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
    bias = only_kind(stack.bias, RelativeBias.Config, "the position scheme")
    activation = activation_name(feedforward.activation)
    if feedforward.gated:
        activation = "gated-gelu" if feedforward.activation == "gelu_tanh" else f"gated-{activation}"
    values = {
        "vocab_size": embedding.vocab_size,
        "d_model": embedding.hidden_size,
        "d_kv": layer.attention.head_dim,
        "d_ff": feedforward.intermediate_size,
        "num_layers": len(stack.layers),
        "num_heads": layer.attention.num_heads,
        "relative_attention_num_buckets": bias.num_buckets,
        "relative_attention_max_distance": bias.max_distance,
        "dropout_rate": layer.dropout,
        "layer_norm_epsilon": layer.norm.eps,
        "feed_forward_proj": activation,
    }
    if isinstance(config, EncoderOnly.Config):
        return {**values, "architectures": [f"{name}EncoderModel"]}
    tied = config.head is None or config.head.tied
    return {
        **values,
        "num_decoder_layers": len(config.decoder.stack.layers),
        "tie_word_embeddings": tied,
        "decoder_start_token_id": config.decoder_start_token_id,
        "is_encoder_decoder": True,
    }


def _stack_rules(side: str, *, cross: bool) -> list[Rule]:
    ours, theirs = f"{side}.stack.layers.{{layer}}", f"{side}.block.{{layer}}.layer"
    last = 2 if cross else 1
    projections = {"query": "q", "key": "k", "value": "v", "output": "o"}
    rules = [
        *renamed(f"{ours}.attention", f"{theirs}.0.SelfAttention", projections, ("weight",)),
        Rule(f"{ours}.attention_norm.weight", f"{theirs}.0.layer_norm.weight"),
        Rule(f"{ours}.feedforward_norm.weight", f"{theirs}.{last}.layer_norm.weight"),
        Rule(f"{ours}.feedforward.down.weight", f"{theirs}.{last}.DenseReluDense.wo.weight"),
        Rule(f"{side}.stack.bias.weight", f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        Rule(f"{side}.stack.norm.weight", f"{side}.final_layer_norm.weight"),
    ]
    if cross:
        rules += renamed(f"{ours}.cross_attention", f"{theirs}.1.EncDecAttention", projections, ("weight",))
        rules.append(Rule(f"{ours}.cross_attention_norm.weight", f"{theirs}.1.layer_norm.weight"))
    return rules


def weight_table(config: EncoderDecoder.Config | EncoderOnly.Config) -> WeightTable:
    rules = [Rule("encoder.embedding.tokens.weight", "shared.weight"), *_stack_rules("encoder", cross=False)]
    layer = config.encoder.stack.layers[0]
    gated = isinstance(layer.feedforward, FeedForward.Config) and layer.feedforward.gated
    wide = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    names = r"(encoder|decoder)\.embed_tokens\.weight"
    # A very old leftover, of no use in any version
    ignored = [names, r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"]
    sides = [("encoder", 1)]
    if isinstance(config, EncoderDecoder.Config):
        rules += _stack_rules("decoder", cross=True)
        sides.append(("decoder", 2))
        if config.head is not None and config.head.tied:
            ignored.append(r"lm_head\.weight")
        else:
            rules.append(Rule("head.weight", "lm_head.weight"))
    else:
        ignored.append(r"(decoder|lm_head)\..*")  # the encoder alone, out of a file that holds both
    for side, last in sides:
        theirs = f"{side}.block.{{layer}}.layer.{last}.DenseReluDense"
        rules += renamed(f"{side}.stack.layers.{{layer}}.feedforward", theirs, wide, ("weight",))
    # A head that was tied after all is not in the file by itself.
    aliases = ((r"lm_head\.weight", "shared.weight"), (r"shared\.weight", "encoder.embed_tokens.weight"))
    return WeightTable(tuple(rules), tuple(ignored), aliases=aliases)


def make_family(model_type: str, name: str) -> Family:
    return Family(
        model_type,
        (f"{name}ForConditionalGeneration", f"{name}EncoderModel"),
        partial(read, name=name),
        partial(write, name=name),
        weight_table,
    )


family = make_family("t5", "T5")
