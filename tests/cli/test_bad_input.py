"""What people give by mistake, to each command that reads texts, pictures or sound: one line says what is wrong, the
exit code is 2, and nothing is cut without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from PIL import Image
from proof import randomise
from sentences import SENTENCES
from tokenizers import BertWordPieceTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

Run = Callable[..., Any]

LIMIT = 24
LONG = "the fox and the dog " * 20
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
PICTURES = {**SIZES, "image_size": 16, "patch_size": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny random models, each under what it does, with one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(SENTENCES, vocab_size=120, min_frequency=1, show_progress=False)
    trained.save_model(str(folder))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), pad_token="[PAD]", eos_token="[SEP]")
    size = len(tokenizer)

    def save(name: str, hf: Any) -> None:
        randomise(hf).eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    def bert(name: str, hf_class: Any, *labels: str) -> None:
        names = {"id2label": dict(enumerate(labels))} if labels else {}
        save(name, hf_class(transformers.BertConfig(vocab_size=size, **SIZES, max_position_embeddings=LIMIT, **names)))

    torch.manual_seed(0)
    bert("embed", transformers.BertModel)
    bert("fill-mask", transformers.BertForMaskedLM)
    bert("classify", transformers.BertForSequenceClassification, "ham", "spam", "neither")
    bert("entail", transformers.BertForSequenceClassification, "contradiction", "neutral", "entailment")
    bert("tag", transformers.BertForTokenClassification, "O", "B-PER", "I-PER")
    bert("answer", transformers.BertForQuestionAnswering)
    writer = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": LIMIT}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.sep_token_id, "decoder_start_token_id": 2}
    bart = transformers.BartConfig(vocab_size=size, **writer, **heads, **ids, bos_token_id=2, forced_eos_token_id=None)
    save("write", transformers.BartForConditionalGeneration(bart))
    labels = {"id2label": {0: "temple", 1: "flower"}, "label2id": {"temple": 0, "flower": 1}}
    save("see", transformers.ViTForImageClassification(transformers.ViTConfig(**PICTURES, **labels)))
    reads = {**SIZES, "vocab_size": size, "max_position_embeddings": LIMIT, "eos_token_id": tokenizer.sep_token_id}
    save("compare", transformers.CLIPModel(transformers.CLIPConfig(text_config=reads, vision_config=PICTURES)))
    for name in ("see", "compare"):
        ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / name)
    Image.new("RGB", (20, 30), "red").save(folder / "photo.png")
    return folder


TEXT_COMMANDS: dict[str, tuple[str, ...]] = {
    "embed": ("embed",),
    "fill-mask": ("fill-mask",),
    "classify": ("classify",),
    "tag": ("tag",),
    "answer": ("answer", "--context", "the dog sees the fox"),
    "translate": ("write", "--max-new-tokens", "3"),
    "summarize": ("write", "--max-new-tokens", "3"),
}


def refused(result: Any, *messages: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), result
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(message in err for message in messages), err


@pytest.mark.parametrize("command", TEXT_COMMANDS)
def test_what_is_no_text(run: Run, models: Path, tmp_path: Path, command: str) -> None:
    name, *options = TEXT_COMMANDS[command]
    for file, data, message in (
        ("empty.txt", b"", "empty.txt holds no text: write one a line"),
        ("blank.jsonl", b"\n  \n", "blank.jsonl holds no text"),
        ("film.mp4", b"\x00\x00\x00\x18ftypmp42" + bytes(64), "film.mp4 is a binary file or UTF-16, no text in UTF-8"),
        ("latin.txt", b"caf\xe9", "latin.txt is not valid UTF-8: byte 0xe9 at offset 3"),
        (
            "numbers.jsonl",
            b'{"text": 3}',
            'numbers.jsonl line 1: expected a string or an object with the string "text"',
        ),
    ):
        (tmp_path / file).write_bytes(data)
        refused(run(command, models / name, *options, "--input-file", tmp_path / file), message)
    refused(run(command, models / name, *options, "--input-file", tmp_path), "Is a directory")
    refused(run(command, models / name, *options, "  "), " 0 is blank: there is nothing to read")
    refused(run(command, models / name, *options, "x", ""), " 1 is blank")
    refused(run(command, models / name, *options, stdin=b"\n"), " 0 is blank")
    refused(run(command, models / name, *options, stdin="text".encode("utf-16")), "standard input is a binary file or")


@pytest.mark.parametrize("command", ["embed", "fill-mask", "classify", "tag", "translate"])
def test_long_texts_are_cut_only_if_asked_and_it_is_said(run: Run, models: Path, command: str) -> None:
    name, *options = TEXT_COMMANDS[command]
    texts = ("[MASK] fox", "[MASK] " + LONG, LONG.replace("fox", "[MASK]"))
    refused(run(command, models / name, *texts, *options), f"the model reads at most {LIMIT}", "--truncate")
    code, out, err = run(command, models / name, *texts, *options, "--truncate")
    assert code == 0 and out
    assert err == "note: 2 of 3 texts were longer than the model reads and lost their end\n"
    code, _, err = run(command, models / name, texts[0], *options, "--truncate")
    assert (code, err) == (0, "")


def test_long_texts_are_read_whole(run: Run, models: Path) -> None:
    """Where a task can do that, by windows or pieces."""
    for arguments in (
        ("tag", models / "tag", LONG, "--stride", "4"),
        ("answer", models / "answer", "who", "--context", LONG),
        ("summarize", models / "write", LONG, "--max-new-tokens", "3"),
    ):
        code, _, err = run(*arguments)
        assert (code, err) == (0, "")
    refused(run("answer", models / "answer", LONG, "--context", "the dog"), "the question takes", "shorten it")
    refused(run("summarize", models / "write", "the dog", "--prefix", LONG), "the prefix takes", "no room for a text")
    for stride, message in (("-1", "stride is -1, but it must be"), ("99", "let them share fewer")):
        refused(run("tag", models / "tag", LONG, "--stride", stride), message)
    refused(run("tag", models / "tag", LONG, "--stride", "4", "--truncate"), "leave truncate out")


def test_blank_texts_of_a_file_are_not_written_about(run: Run, models: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "a fox"}\n{"text": " "}\n')
    for command in ("translate", "summarize"):
        refused(run(command, models / "write", "-i", tmp_path / "texts.jsonl"), "text 1 is blank: there is nothing to")
    (tmp_path / "empty.txt").touch()
    refused(run("summarize", models / "write", "--file", tmp_path / "empty.txt"), "text 0 is blank")
    refused(run("answer", models / "answer", "who?", "--context-file", tmp_path / "empty.txt"), "context 0 is empty")


def test_a_file_named_as_a_text_is_mentioned(run: Run, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("the dog")
    code, out, err = run("embed", models / "embed", file, "--truncate")
    assert code == 0 and json.loads(out)["text"] == str(file)
    assert "itself is read as a text, though there is such a file: --input-file reads what is in it" in err
    _, _, err = run("embed", models / "compare", models / "photo.png", "--truncate")
    assert "--images reads what is in it" in err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("classify", ("--label", "x"), "need a model that tells entailment, but this one tells ham, spam, neither"),
        ("classify", ("--template", "{}"), "a template is for labels of one's own"),
        ("entail", ("--label", " "), "label 0 is blank"),
        ("entail", ("--label", "a", "--label", "b", "--label", "a"), "the label 'a' is given twice"),
        ("entail", ("--label", "a", "--template", "x"), "has no {} where the label goes"),
        ("entail", ("--label", LONG), f"the model reads at most {LIMIT}"),
        ("see", ("--label", "x"), "but this one knows 2 labels: leave labels out"),
        ("see", ("--template", "{}"), "but this one knows 2 labels: leave template out"),
        ("compare", (), '--label "a cat"'),
        ("compare", ("--label", ""), "label 0 is blank"),
        ("compare", ("--label", "a", "--label", "a"), "the label 'a' is given twice"),
        ("compare", ("--label", LONG), f"tokens with its template, but the model reads at most {LIMIT}: shorten it"),
        ("embed", ("--label", "x"), "cannot classify; it can embed"),
    ],
)
def test_labels_that_do_not_fit(run: Run, models: Path, name: str, options: tuple[str, ...], message: str) -> None:
    given = models / "photo.png" if name in ("see", "compare") else "the fox"
    refused(run("classify", models / name, given, *options), message)


def test_drawings_are_no_pictures(run: Run, models: Path, tmp_path: Path) -> None:
    """Pillow would start Ghostscript for PostScript: no file may do that."""
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"%PDF-1.4\n", b"<svg></svg>"):
        (tmp_path / "drawing.png").write_bytes(data + bytes(64))
        refused(run("classify", models / "see", tmp_path / "drawing.png"), "is a drawing, not a picture")
    (tmp_path / "film.mov").write_bytes(b"\x00\x00\x00\x08wide\x00\x00\x10\x00mdat" + bytes(64))
    refused(run("embed", models / "see", tmp_path / "film.mov"), "is a video, not a picture")


def test_recordings(run: Run, tmp_path: Path) -> None:
    """What can be known before a model is loaded; files of sound are tested with their reader."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "talk.wav", np.zeros(800), 16000)
    talk, other = (tmp_path / folder / "talk.wav" for folder in ("one", "two"))
    refused(run("transcribe", "nowhere", talk, "--output-dir", talk), "is a file: name a folder")
    refused(run("transcribe", "nowhere", talk, other, "--output-dir", tmp_path), "two recordings", "talk.txt")
