"""A vision transformer that a text decoder looks at: captions (ViT with GPT-2) and reading (TrOCR)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Decoder,
    DecoderOnly,
    EncoderDecoder,
    Head,
    Linear,
    PatchEmbedding,
)
from polyformer.errors import ConfigError
from polyformer.families import gpt2, trocr, vit
from polyformer.families.base import ConfigReader, Family, only_kind
from polyformer.families.parts import transposed
from polyformer.families.weights import Rule, Split, Transpose, WeightTable, chain

ARCHITECTURE = "VisionEncoderDecoderModel"
ENCODERS = ("vit",)
DECODERS = ("gpt2", "trocr")


def with_cross_attention(network: DecoderOnly.Config) -> Decoder.Config:
    """A decoder alone becomes one whose layers look at a source of its own width."""
    layers = tuple(
        replace(layer, cross_attention=replace(layer.attention, source_size=network.hidden_size, mask=Bidirectional()))
        for layer in network.stack.layers
    )
    return Decoder.Config(network.embedding, replace(network.stack, layers=layers))


def without_cross_attention(config: EncoderDecoder.Config) -> DecoderOnly.Config:
    """The way back."""
    layers = tuple(replace(layer, cross_attention=None) for layer in config.decoder.stack.layers)
    stack = replace(config.decoder.stack, layers=layers)
    head = only_kind(config.head, Head.Config, "the head")
    return DecoderOnly.Config(config.decoder.embedding, stack, head, max_positions=config.max_positions)


def read(config: ConfigReader) -> EncoderDecoder.Config:
    encoder_config, decoder_config = config.section("encoder"), config.section("decoder")
    encoder_config.only("model_type", *ENCODERS)
    kind = decoder_config("model_type", "gpt2")
    decoder_config.only("model_type", *DECODERS)
    config.only("tie_word_embeddings", False)  # of the two sides; the decoder's own head is the decoder's matter
    for key in ("pooler_output_size", "pooler_act", "add_pooling_layer"):
        encoder_config(key, None)  # cross-attention looks at the patches, not at a pooled vector
    encoder = vit.read_encoder(encoder_config)
    bridge = None
    if kind == "gpt2":
        # That there is cross-attention is what makes it the decoder of a pair.
        inner = {key: value for key, value in decoder_config.values.items() if key != "add_cross_attention"}
        network = gpt2.read(ConfigReader(inner, decoder_config.where))
        for key in inner:
            decoder_config(key, None)
        decoder, head, limit = with_cross_attention(network), network.head, network.max_positions
        if encoder.hidden_size != network.hidden_size:
            bridge = Linear.Config(encoder.hidden_size, network.hidden_size, bias=True)
    else:
        own = decoder_config("cross_attention_hidden_size", None)
        hidden = decoder_config.integer("d_model", 1024)
        if own is not None and own != encoder.hidden_size:
            raise ConfigError(
                f"{config.where}: the decoder takes a source of {own}, but the encoder gives {encoder.hidden_size}"
            )
        if own is None and encoder.hidden_size != hidden:
            bridge = Linear.Config(encoder.hidden_size, hidden, bias=True)
        decoder, head = trocr.read(decoder_config, encoder.hidden_size if bridge is None else hidden)
        limit = decoder_config.integer("max_position_embeddings", 512)
    return EncoderDecoder.Config(
        encoder,
        decoder,
        head,
        bridge=bridge,
        decoder_start_token_id=read_start(config, decoder_config),
        max_positions=limit,
    )


def read_start(config: ConfigReader, decoder: ConfigReader) -> int | None:
    """What a target begins with: the pair says it, or its decoder, or it is the decoder's first token."""
    places = (
        (config, "decoder_start_token_id"),
        (decoder, "decoder_start_token_id"),
        (config, "bos_token_id"),
        (decoder, "bos_token_id"),
    )
    for reader, key in places:
        token: int | None = reader.integer(key, None, least=0)
        if token is not None:
            return token
    return None


def write(config: EncoderDecoder.Config) -> dict[str, Any]:
    only_kind(config, EncoderDecoder.Config, "the network")
    only_kind(config.encoder.embedding, PatchEmbedding.Config, "the embedding of the encoder")
    cross = only_kind(config.decoder.stack.layers[0].cross_attention, Attention.Config, "the cross-attention")
    if is_gpt2(config):
        decoder = {
            "model_type": "gpt2",
            **gpt2.write(without_cross_attention(config)),
            "add_cross_attention": True,
            "is_decoder": True,
        }
    else:
        decoder = trocr.write(config.decoder, only_kind(config.head, Head.Config, "the head"), config.max_positions)
        if config.bridge is not None and cross.source_size == config.hidden_size:
            decoder["cross_attention_hidden_size"] = None
    start = {} if config.decoder_start_token_id is None else {"decoder_start_token_id": config.decoder_start_token_id}
    return {
        "encoder": {"model_type": "vit", **vit.written_encoder(config.encoder)},
        "decoder": decoder,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        **start,
    }


def is_gpt2(config: EncoderDecoder.Config) -> bool:
    """Pre-norm is GPT-2's, post-norm TrOCR's."""
    return config.decoder.stack.layers[0].placement == "pre"


def gpt2_rules(config: EncoderDecoder.Config) -> list[Rule]:
    hidden = config.hidden_size
    table = gpt2.weight_table(without_cross_attention(config))
    heads = ("head.weight", "head.bias")
    rules = [rule.below("" if rule.ours[0] in heads else "decoder.", "decoder.") for rule in table.rules]
    ours, theirs = "decoder.stack.layers.{layer}", "decoder.transformer.h.{layer}"
    both = [f"{ours}.cross_attention.{part}" for part in ("key", "value")]
    split = Split((hidden, hidden))
    rules += [
        *transposed(f"{ours}.cross_attention.query", f"{theirs}.crossattention.q_attn"),
        *transposed(f"{ours}.cross_attention.output", f"{theirs}.crossattention.c_proj"),
        Rule([f"{part}.weight" for part in both], f"{theirs}.crossattention.c_attn.weight", chain(Transpose(), split)),
        Rule([f"{part}.bias" for part in both], f"{theirs}.crossattention.c_attn.bias", split),
        *(Rule(f"{ours}.cross_attention_norm.{kind}", f"{theirs}.ln_cross_attn.{kind}") for kind in ("weight", "bias")),
    ]
    return rules


def weight_table(config: EncoderDecoder.Config) -> WeightTable:
    rules = (
        *vit.encoder_rules(config.encoder, "encoder."),
        *(gpt2_rules(config) if is_gpt2(config) else trocr.rules()),
        *(Rule(f"bridge.{kind}", f"enc_to_dec_proj.{kind}") for kind in ("weight", "bias")),
    )
    ignored = [
        r"encoder\.pooler\.dense\.(weight|bias)",
        r"encoder\.embeddings\.mask_token",
        # Causal masks, which old files hold as if they were weights
        r"decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(masked_)?bias",
        r"decoder\.model\.decoder\.(version|embed_positions\._float_tensor)",
    ]
    if config.head is not None and config.head.tied:
        ignored.append(r"decoder\.(lm_head|output_projection)\.weight")
    return WeightTable(rules, tuple(ignored))


family = Family("vision-encoder-decoder", (ARCHITECTURE,), read, write, weight_table)
