"""The grid: one ordinary run for each size and length; what is finished stays, what was broken off goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from polyformer.errors import ConfigError, TrainingError
from polyformer.training.recipe import Recipe, parse_recipe
from polyformer.training.run import Summary
from polyformer.training.run_folder import RunFolder
from polyformer.training.scaling import GridRun, Law, Stopped, learn, plan, read_numbers, run_grid, write

RECIPE = """
model:
  family: llama
  config: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 176}
tokenizer: {train: bpe, vocab_size: 300}
data: {train: text.txt, validation_share: 0.1, length: 32}
objective: {name: causal-lm}
optimizer: {learning_rate: 0.01}
schedule: {shape: warmup-stable-decay}
training: {epochs: 3, batch_size: 8, early_stopping: {patience: 2}}
"""
LAW = Law(1.5, 60.0, 0.35, 90.0, 0.3)
SIZES, TOKENS = (3e4, 1e5, 3e5), (1e4, 2e4, 4e4)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(RECIPE, name="small")


@pytest.fixture(scope="module")
def runs(recipe: Recipe) -> list[GridRun]:
    return plan(recipe, SIZES, TOKENS)


class Trains:
    """Stands for training: leaves what a run leaves, with the loss that a law says."""

    def __init__(self, stops_at: str | None = None) -> None:
        self.calls: list[tuple[str, bool, bool]] = []
        self.stops_at = stops_at

    def __call__(self, recipe: Recipe, *, output: Path, resume: bool, overwrite: bool, **options: Any) -> Summary:
        self.calls.append((output.name, resume, overwrite))
        folder = RunFolder(output)
        if not resume:
            folder.begin(recipe.to_yaml(), overwrite=overwrite)
        (folder.states / "step-00000004").mkdir(parents=True, exist_ok=True)
        stopped = output.name == self.stops_at
        parameters = 12 * recipe.model.config["num_hidden_layers"] * recipe.model.config["hidden_size"] ** 2
        tokens = recipe.training.tokens or 0
        summary = Summary(
            folder=str(output),
            ended="stopped" if stopped else "done",
            step=4,
            steps=9,
            parameters=parameters + 1000,
            tokens=tokens,
            examples=9,
            seconds=1.5,
            flops=8.0 * parameters * tokens,
            loss=2.0,
            evaluation={"loss": float(LAW.loss(parameters, tokens))},
            best_step=None,
            data={"training_tokens": 20_000},
            exit_code=130 if stopped else 0,
        )
        folder.write_summary(summary.to_json())
        return summary


def test_every_size_meets_every_length(runs: list[GridRun]) -> None:
    names = [run.name for run in runs]
    assert names == [f"{size}-{length}" for size in ("30k", "100k", "300k") for length in ("10k", "20k", "40k")]
    for run in runs:
        training = run.recipe.training
        assert (training.tokens, training.steps, training.epochs) == (run.tokens, None, None)
        assert training.early_stopping is None and not training.keep_best
        assert run.recipe.schedule.shape == "warmup-stable-decay" and run.recipe.optimizer.learning_rate == 0.01
        assert run.recipe.model == run.sized.section
        assert run.sized.parameters == pytest.approx(
            {"30k": 3e4, "100k": 1e5, "300k": 3e5}[run.name.split("-")[0]], rel=0.2
        )
        assert parse_recipe(run.recipe.to_yaml()) == run.recipe
    assert len({run.sized.parameters for run in runs}) == 3


def test_each_size_may_have_its_learning_rate(recipe: Recipe) -> None:
    runs = plan(recipe, (3e5, 3e4, 1e5), TOKENS, (0.001, 0.003, 0.002))
    assert [run.recipe.optimizer.learning_rate for run in runs] == [0.003] * 3 + [0.002] * 3 + [0.001] * 3


def test_a_grid_is_run_and_learned_from(runs: list[GridRun], tmp_path: Path) -> None:
    said: list[str] = []
    trains = Trains()
    results = run_grid(runs, tmp_path, trains=trains, tell=said.append)
    assert trains.calls == [(run.name, False, False) for run in runs]
    assert any("run 9 of 9, 300k-40k" in line and "held-out loss" in line for line in said)
    assert [result.parameters for result in results] == [run.sized.parameters for run in runs]
    assert results[2].epochs == 2.0 and results[0].loss > results[2].loss > results[-1].loss
    scaling = learn(results)
    assert len(scaling.optima) == 3 and scaling.optima[0].budget == max(result.flops for result in results)
    assert [optimum.budget for optimum in learn(results, [3e10]).optima] == [3e10]
    assert scaling.cost(1e5) == pytest.approx(8e5, rel=0.2)
    pytest.importorskip("matplotlib")
    files = write(scaling, tmp_path, {"recipe": "small.yaml"})
    assert [file.name for file in files] == ["scaling.json", "loss.png", "budgets.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files[1:])
    written = json.loads(files[0].read_text())
    assert written["recipe"] == "small.yaml" and len(written["runs"]) == 9
    assert written["law"]["alpha"]["low"] <= written["law"]["alpha"]["value"] <= written["law"]["alpha"]["high"]
    assert len(written["samples"]["E"]) == 300 and written["leave_one_out"]["largest"] >= 0
    assert {one["budget"] for one in written["optima"]} == {optimum.budget for optimum in scaling.optima}


def test_what_is_finished_is_not_repeated(runs: list[GridRun], tmp_path: Path) -> None:
    stopping = Trains(stops_at="100k-20k")
    with pytest.raises(Stopped, match="100k-20k") as stopped:
        run_grid(runs, tmp_path, trains=stopping)
    assert stopped.value.exit_code == 130 and len(stopping.calls) == 5
    again = Trains()
    results = run_grid(runs, tmp_path, trains=again)
    assert again.calls == [("100k-20k", True, False)] + [(run.name, False, False) for run in runs[5:]]
    third = Trains()
    assert run_grid(runs, tmp_path, trains=third) == results and third.calls == []
    anew = Trains()
    run_grid(runs, tmp_path, trains=anew, overwrite=True)
    assert anew.calls == [(run.name, False, True) for run in runs]


def test_a_run_without_a_state_begins_anew(runs: list[GridRun], tmp_path: Path) -> None:
    RunFolder(tmp_path / runs[0].name).begin(runs[0].recipe.to_yaml())
    trains = Trains()
    run_grid(runs, tmp_path, trains=trains)
    assert trains.calls[0] == (runs[0].name, False, True)


def test_another_recipe_in_the_folder_is_refused(recipe: Recipe, runs: list[GridRun], tmp_path: Path) -> None:
    run_grid(runs, tmp_path, trains=Trains())
    changed = recipe.model_copy(update={"seed": 1})
    with pytest.raises(TrainingError, match=r"another recipe.*--overwrite"):
        run_grid(plan(changed, SIZES, TOKENS), tmp_path, trains=Trains())
    renamed = recipe.model_copy(update={"name": "other"})
    trains = Trains()
    run_grid(plan(renamed, SIZES, TOKENS), tmp_path, trains=trains)
    assert trains.calls == []


def test_a_run_without_a_loss_is_named(runs: list[GridRun], tmp_path: Path) -> None:
    class Empty(Trains):
        def __call__(self, *args: Any, **options: Any) -> Summary:
            return dataclasses.replace(super().__call__(*args, **options), evaluation={})

    with pytest.raises(TrainingError, match="30k-10k has no held-out loss"):
        run_grid(runs, tmp_path, trains=Empty())


def test_text_that_is_read_often_is_said(runs: list[GridRun], tmp_path: Path) -> None:
    results = run_grid(runs, tmp_path, trains=Trains())
    often = [dataclasses.replace(result, epochs=result.epochs * 5) for result in results]
    assert any("10.0 times" in warning for warning in learn(often).warnings)
    assert not any("times, and what was read" in warning for warning in learn(results).warnings)


@pytest.mark.parametrize(
    ("sizes", "tokens", "rates", "message"),
    [
        ((3e4, 1e5), TOKENS, None, "3 sizes and 3 lengths"),
        (SIZES, (1e4, 2e4), None, "3 sizes and 3 lengths"),
        ((3e4, 1e5, 3e5, 3.2e5), TOKENS, None, "300k and 320k come to the same network"),
        (SIZES, TOKENS, (0.1, 0.2), "3 sizes, but 2 learning rates"),
    ],
)
def test_a_poor_grid_is_refused(recipe: Recipe, sizes: Any, tokens: Any, rates: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(recipe, sizes, tokens, rates)


def test_a_recipe_without_held_out_data_is_refused(recipe: Recipe) -> None:
    blind = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation_share": 0.0})})
    with pytest.raises(ConfigError, match="validation_share"):
        plan(blind, SIZES, TOKENS)


def test_numbers_are_read() -> None:
    assert read_numbers("0.3M, 1m,2e6,300k,1.5B,7", "--sizes") == [3e5, 1e6, 2e6, 3e5, 1.5e9, 7.0]
    for wrong in ("", "1M,", "M", "-3M", "1X", "0", "nan", "1e999"):
        with pytest.raises(ConfigError, match="--sizes"):
            read_numbers(wrong, "--sizes")
