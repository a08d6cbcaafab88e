"""CLIP and SigLIP against transformers: both towers, each alone, and labels for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof import load_folder, saved
from proof_pictures import BATCH, picture, prove_pictures
from torch import Tensor

from polyformer.errors import ConfigError
from polyformer.families import find_family

TEXT = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 31,
    "max_position_embeddings": 14,
    "projection_dim": 10,
    "pad_token_id": 1,
    "bos_token_id": 0,
}
VISION = {
    "hidden_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 29,
    "image_size": 20,
    "patch_size": 4,
    "projection_dim": 10,
}
END = 60
OTHER_SIZES = ((28, 12), (8, 32))


def texts() -> dict[str, Tensor]:
    """Three of different lengths, each with its end, padded behind it."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, END, (BATCH, 12), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate((12, 5, 9)):
        ids[row, length - 1] = END
        ids[row, length:] = 1
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("end", [END, 2])
def test_both_towers_of_clip(end: int, tmp_path: Path) -> None:
    config = transformers.CLIPConfig(text_config={**TEXT, "eos_token_id": end}, vision_config=VISION, projection_dim=10)
    given = {"input_ids": texts()["input_ids"], "pixel_values": picture(20, 20)}
    network = prove_pictures(transformers.CLIPModel, config, tmp_path, given, sizes=OTHER_SIZES)
    method = network.config.text.pooling.method
    assert method == ("end" if end == END else "largest_id")


