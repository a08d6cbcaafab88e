"""Many processes compute what one computes: the same losses, norms, evaluations and weights, in every grid."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import TORCHRUN
from tests.training.conftest import small_config
from tests.training.many_processes import encoder_config, language_model_config, run
from tests.training.test_run import losses, recipe_of, texts, values_of  # noqa: F401 (a fixture)

import polyformer
from polyformer.core import DecoderOnly, RelativeBias
from polyformer.core import config as core
from polyformer.errors import ConfigError
from polyformer.training.group import Alone
from polyformer.training.parallel import check_parallel, grid_shape, process_device, start_group
from polyformer.training.recipe import ParallelSection
from polyformer.training.run import train
from polyformer.training.tensors import total_norm

ROOT = Path(__file__).resolve().parents[2]

TWO: dict[str, dict[str, Any]] = {
    "shard": {"parallel": {"shard": 2}, "micro": 2, "optimizer": "muon", "average": 0.9},
    "shard, masked-lm": {"parallel": {"shard": 2}, "network": "encoder", "dtype": "float32", "micro": 1, "steps": 12},
    "shard, experts": {"parallel": {"shard": 2}, "network": "experts", "micro": 2},
    "shard, recurrent": {"parallel": {"shard": 2}, "network": "recurrent"},
    "shard, pairs of texts": {"parallel": {"shard": 2}, "network": "pairs", "optimizer": "muon", "average": 0.9},
    "replicate, clip": {"parallel": {"replicate": 2}, "network": "clip", "dtype": "float32"},
    "shard, frozen": {"parallel": {"shard": 2}, "network": "encoder", "freeze": ["encoder."]},
    "shard, layers computed twice": {"parallel": {"shard": 2}, "checkpoint": True, "micro": 2, "optimizer": "lion"},
    "tensor": {"parallel": {"tensor": 2}, "micro": 3, "optimizer": "muon", "average": 0.9},
    "tensor, masked-lm": {"parallel": {"tensor": 2}, "network": "encoder", "dtype": "float32"},
}
FOUR: dict[str, dict[str, Any]] = {
    "shard": {"parallel": {"shard": 4}, "dtype": "float32", "steps": 12},
    "replicate x shard": {"parallel": {"replicate": 2, "shard": 2}, "optimizer": "muon", "micro": 1, "average": 0.9},
    "shard, siglip": {"parallel": {"shard": 4}, "network": "siglip", "dtype": "float32"},
    "tensor x shard": {"parallel": {"tensor": 2, "shard": 2}, "micro": 2, "average": 0.9},
    "tensor x shard, muon": {"parallel": {"tensor": 2, "shard": 2}, "network": "encoder", "optimizer": "muon"},
}
STOPPED: dict[str, dict[str, Any]] = {
    "shard": {"parallel": {"shard": 2}, "stop": 3, "optimizer": "muon", "average": 0.9},
    "tensor": {"parallel": {"tensor": 2}, "stop": 5, "network": "encoder"},
    "pairs": {"parallel": {"shard": 2}, "stop": 4, "network": "pairs"},
}
FLOAT16 = {"parallel": {"shard": 2}, "dtype": "float32", "precision": "float16", "steps": 20}


def launch(processes: int, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What came of each setting in so many processes."""
    given, gotten = folder / f"settings-{processes}.json", folder / f"results-{processes}.json"
    given.write_text(json.dumps(settings))
    command = [*TORCHRUN, "--nproc-per-node", str(processes), str(Path(__file__).with_name("many_processes.py"))]
    done = subprocess.run(
        [*command, str(given), str(gotten)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    results: dict[str, Any] = json.loads(gotten.read_text())
    return results


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs of two processes were stopped, a folder for each."""
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="module")
def of_two(states: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    stopped = {f"stopped, {name}": {**one, "states": str(states / name)} for name, one in STOPPED.items()}
    return launch(2, {**TWO, **stopped, "float16": FLOAT16}, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def of_four(of_two: Any, states: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("four")
    resumed = {}
    for name, grid in (
        ("shard", {"shard": 4}),
        ("tensor", {"replicate": 2, "shard": 2}),
        ("pairs", {"replicate": 2, "shard": 2}),
    ):
        shutil.copytree(states / name, folder / name)
        resumed[f"resumed, {name}"] = {
            **STOPPED[name],
            "parallel": grid,
            "stop": None,
            "resume": True,
            "states": str(folder / name),
        }
    return launch(4, {**FOUR, **resumed}, folder)


def alone(setting: Mapping[str, Any]) -> dict[str, Any]:
    return run({**setting, "parallel": {}}, Alone())


def assert_same(found: dict[str, Any], expected: dict[str, Any], within: float) -> None:
    for name in ("losses", "norms", "evaluations"):
        assert len(expected[name]) >= (2 if name == "evaluations" else 10)
        assert found[name] == pytest.approx(expected[name], rel=within, abs=0)
    assert found["weights"] == pytest.approx(expected["weights"], rel=10 * within, abs=10 * within)


def within(setting: Mapping[str, Any]) -> float:
    return 1e-5 if setting.get("dtype") == "float32" else 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO)
def test_two_processes_compute_what_one_does(name: str, of_two: dict[str, Any]) -> None:
    expected = alone(TWO[name])
    assert_same(of_two[name], expected, within(TWO[name]))
    if "tensor" not in TWO[name]["parallel"]:  # there, all compute the head
        # Counted in the first batch of one process: where texts have several lengths, it may have more padding.
        padded = TWO[name].get("network") in ("pairs", "clip")
        assert of_two[name]["flops"] == pytest.approx(expected["flops"], rel=0.1 if padded else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_compute_what_one_does(name: str, of_four: dict[str, Any]) -> None:
    assert_same(of_four[name], alone(FOUR[name]), within(FOUR[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", STOPPED)
def test_a_run_of_two_goes_on_with_one_and_with_four(
    name: str, of_two: dict[str, Any], of_four: dict[str, Any], states: Path, tmp_path: Path
) -> None:
    setting = {**STOPPED[name], "stop": None}
    whole, begun = alone(setting), of_two[f"stopped, {name}"]
    assert begun["ended"] == "stopped"
    assert len(begun["losses"]) == STOPPED[name]["stop"]  # though only the last process was asked
    shutil.copytree(states / name, tmp_path / "states")
    by_one = alone({**setting, "resume": True, "states": str(tmp_path / "states")})
    for rest in (by_one, of_four[f"resumed, {name}"]):
        assert begun["losses"] + rest["losses"] == pytest.approx(whole["losses"], rel=1e-9)
        assert rest["weights"] == pytest.approx(whole["weights"], rel=1e-8, abs=1e-8)


@pytest.mark.slow
def test_float16_scales_alike_in_all_processes(of_two: dict[str, Any]) -> None:
    """Which steps are left out depends on the sums of each process; that all leave out the same is asserted there."""
    found = of_two["float16"]["losses"]
    assert found[0] == pytest.approx(alone({**FLOAT16, "steps": 3})["losses"][0], rel=1e-3)
    assert sum(found[-3:]) < 0.95 * sum(found[:3])


def values_without_dropout(texts: Path, **changes: Any) -> dict[str, Any]:  # noqa: F811
    """A recipe without dropout, for which each process draws its own numbers."""
    values = values_of(texts, samples={"prompts": ["the quick"], "max_new_tokens": 4}, **changes)
    values["model"]["config"]["attention_dropout"] = 0.0
    values["training"]["ema"] = 0.9
    return values


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_the_run_goes_on_with_one(
    texts: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe, folder, steps = tmp_path / "recipe.yaml", tmp_path / "run", 80
    values = values_without_dropout(texts, training__steps=steps)
    recipe.write_text(yaml.safe_dump(values))
    process = subprocess.Popen(
        [*TORCHRUN, "--nproc-per-node", "2", "-m", "polyformer", "train", str(recipe), "-o", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    journal = folder / "metrics.jsonl"
    while not journal.is_file() or len(losses(folder)) < 5:
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(worker(process.pid, rank=1), signal.SIGTERM)
    _, said = process.communicate(timeout=200)
    assert said.count("go on with: polyformer train") == 1
    assert "exitcode  : 143" in said, said[-3000:]
    done = len(losses(folder))
    assert 5 <= done < steps
    assert [path.name for path in sorted((folder / "states").iterdir())][-1] == f"step-{done:08}"
    assert polyformer.load(folder / "model").generate("the", max_new_tokens=2).token_ids
    assert train(recipe_of(texts, **values), output=folder, resume=True).ended == "done"
    train(recipe_of(texts, **values), output=tmp_path / "whole")
    assert losses(folder)[: done + 20] == pytest.approx(losses(tmp_path / "whole")[: done + 20], rel=1e-5)


def worker(agent: int, rank: int) -> int:
    """The process with that number which torchrun has started."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"{children} have no rank {rank}")


@pytest.mark.slow
def test_a_mistake_is_said_once(texts: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values_without_dropout(texts, training__batch_size=3)))
    command = [
        *TORCHRUN,
        "--nproc-per-node",
        "2",
        "-m",
        "polyformer",
        "train",
        str(recipe),
        "-o",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POLYFORMER_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=200)
    assert done.returncode != 0
    assert done.stderr.count("batch_size 3 cannot be shared by 2 processes") == 1
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------
# In one process


def test_the_grid() -> None:
    assert grid_shape(ParallelSection(), 1) == (1, 1, 1)
    assert grid_shape(ParallelSection(), 6) == (1, 6, 1)
    assert grid_shape(ParallelSection(replicate=2, tensor=2), 12) == (2, 3, 2)
    with pytest.raises(ConfigError, match=r"replicate 1 x shard any x tensor 2 .* 3 processes were started"):
        grid_shape(ParallelSection(tensor=2), 3)
    with pytest.raises(ConfigError, match=r"shard 8 .* one process was started: start as many with torchrun"):
        start_group(ParallelSection(shard=8), torch.device("cpu"))


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert isinstance(start_group(ParallelSection(), torch.device("cpu")), Alone)


def test_every_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process_device(None) == process_device("cuda") == torch.device("cuda", 1)
    assert process_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 of this machine has no GPU, for there are 2"):
        process_device(None)


@pytest.mark.parametrize(
    ("config", "count", "words"),
    [
        (small_config(), 2, "num_key_value_heads is 1, which it does not divide"),
        (language_model_config(), 4, "num_key_value_heads is 2"),
        (encoder_config(), 3, "num_heads is 4"),
    ],
)
def test_heads_that_cannot_be_divided_are_named(config: core.Config, count: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_parallel(ParallelSection(tensor=count), config)
    check_parallel(ParallelSection(shard=count), config)


def test_what_tensor_parallelism_does_not_know_is_refused() -> None:
    good: DecoderOnly.Config = language_model_config()
    check_parallel(ParallelSection(tensor=2), good)
    with pytest.raises(ConfigError, match="does not go with precision float16"):
        check_parallel(ParallelSection(tensor=2), good, precision="float16")

    def biased(path: str, part: core.Config) -> core.Config:
        return core.Config.from_dict({**part.to_dict(), "bias": RelativeBias.Config(4).to_dict()})

    stack = biased("stack", good.stack)
    with pytest.raises(ConfigError, match="stack adds a bias to the scores of each head"):
        check_parallel(ParallelSection(tensor=2), core.Config.from_dict({**good.to_dict(), "stack": stack.to_dict()}))


def test_the_norm_of_nothing_and_of_something() -> None:
    assert total_norm([], Alone()) == 0
    assert total_norm([torch.tensor([3.0]), torch.tensor([[4.0]])], Alone()) == pytest.approx(5)
