"""`polyformer eval` and `polyformer infill` as a person calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import polyformer
from polyformer.baselines import RecurrentLM
from polyformer.tokenizers.training import train_tokenizer

TEXT = "def area(radius):\n    return 3.14 * radius**2\n\n\nprint(area(2))\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_tokenizer([TEXT] * 4, "bpe", 300, purpose="code")
    made = polyformer.build(RecurrentLM.Config(tokenizer.vocab_size, 16, max_positions=64), seed=0)
    made.tokenizer = tokenizer
    path = tmp_path_factory.mktemp("model") / "code"
    made.save(path)
    return path


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "area.py").write_text(TEXT)
    return tmp_path / "modules"


def test_figures(run: Callable[..., Any], folder: Path, modules: Path) -> None:
    done = run("eval", folder, modules)
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "language, 1 document" and lines[1].split()[0] == "bits_per_character"
    assert lines[-1] == "  (windows of 64 tokens, 32 apart)"
    found = json.loads(run("eval", folder, modules, "--length", 32, "--json").out)
    assert found["notes"] == ["windows of 32 tokens, 16 apart"] and found["values"]["characters"] == len(TEXT)


def test_lines(run: Callable[..., Any], folder: Path, modules: Path) -> None:
    done = run("eval", folder, modules, "--measure", "infilling", "--lines", 1, "--max-new-tokens", 4, "--examples", 1)
    assert done.code == 0 and "valid_without" in done.out and "line: \n    return 3.14" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--measure", "langage"], "there is no measure 'langage': did you mean language"),
        (["--measure", "language", "--num-beams", "2"], "the measure language has no option 'num_beams'"),
        (["--measure", "labels"], "cannot classify"),
        (["--field", "text"], "--field is written NAME=VALUE, not 'text'"),
        (["--split", "tst"], "tst"),
    ],
)
def test_mistakes(run: Callable[..., Any], folder: Path, modules: Path, options: list[str], message: str) -> None:
    done = run("eval", folder, modules, *options)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1 and done.out == ""


def test_a_gap_is_filled(run: Callable[..., Any], folder: Path) -> None:
    gap = TEXT.replace(" 3.14", "<fill>")
    done = run("infill", folder, gap, "--max-new-tokens", 4)
    assert done.code == 0 and done.out.startswith("def area(radius):\n    return")
    assert done.out.rstrip("\n").endswith("* radius**2\n\n\nprint(area(2))")
    middle = run("infill", folder, gap, "--max-new-tokens", 4, "--middle").out
    found = json.loads(run("infill", folder, gap, "--max-new-tokens", 4, "--json").out)
    assert found["middle"] == middle.removesuffix("\n") or found["middle"] == middle
    assert found["prefix"] + found["middle"] + found["suffix"] in (done.out, done.out.removesuffix("\n"))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("no gap", [], "text 0 must say <fill> once, where the gap is, but it is nowhere"),
        ("<fill> and <fill>", [], "it stands there 2 times"),
        ("a <fill>", ["--mark", ""], "--mark is empty"),
        (TEXT * 9 + "<fill>", ["--max-new-tokens", "4"], "tokens around it"),
    ],
)
def test_gaps_that_cannot_be(
    run: Callable[..., Any], folder: Path, text: str, options: list[str], message: str
) -> None:
    done = run("infill", folder, text, *options)
    assert done.code == 2 and message in done.err and done.out == ""
