"""`polyformer chat`, in a pipe and in a real terminal (a pseudo-terminal of the operating system)."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import polyformer
from polyformer.model import Model

pty = pytest.importorskip("pty", reason="needs a system with pseudo-terminals")

OPTIONS = ("--temperature", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return polyformer.load(tiny_llama, device="cpu")


# --- in a pipe ------------------------------------------------------------------------------------------------------


def test_every_line_of_a_pipe_is_a_message(run: Callable, tiny_llama: Path, model: Model) -> None:
    talk = model.conversation(system="s", temperature=0, max_new_tokens=8)
    expected = "".join(talk.ask("hi")) + "\n" + "".join(talk.ask("/help is no command here")) + "\n"
    arguments = ("chat", tiny_llama, "--system", "s", "-m", "8", *OPTIONS)
    result = run(*arguments, stdin=b"hi\n\n/help is no command here\n")
    assert result == (0, expected, "")


def test_what_was_dropped_is_said(run: Callable, tiny_llama: Path) -> None:
    result = run("chat", tiny_llama, "-m", "16", *OPTIONS, stdin=b"the cat sat\n" * 5)
    assert result.code == 0
    assert "its oldest 2 messages were left out" in result.err


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        ((), b"\xff\n", "standard input is not valid UTF-8: byte 0xff at offset 0"),
        (("--temperature", "-1"), b"hi\n", "temperature must be a number"),
        (("--num-beams", "2"), b"hi\n", "No such option: --num-beams"),
        ((), b"the cat " * 200 + b"\n", "context is 128; shorten them"),
    ],
)
def test_mistakes_are_one_line(
    run: Callable, tiny_llama: Path, arguments: tuple[str, ...], stdin: bytes, message: str
) -> None:
    result = run("chat", tiny_llama, *arguments, stdin=stdin)
    assert result.code == 2
    assert message in result.err and result.err.count("\n") == 1


def test_a_base_model_cannot_chat(run: Callable, tiny_copy: Path) -> None:
    (tiny_copy / "chat_template.jinja").unlink()
    result = run("chat", tiny_copy, stdin=b"hi\n")
    assert result.code == 2
    assert "cannot chat: it has no chat template" in result.err and result.err.count("\n") == 1


# --- in a terminal --------------------------------------------------------------------------------------------------


class Terminal:
    """A person at a terminal: types, and waits for words to appear."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self.screen = screen
        self.text = ""
        self.read_until_now = 0

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def wait_for(self, words: str, seconds: float = 60) -> str:
        """Everything since the last wait, up to and with `words`."""
        deadline = time.monotonic() + seconds
        while (found := self.text.find(words, self.read_until_now)) < 0:
            assert time.monotonic() < deadline, f"{words!r} did not appear; the screen shows {self.text[-2000:]!r}"
            self._read()
        begin, self.read_until_now = self.read_until_now, found + len(words)
        return self.text[begin : self.read_until_now]

    def press_until(self, key: str, words: str) -> None:
        """As a person does: again, if nothing happens. (input() can miss a signal right after it wrote its prompt.)"""
        for _ in range(30):
            self.type(key)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                self._read()
                if words in self.text[self.read_until_now :]:
                    self.wait_for(words)
                    return
        raise AssertionError(f"{words!r} did not appear; the screen shows {self.text[-2000:]!r}")

    def wait_for_more(self) -> None:
        """Until anything new appears."""
        before = len(self.text)
        deadline = time.monotonic() + 60
        while len(self.text) == before:
            assert time.monotonic() < deadline
            self._read()

    def leave(self, key: str = "") -> int:
        """The exit code; the key is pressed again if nothing happens, as in `press_until`."""
        for _ in range(30):
            if self.process.poll() is None:
                self.type(key)
            deadline = time.monotonic() + 2
            while time.monotonic() < deadline:
                if self.process.poll() is not None:
                    return self.process.returncode
                self._read()
        raise AssertionError(f"it does not end; the screen shows {self.text[-2000:]!r}")

    def _read(self) -> None:
        if select.select([self.screen], [], [], 0.1)[0]:
            try:
                self.text += os.read(self.screen, 65536).decode("utf-8", errors="replace")
            except OSError:  # the other side has closed
                time.sleep(0.05)


