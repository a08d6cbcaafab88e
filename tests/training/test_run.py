"""Whole runs: from a recipe and files to a model that loads; broken off in every way; bad input."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer

import polyformer
from polyformer.errors import ConfigError, DataError, PolyformerError, TrainingError
from polyformer.tokenizers.text import TextTokenizer
from polyformer.training.recipe import Recipe, parse_recipe, read_recipe
from polyformer.training.run import check_recipe, known_ids, train
from polyformer.training.run_folder import Journal, read_journal
from polyformer.training.trainer import Observer, StepReport, Trainer

_TEXT = "the quick brown fox jumps over a lazy dog while seven old wizards brew bitter tea near some quiet river"
WORDS = tuple(_TEXT.split())


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("POLYFORMER_CACHE", str(folder))
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "texts")


def write_texts(folder: Path) -> Path:
    """Forty documents of words in a fixed order, each begun elsewhere."""
    folder.mkdir()
    for number in range(40):
        begin = number % len(WORDS)
        (folder / f"{number:02}.txt").write_text(" ".join((WORDS[begin:] + WORDS) * 3)[: 300 + number])
    return folder


def recipe_of(texts: Path, **changes: Any) -> Recipe:
    return parse_recipe(yaml.safe_dump(values_of(texts, **changes)))


def values_of(texts: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": {
            "family": "llama",
            "config": {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 64,
                "attention_dropout": 0.1,
            },
        },
        "tokenizer": {"train": "bpe", "vocab_size": 300},
        "data": {"train": str(texts), "length": 32, "validation_share": 0.2},
        "objective": {"name": "causal-lm"},
        "optimizer": {"learning_rate": 0.01},
        "training": {"steps": 12, "batch_size": 4, "save_every": 5, "evaluate_every": 6, "log_every": 1},
    }
    for path, value in changes.items():
        section, _, name = path.partition("__")
        if name:
            values[section] = {**values[section], name: value}
        else:
            values[section] = value
    return values


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_journal(folder / "metrics.jsonl") if event["event"] == "train"]


def test_a_model_comes_out_that_loads_here_and_in_transformers(texts: Path, tmp_path: Path) -> None:
    recipe = recipe_of(texts, training__steps=60, samples={"prompts": ["the quick"], "max_new_tokens": 8})
    summary = train(recipe, output=tmp_path / "run")
    assert summary.ended == "done" and summary.step == 60
    assert summary.evaluation["loss"] < 1.0  # the words come in one order
    model = polyformer.load(tmp_path / "run/model")
    text = model.generate("the quick brown", max_new_tokens=12, temperature=0).text
    assert text.startswith(" fox jumps over")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    ids = tokenizer("the quick brown", return_tensors="pt")
    assert tokenizer.decode(peer.generate(**ids, max_new_tokens=12, do_sample=False)[0][3:]).startswith(
        tokenizer.decode(ids["input_ids"][0][3:])
    )
    events = list(read_journal(tmp_path / "run/metrics.jsonl"))
    kinds = {event["event"] for event in events}
    assert {"begin", "train", "evaluation", "sample", "state", "end"} <= kinds
    summary_file = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary_file["parameters"] == model.num_parameters
    assert "<svg" in (tmp_path / "run/report.html").read_text()


def test_a_run_that_was_stopped_goes_on_with_the_very_losses(texts: Path, tmp_path: Path) -> None:
    train(recipe_of(texts), output=tmp_path / "whole")
    folder = tmp_path / "broken"
    stopping = StopAfter(7)
    summary = train(recipe_of(texts), output=folder, observers=[stopping])
    assert (summary.ended, summary.step) == ("stopped", 7)
    assert train(recipe_of(texts, training__log_every=1), output=folder, resume=True).ended == "done"
    assert losses(folder) == losses(tmp_path / "whole")
    assert train(recipe_of(texts), output=folder, resume=True).ended == "done"  # there is nothing left to do
    assert losses(folder) == losses(tmp_path / "whole")


class StopAfter(Observer):
    def __init__(self, step: int):
        self.step = step

    def on_begin(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step(self, report: StepReport) -> None:
        if report.step == self.step:
            self.trainer.stop()


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe of many short steps, and the folder of its run."""
    folder = tmp_path_factory.mktemp("long")
    recipe = folder / "recipe.yaml"
    texts = write_texts(folder / "texts")
    changes = {"training__steps": 120, "training__save_every": 4, "training__evaluate_every": 40}
    recipe.write_text(yaml.safe_dump(values_of(texts, **changes)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYFORMER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        train(read_recipe(recipe), output=folder / "whole")
    return recipe, folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_any_moment_it_goes_on_bit_for_bit(long_run: tuple[Path, Path], tmp_path: Path, seed: int) -> None:
    """kill -9 at a random moment of a run in another process, then --resume: every loss equals the whole run's."""
    recipe, whole = long_run
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "polyformer", "train", str(recipe), "-o", str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=os.environ)
    chosen = random.Random(seed)
    while not any((folder / "states").glob("step-*")) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(chosen.uniform(0.0, 1.0))
    process.kill()
    process.wait()
    train(read_recipe(recipe), output=folder, resume=True)
    assert losses(folder) == losses(whole)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (folder / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(texts: Path, tmp_path: Path, number: signal.Signals) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values_of(texts, training__steps=100_000, training__save_every=50_000)))
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "polyformer", "train", str(recipe), "-o", str(folder)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while len(losses(folder) if (folder / "metrics.jsonl").is_file() else []) < 5:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    assert f"go on with: polyformer train {recipe} --resume" in said
    last = max(path.name for path in (folder / "states").iterdir())
    assert int(last.removeprefix("step-")) == len(losses(folder))
    assert json.loads((folder / "summary.json").read_text())["ended"] == "stopped"


