"""Every objective from a recipe to a model that does its task: data as people have them, a few steps, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from tests.training.test_run import StopAfter, losses
from transformers import AutoConfig

import polyformer
from polyformer.errors import ConfigError, DataError
from polyformer.evaluation import evaluate
from polyformer.objectives import OBJECTIVES
from polyformer.tokenizers.images import ImageProcessor, load_image_processor
from polyformer.training.recipe import Recipe
from polyformer.training.run import train

NAMES, PLACES = ("Ann", "Bob", "Cara", "Dan"), ("Paris", "Rome", "Oslo", "Lima")
SENTENCES = [f"{name} {verb} to {place}" for name in NAMES for verb in ("went", "flew", "walked") for place in PLACES]
COLOURS = ("red", "green", "blue")

BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
LLAMA = {**BERT, "num_key_value_heads": 2}
PICTURE = {**BERT, "image_size": 8, "patch_size": 4}
WORDS = {"train": "wordpiece", "vocab_size": 120}
PAIRS = {"train": "bpe", "vocab_size": 300, "purpose": "encoder-decoder", "options": {"sentinels": 12}}
T5 = {
    "family": "t5",
    "config": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 4},
}


def prefix_decoder() -> dict[str, Any]:
    norm = {"kind": "RMSNorm", "size": 32}
    attention = {
        "kind": "Attention",
        "hidden_size": 32,
        "num_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "mask": {"kind": "PrefixCausal"},
        "positions": {"kind": "Rotary", "rotary_dim": 8},
    }
    feedforward = {"kind": "FeedForward", "hidden_size": 32, "intermediate_size": 64, "activation": "gelu"}
    layer = {"kind": "Layer", "attention": attention, "feedforward": feedforward, "norm": norm}
    return {
        "kind": "DecoderOnly",
        "embedding": {"kind": "TokenEmbedding", "vocab_size": "tokenizer", "hidden_size": 32},
        "stack": {"kind": "Stack", "layers": [layer], "norm": norm},
        "head": {"kind": "Head", "hidden_size": 32, "vocab_size": "tokenizer"},
    }


def bert(head: str, *labels: str) -> dict[str, Any]:
    return {
        "family": "bert",
        "config": BERT,
        "architecture": f"Bert{head}",
        **({"labels": [*labels]} if labels else {}),
    }


# Name of an objective -> model, tokenizer, and documents as people would have them.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str]] = {
    "causal-lm": ({"family": "llama", "config": LLAMA}, {"train": "bpe", "vocab_size": 300}, "texts"),
    "fill-in-the-middle": ({"family": "llama", "config": LLAMA}, {"train": "byte", "purpose": "code"}, "texts"),
    "prefix-lm": ({"network": prefix_decoder()}, {"train": "bpe", "vocab_size": 300}, "texts"),
    "masked-lm": (bert("ForMaskedLM"), WORDS, "texts"),
    "replaced-tokens": (
        {"family": "electra", "config": {**BERT, "embedding_size": 32}, "architecture": "ElectraForPreTraining"},
        WORDS,
        "texts",
    ),
    "span-corruption": (T5, PAIRS, "texts"),
    "denoising": (
        {
            "family": "bart",
            "config": {
                "d_model": 32,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
        },
        {"train": "bpe", "vocab_size": 300},
        "texts",
    ),
    "sequence-to-sequence": (T5, PAIRS, "pairs"),
    "captioning": (
        {
            "family": "vision-encoder-decoder",
            "config": {
                "encoder": {"model_type": "vit", **PICTURE},
                "decoder": {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4},
            },
        },
        {"train": "bpe", "vocab_size": 300},
        "captions",
    ),
    "classification": (bert("ForSequenceClassification", "north", "south"), WORDS, "classes"),
    "image-classification": (
        {"family": "vit", "config": PICTURE, "architecture": "ViTForImageClassification", "labels": [*COLOURS]},
        None,
        "colours",
    ),
    "regression": (bert("ForSequenceClassification", "distance"), WORDS, "numbers"),
    "multi-label": (bert("ForSequenceClassification", "north", "cold"), WORDS, "several"),
    "tagging": (bert("ForTokenClassification", "O", "PER", "LOC"), WORDS, "tags"),
    "contrastive-pairs": (bert("Model"), WORDS, "partners"),
    "contrastive-images": (
        {
            "family": "clip",
            "config": {"projection_dim": 16, "text_config": BERT, "vision_config": PICTURE},
        },
        {"train": "bpe", "vocab_size": 300},
        "captions",
    ),
}


def documents(kind: str, folder: Path) -> list[dict[str, Any]]:
    if kind in ("captions", "colours"):
        rows = []
        for number in range(24):
            colour = COLOURS[number % 3]
            picture = folder / f"{number}.png"
            Image.new("RGB", (9, 12), colour).save(picture)
            rows.append({"image": picture.name, "text": f"{colour} field {number}", "label": colour})
        return rows
    rows = []
    for number, text in enumerate(SENTENCES):
        words, north = text.split(), "Oslo" in text
        more: dict[str, dict[str, Any]] = {
            "texts": {"text": text},
            "pairs": {"source": text, "target": text.replace("to", "towards")},
            "classes": {"text": text, "label": "north" if north else "south"},
            "numbers": {"text": text, "label": 2 + number / 24},
            "several": {"text": text, "label": ["cold", "north"] if north else []},
            "tags": {"text": words, "tags": ["PER", "O", "O", "LOC"]},
            "partners": {"first": text, "second": words[-1]},
        }
        rows.append(more[kind])
    return rows


def recipe_for(name: str, folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> Recipe:
    model, tokenizer, kind = CASES[name]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows or documents(kind, folder)))
    values: dict[str, Any] = {
        "name": name,
        "model": model,
        "data": {"train": str(data), "validation_share": 0.25, "length": 40, "packing": "none"},
        "objective": {"name": name},
        "optimizer": {"learning_rate": 5e-3},
        "training": {"steps": 30, "batch_size": 8, "evaluate_every": 15, "log_every": 1},
        **({} if tokenizer is None else {"tokenizer": tokenizer}),
    }
    return Recipe.model_validate({**values, **changes})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "cache"))


def test_every_objective_is_here() -> None:
    assert set(CASES) == set(OBJECTIVES)


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_becomes_a_model_that_does_its_task(name: str, tmp_path: Path) -> None:
    training = {"steps": 80 if name == "captioning" else 30, "batch_size": 8, "log_every": 1}
    summary = train(recipe_for(name, tmp_path, training=training), output=tmp_path / "run")
    found = losses(tmp_path / "run")
    assert summary.ended == "done" and summary.evaluation["loss"] == pytest.approx(summary.evaluation["loss"])
    assert np.mean(found[-5:]) < np.mean(found[:5])
    model: Any = polyformer.load(tmp_path / "run/model")
    picture = str(tmp_path / "0.png")
    if name in ("causal-lm", "prefix-lm", "fill-in-the-middle"):
        assert model.generate("Ann went", max_new_tokens=3).token_ids
    if name == "fill-in-the-middle":
        assert isinstance(model.infill(("Ann ", " to Rome"), max_new_tokens=3).text, str)
    if name == "masked-lm":
        assert len(model.fill_mask("Ann [MASK] to Rome")) >= 1
    if name in ("span-corruption", "denoising", "sequence-to-sequence"):
        assert model.generate("Ann went to Rome", max_new_tokens=3).token_ids
    if name == "captioning":
        assert model.caption(picture, temperature=0).text.startswith("red field")
    if name == "image-classification":
        assert {label.label for label in model.classify(picture)} == {*COLOURS}
        found = evaluate(model, str(tmp_path / "data.jsonl"))  # the pictures lie beside it
        assert found.measure == "labels" and found.values["accuracy"] > 0.5
    if name == "contrastive-images":
        assert model.embed("red field 0").shape == model.embed_images(picture).shape == (16,)


def test_scores_are_read_as_they_were_learned(tmp_path: Path) -> None:
    """One of several add up to 1, several by themselves do not, and a number is a number."""
    scores = {}
    for name in ("classification", "multi-label", "regression"):
        folder = tmp_path / name
        folder.mkdir()
        train(recipe_for(name, folder), output=folder / "run")
        model: Any = polyformer.load(folder / "run/model")
        scores[name] = {label.label: label.score for label in model.classify("Ann went to Oslo")}
        with torch.inference_mode():
            logits = model.network(torch.tensor([model.tokenizer.encode("Ann went to Oslo")])).logits[0].double()
        problem = AutoConfig.from_pretrained(folder / "run/model").problem_type
        expected = {"classification": logits.softmax(-1), "multi-label": logits.sigmoid(), "regression": logits}[name]
        assert sorted(scores[name].values()) == pytest.approx(sorted(expected.tolist()), abs=1e-5)
        assert problem.startswith({"classification": "single", "multi-label": "multi"}.get(name, "regression"))
    assert sum(scores["classification"].values()) == pytest.approx(1)
    assert scores["regression"]["distance"] > 1  # they are 2 to 4


def test_words_with_names_of_tags(tmp_path: Path) -> None:
    recipe = recipe_for("tagging", tmp_path, training={"steps": 60, "batch_size": 8})
    train(recipe, output=tmp_path / "run")
    model: Any = polyformer.load(tmp_path / "run/model")
    found = [(entity.text, entity.label) for entity in model.tag("Cara flew to Lima")]
    assert found == [("Cara", "PER"), ("Lima", "LOC")]


def test_vectors_are_those_that_were_trained_here_and_in_sentence_transformers(tmp_path: Path) -> None:
    recipe = recipe_for("contrastive-pairs", tmp_path, objective={"name": "contrastive-pairs", "pooling": "class"})
    train(recipe, output=tmp_path / "run")
    model: Any = polyformer.load(tmp_path / "run/model")
    texts = ["Ann went to Oslo", "Rome"]
    ours = model.embed(texts)
    assert np.linalg.norm(ours, axis=1) == pytest.approx(1, abs=1e-5)
    theirs = SentenceTransformer(str(tmp_path / "run/model"), device="cpu").encode(texts)
    assert np.abs(ours - theirs).max() < 1e-5
    with torch.inference_mode():
        hidden = model.network.encoder(torch.tensor([model.tokenizer.encode(texts[0])])).last_hidden_state[0, 0]
    assert ours[0] == pytest.approx((hidden / hidden.norm()).numpy(), abs=1e-5)
    # Going on from it, vectors are made as they were.
    again = recipe_for("contrastive-pairs", tmp_path, model={"start_from": str(tmp_path / "run/model")}, tokenizer=None)
    train(again, output=tmp_path / "again")
    assert polyformer.load(tmp_path / "again/model").embedding_settings == model.embedding_settings  # type: ignore[union-attr]


def test_texts_that_are_near_and_yet_wrong(tmp_path: Path) -> None:
    rows = [{**row, "negative": "Berlin"} for row in documents("partners", tmp_path)]
    found = {}
    for name, given in (("with", rows), ("without", documents("partners", tmp_path))):
        train(recipe_for("contrastive-pairs", tmp_path, given), output=tmp_path / name)
        found[name] = losses(tmp_path / name)[0]
    assert found["with"] > found["without"]  # there is more to choose from
    del rows[7]["negative"]
    with pytest.raises(DataError, match="document has no field 'negative'"):
        train(recipe_for("contrastive-pairs", tmp_path, rows), output=tmp_path / "mixed")


def test_pictures_are_prepared_as_for_the_weights_that_are_started_from(tmp_path: Path) -> None:
    train(recipe_for("image-classification", tmp_path), output=tmp_path / "run")
    processor = ImageProcessor(
        size=10, crop=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), kind="CLIPImageProcessor"
    )
    processor.save(tmp_path / "run/model")
    start = {"start_from": str(tmp_path / "run/model")}
    train(recipe_for("image-classification", tmp_path, model=start), output=tmp_path / "again")
    assert load_image_processor(tmp_path / "again/model") == processor
    assert polyformer.load(tmp_path / "again/model").labels == COLOURS  # type: ignore[union-attr]


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion", "adafactor"])
def test_a_network_of_which_a_part_is_not_used_goes_on(optimizer: str, tmp_path: Path) -> None:
    """BERT's pooler has no part in the vectors: it never gets a gradient."""
    recipe = recipe_for("contrastive-pairs", tmp_path, optimizer={"name": optimizer, "learning_rate": 1e-3})
    train(recipe, output=tmp_path / "whole")
    assert train(recipe, output=tmp_path / "broken", observers=[StopAfter(7)]).ended == "stopped"
    train(recipe, output=tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("tagging", {"tags": ["PER", "O", "O", "PLACE"]}, DataError, "the label 'PLACE'.* there are O, PER, LOC"),
        ("tagging", {"tags": ["PER", "O"]}, DataError, "2 tags"),
        ("tagging", {"text": "Ann went to Oslo"}, DataError, "'text' must be a list of words"),
        ("multi-label", {"label": ["nort"]}, DataError, "the label 'nort'.* did you mean north"),
        ("multi-label", {"label": [1]}, DataError, "must be 2 numbers"),
        ("classification", {"label": ["north"]}, DataError, "must be a whole number from 0 to 1"),
        ("regression", {"label": "far"}, DataError, "the label 'far'"),
        ("image-classification", {"image": "none.png"}, DataError, r"none\.png cannot be read"),
    ],
)
def test_mistakes_are_named(
    name: str, change: Mapping[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    rows = [{**row, **change} for row in documents(CASES[name][2], tmp_path)]
    with pytest.raises(error, match=words):
        train(recipe_for(name, tmp_path, rows), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_that_nobody_has_named(tmp_path: Path) -> None:
    model = {"family": "bert", "config": {**BERT, "num_labels": 2}, "architecture": "BertForSequenceClassification"}
    with pytest.raises(ConfigError, match=r"name all labels in model\.labels"):
        train(recipe_for("classification", tmp_path, model=model), output=tmp_path / "run")
