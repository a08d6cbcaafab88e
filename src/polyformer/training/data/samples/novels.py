"""The six novels of Jane Austen, out of the Debian package r-cran-janeaustenr."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from polyformer.checkpoints.disk import write_whole
from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.training.data.files import require
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import debian_package

TITLES = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}
HELD_OUT = "persuasion"
_PACKAGE = "r-cran-janeaustenr"


def _fetch(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    rdata = require("rdata", "the novels are in a file of R")
    unpacked = folder / "package"
    unpacked.mkdir()
    version = debian_package(_PACKAGE, unpacked, progress)
    data = unpacked / "usr/lib/R/site-library/janeaustenr/data"
    places = rdata.read_rds(data / "Rdata.rdx")["variables"]
    packed = (data / "Rdata.rdb").read_bytes()
    for name in TITLES:
        start, length = (int(number) for number in places[name])
        # Each value: its length, then a zlib stream of R's serialization.
        (size,) = struct.unpack(">I", packed[start : start + 4])
        value = zlib.decompress(packed[start + 4 : start + length])
        if len(value) != size:
            raise CorruptDownloadError(f"{_PACKAGE}: {name} has {len(value):,} bytes and should have {size:,}")
        lines = rdata.conversion.convert(rdata.parser.parse_data(value))
        write_whole(folder / f"{name}.txt", "\n".join(map(str, lines)) + "\n")
    shutil.rmtree(unpacked)
    return {_PACKAGE: version}


def _read(folder: Path) -> Iterator[Document]:
    for name, title in TITLES.items():
        text = (folder / f"{name}.txt").read_text(encoding="utf-8")
        yield {"title": title, "text": text, "split": "test" if name == HELD_OUT else "train"}


SAMPLES = (
    Sample(
        name="austen",
        description="the six novels of Jane Austen; Persuasion is held out",
        licence="public domain (texts), MIT (package)",
        source=f"Debian {_PACKAGE}",
        fields={"title": "of the novel", "text": "the whole novel"},
        splits=("train", "test"),
        fetch=_fetch,
        read=_read,
    ),
)
