"""Every page of the documentation: its Python runs and prints what it shows, its commands work, its links lead on.

A page's ```python blocks share one namespace, in order, and run in an empty folder. A ```text block right after one is
what it prints; a ```console block holds ``$ command`` lines, each with what it prints; ``...`` stands for anything. A
block after ``<!-- no-test: reason -->`` is not run. Pages that need a model of the catalogue are marked `real`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/results").glob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
NO_TEST = re.compile(r"<!-- no-test: \S.*? -->\s*\Z")
LINK = re.compile(r"!?\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(?P<title>.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line it starts on, and the text block right after it, if any."""

    language: str
    body: str
    line: int
    run: bool
    output: str | None = None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for number, match in enumerate(found):
        output = None
        if number + 1 < len(found):
            after = found[number + 1]
            if after["info"].strip() == "text" and not text[match.end() : after.start()].strip():
                output = after["body"]
        runs = NO_TEST.search(text[: match.start()]) is None
        line = text[: match.start()].count("\n") + 1
        result.append(Block(match["info"].strip(), match["body"], line, runs, output))
    return result


def needs_weights(page: Path, language: str) -> bool:
    names = ("smollm2", "whisper-", "all-minilm")
    return any(
        any(name in block.body for name in names) for block in blocks(page) if block.language == language and block.run
    )


def pages_with(language: str) -> list[Any]:
    return [
        pytest.param(page, id=page.stem, marks=[pytest.mark.real] if needs_weights(page, language) else [])
        for page in PAGES
        if any(block.language == language and block.run for block in blocks(page))
    ]


def assert_printed(page: Path, block: Block, wanted: str, printed: str) -> None:
    """``...`` alone on a line stands for any number of lines, within a line for any text."""
    shown = [line.rstrip() for line in wanted.strip("\n").split("\n")]
    lines = [line.rstrip() for line in printed.strip("\n").split("\n")]
    parts = [
        r"(?:.*\n)*?" if line == "..." else re.escape(line).replace(re.escape("..."), ".*") + r"\n" for line in shown
    ]
    if not re.fullmatch("".join(parts), "\n".join(lines) + "\n"):
        raise AssertionError(
            f"{page.name}, line {block.line}: the page shows\n{wanted}\nbut this was printed\n{printed}"
        )


@pytest.fixture
def plain_torch() -> Iterator[None]:
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_torch: None) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": f"page_{page.stem}"}
    for block in blocks(page):
        if block.language != "python" or not block.run:
            continue
        printed = io.StringIO()
        code = compile("\n" * block.line + block.body, str(page), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.output is not None:
            assert_printed(page, block, block.output, printed.getvalue())


def commands(block: Block) -> list[tuple[str, str]]:
    """(command, what it prints) of a console block."""
    result: list[tuple[str, str]] = []
    for line in block.body.splitlines():
        if line.startswith("$ "):
            result.append((line[2:], ""))
        elif result and result[-1][0].endswith("\\") and not result[-1][1]:
            result[-1] = (result[-1][0] + "\n" + line, "")
        elif result:
            result[-1] = (result[-1][0], result[-1][1] + line + "\n")
    return result


@pytest.mark.parametrize("page", pages_with("console"))
def test_console(page: Path, tmp_path: Path) -> None:
    paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(paths), "COLUMNS": "100", "PYTHONPATH": str(ROOT / "src")}
    for block in blocks(page):
        if block.language != "console" or not block.run:
            continue
        for command, wanted in commands(block):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=120,
            )
            assert_printed(page, block, wanted, done.stdout)


