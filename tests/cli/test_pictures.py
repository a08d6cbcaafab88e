"""`classify`, `embed` and `caption` on files of pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

Run = Callable[..., Any]

VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 16,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "inner").mkdir()
    temple, flower = load_sample_images().images
    Image.fromarray(temple).save(folder / "a temple.jpg")
    Image.fromarray(flower).save(folder / "inner" / "flower.PNG")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def prepare(folder: Path, hf: Any) -> Path:
    hf.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.ViTConfig(**VIT, id2label={0: "temple", 1: "flower"}, label2id={"temple": 0, "flower": 1})
    hf = randomise(transformers.ViTForImageClassification(config))
    return prepare(tmp_path_factory.mktemp("vit"), hf)


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    vocabulary = {word: number for number, word in enumerate(["<s>", "</s>", "a", "temple", "by", "lake"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    made.save_pretrained(folder)
    decoder = transformers.GPT2Config(n_embd=24, n_layer=1, n_head=3, vocab_size=6, n_positions=12, eos_token_id=1)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VIT), decoder
    )
    config.decoder_start_token_id = 0
    hf = saved_pair(transformers.VisionEncoderDecoderModel, config, folder, torch.float32)
    return prepare(folder, hf)


def test_labels_of_a_folder(run: Run, vit: Path, photographs: Path) -> None:
    code, out, _ = run("classify", str(vit), str(photographs), "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [Path(line["image"]).name for line in lines] == ["a temple.jpg", "flower.PNG"]
    assert {label["label"] for label in lines[0]["labels"]} == {"temple", "flower"}
    assert sum(label["score"] for label in lines[0]["labels"]) == pytest.approx(1)
    code, out, _ = run("classify", str(vit), str(photographs / "a temple.jpg"), "--top-k", "1")
    assert code == 0 and out.split()[0] in ("temple", "flower")


def test_vectors_to_a_file(run: Run, vit: Path, photographs: Path, tmp_path: Path) -> None:
    listing = tmp_path / "pictures.txt"
    listing.write_text(f"{photographs / 'a temple.jpg'}\n{photographs / 'inner' / 'flower.PNG'}\n")
    output = tmp_path / "vectors.npy"
    code, out, _ = run("embed", str(vit), "--input-file", str(listing), "--output", str(output))
    assert code == 0 and "2 vectors of 24 numbers" in out
    assert np.load(output).shape == (2, 24)
    code, out, _ = run("embed", str(vit), "--images", str(photographs), "--pooling", "mean")
    assert code == 0 and set(json.loads(out.splitlines()[0])) == {"image", "embedding"}


def test_captions(run: Run, captioner: Path, photographs: Path) -> None:
    code, out, _ = run("caption", str(captioner), str(photographs), "--json", "--max-new-tokens", "5")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 2
    assert set(lines[0]) == {"image", "text", "token_ids", "finish_reason"}
    code, out, _ = run("caption", str(captioner), str(photographs / "a temple.jpg"), "--num-beams", "2")
    assert code == 0 and len(out.splitlines()) == 1


def test_mistakes(run: Run, vit: Path, captioner: Path, photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "film.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(100))
    picture = str(photographs / "a temple.jpg")
    for arguments, message in (
        (("classify", vit, tmp_path / "empty"), "holds no picture"),
        (("classify", vit, tmp_path / "broken.png"), "broken.png"),
        (("classify", vit, tmp_path / "film.mp4"), "is a video, not a picture"),
        (("classify", vit, tmp_path / "absent.png"), "No such file"),
        (("classify", vit, picture, "--label", "a cat"), "labels of one's own need a model that compares"),
        (("classify", vit, picture, "--truncate"), "--truncate is for texts"),
        (("classify", vit), "name pictures"),
        (("embed", vit, picture, "--prompt", "x"), "--truncate and --prompt are for texts"),
        (("caption", vit, picture), "cannot caption; it can classify, embed_images"),
        (("caption", captioner), "name pictures"),
        (("caption", captioner, picture, "--input-file", "x"), "not both"),
        (("transcribe", captioner, picture), "it can caption"),
    ):
        code, out, err = run(*map(str, arguments))
        assert code == 2, (arguments, out, err)
        assert message in err and "Traceback" not in err, (arguments, err)
        assert out == ""
