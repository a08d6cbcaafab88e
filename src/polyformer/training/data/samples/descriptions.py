"""Descriptions of Debian packages: the long one, and the short one that sums it up. They come from the lists of apt."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.training.data.cleaning import groups_of_near_duplicates, normalized, part_of
from polyformer.training.data.files import read_lines
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import require_tool, run
from polyformer.training.data.samples.storing import SPLITS, read_stored, store

_SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


def _fetch(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    """Asks apt for lists of its own, with English descriptions: those of the machine often lack them, and stay."""
    require_tool("apt-get", "the descriptions are in the lists of Debian", "it works on Debian and Ubuntu")
    progress("lists of Debian packages", 0, None)
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True)
    settings = {
        "Dir::State::Lists": str(lists),
        "Dir::Cache": str(folder / "cache"),
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
        "APT::Sandbox::User": "" if os.name != "posix" or os.geteuid() else "root",
    }
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    options = [part for name, value in settings.items() if value for part in ("-o", f"{name}={value}")]
    run(["apt-get", "update", *options], folder, "apt-get could not fetch the lists", "is there a network?")
    texts = sorted(lists.glob("*_Translation-en"))
    sources = sources_of(paragraph for path in sorted(lists.glob("*_Packages")) for paragraph in paragraphs(path))
    if not store(folder, pairs((paragraph for path in texts for paragraph in paragraphs(path)), sources)):
        raise CorruptDownloadError(
            "the lists of apt hold no description in English: which sources does this machine have?"
        )
    release = ", ".join(sorted({path.name.split("_dists_")[-1].split("_")[0] for path in texts}))
    shutil.rmtree(lists)
    shutil.rmtree(folder / "cache")
    return {"release": release}


def paragraphs(path: Path) -> Iterator[dict[str, str]]:
    """The paragraphs of a list: name of each field -> its value, further lines with their first space taken off."""
    fields: dict[str, list[str]] = {}
    last: list[str] = []
    for _, line in read_lines(path):
        line = line.rstrip("\n")
        if not line:
            if fields:
                yield {name: "\n".join(lines) for name, lines in fields.items()}
            fields = {}
        elif line.startswith((" ", "\t")):
            last.append(line[1:])
        else:
            name, _, value = line.partition(":")
            last = fields[name] = [value.strip()]
    if fields:
        yield {name: "\n".join(lines) for name, lines in fields.items()}


def sources_of(found: Iterable[dict[str, str]]) -> dict[str, str]:
    """Package -> the source package that it is built from."""
    return {paragraph["Package"]: paragraph["Source"].split(" ")[0] for paragraph in found if paragraph.get("Source")}


def pairs(found: Iterable[dict[str, str]], sources: dict[str, str]) -> Iterator[Document]:
    """One document for each description; packages of one source, and sources whose descriptions are nearly the same,
    are in one part."""
    documents = list(_documents(found, sources))
    groups = groups_of_near_duplicates((document["group"], document["source"]) for document in documents)
    for document in documents:
        yield {**document, "split": part_of(groups[document["group"]], _SHARES)}


def _documents(found: Iterable[dict[str, str]], sources: dict[str, str]) -> Iterator[Document]:
    seen = set()
    for paragraph in found:
        short, _, rest = paragraph.get("Description-en", "").partition("\n")
        text, package = flowing(rest), paragraph.get("Package", "")
        key = normalized(f"{short}\n{text}")
        if not short.strip() or not text or key in seen:
            continue
        seen.add(key)
        group = sources.get(package, package)
        yield {"source": text, "target": short.strip(), "package": package, "group": group}


def flowing(text: str) -> str:
    """A long description with each paragraph as one line; what is indented keeps its lines (Debian policy 5.6.13)."""
    lines: list[str] = []
    open_line = False
    for line in text.split("\n"):
        if line.strip() in ("", "."):
            lines.append("")
            open_line = False
        elif line[0] in " \t" or line.lstrip()[0] in "*-+•":
            lines.append(line.rstrip())
            open_line = False
        elif open_line:
            lines[-1] += " " + line.strip()
        else:
            lines.append(line.strip())
            open_line = True
    return "\n".join(lines).strip("\n")


SAMPLES = (
    Sample(
        name="debian-descriptions",
        description="long descriptions of Debian packages and the short ones that sum them up",
        licence="not stated by Debian for the descriptions as such: use, do not redistribute",
        source="the lists of apt, of this machine's release",
        fields={
            "source": "the long description",
            "target": "the short one",
            "package": "its name",
            "group": "the source package; one is in one part",
        },
        splits=SPLITS,
        revision=2,
        fetch=_fetch,
        read=read_stored,
    ),
)
