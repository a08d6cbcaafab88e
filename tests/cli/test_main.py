"""Errors become one line and an exit code; help teaches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import polyformer

COMMANDS = ["generate", "chat", "models", "pull", "validate", "convert"]
POLYFORMER = [sys.executable, "-m", "polyformer"]


def test_version(run: Callable) -> None:
    assert run("--version") == (0, f"polyformer {polyformer.__version__}\n", "")


def test_help_lists_every_command(run: Callable) -> None:
    result = run("--help")
    assert result.code == 0
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", result.out)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_examples(run: Callable, command: str) -> None:
    result = run(command, "--help")
    assert result.code == 0
    assert "Examples" in result.out
    assert result.out.count(f"polyformer {command} ") >= 1 or command == "models"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["genrate"], "No such command 'genrate'. Did you mean 'generate'?"),
        (["models", "--jsn"], "--json"),
        (["generate", "m", "p", "--temprature", "0"], "--temperature"),
        (["generate", "m", "p", "--top-k", "many"], "Invalid value for '--top-k'"),
        (["generate"], "Missing argument 'MODEL' (polyformer generate --help explains)"),
        (["generate", "smollm2-135m-instuct", "p"], "did you mean smollm2-135m-instruct"),
        (["generate", "./nowhere", "p"], "./nowhere does not exist"),
        (["generate", "./nowhere.gguf", "p"], "./nowhere.gguf does not exist"),
        (["pull", "smolm2"], "the catalogue has no model 'smolm2'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run: Callable, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert message in result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1


def test_a_failing_machine_is_exit_code_1(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/some/file")

    monkeypatch.setattr("polyformer.cli.generate.load", no_space)
    result = run("generate", "anything", "p")
    assert result == (1, "", "error: No space left on device: /some/file\n")


def endless(tiny_copy: Path) -> list[str]:
    """A command that writes for a long time."""
    config = tiny_copy / "config.json"
    config.write_text(
        config.read_text().replace('"max_position_embeddings": 128', '"max_position_embeddings": 1000000')
    )
    return [*POLYFORMER, "generate", str(tiny_copy), "the cat", "-m", "900000", "--ignore-eos", "--stream"]


def test_ctrl_c_is_exit_code_130_without_a_traceback(tiny_copy: Path) -> None:
    # A shell that starts the tests in the background makes them ignore the signal, and children inherit that.
    process = subprocess.Popen(
        endless(tiny_copy),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.read(5)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().strip() == "stopped"


def test_a_reader_that_leaves_is_no_error(tiny_copy: Path) -> None:
    process = subprocess.Popen(endless(tiny_copy), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(5)
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == b""


def test_the_installed_command_is_the_module(tiny_llama: Path) -> None:
    arguments = ["generate", str(tiny_llama), "the cat", "--temperature", "0", "-m", "5", "--device", "cpu"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    script = str(Path(sys.executable).with_name("polyformer"))
    outputs = [
        subprocess.run([*command, *arguments], capture_output=True, env=environment, check=True, timeout=120).stdout
        for command in ([script], POLYFORMER)
    ]
    assert outputs[0] == outputs[1] != b""
