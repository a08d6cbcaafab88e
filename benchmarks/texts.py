"""Real sentences: the six novels of Jane Austen, from Debian's package r-cran-janeaustenr (public domain texts, MIT
package), unpacked into the cache; nothing is installed. It needs `apt-get`, `dpkg-deb` and the Python package rdata.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

from polyformer.checkpoints.disk import cache_folder
from polyformer.tasks.search import read_folder

NOVELS = ("emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice", "sensesensibility")


def novels() -> Path:
    """A folder with a text file for each novel.

    Raises:
        SystemExit: the package cannot be fetched or read here.
    """
    folder = cache_folder() / "data" / "janeaustenr"
    if all((folder / f"{name}.txt").is_file() for name in NOVELS):
        return folder
    try:
        import rdata
    except ImportError:
        raise SystemExit("the novels are in a file of R: pip install rdata") from None
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise SystemExit("the novels are in a package of Debian: this needs apt-get and dpkg-deb")
    print("fetching r-cran-janeaustenr (public domain texts)", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    unpacked = folder / "package"
    unpacked.mkdir(parents=True)
    command = ["apt-get", "download", "r-cran-janeaustenr"]
    done = subprocess.run(command, cwd=unpacked, capture_output=True, text=True, check=False)
    files = sorted(unpacked.glob("*.deb"))
    if done.returncode or not files:
        raise SystemExit(f"apt-get could not download the package: {done.stderr.strip().splitlines()[-1:]}")
    subprocess.run(["dpkg-deb", "--extract", files[0].name, "."], cwd=unpacked, check=True)
    data = unpacked / "usr/lib/R/site-library/janeaustenr/data"
    places = rdata.read_rds(data / "Rdata.rdx")["variables"]
    packed = (data / "Rdata.rdb").read_bytes()
    for name in NOVELS:
        start, length = (int(number) for number in places[name])
        # Each value: its length, then a zlib stream of R's serialization.
        (size,) = struct.unpack(">I", packed[start : start + 4])
        value = zlib.decompress(packed[start + 4 : start + length])
        assert len(value) == size
        lines = rdata.conversion.convert(rdata.parser.parse_data(value))
        (folder / f"{name}.txt").write_text("\n".join(map(str, lines)) + "\n", encoding="utf-8")
    shutil.rmtree(unpacked)
    return folder


def sentences(count: int | None = None) -> list[str]:
    """Sentences of the novels; ``count`` of them spread over all."""
    found = [passage.text for passage in read_folder(novels())]
    return found if count is None else found[:: max(1, len(found) // count)][:count]
