"""Whisper (Radford et al., 2022): an encoder of log-mel frames and a decoder that writes what is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyformer.core import (
    Attention,
    Bidirectional,
    Decoder,
    Encoder,
    EncoderDecoder,
    FeedForward,
    FrameEmbedding,
    Head,
    Layer,
    LayerNorm,
    Learned,
    Stack,
    TokenEmbedding,
)
from polyformer.families.bart import layer_rules
from polyformer.families.base import ConfigReader, CTranslate2Contents, CTranslate2Format, Family, only_kind
from polyformer.families.heads import read_task, written_task
from polyformer.families.parts import ACTIVATION_NAMES, activation_name, renamed
from polyformer.families.weights import KeepParts, Rule, Split, WeightTable

TASKS = {"WhisperForConditionalGeneration": "generation", "WhisperModel": "features"}

# Vocabularies of so many tokens or more have languages; the smaller one is English only.
MULTILINGUAL_VOCABULARY = 51865

# The languages of multilingual models: the code in the vocabulary and the name.
_NAMES = (
    "en english, zh chinese, de german, es spanish, ru russian, ko korean, fr french, ja japanese, pt portuguese, "
    "tr turkish, pl polish, ca catalan, nl dutch, ar arabic, sv swedish, it italian, id indonesian, hi hindi, "
    "fi finnish, vi vietnamese, he hebrew, uk ukrainian, el greek, ms malay, cs czech, ro romanian, da danish, "
    "hu hungarian, ta tamil, no norwegian, th thai, ur urdu, hr croatian, bg bulgarian, lt lithuanian, la latin, "
    "mi maori, ml malayalam, cy welsh, sk slovak, te telugu, fa persian, lv latvian, bn bengali, sr serbian, "
    "az azerbaijani, sl slovenian, kn kannada, et estonian, mk macedonian, br breton, eu basque, is icelandic, "
    "hy armenian, ne nepali, mn mongolian, bs bosnian, kk kazakh, sq albanian, sw swahili, gl galician, mr marathi, "
    "pa punjabi, si sinhala, km khmer, sn shona, yo yoruba, so somali, af afrikaans, oc occitan, ka georgian, "
    "be belarusian, tg tajik, sd sindhi, gu gujarati, am amharic, yi yiddish, lo lao, uz uzbek, fo faroese, "
    "ht haitian creole, ps pashto, tk turkmen, nn nynorsk, mt maltese, sa sanskrit, lb luxembourgish, my myanmar, "
    "bo tibetan, tl tagalog, mg malagasy, as assamese, tt tatar, haw hawaiian, ln lingala, ha hausa, ba bashkir, "
    "jw javanese, su sundanese, yue cantonese"
)
LANGUAGES: dict[str, str] = dict(one.split(" ", 1) for one in _NAMES.split(", "))
"""Code -> name, in the order of the vocabulary."""


def read(config: ConfigReader) -> EncoderDecoder.Config:
    task = read_task(config, TASKS) if config("architectures", None) else "generation"
    config.only("scale_embedding", False)
    config.only("tie_word_embeddings", True)
    for key in ("encoder_layerdrop", "decoder_layerdrop"):
        config.number(key, 0.0)
    # Of training on masked sound, of a classifier, and of reading time out of attention
    for key in ("apply_spec_augment", "use_weighted_layer_sum"):
        config.flag(key, False)
    for key in ("mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob"):
        config(key, None)
    for key in ("mask_feature_length", "mask_feature_min_masks", "classifier_proj_size", "median_filter_width"):
        config(key, None)
    hidden = config.integer("d_model", 384)
    norm = LayerNorm.Config(hidden)
    dropout = config.number("dropout", 0.0)

    def stack(side: str, *, cross: bool) -> Stack.Config:
        attention = {
            "hidden_size": hidden,
            "num_heads": config.integer(f"{side}_attention_heads", 6),
            "bias": True,
            "key_bias": False,
            "dropout": config.number("attention_dropout", 0.0),
        }
        looking = Attention.Config(**attention, source_size=hidden, mask=Bidirectional()) if cross else None
        layer = Layer.Config(
            attention=Attention.Config(**attention) if cross else Attention.Config(**attention, mask=Bidirectional()),
            feedforward=FeedForward.Config(
                hidden,
                config.integer(f"{side}_ffn_dim", 4 * hidden),
                config.choose("activation_function", ACTIVATION_NAMES, "gelu"),
                bias=True,
                dropout=config.number("activation_dropout", 0.0),
            ),
            norm=norm,
            cross_attention=looking,
            dropout=dropout,
        )
        return Stack.Config((layer,) * config.integer(f"{side}_layers", 4), norm)

    vocab_size, limit = config.integer("vocab_size", 51865), config.integer("max_target_positions", 448)
    frames = FrameEmbedding.Config(
        hidden,
        config.integer("num_mel_bins", 80),
        Learned.Config(config.integer("max_source_positions", 1500), hidden, fixed=True),
        dropout=dropout,
    )
    return EncoderDecoder.Config(
        encoder=Encoder.Config(frames, stack("encoder", cross=False)),
        decoder=Decoder.Config(
            TokenEmbedding.Config(vocab_size, hidden, Learned.Config(limit, hidden), dropout=dropout),
            stack("decoder", cross=True),
        ),
        head=Head.Config(hidden, vocab_size) if task == "generation" else None,
        decoder_start_token_id=config.integer("decoder_start_token_id", 50257, least=0),
        max_positions=limit,
        task=task,
    )


def write(config: EncoderDecoder.Config) -> dict[str, Any]:
    only_kind(config, EncoderDecoder.Config, "the network")
    frames = only_kind(config.encoder.embedding, FrameEmbedding.Config, "the source's embedding")
    end = 50257 if config.vocab_size >= MULTILINGUAL_VOCABULARY else 50256
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "num_mel_bins": frames.features,
        "d_model": frames.hidden_size,
        "max_source_positions": only_kind(frames.positions, Learned.Config, "the position scheme").max_positions,
        "max_target_positions": config.max_positions,
        "dropout": frames.dropout,
        "decoder_start_token_id": config.decoder_start_token_id,
        "is_encoder_decoder": True,
    }
    # Of a vocabulary smaller than any published one, the last token.
    end = min(end, config.vocab_size - 1)
    values.update(dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), end))
    for side, stack in (("encoder", config.encoder.stack), ("decoder", config.decoder.stack)):
        layer = stack.layers[0]
        feedforward = only_kind(layer.feedforward, FeedForward.Config, "the feed-forward part")
        values[f"{side}_layers"] = len(stack.layers)
        values[f"{side}_attention_heads"] = layer.attention.num_heads
        values[f"{side}_ffn_dim"] = feedforward.intermediate_size
        values["activation_function"] = activation_name(feedforward.activation)
        values["activation_dropout"] = feedforward.dropout
        values["attention_dropout"] = layer.attention.dropout
    return {**values, **written_task(config, TASKS)}


def weight_table(config: EncoderDecoder.Config) -> WeightTable:
    convolutions = {"convolutions.0": "conv1", "convolutions.1": "conv2"}
    rules = (
        *renamed("encoder.embedding", "model.encoder", convolutions),
        *layer_rules("model.", "encoder"),
        *layer_rules("model.", "decoder"),
        Rule("decoder.embedding.tokens.weight", "model.decoder.embed_tokens.weight"),
    )
    return WeightTable(rules, (r"proj_out\.weight",), "model.", config.task != "features")


# ---------------------------------------------------------------------------------------------------------------
# CTranslate2's file


def read_ctranslate2(file: CTranslate2Contents) -> EncoderDecoder.Config:
    """The shapes of the weights say everything but the number of heads, which the file names."""

    def layers(side: str) -> int:
        parts = {name.split("/")[1] for name in file.names() if name.startswith(f"{side}/layer_")}
        return sum(part.removeprefix("layer_").isdigit() for part in parts)

    hidden, features, _ = file.shape("encoder/conv1/weight")
    vocab_size = file.shape("decoder/embeddings/weight")[0]
    values = {
        "vocab_size": vocab_size,
        "num_mel_bins": features,
        "d_model": hidden,
        "max_source_positions": file.shape("encoder/position_encodings/encodings")[0],
        "max_target_positions": file.shape("decoder/position_encodings/encodings")[0],
        "decoder_start_token_id": 50258 if vocab_size >= MULTILINGUAL_VOCABULARY else 50257,
    }
    for side in ("encoder", "decoder"):
        values[f"{side}_layers"] = layers(side)
        values[f"{side}_attention_heads"] = int(file.numbers[f"{side}/num_heads"])
        values[f"{side}_ffn_dim"] = file.shape(f"{side}/layer_0/ffn/linear_0/weight")[0]
    return read(ConfigReader(values, "the CTranslate2 file"))


def ctranslate2_weight_table(config: EncoderDecoder.Config) -> WeightTable:
    size = config.hidden_size
    rules = [
        *renamed("encoder.embedding", "encoder", {"convolutions.0": "conv1", "convolutions.1": "conv2"}),
        Rule("encoder.embedding.positions.weight", "encoder/position_encodings/encodings"),
        Rule("decoder.embedding.positions.weight", "decoder/position_encodings/encodings"),
        Rule("decoder.embedding.tokens.weight", "decoder/embeddings/weight"),
    ]
    rules = [Rule(rule.ours, [name.replace(".", "/") for name in rule.theirs]) for rule in rules]
    for side in ("encoder", "decoder"):
        ours, theirs = f"{side}.stack.layers.{{layer}}", f"{side}/layer_{{layer}}"
        own = f"{theirs}/self_attention"
        rules += [
            *_norm(f"{side}.stack.norm", f"{side}/layer_norm"),
            *_norm(f"{ours}.attention_norm", f"{own}/layer_norm"),
            *_norm(f"{ours}.cross_attention_norm", f"{theirs}/attention/layer_norm"),
            *_norm(f"{ours}.feedforward_norm", f"{theirs}/ffn/layer_norm"),
            # Keys have no bias; the fused one holds zeros in their place.
            Rule(
                [f"{ours}.attention.{part}.weight" for part in ("query", "key", "value")],
                f"{own}/linear_0/weight",
                Split((size, size, size)),
            ),
            Rule(
                [f"{ours}.attention.{part}.bias" for part in ("query", "value")],
                f"{own}/linear_0/bias",
                KeepParts((size, size, size), (0, 2)),
            ),
            *_linear(f"{ours}.attention.output", f"{own}/linear_1"),
            *_linear(f"{ours}.cross_attention.query", f"{theirs}/attention/linear_0"),
            Rule(
                [f"{ours}.cross_attention.{part}.weight" for part in ("key", "value")],
                f"{theirs}/attention/linear_1/weight",
                Split((size, size)),
            ),
            Rule(
                f"{ours}.cross_attention.value.bias",
                f"{theirs}/attention/linear_1/bias",
                KeepParts((size, size), (1,)),
            ),
            *_linear(f"{ours}.cross_attention.output", f"{theirs}/attention/linear_2"),
            *_linear(f"{ours}.feedforward.up", f"{theirs}/ffn/linear_0"),
            *_linear(f"{ours}.feedforward.down", f"{theirs}/ffn/linear_1"),
        ]
    return WeightTable(tuple(rules), (r"decoder/projection/weight",))


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.weight", f"{theirs}/gamma"), Rule(f"{ours}.bias", f"{theirs}/beta")]


def _linear(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{kind}", f"{theirs}/{kind}") for kind in ("weight", "bias")]


def ctranslate2_values(config: EncoderDecoder.Config, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``generation_config.json`` says in the layout of Hugging Face."""
    names = {
        "alignment_heads": "alignment_heads",
        "suppress_ids": "suppress_tokens",
        "suppress_ids_begin": "begin_suppress_tokens",
    }
    values = {ours: theirs[name] for name, ours in names.items() if name in theirs}
    multilingual = config.vocab_size >= MULTILINGUAL_VOCABULARY
    end = 50257 if multilingual else 50256
    # After the end: the start, the languages, six tokens, and then the timestamps, 1,501 to the last row.
    no_timestamps = config.vocab_size - 1502
    values.update(
        eos_token_id=end,
        pad_token_id=end,
        max_length=config.max_positions,
        decoder_start_token_id=config.decoder_start_token_id,
        is_multilingual=multilingual,
        max_initial_timestamp_index=50,
        no_timestamps_token_id=no_timestamps,
        prev_sot_token_id=no_timestamps - 2,
    )
    if multilingual:
        codes = list(LANGUAGES)[: config.vocab_size - 51765]  # the largest models know one more
        values["lang_to_id"] = {f"<|{code}|>": end + 2 + number for number, code in enumerate(codes)}
        values["task_to_id"] = {"transcribe": no_timestamps - 4, "translate": no_timestamps - 5}
    return values


family = Family(
    name="whisper",
    architectures=tuple(TASKS),
    read=read,
    write=write,
    weight_table=weight_table,
    ctranslate2=CTranslate2Format("WhisperSpec", read_ctranslate2, ctranslate2_weight_table, ctranslate2_values),
)
