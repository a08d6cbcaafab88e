"""Runs side by side: what is read of them, what is written, and n-grams on the data of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import write_run

import polyformer
from polyformer.baselines import ConvolutionLM, NGram, RecurrentLM, RecurrentTranslator
from polyformer.errors import ConfigError, DataError, TrainingError
from polyformer.training.comparison import ProbeSettings, compare, read_runs, table
from polyformer.training.counted import count_run
from polyformer.training.probes import RecallTask
from polyformer.training.recipe import parse_recipe
from polyformer.training.run import train
from polyformer.training.run_folder import read_journal

LSTM = RecurrentLM.Config(40, 8, 1, "lstm")
CONVOLUTION = ConvolutionLM.Config(40, 8, 2, max_positions=64)


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    write_run(tmp_path / "one" / "lstm", LSTM)
    write_run(tmp_path / "one" / "cnn", CONVOLUTION, losses=(2.0, 1.5), seconds_per_step=0.1)
    return [tmp_path / "one" / "lstm", tmp_path / "one" / "cnn"]


def test_what_is_read(folders: list[Path]) -> None:
    lstm, cnn = read_runs(folders)
    assert (lstm.name, lstm.architecture, cnn.name, cnn.architecture) == ("lstm", "lstm", "cnn", "ConvolutionLM")
    assert lstm.parameters == sum(p.numel() for p in LSTM.build().parameters())
    assert (lstm.tokens, lstm.seconds, lstm.flops, lstm.loss) == (64 * 60, 30.0, 6e7, 2.25)
    assert lstm.tokens_per_second == 135.0  # the median of 110, 120, ..., 160
    assert [(point.step, point.loss, point.tokens, point.seconds, point.flops) for point in cnn.points] == [
        (20, 2.0, 1280.0, 2.0, 2e7),
        (40, 1.5, 2560.0, 4.0, 4e7),
    ]


def test_evaluations_between_two_lines(folders: list[Path]) -> None:
    journal = folders[0] / "metrics.jsonl"
    with journal.open("a") as file:
        file.write(json.dumps({"event": "evaluation", "step": 45, "loss": 2.4}) + "\n")
    assert read_runs(folders)[0].points[-1].seconds == 22.5


def test_names_tell_runs_apart(folders: list[Path], tmp_path: Path) -> None:
    write_run(tmp_path / "two" / "lstm", LSTM)
    names = [run.name for run in read_runs([folders[0], tmp_path / "two" / "lstm"])]
    assert names == ["one/lstm", "two/lstm"]


def test_table_and_pictures(folders: list[Path], tmp_path: Path) -> None:
    settings = ProbeSettings(
        task=RecallTask(distances=(1, 2, 100), keys=4, noise=4, steps=3, trials=8),
        gradient_length=9,
        gradient_rows=2,
        contexts=(16, 128),
        batch_tokens=64,
    )
    said: list[str] = []
    output = tmp_path / "comparison"
    probes = ("recall", "gradients", "throughput")
    found = compare(read_runs(folders), output, probes=probes, settings=settings, say=said.append)
    assert said == [f"{probe} of {name}" for probe in probes for name in ("lstm", "cnn")]
    assert list(found.probes["recall"]["lstm"]) == [1, 2, 100] and list(found.probes["recall"]["cnn"]) == [1, 2]
    assert list(found.probes["throughput"]["cnn"]) == [16]
    assert list(found.probes["gradients"]["lstm"]) == list(range(8))
    assert [value > 0 for value in found.probes["gradients"]["cnn"].values()] == [True] * 4 + [False] * 4
    files = sorted(path.name for path in output.iterdir())
    pictures = ["gradients.png", "loss.png", "recall.png", "throughput.png"]
    assert files == sorted(["comparison.json", "comparison.md", *pictures])
    for name in pictures:
        with Image.open(output / name) as picture:
            assert min(picture.size) > 400 and len(picture.convert("L").getcolors() or range(300)) > 10
    assert json.loads((output / "comparison.json").read_text()) == json.loads(json.dumps(found.to_json()))
    text = (output / "comparison.md").read_text()
    assert text == table(found) + "\n"
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    assert cells[2] == ["lstm", "lstm", "936", "3,840", "60M", "30", "135", "2.2500"]
    assert cells[3][-1] == "1.5000"
    assert ["run", "1", "2", "100"] in cells and ["run", "16", "128"] in cells and ["run", "1", "2", "4"] in cells


def test_gradients_of_a_given_text(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tokenizer to read a text with"):
        compare(read_runs(folders), tmp_path / "out", probes=["gradients"], settings=ProbeSettings(text="a text" * 100))


def test_different_tokenizers_are_noted(tmp_path: Path) -> None:
    write_run(tmp_path / "a", LSTM, tokenizer="{}")
    write_run(tmp_path / "b", LSTM, tokenizer="{}")
    write_run(tmp_path / "c", LSTM, tokenizer='{"other": 1}')
    alike = compare(read_runs([tmp_path / "a", tmp_path / "b"]), tmp_path / "out")
    assert alike.notes == [] and "Note" not in table(alike)
    different = compare(read_runs([tmp_path / "a", tmp_path / "c"]), tmp_path / "out")
    assert "losses for a token cannot be compared" in table(different)


def test_mistakes_are_named(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no training run"):
        read_runs([tmp_path])
    with pytest.raises(TrainingError, match="stands there twice"):
        read_runs([folders[0], folders[0].parent / "." / "lstm"])
    with pytest.raises(ConfigError, match="there is no probe 'recal'; there are recall, gradients, throughput"):
        compare(read_runs(folders), tmp_path / "out", probes=["recal"])
    (folders[0] / "summary.json").unlink()
    with pytest.raises(TrainingError, match="has not ended"):
        read_runs(folders)
    write_run(tmp_path / "translator", RecurrentTranslator.Config(40, 40, 8, decoder_start_token_id=1))
    with pytest.raises(ConfigError, match="translator: a probe is for networks without a source"):
        compare(read_runs([tmp_path / "translator"]), tmp_path / "out", probes=["recall"])


# --- n-grams --------------------------------------------------------------------------------------------------------


def recipe_for(texts: Path) -> Any:
    network = {"kind": "RecurrentLM", "vocab_size": "tokenizer", "hidden_size": 16, "num_layers": 1, "cell": "gru"}
    return parse_recipe(
        json.dumps(
            {
                "model": {"network": network},
                "tokenizer": {"train": "bpe", "vocab_size": 300},
                "data": {"train": str(texts), "length": 32, "validation_share": 0.25},
                "objective": {"name": "causal-lm"},
                "optimizer": {"learning_rate": 0.01},
                "training": {"steps": 6, "batch_size": 4, "evaluate_every": 3, "log_every": 1},
            }
        )
    )


def test_ngrams_beside_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline is trained from a recipe and loads; n-grams are judged on the very tokens that it is judged on."""
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    random = np.random.default_rng(0)
    words = ["the", "fox", "jumps", "over", "lazy", "dogs", "while", "wizards", "brew", "tea"]
    for number in range(30):
        text = " ".join(random.choice(words, 60))
        (tmp_path / "texts" / f"{number:02}.txt").write_text(text)
    summary = train(recipe_for(tmp_path / "texts"), output=tmp_path / "gru")
    model = polyformer.load(tmp_path / "gru" / "model")
    assert model.config.cell == "gru" and model.generate("the fox", max_new_tokens=4, seed=0).text
    counted = count_run(tmp_path / "gru", 3, tmp_path / "3-gram")
    grams = NGram.open(tmp_path / "3-gram" / "model" / "ngram.npz")
    assert grams.vocab_size == model.tokenizer.vocab_size and counted["parameters"] == grams.num_parameters
    # The words are drawn evenly: after a word nothing is better known than one of ten.
    assert counted["evaluation"]["loss"] < summary.evaluation["loss"]
    held_out = [
        event for event in read_journal(tmp_path / "3-gram" / "metrics.jsonl") if event["event"] == "evaluation"
    ]
    assert [event["loss"] for event in held_out] == [counted["evaluation"]["loss"]]
    runs = read_runs([tmp_path / "gru", tmp_path / "3-gram"])
    assert [run.architecture for run in runs] == ["gru", "3-gram"]
    task = RecallTask(distances=(1,), steps=1, trials=4)
    found = compare(runs, tmp_path / "out", probes=["recall"], settings=ProbeSettings(task=task))
    assert list(found.probes["recall"]) == ["gru"] and found.notes == []
    given = compare(
        runs[:1],
        tmp_path / "out",
        probes=["gradients"],
        settings=ProbeSettings(text="the fox jumps over lazy dogs " * 30, gradient_length=17),
    )
    assert len(given.probes["gradients"]["gru"]) == 16
    with pytest.raises(DataError, match=r"the text has \d tokens, fewer than the 17"):
        compare(
            runs[:1], tmp_path / "out", probes=["gradients"], settings=ProbeSettings(text="a fox", gradient_length=17)
        )
    with pytest.raises(TrainingError, match="already holds a run"):
        count_run(tmp_path / "gru", 2, tmp_path / "3-gram")
    assert count_run(tmp_path / "gru", 2, tmp_path / "3-gram", overwrite=True)["architecture"] == "2-gram"


def test_ngrams_judge_what_the_network_is_judged_on() -> None:
    """Pieces of rows: documents apart, padding and first tokens left out."""
    from polyformer.training.counted import _judged, _pieces

    rows: Any = [
        {"input_ids": np.array([1, 2, 3, 4, 5, 0]), "document_ids": np.array([0, 0, 0, 1, 1, -1])},
        {"input_ids": np.array([2, 2])},
    ]
    assert [piece.tolist() for piece in _pieces(rows)] == [[1, 2, 3], [4, 5], [2, 2]]
    model = NGram.train([[1, 2, 3, 4, 5]], 6, 2)
    scores = [
        math.log(model.distribution(context)[token]) for context, token in [([1], 2), ([1, 2], 3), ([4], 5), ([2], 2)]
    ]
    assert _judged(model, rows)["loss"] == pytest.approx(-sum(scores) / 4)
