"""What importing costs: neither `import polyformer` nor `polyformer --help` loads PyTorch or another heavy package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import polyformer

SOURCE = Path(polyformer.__file__).parent
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "huggingface_hub", "safetensors", "jinja2")


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter holds after running `code`."""
    script = f"{code}\nimport sys\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES "))
    return set(line.split()[1:])


def test_import_is_light() -> None:
    loaded = modules_after("import polyformer; polyformer.__version__; dir(polyformer); import polyformer.errors")
    assert "polyformer" in loaded
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["chat", "--help"]])
def test_help_is_light(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['polyformer', *{arguments!r}]\n"
        "from polyformer.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as leaving: assert not leaving.code, leaving.code\n"
    )
    loaded = modules_after(code)
    assert "polyformer.cli.main" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_public_names_are_listed_and_found() -> None:
    assert {"load", "Model", "__version__"} <= set(dir(polyformer))
    assert callable(polyformer.load)
    assert polyformer.Model.__name__ == "Model"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = polyformer.lod  # type: ignore[attr-defined]


def test_the_package_never_imports_transformers() -> None:
    guilty = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            if any(name.split(".")[0] == "transformers" for name in names):
                guilty.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert not guilty