def test_a_full_disk_leaves_the_last_state(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import checkpoint

    real, calls = checkpoint.save, []

    def save(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        result = real(*arguments, **options)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return result

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(
        PolyformerError,
        match=r"the disk was full while writing the state after step 6 .*; the state after step 5 is whole",
    ):
        train(recipe_of(texts), output=tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/states").iterdir()] == ["step-00000005"]
    monkeypatch.setattr(checkpoint, "save", real)
    train(recipe_of(texts), output=tmp_path / "run", resume=True)
    train(recipe_of(texts), output=tmp_path / "whole")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_run_is_never_replaced_unasked(texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(TrainingError, match="holds no run to go on with"):
        train(recipe_of(texts), output=folder, resume=True)
    train(recipe_of(texts, training__steps=2), output=folder)
    with pytest.raises(TrainingError, match="already holds a run: go on with it"):
        train(recipe_of(texts), output=folder)
    with pytest.raises(TrainingError, match=r"has optimizer.learning_rate=0.01, but the recipe says 0.02"):
        train(recipe_of(texts, training__steps=2, optimizer__learning_rate=0.02), output=folder, resume=True)
    with pytest.raises(ConfigError, match="exclude each other"):
        train(recipe_of(texts), output=folder, resume=True, overwrite=True)
    assert train(recipe_of(texts, training__steps=3), output=folder, overwrite=True).step == 3
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match="is not empty and holds no run"):
        train(recipe_of(texts), output=other, overwrite=True)
    assert (other / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"name": "casual-lm"}}, "there is no objective 'casual-lm': did you mean causal-lm"),
        ({"objective": {"name": "causal-lm", "zloss": 1}}, "has no option 'zloss'; did you mean z_loss"),
        ({"objective": {"name": "causal-lm", "z_loss": "much"}}, "z_loss: Input should be a valid number"),
        ({"model__family": "lama"}, "'lama' is not known"),
        ({"model": {"family": "llama", "config": {"hiden_size": 3}}}, "has no 'hidden_size'|has no 'hiden_size'"),
        (
            {
                "model": {
                    "family": "bert",
                    "config": {
                        "hidden_size": 32,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 2,
                        "intermediate_size": 32,
                    },
                }
            },
            "trains language models",
        ),
        ({"tokenizer": None}, "there is no tokenizer"),
        ({"tokenizer__train": "bqe"}, "bqe"),
        ({"tokenizer__vocab_size": 100}, "vocab_size"),
        ({"training__early_stopping": {"patience": 2}, "data__validation_share": 0.0}, "needs held-out data"),
        ({"schedule": {"shape": "cosine", "warmup": 30}}, "the warm-up takes 30 steps"),
        ({"data__train": "nowhere/*.txt"}, "no file fits the pattern"),
        ({"model__freeze": ["encoder."]}, "no parameter begins with 'encoder.'"),
        ({"data__length": 100_000}, "fewer than one row"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    texts: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(PolyformerError, match=words) as caught:
        train(recipe_of(texts, **changes), output=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("packing", ["documents", "best"])
def test_what_reads_one_document_a_row_is_not_packed(texts: Path, tmp_path: Path, packing: str) -> None:
    recipe = recipe_of(texts, objective={"name": "denoising"}, data__packing=packing)
    with pytest.raises(ConfigError, match=rf"data.packing '{packing}' .* denoising reads one document"):
        train(recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tokens", "decoder", "lines"),
    [
        (["a", "b\n", "\n\n", "Ċ"], None, [1, 2]),
        (["a", "Ċ", "ĠĊĊ", "c"], decoders.ByteLevel(), [1, 2]),
        (["<0x09>", "<0x0A>", "▁a", "Ċ"], decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]), [1]),
        (["a", "##b"], decoders.WordPiece(), []),
    ],
)
def test_tokens_that_end_a_line(tokens: list[str], decoder: decoders.Decoder | None, lines: list[int]) -> None:
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0]))
    if decoder is not None:
        backend.decoder = decoder
    network = SimpleNamespace(config=SimpleNamespace())
    assert known_ids(TextTokenizer(backend), network)["newline_token_ids"] == tuple(lines)


