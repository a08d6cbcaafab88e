"""`translate` and `summarize` with a small BART."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof import saved
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import polyformer

Run = Callable[..., Any]
SENTENCE = "the fox jumps over a lazy dog and sees old tea house by river"
WORDS = ["<s>", "<pad>", "</s>", "<unk>", ".", *SENTENCE.split()]
OPTIONS = ("--max-new-tokens", "6", "--num-beams", "2")
LONG = "the fox jumps over a lazy dog . " * 6


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bart")
    config = transformers.BartConfig(
        vocab_size=len(WORDS),
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=20,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        init_std=0.7,  # so that what is written depends on what was read
    )
    torch.manual_seed(0)
    transformers.BartForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reads only."""
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32
    )
    saved(transformers.BertForMaskedLM, config, folder, torch.float32)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("command", ["translate", "summarize"])
def test_texts_from_every_place(run: Run, bart: Path, tmp_path: Path, command: str) -> None:
    texts = ["the fox jumps .", "a dog sees the river"]
    model = polyformer.load(bart, device="cpu")
    expected = [one.text for one in getattr(model, command)(texts, max_new_tokens=6, num_beams=2)]
    assert all(expected) and len(set(expected)) == 2

    def heard(*arguments: object, stdin: bytes = b"") -> list[str]:
        code, out, _ = run(command, bart, *arguments, *OPTIONS, "--json", stdin=stdin)
        assert code == 0
        return [json.loads(line)["text"] for line in out.splitlines()]

    assert heard(*texts) == expected
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    assert heard("--input-file", tmp_path / "texts.txt") == expected
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert heard("--input-file", tmp_path / "texts.jsonl") == expected
    assert heard(stdin=texts[0].encode()) == expected[:1]


def test_translations_are_a_line_each(run: Run, bart: Path) -> None:
    texts = ("the fox .", "old tea")
    code, out, _ = run("translate", bart, *texts, *OPTIONS)
    assert code == 0 and len(out.splitlines()) == 2
    code, spelled, _ = run("translate", bart, *texts, *OPTIONS, "--json")
    lines = [json.loads(line) for line in spelled.splitlines()]
    assert [line["source"] for line in lines] == list(texts)
    assert [line["text"] for line in lines] == out.splitlines()


def test_a_prefix_is_read(run: Run, bart: Path) -> None:
    _, plain, _ = run("translate", bart, "fox sees tea", *OPTIONS)
    code, said, _ = run("translate", bart, "sees tea", "--prefix", "fox ", *OPTIONS)
    assert code == 0 and said == plain


def test_a_long_source_is_cut_only_if_asked(run: Run, bart: Path) -> None:
    code, out, err = run("translate", bart, LONG, *OPTIONS)
    assert (code, out) == (2, "") and "49 tokens, but the model reads at most 20" in err and "--truncate" in err
    code, out, _ = run("translate", bart, LONG, *OPTIONS, "--truncate")
    assert code == 0 and out.strip()


def test_a_long_text_is_summarized_in_pieces(run: Run, bart: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_text(LONG)
    code, out, _ = run("summarize", bart, "--file", tmp_path / "first", *OPTIONS, "--json")
    assert code == 0 and json.loads(out)["chunks"] > 1
    code, out, _ = run("summarize", bart, "--file", tmp_path / "first", "--file", tmp_path / "second", *OPTIONS)
    assert code == 0 and [line for line in out.splitlines() if line.startswith("---")] == ["--- text 1", "--- text 2"]


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("summarize", ("a fox", "--file", "{folder}/config.json"), "give the texts in one way"),
        ("translate", ("a fox", "--input-file", "{folder}/config.json"), "give the texts in one way"),
        ("summarize", ("--file", "{folder}/nothing.txt"), "nothing.txt"),
        ("translate", ("--input-file", "{folder}/nothing.txt"), "nothing.txt"),
        ("translate", ("a fox", "--to", "xyz"), "xyz"),
        ("translate", ("a fox", "--num-beams", "0"), "num_beams"),
    ],
)
def test_a_mistake(run: Run, bart: Path, command: str, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = run(command, bart, *(argument.format(folder=bart) for argument in arguments))
    assert (code, out) == (2, "")
    assert message in " ".join(err.split()) and "Traceback" not in err


@pytest.mark.parametrize("command", ["translate", "summarize"])
def test_a_model_that_only_reads_says_what_it_can(run: Run, bert: Path, command: str) -> None:
    code, out, err = run(command, bert, "a fox")
    assert (code, out) == (2, "") and "fill_mask" in err.replace("-", "_")
