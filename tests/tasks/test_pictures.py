"""Labels, vectors and captions of pictures against transformers' networks and processors with the same weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from proof import randomise
from proof_encoder_decoder import saved_pair
from sklearn.datasets import load_sample_images
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import polyformer
from polyformer.errors import CapabilityError, GenerationError, TokenizerError
from polyformer.model import Model

WORDS = ["this", "is", "a", "photo", "of", "cat", "dog", "temple", "flower", "old", "red", "house", "tree", "the", "an"]
LABELS = {0: "temple", 1: "flower", 2: "neither"}
VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    return [Image.fromarray(image) for image in load_sample_images().images]


def words_tokenizer(folder: Path) -> Any:
    """A token for each word, with a beginning and an end as CLIP has."""
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", ".", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.save_pretrained(folder)
    return made


def small_processor(folder: Path, kind: Any = ViTImageProcessorPil) -> Any:
    processor = kind(size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    return processor


# --- labels that a model was trained on -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any, Any]:
    folder = tmp_path_factory.mktemp("vit")
    config = transformers.ViTConfig(**VIT, id2label=LABELS, label2id={name: key for key, name in LABELS.items()})
    hf = randomise(transformers.ViTForImageClassification(config)).eval()
    hf.save_pretrained(folder)
    processor = small_processor(folder)
    return polyformer.load(folder, device="cpu"), hf, processor


def test_labels(vit: Any, photographs: list[Image.Image], tmp_path: Path) -> None:
    model, hf, processor = vit
    theirs = hf(**processor(photographs, return_tensors="pt")).logits.softmax(-1)
    ours = model.classify(photographs)
    for row, found in zip(theirs, ours, strict=True):
        assert [one.label for one in found] == [LABELS[int(number)] for number in row.argsort(descending=True)]
        assert max(abs(one.score - float(row[model.labels.index(one.label)])) for one in found) < 1e-5
    alone = model.classify(photographs[1], top_k=1)
    assert len(alone) == 1 and alone[0].score == pytest.approx(ours[1][0].score)
    assert model.classify(photographs[:1], multi_label=True)[0][0].score < 1
    model.save(tmp_path / "again")
    again = polyformer.load(tmp_path / "again", device="cpu")
    assert again.labels == tuple(LABELS.values())
    assert again.classify(photographs) == ours


def test_what_a_model_of_labels_cannot_do(vit: Any, photographs: list[Image.Image], tmp_path: Path) -> None:
    model = polyformer.load(_saved(vit[1], tmp_path), device="cpu")
    assert model.capabilities == ("classify", "embed_images")
    with pytest.raises(CapabilityError, match=r"has no preprocessor_config\.json"):
        model.classify(photographs)
    small_processor(tmp_path)
    model = polyformer.load(tmp_path, device="cpu")
    with pytest.raises(CapabilityError, match="but this one knows 3 labels: leave labels out"):
        model.classify(photographs, labels=["a cat"])
    with pytest.raises(CapabilityError, match="this vit model cannot caption; it can classify, embed_images"):
        model.caption(photographs)
    with pytest.raises(GenerationError, match="top_k is 0"):
        model.classify(photographs, top_k=0)
    with pytest.raises(GenerationError, match="batch_size is 0"):
        model.classify(photographs, batch_size=0)
    with pytest.raises(TokenizerError, match="picture 1: the picture is empty"):
        model.classify([_png(photographs[0]), b""])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _saved(hf: Any, folder: Path) -> Path:
    hf.save_pretrained(folder)
    return folder


# --- vectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_vectors_of_one_tower(kind: str, photographs: list[Image.Image], tmp_path: Path) -> None:
    sizes = {key: value for key, value in VIT.items() if kind == "ViT" or key != "intermediate_size"}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    hf = randomise(getattr(transformers, f"{kind}Model")(config)).eval()
    processor = small_processor(_saved(hf, tmp_path))
    model = polyformer.load(tmp_path, device="cpu")
    assert model.capabilities == ("embed_images",)
    with torch.no_grad():
        hidden = hf(**processor(photographs, return_tensors="pt")).last_hidden_state
    ours = model.embed_images(photographs)
    assert ours.shape == (2, 24) and ours.dtype == np.float32
    assert np.abs(ours - hidden[:, 0].numpy()).max() < 1e-4
    assert np.abs(model.embed_images(photographs[1]) - ours[1]).max() < 1e-5
    mean = model.embed_images(photographs, pooling="mean", normalize=True)
    expected = torch.nn.functional.normalize(hidden[:, 1:].mean(1), dim=-1).numpy()
    assert np.abs(mean - expected).max() < 1e-5
    with pytest.raises(GenerationError, match="pooling 'last' is not one of mean, class"):
        model.embed_images(photographs, pooling="last")


def clip(folder: Path, end: int = 2) -> tuple[Any, Any, Any]:
    tokenizer = words_tokenizer(folder)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 31,
        "max_position_embeddings": 14,
        "pad_token_id": 0,
        "bos_token_id": 1,
        # The first row of ends: 2 means "the largest id", which the end token is not here.
        "eos_token_id": end,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config={**VIT}, projection_dim=10)
    hf = randomise(transformers.CLIPModel(config)).eval()
    hf.save_pretrained(folder)
    return hf, tokenizer, small_processor(folder)


def test_pictures_and_texts_of_clip(photographs: list[Image.Image], tmp_path: Path) -> None:
    hf, tokenizer, processor = clip(tmp_path)
    model = polyformer.load(tmp_path, device="cpu")
    assert model.capabilities == ("embed", "embed_images", "classify")
    names = ["temple", "an old red flower", "cat"]
    texts = tokenizer([f"this is a photo of {name} ." for name in names], padding=True, return_tensors="pt")
    texts.pop("token_type_ids", None)
    with torch.no_grad():
        theirs = hf(**texts, **processor(photographs, return_tensors="pt"))
    vectors = model.embed([f"this is a photo of {name} ." for name in names])
    assert np.abs(vectors - theirs.text_embeds.numpy()).max() < 1e-5
    assert np.abs(model.embed_images(photographs) - theirs.image_embeds.numpy()).max() < 1e-5
    found = model.classify(photographs, labels=names, template="this is a photo of {} .")
    for row, labels in zip(theirs.logits_per_image.softmax(-1), found, strict=True):
        scores = {one.label: one.score for one in labels}
        assert max(abs(scores[name] - float(row[number])) for number, name in enumerate(names)) < 1e-4
    several = model.classify(photographs[0], labels=names, template=["a photo of {}", "the {}"], top_k=2)
    assert len(several) == 2 and several[0].score >= several[1].score
    apart = model.classify(photographs[0], labels=names, multi_label=True)
    assert sum(one.score for one in apart) != pytest.approx(1.0)
    for options, message in (
        ({}, "this model compares pictures with words of yours: give labels"),
        ({"labels": ["cat"], "template": "cats"}, "has no {} where the label goes"),
        ({"labels": ["cat"], "top_k": 0}, "top_k is 0"),
    ):
        with pytest.raises(GenerationError, match=message):
            model.classify(photographs, **options)
    with pytest.raises(TokenizerError, match="the model reads at most 14"):
        model.classify(photographs, labels=["cat " * 20])
    with pytest.raises(GenerationError, match="makes its vectors in its own way"):
        model.embed("a cat", pooling="mean")
    with pytest.raises(CapabilityError, match="cannot generate; it can embed, embed_images, classify"):
        model.generate("a cat")


def test_pictures_and_texts_of_siglip(photographs: list[Image.Image], tmp_path: Path) -> None:
    """Texts are filled up to the full length, without a mask; every label has a probability of its own."""
    tokenizer = words_tokenizer(tmp_path)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 31,
        "max_position_embeddings": 14,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    hf = randomise(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=VIT))).eval()
    hf.save_pretrained(tmp_path)
    processor = small_processor(tmp_path, SiglipImageProcessorPil)
    model = polyformer.load(tmp_path, device="cpu")
    names = ["temple", "an old red flower", "cat"]
    sentences = [f"this is a photo of {name} ." for name in names]
    ids = tokenizer(sentences, padding="max_length", max_length=14, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = hf(input_ids=ids, **processor(photographs, return_tensors="pt"))
    assert np.abs(model.embed(sentences, normalize=True) - theirs.text_embeds.numpy()).max() < 1e-5
    found = model.classify(photographs, labels=names, template="this is a photo of {} .")
    for row, labels in zip(theirs.logits_per_image.sigmoid(), found, strict=True):
        scores = {one.label: one.score for one in labels}
        assert max(abs(scores[name] - float(row[number])) for number, name in enumerate(names)) < 1e-4
    with pytest.raises(GenerationError, match="no class token"):
        model.embed_images(photographs, pooling="class")
    assert model.embed_images(photographs, pooling="mean").shape == (2, 24)


# --- captions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
def test_captions(beams: int, photographs: list[Image.Image], tmp_path: Path) -> None:
    tokenizer = words_tokenizer(tmp_path)
    decoder = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=3, vocab_size=len(tokenizer), n_positions=30, bos_token_id=1, eos_token_id=2
    )
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**{**VIT, "hidden_size": 20}), decoder
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    hf = saved_pair(transformers.VisionEncoderDecoderModel, config, tmp_path, torch.float32)
    processor = small_processor(tmp_path)
    model = polyformer.load(tmp_path, device="cpu")
    assert model.capabilities == ("caption",)
    with torch.no_grad():
        theirs = hf.generate(
            processor(photographs, return_tensors="pt").pixel_values,
            num_beams=beams,
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
            decoder_start_token_id=1,
        )
    ours = model.caption(photographs, num_beams=beams, max_new_tokens=12)
    expected = [text.strip() for text in tokenizer.batch_decode(theirs, skip_special_tokens=True)]
    assert [one.text for one in ours] == expected
    assert model.caption(photographs[1], num_beams=beams, max_new_tokens=12).text == ours[1].text
    assert model.caption(photographs[0]).finish_reason in ("eos", "length")
    model.save(tmp_path / "again")
    again = polyformer.load(tmp_path / "again", device="cpu")
    assert again.caption(photographs, num_beams=beams, max_new_tokens=12) == ours
    with pytest.raises(GenerationError, match="max_new_token"):
        model.caption(photographs, max_new_token=5)
