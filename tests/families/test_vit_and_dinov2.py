"""ViT and DINOv2 against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof_pictures import picture, prove_pictures

from polyformer.errors import ConfigError
from polyformer.families import find_family

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 20,
    "patch_size": 4,
}


@pytest.mark.parametrize("name", ["ViTModel", "ViTForImageClassification"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"qkv_bias": False, "hidden_act": "gelu_new", "pooler_output_size": 10, "pooler_act": "relu"},
        {"patch_size": [4, 5], "image_size": [20, 30], "num_channels": 1, "num_labels": 5},
    ],
    ids=["plain", "no-bias", "oblong"],
)
def test_vit(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.ViTConfig(**{**SIZES, "intermediate_size": 37, **options})
    size = options.get("image_size", [20, 20])
    # An oblong grid cannot be interpolated there, which takes the square root of the number of positions.
    sizes = () if "image_size" in options else ((28, 12), (20, 20), (4, 40))
    given = {"pixel_values": picture(size[0], size[1], options.get("num_channels", 3))}
    prove_pictures(getattr(transformers, name), config, tmp_path, given, sizes=sizes)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
@pytest.mark.parametrize("name", ["Model", "ForImageClassification"])
def test_dinov2(name: str, kind: str, gated: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {"use_swiglu_ffn": gated, "mlp_ratio": 3, "layerscale_value": 0.5}
    if kind == "Dinov2WithRegisters":
        options["num_register_tokens"] = 3
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options)
    prove_pictures(
        getattr(transformers, kind + name),
        config,
        tmp_path,
        {"pixel_values": picture(20, 20)},
        sizes=((28, 12), (8, 32)),
        size_tolerance=1e-6,  # positions are interpolated in float32 there
    )


def test_masked_patches(tmp_path: Path) -> None:
    """The mask token stands where the mask says, and nowhere else."""
    torch.manual_seed(0)
    hf = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)).double().eval()
    with torch.no_grad():
        hf.embeddings.mask_token.normal_()
    hf.save_pretrained(tmp_path)
    from proof import load_folder

    _, network, _ = load_folder(tmp_path)
    masked = torch.rand(3, 25) < 0.4
    with torch.no_grad():
        theirs = hf(picture(20, 20), bool_masked_pos=masked).last_hidden_state
        ours = network(pixel_values=picture(20, 20), masked_patches=masked).last_hidden_state
        plain = network(pixel_values=picture(20, 20)).last_hidden_state
    assert (ours - theirs).abs().max() < 1e-8
    assert (ours - plain).abs().max() > 1e-3


def test_what_is_refused() -> None:
    vit = find_family("vit")
    with pytest.raises(ConfigError, match="'ViTForMaskedImageModeling' is not supported"):
        vit.read_config({"architectures": ["ViTForMaskedImageModeling"]})
    with pytest.raises(ConfigError, match=r"patch_size is \[16\], but it must be a whole number, or two"):
        vit.read_config({"patch_size": [16]})
    with pytest.raises(ConfigError, match=r"drop_path_rate=0\.1 is not supported"):
        find_family("dinov2").read_config({"drop_path_rate": 0.1})