# --- what needs no weights ---


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(without_code(page.read_text(encoding="utf-8"))):
        target, _, anchor = match["target"].partition("#")
        if target.startswith(("http://", "https://")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {match['target']}, which does not exist"
        assert path.is_relative_to(ROOT), f"{page.name} links to {match['target']}, outside of the repository"
        if anchor:
            titles = [slug(m["title"]) for m in HEADING.finditer(FENCE.sub("", path.read_text(encoding="utf-8")))]
            assert anchor in titles, f"{page.name} links to {match['target']}, but there is no such heading"


def test_every_page_is_in_the_index() -> None:
    for page in PAGES[1:]:
        index = (page.parent / "README.md").read_text(encoding="utf-8")
        assert page.name == "README.md" or f"({page.name}" in index, f"{page.name} is not in the index of {page.parent}"


def options_of_commands() -> dict[str, set[str]]:
    import typer.main

    from polyformer.cli.main import app

    group: Any = typer.main.get_command(app)
    options = {"": {"--help", "--version", "-h"}}
    for name, command in group.commands.items():
        parts = [command, *getattr(command, "commands", {}).values()]  # `search` has commands of its own
        known = {
            opt for part in parts for parameter in part.params for opt in (*parameter.opts, *parameter.secondary_opts)
        }
        options[name] = {option for option in known if option[0] == "-"} | {"--help", "-h"}
    return options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page: Path) -> None:
    known = options_of_commands()
    text = page.read_text(encoding="utf-8")
    spoken = re.findall(r"`(polyformer(?: [^`\n]*)?)`", FENCE.sub("", text))
    written = [
        line.removeprefix("$ ")
        for block in blocks(page)
        if block.language in ("", "console", "sh", "bash")
        for line in block.body.replace("\\\n", " ").splitlines()
    ]
    for line in [*spoken, *written]:
        for call in re.split(r"\||;|&&", line.split(" # ")[0].split("   #")[0]):
            words = shlex.split(call) if call.count("'") % 2 == 0 and call.count('"') % 2 == 0 else call.split()
            if not words or words[0] != "polyformer":
                continue
            command = words[1] if len(words) > 1 and words[1] in known else ""
            allowed = len(words) == 1 or words[1] in known or words[1].startswith("-") or words[1].isupper()
            assert allowed, f"{page.name}: there is no command {words[1]!r} (in {line!r})"
            for word in words[2 if command else 1 :]:
                option = word.split("=")[0]
                if re.fullmatch(r"-[a-z]|--[a-z-]+", option):
                    everywhere = {name for options in known.values() for name in options}
                    wanted = known[command] if command else everywhere
                    assert option in wanted, f"{page.name}: polyformer {command} has no option {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_option_names_in_the_text_exist(page: Path) -> None:
    """An option named in passing (`--top-k`) belongs to some command, or the sentence says whose it is."""
    everywhere = {name for options in options_of_commands().values() for name in options}
    for option in re.findall(r"`(--[a-z-]+)[^`\n]*`", FENCE.sub("", page.read_text(encoding="utf-8"))):
        assert option in everywhere, f"{page.name}: no command has the option {option}"


def test_the_tables_of_families_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import family_tables

    page = family_tables.PAGE.read_text(encoding="utf-8")
    assert page == family_tables.written(page), "run: python docs/family_tables.py"


def test_every_setting_of_generation_is_documented_with_its_default() -> None:
    from dataclasses import MISSING, fields

    from polyformer.generation import GenerationSettings

    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    for field in fields(GenerationSettings):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        row = f"| `{field.name}` | `{default!r}` |"
        assert row in page, f"generation.md has no row that begins with {row}"


def test_every_command_and_option_is_documented() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for command, options in options_of_commands().items():
        assert f"## polyformer {command}".rstrip() in page or not command, f"no heading for polyformer {command}"
        for option in options - {"-h"}:
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", page), f"command-line.md says nothing of {option}"


# --- the tools above ---


def test_pages_are_taken_apart_and_compared(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nprint(1)\n```\n\n```text\n1\n```\n\n<!-- no-test: costs money -->\n```python\nbuy()\n```\n\n"
        "text\n\n```console\n$ echo a\na\n$ echo \\\n  b\nb\n```\n",
        encoding="utf-8",
    )
    first, shown, unsafe, console = blocks(page)
    assert (first.line, first.run, first.output, shown.language) == (1, True, "1\n", "text")
    assert not unsafe.run
    assert commands(console) == [("echo a", "a\n"), ("echo \\\n  b", "b\n")]
    assert_printed(page, first, "...\n2 ... 4\n...\n", "0\n1\n2 3 4  \n5\n")
    for wanted in ("1\n2\n", "...\n3\n", "2 ... 5\n", "1\n2 ... 4\n"):
        with pytest.raises(AssertionError, match=r"page\.md, line 1: the page shows"):
            assert_printed(page, first, wanted, "1\n2 3 4\n5\n")