@contextmanager
def chatting(folder: Path, *arguments: str) -> Iterator[Terminal]:
    screen, keyboard = pty.openpty()
    command = [sys.executable, "-m", "polyformer", "chat", str(folder), *arguments]
    process = subprocess.Popen(
        command,
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        start_new_session=True,
        preexec_fn=lambda: take_terminal(keyboard),
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(keyboard)
    terminal = Terminal(process, screen)
    try:
        terminal.wait_for("> ")
        yield terminal
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(screen)


def take_terminal(keyboard: int) -> None:
    """Make it the terminal of the new session, so that Ctrl-C typed into it is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(keyboard, termios.TIOCSCTTY, 0)
    # A shell that starts the tests in the background makes them ignore the signal, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def talkative(tiny_copy: Path) -> Path:
    """A model whose answers go on for minutes."""
    config = tiny_copy / "config.json"
    config.write_text(
        config.read_text().replace('"max_position_embeddings": 128', '"max_position_embeddings": 1000000')
    )
    return tiny_copy


def test_commands_in_a_terminal(tiny_llama: Path, tmp_path: Path) -> None:
    with chatting(tiny_llama, "-m", "5", *OPTIONS) as terminal:
        terminal.type("/help\n")
        assert "/save FILE" in terminal.wait_for("stops an answer.")
        terminal.wait_for("> ")
        terminal.type("/sytem x\n")
        terminal.wait_for("there is no command /sytem")
        terminal.type("/system be brief\n")
        terminal.wait_for("begins anew")
        terminal.type("/system\n")
        terminal.wait_for("be brief\r\n")
        terminal.wait_for("> ")
        terminal.type("a \\\nb\n")
        terminal.wait_for("> ")  # its echo is before, the prompt is after the answer
        terminal.type(f"/save {tmp_path / 'talk.json'}\n")
        terminal.wait_for("Saved to")
        terminal.type(f"/save {tmp_path / 'nowhere' / 'talk.json'}\n")
        terminal.wait_for("cannot be written")
        terminal.type("/reset\n")
        terminal.wait_for("begins anew")
        terminal.type("/exit\n")
        assert terminal.leave() == 0
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[0]["content"] == "be brief" and saved[1]["content"] == "a \nb" and saved[2]["content"]


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(tiny_copy: Path, tmp_path: Path) -> None:
    with chatting(talkative(tiny_copy), "-m", "900000", *OPTIONS) as terminal:
        terminal.type("hi\n")
        terminal.wait_for("hi\r\n")
        terminal.wait_for_more()
        terminal.type("\x03")
        terminal.wait_for("stopped; the conversation goes on.")
        terminal.wait_for("> ")
        terminal.type(f"/save {tmp_path / 'talk.json'}\n")
        terminal.wait_for("Saved to")
        terminal.wait_for("> ")
        terminal.press_until("\x03", "Ctrl-D or /exit leaves.")  # while nothing is written it is a hint, not the end
        terminal.wait_for("> ")
        for _ in range(20):  # nor is a burst of it
            terminal.type("\x03")
            time.sleep(0.01)
        terminal.press_until("\x03", "Ctrl-D or /exit leaves.")
        terminal.wait_for("> ")
        terminal.press_until("\n", "> ")
        assert terminal.leave("\x04") == 0
    user, assistant = json.loads((tmp_path / "talk.json").read_text())
    assert user == {"role": "user", "content": "hi"}
    assert assistant["role"] == "assistant" and assistant["content"]


def test_an_error_in_a_terminal_keeps_the_conversation(tiny_llama: Path) -> None:
    with chatting(tiny_llama, "-m", "4", *OPTIONS) as terminal:
        terminal.type("the cat " * 60 + "\n")
        terminal.wait_for("error: the message and the system prompt take")
        terminal.wait_for("> ")
        assert terminal.leave("\x04") == 0