def test_padding_of_texts_does_not_matter(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(text_config={**TEXT, "eos_token_id": END}, vision_config=VISION)
    saved(transformers.CLIPModel, config, tmp_path)
    _, network, _ = load_folder(tmp_path)
    given = texts()
    with torch.no_grad():
        together = network(**given).text_embeds
        for row in range(BATCH):
            real = given["attention_mask"][row].bool()
            alone = network(given["input_ids"][row : row + 1, real]).text_embeds[0]
            assert (together[row] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("projection", [False, True])
def test_clip_text_alone(projection: bool, tmp_path: Path) -> None:
    name = "CLIPTextModelWithProjection" if projection else "CLIPTextModel"
    config = transformers.CLIPTextConfig(**TEXT, eos_token_id=END)
    given = {"input_ids": texts()["input_ids"]}
    prove_pictures(getattr(transformers, name), config, tmp_path, given, encode=_tower("text") if projection else None)


@pytest.mark.parametrize("projection", [False, True])
def test_clip_vision_alone(projection: bool, tmp_path: Path) -> None:
    name = "CLIPVisionModelWithProjection" if projection else "CLIPVisionModel"
    config = transformers.CLIPVisionConfig(**VISION)
    encode = _tower("image") if projection else None
    given = {"pixel_values": picture(20, 20)}
    prove_pictures(getattr(transformers, name), config, tmp_path, given, sizes=OTHER_SIZES, encode=encode)


def _tower(side: str) -> Any:
    def encode(network: Any, given: dict[str, Tensor]) -> Any:
        # transformers does not normalize the vector of a tower alone.
        embeds, output = getattr(network, side)(**given, output_hidden_states=True, output_attentions=True)
        setattr(output, f"{side}_embeds", embeds)
        return output

    return encode


def test_clip_with_labels(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, num_labels=5)
    hf = saved(transformers.CLIPForImageClassification, config, tmp_path)
    family, network, _ = load_folder(tmp_path)
    assert family.read_config(family.write_config(network.config)) == network.config
    hf.set_attn_implementation("sdpa")  # the plain one rounds to float32 there
    with torch.no_grad():
        theirs = hf(picture(20, 20)).logits
        ours = network(pixel_values=picture(20, 20)).logits
    assert ours.shape == (3, 5)
    assert (ours - theirs).abs().max() < 1e-8


def test_old_configs_of_clip() -> None:
    """``text_config_dict`` counts where both are there, as in the files of LAION."""
    family = find_family("clip")
    config = family.read_config(
        {"text_config": {"hidden_size": 8}, "text_config_dict": {**TEXT, "eos_token_id": 2}, "vision_config": VISION}
    )
    assert config.text.encoder.hidden_size == 24
    unread = family.unread_keys({"text_config": {**TEXT, "strange": 5}, "vision_config": VISION})
    assert unread == ["text_config.strange"]
    with pytest.raises(ConfigError, match=r"config.json: vision_config: patch_size is 'x'"):
        family.read_config({"vision_config": {"patch_size": "x"}})


SIGLIP_TEXT = {key: value for key, value in TEXT.items() if key != "projection_dim"}
SIGLIP_VISION = {key: value for key, value in VISION.items() if key != "projection_dim"}


def test_both_towers_of_siglip(tmp_path: Path) -> None:
    config = transformers.SiglipConfig(
        text_config={**SIGLIP_TEXT, "projection_size": 20, "eos_token_id": END}, vision_config=SIGLIP_VISION
    )
    ids = torch.randint(0, 61, (BATCH, 14), generator=torch.Generator().manual_seed(2))
    given = {"input_ids": ids, "pixel_values": picture(20, 20)}
    network = prove_pictures(transformers.SiglipModel, config, tmp_path, given, sizes=OTHER_SIZES)
    assert network.logit_bias is not None


def test_siglip_text_alone(tmp_path: Path) -> None:
    config = transformers.SiglipTextConfig(**SIGLIP_TEXT, projection_size=13, eos_token_id=END)
    ids = torch.randint(0, 61, (BATCH, 14), generator=torch.Generator().manual_seed(2))
    prove_pictures(transformers.SiglipTextModel, config, tmp_path, {"input_ids": ids})


@pytest.mark.parametrize("head", [False, True])
def test_siglip_vision_alone(head: bool, tmp_path: Path) -> None:
    config = transformers.SiglipVisionConfig(**SIGLIP_VISION, vision_use_head=head)
    given = {"pixel_values": picture(20, 20)}
    prove_pictures(transformers.SiglipVisionModel, config, tmp_path, given, sizes=OTHER_SIZES)


@pytest.mark.parametrize("head", [False, True])
def test_siglip_with_labels(head: bool, tmp_path: Path) -> None:
    """The pooling that labels do not come from may lie in the file, and is left out."""
    config = transformers.SiglipConfig(
        text_config=SIGLIP_TEXT, vision_config={**SIGLIP_VISION, "vision_use_head": head}, num_labels=4
    )
    hf = saved(transformers.SiglipForImageClassification, config, tmp_path)
    family, network, _ = load_folder(tmp_path)
    assert family.read_config(family.write_config(network.config)) == network.config
    hf.set_attn_implementation("sdpa")  # the plain one rounds to float32 there
    with torch.no_grad():
        theirs = hf(picture(20, 20)).logits
        ours = network(pixel_values=picture(20, 20)).logits
    assert (ours - theirs).abs().max() < 1e-8


def test_clip_starts_as_its_authors_do() -> None:
    """The numbers of `initialize_parameters` in their code, here by hand."""
    wide = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    values = {
        "architectures": ["CLIPModel"],
        "text_config": {**TEXT, **wide, "vocab_size": 500, "max_position_embeddings": 77},
        "vision_config": {**VISION, **wide, "image_size": 96, "patch_size": 8},
        "projection_dim": 64,
    }
    torch.manual_seed(0)
    network = find_family("clip").read_config(values).build()
    expected = {
        "text.encoder.embedding.tokens.weight": 0.02,
        "text.encoder.embedding.positions.weight": 0.01,
        "text.encoder.stack.layers.1.attention.query.weight": 128**-0.5,
        "text.encoder.stack.layers.1.attention.output.weight": 128**-0.5 * (2 * 2) ** -0.5,
        "text.encoder.stack.layers.1.feedforward.up.weight": (2 * 128) ** -0.5,
        "text.encoder.stack.layers.1.feedforward.down.weight": 128**-0.5 * (2 * 2) ** -0.5,
        "text.projection.weight": 128**-0.5,
        "image.encoder.embedding.weight": (3 * 3 * 8 * 8) ** -0.5,
        "image.encoder.embedding.class_token": 128**-0.5,
        "image.encoder.embedding.positions.weight": 128**-0.5,
        "image.encoder.stack.layers.2.attention.value.weight": 128**-0.5,
        "image.encoder.stack.layers.2.attention.output.weight": 128**-0.5 * (2 * 3) ** -0.5,
        "image.projection.weight": 128**-0.5,
    }
    for name, deviation in expected.items():
        weight = network.get_parameter(name)
        assert weight.std().item() == pytest.approx(deviation, rel=0.05 if weight.numel() > 500 else 0.2), name


def test_siglip_starts_as_transformers_does() -> None:
    wide = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    config = transformers.SiglipConfig(
        text_config={**TEXT, **wide, "vocab_size": 500, "max_position_embeddings": 64},
        vision_config={**VISION, **wide, "image_size": 96, "patch_size": 8},
    )
    torch.manual_seed(0)
    peer = transformers.SiglipModel(config)
    network = find_family("siglip").read_config({**config.to_dict(), "architectures": ["SiglipModel"]}).build()
    names = {
        "text.encoder.embedding.tokens": "text_model.embeddings.token_embedding",
        "text.encoder.embedding.positions": "text_model.embeddings.position_embedding",
        "text.encoder.stack.layers.1.attention.query": "text_model.encoder.layers.1.self_attn.q_proj",
        "text.encoder.stack.layers.1.attention.output": "text_model.encoder.layers.1.self_attn.out_proj",
        "text.encoder.stack.layers.1.feedforward.up": "text_model.encoder.layers.1.mlp.fc1",
        "text.encoder.stack.layers.1.feedforward.down": "text_model.encoder.layers.1.mlp.fc2",
        "image.encoder.embedding.positions": "vision_model.embeddings.position_embedding",
        "image.encoder.stack.layers.2.attention.value": "vision_model.encoder.layers.2.self_attn.v_proj",
        "image.pooling.feedforward.down": "vision_model.head.mlp.fc2",
    }
    for ours, theirs in names.items():
        expected = peer.get_parameter(f"{theirs}.weight").std().item()
        assert network.get_parameter(f"{ours}.weight").std().item() == pytest.approx(expected, rel=0.05), ours
    # Their normal numbers are cut off at twice the deviation and widened again; the deviation meant is 1/sqrt(inputs).
    assert network.get_parameter("image.encoder.embedding.weight").std().item() == pytest.approx(192**-0.5, rel=0.05)
    assert network.get_parameter("text.pooling.transform.linear.weight").std().item() == pytest.approx(
        128**-0.5, rel=0.05
    )
    assert network.logit_scale.item() == pytest.approx(2.302585) and network.logit_bias.item() == -10
