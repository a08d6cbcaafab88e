"""The report of a run: whole from whatever the run has come to."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polyformer.errors import TrainingError
from polyformer.training.report import duration, write_report
from polyformer.training.run_folder import Journal, RunFolder

RECIPE = "name: novels <1>\nmodel: {family: llama}\ntraining: {steps: 40, batch_size: 4}\n"
MACHINE = {"device": "a processor & its threads", "threads": 2, "torch": "2.13"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.begin(RECIPE)
    return made


def begin(journal: Journal, step: int = 0, **facts: Any) -> None:
    values = {"parameters": 10_700_000, "steps": 40, "machine": MACHINE, **facts}
    journal.write("begin", step=step, time=f"2025-05-0{1 + step // 20}T10:00:00Z", **values)


def train(journal: Journal, step: int, loss: float | None = None) -> None:
    journal.write(
        "train",
        step=step,
        loss=5.0 - step / 20 if loss is None else loss,
        learning_rate=1e-3,
        gradient_norm=0.5,
        tokens=1000 * step,
        seconds=step * 2.0,
        flops=1e9 * step,
        tokens_per_second=500.0,
        utilization=0.31,
        accuracy=step / 100,
    )


def page_of(folder: RunFolder) -> str:
    text = write_report(folder).read_text(encoding="utf-8")
    checked = _Checked()
    checked.feed(text)
    assert checked.open == []
    assert "http:" not in text and "https:" not in text and "<script" not in text
    return text


class _Checked(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        assert tag == "path"


def words_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("</style>")[2]))


def test_a_finished_run_says_its_result(folder: RunFolder) -> None:
    journal = Journal(folder.journal)
    begin(journal, training_rows=1234)
    for step in range(1, 41):
        train(journal, step)
    for step, loss in ((20, 4.5), (30, 3.75), (40, 4.0)):
        journal.write("evaluation", step=step, loss=loss, best=loss != 4.0, bits_per_character=loss / 2)
        journal.write("sample", step=step, prompt="Emma ", text=f"<b>after {step}</b>")
    journal.write("end", step=40, reason="done")
    page = page_of(folder)
    words = words_of(page)
    assert (
        "A network of 10.7M parameters was trained for 40 steps on 40.0k tokens, in 1 min 20 s; the least held-out "
        "loss is 3.75, after step 30." in words
    )
    assert "novels &lt;1&gt;" in page and "novels <1>" not in page
    assert "finished" in words and "at the end 4" in words and "31%" in words
    for title in ("Loss", "Accuracy", "Bits per character", "Learning rate", "Gradient norm", "Utilization"):
        assert f"<b>{title}</b>" in page
    assert "&lt;b&gt;after 40&lt;/b&gt;" in page and "<b>after" not in page
    assert words.index("After step 40") < words.index("After step 20")
    assert "a processor &amp; its threads" in page and "training rows 1,234" in words
    assert "model: {family: llama}" in page
    assert "held-out: 3.75, step 30" in page


def test_a_metric_that_says_nothing_new_has_no_curve(folder: RunFolder) -> None:
    with folder.journal.open("w", encoding="utf-8") as file:
        for step in range(1, 30):
            values = {"loss": 5 - step / 10, "cross_entropy": 5 - step / 10, "predictions": 63 + 1e-9 * (step % 3)}
            file.write(json.dumps({"event": "train", "step": step, **values, "accuracy": step / 50}) + "\n")
    page = page_of(folder)
    assert "<b>Accuracy</b>" in page and "<b>Cross entropy</b>" not in page and "<b>Predictions</b>" not in page


def test_a_mean_stands_in_the_middle_of_its_steps(folder: RunFolder) -> None:
    with folder.journal.open("w", encoding="utf-8") as file:
        for step in (1, 10, 20):
            file.write(json.dumps({"event": "train", "step": step, "loss": 2.0, "mean_loss": 3.0}) + "\n")
    assert {"training, smoothed: 3, step 6", "training, smoothed: 3, step 15.5"} <= set(
        re.findall("<title>(.*?)</title>", page_of(folder))
    )


def test_a_run_gone_on_with_shows_where(folder: RunFolder) -> None:
    journal = Journal(folder.journal)
    begin(journal)
    for step in range(1, 31):
        train(journal, step)
    journal.write("end", step=20, reason="stopped")
    journal.close()
    journal = Journal(folder.journal, after_step=20)
    begin(journal, step=20, machine={"device": "another"})
    for step in range(21, 41):
        train(journal, step)
    words = words_of(page_of(folder))
    assert "going on, or broken off" in words  # the first end is not this run's
    assert "gone on with after step 20" in words and "2025-05-02T10:00:00Z" in words
    assert "Machines" in words and "another" in words


def test_a_run_that_goes_on_can_be_looked_at(folder: RunFolder) -> None:
    assert "No step has been written down yet" in words_of(page_of(folder))
    assert "not begun" in words_of(page_of(folder))
    journal = Journal(folder.journal)
    begin(journal)
    train(journal, 1)
    with folder.journal.open("a", encoding="utf-8") as file:
        file.write('{"event": "train", "step": 2, "lo')
    page = page_of(folder)
    assert "trained for 1 of 40 steps" in words_of(page) and "nothing was held out" in words_of(page)
    assert 'class="dot train"' in page


def test_missing_values_leave_gaps(folder: RunFolder) -> None:
    journal = Journal(folder.journal)
    begin(journal, parameters=None, machine=None)
    for step in range(1, 11):
        train(journal, step, math.nan if step in (1, 5, 10) else None)
    journal.write("evaluation", step=5, loss=math.nan, best=False)
    journal.write("evaluation", step=10, loss=math.inf, best=False)
    journal.write("message", text="the loss of step 5 is not a number")
    journal.write("end", step=10, reason="failed")
    page = page_of(folder)
    assert "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL)
    assert "the loss of step 5 is not a number" in page and "(step 10)" in words_of(page)
    assert "ended: failed" in words_of(page)


def test_any_text_can_be_shown(folder: RunFolder) -> None:
    texts = ["a\x00b\x1b[31m", "half \ud83d", "line\u2028line", "\U0001f600 <i>&amp;</i>", ""]
    with folder.journal.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"event": "sample", "step": number, "prompt": None, "text": text}) + "\n")
    page = page_of(folder)
    assert "\x00" not in page and "\x1b" not in page and "a\ufffdb\ufffd[31m" in page
    assert "half \ufffd" in page or "half ?" in page
    assert "line\u2028line" in page and "&lt;i&gt;&amp;amp;&lt;/i&gt;" in page


def test_a_long_run_is_a_small_page(folder: RunFolder) -> None:
    with folder.journal.open("w", encoding="utf-8") as file:
        for step in range(1, 20_001):
            values = {"loss": 3.0, "learning_rate": 1e-3, "gradient_norm": 1.0, "tokens_per_second": 9.0 + step % 5}
            file.write(json.dumps({"event": "train", "step": step, **values}) + "\n")
    assert len(page_of(folder)) < 400_000


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run"):
        write_report(RunFolder(tmp_path))


def test_another_file_may_be_named(folder: RunFolder, tmp_path: Path) -> None:
    path = write_report(folder, tmp_path / "new" / "page.html")
    assert path.is_file() and not folder.report.exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.25 s"), (59.0, "59 s"), (80.0, "1 min 20 s"), (3600.0, "1 h 0 min"), (200_000.0, "2 d 7 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
