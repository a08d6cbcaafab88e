"""The sizes of networks that write after reading (or hearing) a source, with the head that writes.

Where an entry of T5 or Whisper takes its count from the weights, the paper gives one that does not fit them: 770M for
the large T5; 39M, 74M, 244M, 769M and 1550M for Whisper.
"""

from __future__ import annotations

from typing import Any

from polyformer.families.sizes.size import Size, weights

_LIST = "transformers 4.4's list of pretrained models"
_MBART_NOTE = "README of fairseq's mBART"
_T5_PAPER = "Raffel et al., 2020, section 3.7"
_FLAN_PAPER = "Chung et al., 2022, table 2"
_T5_V11 = f"{_FLAN_PAPER}, which trained these on"
_MT5_PAPER = "Xue et al., 2021, section 3.2"


def _both_sides(layers: int, heads: int, inner: int) -> dict[str, int]:
    return {
        f"{side}_{key}": value
        for side in ("encoder", "decoder")
        for key, value in (("layers", layers), ("attention_heads", heads), ("ffn_dim", inner))
    }


def _bart(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["BartForConditionalGeneration"],
        "vocab_size": 50265,
        "d_model": width,
        **_both_sides(layers, heads, 4 * width),
        "activation_function": "gelu",
        "max_position_embeddings": 1024,
        "scale_embedding": False,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "activation_dropout": 0.1,
        "decoder_start_token_id": 2,
    }


def _mbart(vocab_size: int, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["MBartForConditionalGeneration"],
        "vocab_size": vocab_size,
        "d_model": 1024,
        **_both_sides(12, 16, 4096),
        "activation_function": "gelu",
        "max_position_embeddings": 1024,
        "scale_embedding": True,
        "dropout": 0.1,
        **more,
    }


