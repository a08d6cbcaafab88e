"""Progress bars for downloads and for many inputs, on standard error and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from polyformer.checkpoints.disk import readable_size


@contextmanager
def download_bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """Gives a callback that takes the file's name, the bytes done, and the bytes in all (None if not known)."""
    if not sys.stderr.isatty():
        with _plain_lines() as callback:
            yield callback
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {}

        def show(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done, total=total)

        yield show


@contextmanager
def _plain_lines() -> Iterator[Callable[[str, int, int | None], None]]:
    """Without a terminal: one line when a file begins."""
    seen = set()

    def show(name: str, done: int, total: int | None) -> None:
        if name not in seen:
            seen.add(name)
            size = "" if total is None else f" ({readable_size(total)})"
            print(f"fetching {name}{size}", file=sys.stderr, flush=True)

    yield show


@contextmanager
def work_bar(what: str) -> Iterator[Callable[[int, int | None], None] | None]:
    """Gives a callback that takes how many inputs are done and how many there are (None while unknown); None without
    a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def show(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        yield show
