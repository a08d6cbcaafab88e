"""The floors of the house: a room imports only from rooms below it, and the core names no public model."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polyformer

SOURCE = Path(polyformer.__file__).parent

# From the roof to the ground; rooms of one floor may use each other.
FLOORS = [
    {"cli"},
    {"serving"},
    {"model"},
    {"engine"},
    {"checkpoints", "compression", "inspection", "evaluation", "training", "adaptation", "tasks"},
    {"generation"},
    {"tokenizers"},
    {"families"},
    {"objectives", "baselines"},
    {"core"},
    {"errors"},
]
HEIGHT = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "polyformer" else None


def imported_modules(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, wherever in the file the import stands."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def upward_imports(source: Path) -> list[str]:
    guilty = []
    for path in sorted(source.rglob("*.py")):
        relative = path.relative_to(source)
        parts = ["polyformer", *relative.with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        room = room_of(module)
        if room is None or room == "__main__":  # the package itself offers names of the top floors, lazily
            continue
        assert room in HEIGHT, f"{relative} is in no room of the house"
        for line, name in imported_modules(ast.parse(path.read_text(encoding="utf-8")), module, is_package):
            other = room_of(name)
            if other in HEIGHT and other != room and HEIGHT[other] > HEIGHT[room]:
                guilty.append(f"{relative}:{line} imports {name}")
    return guilty


def test_nothing_imports_upward() -> None:
    assert upward_imports(SOURCE) == []


def test_an_upward_import_is_seen(tmp_path: Path) -> None:
    """The check itself: it finds absolute and relative imports, also inside functions."""
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "one.py").write_text("def f():\n    from polyformer.generation import settings\n")
    (tmp_path / "core" / "two.py").write_text("from ..families import base\nfrom .. import errors\nfrom . import one\n")
    assert upward_imports(tmp_path) == [
        "core/one.py:2 imports polyformer.generation.settings",
        "core/two.py:1 imports polyformer.families.base",
    ]


def test_the_core_names_no_model_type() -> None:
    """A public architecture is data in families/: nothing in the core asks which one it is building."""
    guilty = [path.name for path in (SOURCE / "core").rglob("*.py") if "model_type" in path.read_text(encoding="utf-8")]
    assert not guilty


def test_import_linter_agrees() -> None:
    """The contract in pyproject.toml, which also follows chains of imports."""
    root = SOURCE.parent.parent
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout
