"""The sign of life while a model is fetched: a bar in a terminal, a line in a log."""

from __future__ import annotations

import io
import sys

import pytest

from polyformer.cli.progress import download_bar


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "lines"), [(False, ["fetching a.gguf (3.0 MB)", "fetching b.json"]), (True, None)]
)
def test_every_file_is_named(monkeypatch: pytest.MonkeyPatch, is_terminal: bool, lines: list[str] | None) -> None:
    screen = Screen(is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with download_bar() as show:
        for done in (0, 1_500_000, 3_000_000):
            show("a.gguf", done, 3_000_000)
        show("b.json", 10, None)
        show("b.json", 20, 20)
    if lines is not None:
        assert screen.getvalue().splitlines() == lines
    else:
        assert "a.gguf" in screen.getvalue() and "3.0/3.0 MB" in screen.getvalue() and "b.json" in screen.getvalue()


def test_nothing_is_shown_when_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Screen(is_terminal=False))
    with download_bar():
        pass
    assert isinstance(sys.stderr, Screen) and sys.stderr.getvalue() == ""
