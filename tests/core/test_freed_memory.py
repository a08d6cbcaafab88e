from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Blocks larger than glibc keeps by itself; what comes back is how many pages are new, the last time.
SCRIPT = """
import resource, torch
from polyformer.core.freed_memory import keep_freed_memory
def blocks():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(10_000_000) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
said = keep_freed_memory()
for _ in range(4):
    pages = blocks()
print(int(said), pages)
"""


def run(**environment: str) -> tuple[int, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**clean, **environment})
    said, pages = done.stdout.split()
    return int(said), int(pages)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the C library of GNU")
def test_freed_memory_is_kept() -> None:
    said, pages = run()
    if not said:
        pytest.skip("another C library")
    assert pages < 1_000, "160 MB are 39,000 pages"


def test_what_the_user_says_counts() -> None:
    assert run(MALLOC_TRIM_THRESHOLD_="100000")[0] == 0
    assert run(GLIBC_TUNABLES="glibc.malloc.trim_threshold=100000")[0] == 0
