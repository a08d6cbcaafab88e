"""The sizes of networks that see: encoders of pictures, pairs of towers, and encoders that a decoder looks at."""

from __future__ import annotations

from typing import Any

from polyformer.families.sizes.size import Size

_TORCHVISION = "torchvision's weights, key num_params"
_TIMM = "model card of timm/{}"
_OPEN_CLIP = "OpenCLIP's table of model profiles, docs/model_profile.csv"
_DINOV2 = "README of the authors' dinov2"
_TROCR = "README of the authors' trocr"


def _vit(
    patch: int, width: int = 768, layers: int = 12, heads: int = 12, image: int = 224, **others: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "image_size": image,
        "patch_size": patch,
        "num_channels": 3,
        "qkv_bias": True,
        **others,
    }


def _vit_classifier(patch: int, width: int = 768, layers: int = 12, heads: int = 12) -> dict[str, Any]:
    """With the thousand labels of ImageNet."""
    return {
        "architectures": ["ViTForImageClassification"],
        "num_labels": 1000,
        **_vit(patch, width, layers, heads),
    }


def _dinov2(width: int, layers: int, heads: int, *, gated: bool = False, registers: bool = False) -> dict[str, Any]:
    """Taught on pictures of 518 pixels at the last, for which it keeps positions."""
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "mlp_ratio": 4,
        "hidden_act": "gelu",
        "use_swiglu_ffn": gated,
        "layer_norm_eps": 1e-6,
        "image_size": 518,
        "patch_size": 14,
        "num_channels": 3,
        "qkv_bias": True,
        **({"num_register_tokens": 4} if registers else {}),
    }


def _tower(width: int, inner: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **others,
    }


def _clip(
    patch: int, image: int, vision: tuple[int, int, int], text: tuple[int, int, int], act: str = "quick_gelu"
) -> dict[str, Any]:
    """Towers as (width, layers, heads); vectors are compared in the width of the text tower."""

    def tower(width: int, layers: int, heads: int, **others: Any) -> dict[str, Any]:
        shared = {"hidden_act": act, "layer_norm_eps": 1e-5, "projection_dim": text[0]}
        return _tower(width, 4 * width, layers, heads, **shared, **others)

    return {
        "architectures": ["CLIPModel"],
        "projection_dim": text[0],
        "logit_scale_init_value": 2.6592,
        "text_config": tower(*text, vocab_size=49408, max_position_embeddings=77),
        "vision_config": tower(*vision, image_size=image, patch_size=patch, num_channels=3),
    }


