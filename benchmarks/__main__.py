"""All benchmarks, one after the other, each in a process of its own: ``python -m benchmarks [--quick] [--model …]``.

The last line is one JSON object that holds theirs by name.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

NAMES = ("generation", "loading", "memory", "context")  # embedding, search and whisper fetch data: run them themselves


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run one benchmark; what it prints is passed on as it comes, but for the JSON at the end.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, str(Path(__file__).with_name(f"{name}.py")), *arguments]
    held = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(held, end="", flush=True)
            held = line
    if process.returncode:
        print(held, end="")
        raise SystemExit(f"the benchmark {name} failed with status {process.returncode}")
    values: dict[str, Any] = json.loads(held)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="All benchmarks, one after the other.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)} (all of them)")
    parser.add_argument("--model", help="catalogue name, folder or .gguf file")
    parser.add_argument("--quick", action="store_true", help="few and small: shows that they work, not how fast")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    arguments = (["--quick"] if options.quick else []) + (["--model", options.model] if options.model else [])
    results = {}
    for name in options.names or NAMES:
        print(f"== {name} ==", flush=True)
        results[name] = run(name, arguments)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