def test_a_compiled_network_is_compiled(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: real(network, backend=backend))
    plain = {"model__config": {**values_of(texts)["model"]["config"], "attention_dropout": 0.0}, "training__steps": 4}
    train(recipe_of(texts, **plain), output=tmp_path / "plain")
    assert not graphs
    train(recipe_of(texts, **plain, training__compile=True), output=tmp_path / "compiled")
    assert graphs
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_bad_data_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DataError, match=r"empty\.txt"):
        train(recipe_of(empty, data__validation_share=0.0), output=tmp_path / "run")
    binary = tmp_path / "binary.txt"
    binary.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(DataError, match=r"binary\.txt"):
        train(recipe_of(binary, data__validation_share=0.0), output=tmp_path / "run")


@pytest.mark.parametrize(("share", "part"), [(0.001, r" \(validation\)"), (0.999, "")])
def test_a_share_that_leaves_a_part_empty_is_named(tmp_path: Path, share: float, part: str) -> None:
    few = tmp_path / "few.txt"
    few.write_text("One short document is all there is, and it can be in one part only.")
    recipe = recipe_of(few, data__validation_share=share, tokenizer={"train": "byte"})
    with pytest.raises(DataError, match=rf"few\.txt{part}: data\.validation_share is {share}, .*another share"):
        train(recipe, output=tmp_path / "run")


def test_checking_says_what_a_recipe_comes_to(texts: Path, tmp_path: Path) -> None:
    facts = check_recipe(recipe_of(texts))
    assert facts["vocabulary"] == 300 and facts["steps"] == 12
    assert facts["data"]["training_documents"] + facts["data"]["validation_documents"] == 40
    assert not (tmp_path / "run").exists()


def test_a_journal_keeps_whatever_a_model_writes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path)
    texts = ["a\u2028b\x85c\rd", "lone \ud800 surrogate", "línea"]
    for text in texts:
        journal.write("sample", step=1, text=text)
    journal.write("train", step=2, loss=float("nan"))
    journal.close()
    events = list(read_journal(path))
    assert [event["text"] for event in events[:3]] == texts
    assert events[3]["loss"] is None
    with path.open("a") as file:
        file.write('{"event": "tra')  # cut off when the machine died
    assert len(list(read_journal(path))) == 4
    journal = Journal(path, after_step=1)
    journal.close()
    assert len(list(read_journal(path))) == 3
    path.write_text('{"event": "train"}\nrubbish\n{"event": "end"}\n')
    with pytest.raises(TrainingError, match=r"metrics\.jsonl:2 is not valid JSON"):
        list(read_journal(path))