def _siglip(patch: int, image: int, width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    """Both towers are of one size."""
    shared: dict[str, Any] = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    sides = (width, inner, layers, heads)
    return {
        "architectures": ["SiglipModel"],
        "text_config": _tower(*sides, **shared, vocab_size=32000, max_position_embeddings=64),
        "vision_config": _tower(*sides, **shared, image_size=image, patch_size=patch, num_channels=3),
    }


def _trocr(width: int, layers: int, heads: int) -> dict[str, Any]:
    """BEiT's encoder, with RoBERTa's last twelve layers as the decoder."""
    return {
        "architectures": ["VisionEncoderDecoderModel"],
        "encoder": {"model_type": "vit", **_vit(16, width, layers, heads, 384), "qkv_bias": False},
        "decoder": {
            "model_type": "trocr",
            "vocab_size": 50265,
            "d_model": 1024,
            "decoder_layers": 12,
            "decoder_attention_heads": 16,
            "decoder_ffn_dim": 4096,
            "activation_function": "gelu",
            "max_position_embeddings": 512,
            "cross_attention_hidden_size": width,
            "use_learned_position_embeddings": True,
            "layernorm_embedding": True,
            "scale_embedding": False,
            "decoder_start_token_id": 2,
            "add_cross_attention": True,
            "is_decoder": True,
        },
    }


SIZES = (
    Size("vit-base-patch16", "vit", "86,567,656", _TORCHVISION, values=_vit_classifier(16)),
    Size("vit-base-patch32", "vit", "88,224,232", _TORCHVISION, values=_vit_classifier(32)),
    Size("vit-large-patch16", "vit", "304,326,632", _TORCHVISION, values=_vit_classifier(16, 1024, 24, 16)),
    Size("vit-large-patch32", "vit", "306,535,400", _TORCHVISION, values=_vit_classifier(32, 1024, 24, 16)),
    Size("vit-huge-patch14", "vit", "632,045,800", _TORCHVISION, values=_vit_classifier(14, 1280, 32, 16)),
    Size(
        "dinov2-small",
        "dinov2",
        "22.1M",
        _TIMM.format("vit_small_patch14_reg4_dinov2.lvd142m") + ", whose registers are 1,536 more",
        values=_dinov2(384, 12, 6),
    ),
    Size(
        "dinov2-base", "dinov2", "86.6M", _TIMM.format("vit_base_patch14_dinov2.lvd142m"), values=_dinov2(768, 12, 12)
    ),
    Size(
        "dinov2-large",
        "dinov2",
        "304.4M",
        _TIMM.format("vit_large_patch14_dinov2.lvd142m"),
        values=_dinov2(1024, 24, 16),
    ),
    Size("dinov2-giant", "dinov2", "1.1B", _DINOV2, values=_dinov2(1536, 40, 24, gated=True)),
    Size(
        "dinov2-with-registers-small",
        "dinov2_with_registers",
        "22.1M",
        _TIMM.format("vit_small_patch14_reg4_dinov2.lvd142m"),
        values=_dinov2(384, 12, 6, registers=True),
    ),
    Size(
        "dinov2-with-registers-base",
        "dinov2_with_registers",
        "86M",
        _DINOV2,
        values=_dinov2(768, 12, 12, registers=True),
    ),
    Size(
        "dinov2-with-registers-large",
        "dinov2_with_registers",
        "300M",
        _DINOV2,
        1,
        _dinov2(1024, 24, 16, registers=True),
    ),
    Size(
        "dinov2-with-registers-giant",
        "dinov2_with_registers",
        "1.1B",
        _DINOV2,
        values=_dinov2(1536, 40, 24, gated=True, registers=True),
    ),
    Size("clip-vit-base-patch32", "clip", "151.28M", _OPEN_CLIP, values=_clip(32, 224, (768, 12, 12), (512, 12, 8))),
    Size("clip-vit-base-patch16", "clip", "149.62M", _OPEN_CLIP, values=_clip(16, 224, (768, 12, 12), (512, 12, 8))),
    Size("clip-vit-large-patch14", "clip", "427.62M", _OPEN_CLIP, values=_clip(14, 224, (1024, 24, 16), (768, 12, 12))),
    Size(
        "clip-vit-large-patch14-336",
        "clip",
        "427.94M",
        _OPEN_CLIP,
        values=_clip(14, 336, (1024, 24, 16), (768, 12, 12)),
    ),
    Size(
        "clip-vit-huge-patch14",
        "clip",
        "986.11M",
        _OPEN_CLIP,
        values=_clip(14, 224, (1280, 32, 16), (1024, 24, 16), "gelu"),
    ),
    Size("siglip-base-patch16-224", "siglip", "203.16M", _OPEN_CLIP, values=_siglip(16, 224, 768, 3072, 12, 12)),
    Size("siglip-base-patch16-384", "siglip", "203.45M", _OPEN_CLIP, values=_siglip(16, 384, 768, 3072, 12, 12)),
    Size("siglip-large-patch16-256", "siglip", "652.15M", _OPEN_CLIP, values=_siglip(16, 256, 1024, 4096, 24, 16)),
    Size("siglip-so400m-patch14-384", "siglip", "877.96M", _OPEN_CLIP, values=_siglip(14, 384, 1152, 4304, 27, 16)),
    # The published counts have a pooler of the encoder, which no layer looks at: 0.6 and 1.0 million.
    Size("trocr-base", "vision-encoder-decoder", "334M", _TROCR, 2, _trocr(768, 12, 12)),
    Size("trocr-large", "vision-encoder-decoder", "558M", _TROCR, 2, _trocr(1024, 24, 16)),
)