_PEGASUS = {
    "architectures": ["PegasusForConditionalGeneration"],
    "vocab_size": 96103,
    "d_model": 1024,
    **_both_sides(16, 16, 4096),
    "activation_function": "relu",
    "max_position_embeddings": 1024,
    "scale_embedding": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
_OPUS_MT_EN_DE = {
    "architectures": ["MarianMTModel"],
    "vocab_size": 58101,
    "decoder_vocab_size": 58101,
    "d_model": 512,
    **_both_sides(6, 8, 2048),
    "activation_function": "swish",
    "max_position_embeddings": 512,
    "scale_embedding": True,
    "dropout": 0.1,
    "decoder_start_token_id": 58100,
    "pad_token_id": 58100,
}


def _t5(width: int, inner: int, layers: int, heads: int, head_width: int = 64, **more: Any) -> dict[str, Any]:
    values = {
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": 32128,
        "d_model": width,
        "d_kv": head_width,
        "d_ff": inner,
        "num_layers": layers,
        "num_decoder_layers": layers,
        "num_heads": heads,
        "relative_attention_num_buckets": 32,
        "dropout_rate": 0.1,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
    }
    return {**values, **more}


_V11: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_SMALL = _t5(512, 1024, 8, 6, **_V11)
_BASE = _t5(768, 2048, 12, 12, **_V11)
_LARGE = _t5(1024, 2816, 24, 16, **_V11)
_XL = _t5(2048, 5120, 24, 32, **_V11)
_XXL = _t5(4096, 10240, 24, 64, **_V11)
_MT5: dict[str, Any] = {"architectures": ["MT5ForConditionalGeneration"], "vocab_size": 250112}


def _whisper(width: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    """The multilingual ones; English ones have one token less, and begin their targets with another."""
    values = {
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": 51865,
        "num_mel_bins": 80,
        "d_model": width,
        **_both_sides(layers, heads, 4 * width),
        "activation_function": "gelu",
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "scale_embedding": False,
        "decoder_start_token_id": 50258,
        "pad_token_id": 50257,
    }
    return {**values, **more}


_ENGLISH: dict[str, Any] = {"vocab_size": 51864, "decoder_start_token_id": 50257, "pad_token_id": 50256}
_V3: dict[str, Any] = {"vocab_size": 51866, "num_mel_bins": 128}


def _whisper_size(name: str, count: str, values: dict[str, Any]) -> Size:
    return Size(f"whisper-{name}", "whisper", count, weights(f"openai/whisper-{name}"), values=values)


SIZES = (
    Size(
        "opus-mt-en-de",
        "marian",
        "74M",
        "weights of Helsinki-NLP/opus-mt-en-de: 298 MB of four-byte numbers",
        values=_OPUS_MT_EN_DE,
    ),
    Size("t5-small", "t5", "60M", _T5_PAPER, values=_t5(512, 2048, 6, 8)),
    Size("t5-base", "t5", "220M", _T5_PAPER, 2, _t5(768, 3072, 12, 12)),
    Size("t5-large", "t5", "737,668,096", weights("google-t5/t5-large"), values=_t5(1024, 4096, 24, 16)),
    Size("t5-3b", "t5", "2.8B", _T5_PAPER, values=_t5(1024, 16384, 24, 32, 128)),
    Size("t5-11b", "t5", "11B", _T5_PAPER, values=_t5(1024, 65536, 24, 128, 128)),
    Size("t5-v1.1-small", "t5", "80M", _T5_V11, 1, _SMALL),
    Size("t5-v1.1-base", "t5", "250M", _T5_V11, 2, _BASE),
    Size("t5-v1.1-large", "t5", "780M", _T5_V11, 2, _LARGE),
    Size("t5-v1.1-xl", "t5", "3B", _T5_V11, values=_XL),
    Size("t5-v1.1-xxl", "t5", "11B", _T5_V11, values=_XXL),
    Size("flan-t5-small", "t5", "80M", _FLAN_PAPER, 1, _SMALL),
    Size("flan-t5-base", "t5", "250M", _FLAN_PAPER, 2, _BASE),
    Size("flan-t5-large", "t5", "780M", _FLAN_PAPER, 2, _LARGE),
    Size("flan-t5-xl", "t5", "3B", _FLAN_PAPER, values=_XL),
    Size("flan-t5-xxl", "t5", "11B", _FLAN_PAPER, values=_XXL),
    Size("mt5-small", "mt5", "300M", _MT5_PAPER, values={**_SMALL, **_MT5}),
    Size("mt5-base", "mt5", "580M", _MT5_PAPER, 2, {**_BASE, **_MT5}),
    Size("mt5-large", "mt5", "1.2B", _MT5_PAPER, values={**_LARGE, **_MT5}),
    Size("mt5-xl", "mt5", "3.7B", _MT5_PAPER, values={**_XL, **_MT5}),
    Size("mt5-xxl", "mt5", "13B", _MT5_PAPER, values={**_XXL, **_MT5}),
    Size("bart-base", "bart", "139M", _LIST, values=_bart(768, 6, 12)),
    Size("bart-large", "bart", "406M", _LIST, values=_bart(1024, 12, 16)),
    Size("mbart-large-cc25", "mbart", "610M", _MBART_NOTE, 2, _mbart(250027)),
    Size(
        "mbart-large-50",
        "mbart",
        "610M",
        f"{_MBART_NOTE}, made 27 tokens larger",
        2,
        _mbart(250054, decoder_start_token_id=2),
    ),
    Size("pegasus-large", "pegasus", "568M", "Zhang et al., 2020, section 6", values=_PEGASUS),
    _whisper_size("tiny", "37,760,640", _whisper(384, 4, 6)),
    _whisper_size("tiny.en", "37,760,256", _whisper(384, 4, 6, **_ENGLISH)),
    _whisper_size("base", "72,593,920", _whisper(512, 6, 8)),
    _whisper_size("base.en", "72,593,408", _whisper(512, 6, 8, **_ENGLISH)),
    _whisper_size("small", "241,734,912", _whisper(768, 12, 12)),
    _whisper_size("small.en", "241,734,144", _whisper(768, 12, 12, **_ENGLISH)),
    _whisper_size("medium", "763,857,920", _whisper(1024, 24, 16)),
    _whisper_size("medium.en", "763,856,896", _whisper(1024, 24, 16, **_ENGLISH)),
    _whisper_size("large", "1,543,304,960", _whisper(1280, 32, 20)),
    _whisper_size("large-v2", "1,543,304,960", _whisper(1280, 32, 20)),
    _whisper_size("large-v3", "1,543,490,560", _whisper(1280, 32, 20, **_V3)),
    _whisper_size("large-v3-turbo", "808,878,080", _whisper(1280, 32, 20, **_V3, decoder_layers=4)),
)
