"""Vision encoder-decoders against transformers: ViT with GPT-2 and with TrOCR's decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from proof_encoder_decoder import BATCH, prove_encoder_decoder
from proof_pictures import picture

from polyformer.errors import ConfigError
from polyformer.families import find_family

VIT = {
    "hidden_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 29,
    "image_size": 20,
    "patch_size": 4,
}


def pair(decoder: Any, **vit: Any) -> Any:
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**{**VIT, **vit}), decoder
    )
    config.decoder_start_token_id = 3
    config.pad_token_id = 0
    return config


def gpt2(**options: Any) -> Any:
    values = {"n_embd": 24, "n_layer": 2, "n_head": 3, "vocab_size": 61, "n_positions": 30}
    return transformers.GPT2Config(**{**values, "bos_token_id": 1, "eos_token_id": 2, **options})


def trocr(**options: Any) -> Any:
    values = {"d_model": 24, "decoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 31}
    return transformers.TrOCRConfig(**{**values, "vocab_size": 61, "max_position_embeddings": 30, **options})


def prove(config: Any, folder: Path, *, loads_back: bool = True) -> Any:
    source = {"pixel_values": picture(20, 20, batch=BATCH)}
    return prove_encoder_decoder(
        transformers.VisionEncoderDecoderModel,
        config,
        folder,
        source=source,
        hidden=slice(None, -1),
        tolerance=1e-6,  # ViT's plain attention rounds to float32 there, and fairseq's sinusoids are made in it
        loads_back=loads_back,
    )


@pytest.mark.parametrize(
    ("options", "width"),
    [({}, 20), ({}, 24), ({"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True}, 24)],
    ids=["bridge", "same-width", "scaled"],
)
def test_vit_with_gpt2(options: dict[str, Any], width: int, tmp_path: Path) -> None:
    network = prove(pair(gpt2(**options), hidden_size=width), tmp_path)
    assert (network.bridge is None) == (width == 24)


@pytest.mark.parametrize(
    "options",
    [
        {"cross_attention_hidden_size": 20},
        {},
        {"cross_attention_hidden_size": 20, "layernorm_embedding": False, "scale_embedding": True},
        {"use_learned_position_embeddings": False, "activation_function": "relu"},
    ],
    ids=["base", "bridge", "large", "sinusoids"],
)
def test_vit_with_trocr(options: dict[str, Any], tmp_path: Path) -> None:
    # transformers 5.23 leaves the sinusoids without memory when it loads a file.
    loads_back = options.get("use_learned_position_embeddings", True)
    prove(pair(trocr(**options), qkv_bias=False), tmp_path, loads_back=loads_back)


def test_what_is_refused() -> None:
    family = find_family("vision-encoder-decoder")
    values = pair(gpt2()).to_dict()
    with pytest.raises(ConfigError, match="model_type='swin' is not supported; supported: 'vit'"):
        family.read_config({**values, "encoder": {**values["encoder"], "model_type": "swin"}})
    with pytest.raises(ConfigError, match="model_type='bert' is not supported; supported: 'gpt2', 'trocr'"):
        family.read_config({**values, "decoder": {**values["decoder"], "model_type": "bert"}})
    with pytest.raises(ConfigError, match="takes a source of 99, but the encoder gives 20"):
        other = {**trocr().to_dict(), "cross_attention_hidden_size": 99}
        family.read_config({**values, "decoder": other})
