"""What each sample set makes of the files that it comes from, on small ones made here."""

from __future__ import annotations

import argparse
import ast
import enum
import gzip
import inspect
import io
import json
import json.decoder
import sys
import tarfile
import textwrap
import wave
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from polyformer.checkpoints.transfer import CorruptDownloadError, UnreachableError
from polyformer.errors import ConfigError, DownloadError
from polyformer.training.data import samples
from polyformer.training.data.samples import (
    code,
    descriptions,
    drawings,
    fetching,
    mails,
    music,
    pictures,
    speech,
    verses,
    words,
)

CIRCLE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10" width="10" height="10">'
    '<circle cx="5" cy="5" r="4" fill="#ff0000"/></svg>'
)


def tgz(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


# Mails


def mail(subject: str, body: str, kind: str = "text/plain", **headers: str) -> bytes:
    lines = [f"Subject: {subject}", "Received: from secret.example", f"Content-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\n".join([*lines, "", body]).encode("latin-1")


def test_mails_are_subject_and_body(tmp_path: Path) -> None:
    base = "package/data"
    page = (
        "<html><head><title>t</title><style>p {}</style></head><body><p>Buy   now</p>\n<p>caf&eacute;</p></body></html>"
    )
    archive = tgz(
        tmp_path / "x.tgz",
        {
            f"{base}/spam-1/2.txt": mail("=?utf-8?q?B=C3=BAy?= =?utf-8?q?_it?=", page, "text/html"),
            f"{base}/easy-ham-1/1.txt": mail("Re: caf\xe9", "One\r\ntwo \xe9\x07", 'text/plain; charset="nonsense"'),
            f"{base}/easy-ham-1/1.json": b"{}",
            f"{base}/hard-ham-1/3.txt": mail("q", "caf=C3=A9 =\nbar", Content_Transfer_Encoding="quoted-printable"),
            f"{base}/readme.txt": b"not a mail",
        },
    )
    found = list(mails._mails(archive))
    assert [(each["group"], each["label"]) for each in found] == [("easy-ham-1", 0), ("hard-ham-1", 0), ("spam-1", 1)]
    assert found[0]["text"] == "Re: café\n\nOne\ntwo é"
    assert found[1]["text"] == "q\n\ncafé bar"
    assert found[2]["subject"] == "Búy it" and found[2]["text"] == "Búy it\n\nBuy now\ncafé"
    assert not any("secret" in each["text"] for each in found)


def test_copies_of_a_mail_are_in_one_part(tmp_path: Path) -> None:
    letters = [" ".join(f"word{number * 1000 + place}" for place in range(80)) for number in range(40)]
    members = {}
    for number, letter in enumerate(letters):
        for copy in range(3):
            body = f"{letter} for customer{copy}".encode()
            members[f"package/data/spam-1/{copy}{number:02}.txt"] = b"Subject: x\n\n" + body
    parts: dict[str, set[str]] = {}
    for each in mails._mails(tgz(tmp_path / "x.tgz", members)):
        parts.setdefault(each["text"].split()[1], set()).add(each["split"])
    assert len(parts) == 40 and all(len(names) == 1 for names in parts.values())
    assert len(set.union(*parts.values())) == 3


# Verses


def test_marks_of_verses_are_undone() -> None:
    assert (
        verses.without_marks(
            '<div type="x-milestone" sID="pv1"/><w lemma="a">God</w><note placement="foot"><reference>1:1 </reference>'
            'The Hebrew.</note><w lemma="b">created</w> <w>the</w> <transChange type="added">earth</transChange>. '
            '<chapter eID="Gen.1"/><title>Glossary</title>'
        )
        == "God created the earth."
    )
    psalm = (
        '<title canonical="true">A Psalm.</title> <l level="1"/>Yahweh,<l eID="g"/><l/>hear<note>n</note>!'
        "<speaker>Lover</speaker>"
    )
    assert verses.without_marks(psalm) == "A Psalm. Yahweh, hear!"


def test_capitals_at_the_beginning_of_chapters() -> None:
    usual = verses.usual_forms(["Y dijo Jehová á Moisés en el principio", "Los cielos de Jehová y el mar"])
    assert verses.without_capitals("EN EL principio", usual) == "En el principio"
    assert verses.without_capitals("Salmo. ¡Y DIJO, JEHOVÁ, á Moisés!", usual) == "Salmo. ¡Y dijo, Jehová, á Moisés!"
    assert verses.without_capitals("A Y O", usual) == "A Y O"


def test_chapters_numbered_otherwise_are_left_out() -> None:
    short, long = "Breve. ", "Largo y más largo que ninguno de los otros. "
    good = {("Good", 1, verse): (long if verse % 2 else short).strip() for verse in range(1, 9)}
    source = {**good, **{("Bad", 2, verse): (short if verse % 2 else long) for verse in range(1, 9)}}
    target = {
        **good,
        **{("Bad", 2, verse): (long if verse % 2 else short) for verse in range(1, 9)},
        ("Good", 1, 9): "solo",
    }
    found = list(verses.aligned(source, target))
    assert [each["reference"] for each in found] == [f"Good 1:{verse}" for verse in range(1, 9)]
    assert len({each["split"] for each in found}) == 1


# Descriptions of packages

LIST = """\
Package: libfoo-dev
Description-md5: 0
Description-en: development files of foo
 Foo does much,
 and quickly.
 .
 It has:
  * one thing
  * another
 the end

Package: foo
Description-en: foo
 Foo does much, and quickly.

Package: empty
Description-en: nothing but a title
"""


def test_descriptions(tmp_path: Path) -> None:
    (tmp_path / "x_Translation-en").write_text(LIST)
    found = list(descriptions.paragraphs(tmp_path / "x_Translation-en"))
    assert [each["Package"] for each in found] == ["libfoo-dev", "foo", "empty"]
    sources = descriptions.sources_of([{"Package": "libfoo-dev", "Source": "foo (1.2)"}, {"Package": "foo"}])
    assert sources == {"libfoo-dev": "foo"}
    made = list(descriptions.pairs([*found, found[1]], sources))
    assert [each["package"] for each in made] == ["libfoo-dev", "foo"]
    assert made[0]["source"] == "Foo does much, and quickly.\n\nIt has:\n * one thing\n * another\nthe end"
    assert made[0]["target"] == "development files of foo"
    assert made[0]["group"] == made[1]["group"] == "foo" and made[0]["split"] == made[1]["split"]


# Python


GOOD = '''class A:
    @property
    def f(self):
        """Doc.

        More."""
        return 1

    def g(self): pass
'''


def test_modules_and_functions(tmp_path: Path) -> None:
    files = {
        "good.py": GOOD,
        "pack/a.py": "x = 1\n",
        "pack/b.py": "y = 1\n",
        "broken.py": "def f(:\n",
        "test/skipped.py": "x = 1\n",
        "site-packages/skipped.py": "x = 1\n",
        "config-3-linux/skipped.py": "x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {each["path"]: each for each in code.modules(tmp_path)}
    assert list(found) == ["broken.py", "good.py", "pack/a.py", "pack/b.py"]
    assert found["pack/a.py"]["split"] == found["pack/b.py"]["split"]
    (function,) = code.functions(found["good.py"])
    assert function["text"] == '@property\ndef f(self):\n    """Doc.\n\n    More."""\n    return 1\n'
    assert (function["name"], function["docstring"]) == ("f", "Doc.\n\nMore.")
    assert list(code.functions(found["broken.py"])) == []


PROSE = """#!/usr/bin/python
'''What it is.'''

import a  # the first

# A section


def f(x):
    '''Doc.

    # no comment
    '''

    # why
    return '# no comment'  # é

class Error(Exception):
    'Nothing else.'
    'And again.'

class Short: 'é'; y = 1
if x:
    "only"
else: "only"
z = '''a


# text
'''"""

BARE = """import a


def f(x):
    return '# no comment'

class Error(Exception):
    pass

class Short: pass; y = 1
if x:
    pass
else: pass
z = '''a


# text
'''"""


def test_code_without_prose() -> None:
    assert code.without_prose(PROSE) == BARE
    assert code.without_prose(BARE) == BARE
    assert code.without_prose("def f(:\n") is None
    assert code.without_prose("def f(): 'a'; 'bcdefgh'\n") == "def f(): pass; pass\n"
    assert code.without_prose("# only\n'''this'''\n") == ""


class WithoutStrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == [] and not isinstance(node, ast.Module):
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node


@pytest.mark.parametrize("module", [ast, argparse, enum, json.decoder, textwrap, zipfile])
def test_code_without_prose_does_the_same(module: ModuleType) -> None:
    source = inspect.getsource(module)
    bare = code.without_prose(source)
    assert bare is not None and len(bare) < len(source)
    assert ast.dump(ast.parse(bare)) == ast.dump(WithoutStrings().visit(ast.parse(source)))


def test_prose_is_left_out_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYFORMER_CACHE", str(tmp_path / "cache"))
    library = tmp_path / "library"
    library.mkdir()
    for name, text in {"a.py": GOOD, "b.py": "# only this\n", "c.py": "def f(:\n", "abc.py": "x = 1\n"}.items():
        (library / name).write_text(text)
    monkeypatch.setattr(code, "_library", lambda: library)
    whole = {each["path"]: each for each in samples.read("python-stdlib")}
    bare = {each["path"]: each for each in samples.read("python-stdlib", prose=False)}
    assert list(whole) == ["a.py", "abc.py", "b.py", "c.py"] and list(bare) == ["a.py", "abc.py"]
    assert whole["a.py"]["text"] == GOOD and list(samples.read("python-stdlib", prose=True)) == list(whole.values())
    assert bare["a.py"] == {**whole["a.py"], "text": code.without_prose(GOOD)} and "Doc" not in bare["a.py"]["text"]
    with pytest.raises(ConfigError, match="prose is 'no', but it is true or false"):
        list(samples.read("python-stdlib", prose="no"))


# Words


def test_pronunciations() -> None:
    found = list(words.pronunciations("'bout B AW1 T\nread R EH1 D # past\nread(2) R IY1 D\n\nempty\n"))
    assert [(each["source"], each["target"]) for each in found] == [
        ("'bout", "B AW1 T"),
        ("read", "R EH1 D"),
        ("read", "R IY1 D"),
    ]
    assert found[1]["split"] == found[2]["split"]


def test_conversations() -> None:
    def turn(sender: str, *texts: str) -> list[dict[str, str]]:
        return [{"text": text, "sender": sender} for text in texts]

    dataset = {
        "x": {
            "messages": [turn("a", "Hi", "there"), turn("b", "Hello"), turn("b", "you"), []],
            "ratings": {"witty": 3},
        },
        "silent": {"messages": []},
    }
    (found,) = words.conversations(dataset)
    assert found["messages"] == [
        {"role": "user", "content": "Hi\nthere"},
        {"role": "assistant", "content": "Hello\nyou"},
    ]
    assert found["text"] == "user: Hi\nthere\nassistant: Hello\nyou" and found["ratings"] == {"witty": 3}


# Pictures and drawings


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape) + data


def test_arrays_of_mnist(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(idx((2, 2, 3), bytes(range(12)))))
    assert np.array_equal(pictures.read_idx(path), np.arange(12).reshape(2, 2, 3))
    for wrong in (idx((2, 2, 3), bytes(11)), b"\0\0\x0d\x01", b""):
        path.write_bytes(gzip.compress(wrong))
        with pytest.raises(CorruptDownloadError, match="remove it and fetch it again"):
            pictures.read_idx(path)


def test_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert "scikit-learn" in pictures._fetch_digits(tmp_path, lambda *_: None)
    found = list(pictures._read_digits(tmp_path))
    assert len(found) == 1797 and {each["label"] for each in found} == set(range(10))
    assert found[0]["image"].dtype == np.uint8 and max(each["image"].max() for each in found) == 255


def test_questions_about_shapes(tmp_path: Path) -> None:
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "easy_vqa.zip", "w") as archive:
        for split, shade in (("train", 10), ("test", 20)):
            stream = io.BytesIO()
            Image.new("RGB", (4, 4), (shade, 0, 0)).save(stream, "png")
            archive.writestr(f"easy_vqa/data/{split}/images/0.png", stream.getvalue())
            archive.writestr(
                f"easy_vqa/data/{split}/questions.json", json.dumps([["red?", "no", 0], ["what?", "circle", 0]])
            )
    found = list(pictures._read_questions(tmp_path))
    assert [(each["question"], each["label"], each["split"]) for each in found] == [
        ("red?", 12, "train"), ("what?", 0, "train"), ("red?", 12, "test"), ("what?", 0, "test"),
    ]  # fmt: skip
    assert [int(each["image"][0, 0, 0]) for each in found] == [10, 10, 20, 20]


def test_drawings_in_any_size_and_on_any_colour() -> None:
    pytest.importorskip("resvg_py")
    small = drawings.draw(CIRCLE, 20, "#00ff00")
    assert small.shape == (20, 20, 3) and small.dtype == np.uint8
    assert small[10, 10].tolist() == [255, 0, 0] and small[0, 0].tolist() == [0, 255, 0]
    assert drawings.draw(CIRCLE, 33)[0, 0].tolist() == [255, 255, 255]


def test_drawings_are_read_with_their_options(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    drawings.store(tmp_path, [{"caption": "a circle", "svg": CIRCLE, "split": "train"}])
    (found,) = drawings.read_drawings(tmp_path, size=8)
    assert list(found) == ["image", "caption", "split"] and found["image"].shape == (8, 8, 3)
    for wrong in (0, True, "64", 5000):
        with pytest.raises(ConfigError, match="size must be a whole number from 1 to 4096"):
            drawings.read_drawings(tmp_path, size=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="background must be a colour like #ffffff, not 'red'"):
        drawings.read_drawings(tmp_path, background="red")


def test_emoji_have_names_and_tags() -> None:
    icons = {
        "icons": {"waving-hand": {"body": "<g/>"}, "waving-hand-medium-dark": {"body": "<g/>"}, "new": {"body": "<g/>"}}
    }
    codes = {"1f44b": "waving-hand", "1f44b-1f3fe": "waving-hand-medium-dark"}
    emoji = [
        {"hexcode": "1F44B", "tags": ["hello"], "emoji": "👋", "skins": [{"hexcode": "1F44B-1F3FE", "emoji": "👋🏾"}]}
    ]
    found = {
        each["name"]: each for each in drawings.fluent_drawings({**icons, "width": 32, "height": 32}, codes, emoji)
    }
    assert found["waving-hand"]["tags"] == found["waving-hand-medium-dark"]["tags"] == ["hello"]
    assert found["waving-hand-medium-dark"]["caption"] == "waving hand medium dark"
    assert found["waving-hand-medium-dark"]["emoji"] == "👋🏾"
    assert {each["group"] for each in found.values()} == {"waving-hand", "new"}
    assert found["waving-hand"]["split"] == found["waving-hand-medium-dark"]["split"]
    assert found["new"]["tags"] == [] and 'viewBox="0 0 32 32"' in found["new"]["svg"]


def test_openmoji_and_icons() -> None:
    fact = {
        "emoji": "😀", "hexcode": "1F600", "annotation": "grinning face", "tags": "face, grin",
        "openmoji_tags": "grin, happy", "skintone_base_hexcode": "", "group": "smileys",
    }  # fmt: skip
    (found,) = drawings.openmoji_drawings([fact, {**fact, "hexcode": "absent"}], {"1F600": b"<svg/>"})
    assert found["tags"] == ["face", "grin", "happy"] and found["group"] == "1F600"
    (icon,) = drawings.tabler_drawings(
        {"arrow-up": {"tags": ["a", 1]}, "gone": {}}, {"arrow-up": b'stroke="currentColor"'}
    )
    assert icon["caption"] == "arrow up" and icon["tags"] == ["a", "1"] and icon["svg"] == 'stroke="#000000"'


# Speech and music


def test_clips_with_their_text(tmp_path: Path) -> None:
    sounds = tmp_path / "usr/share/asterisk/sounds/en_US"
    (sounds / "digits").mkdir(parents=True)
    for name in ("hello", "digits/1", "beep", "unknown"):
        with wave.open(str(sounds / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(16))
    texts = tmp_path / "usr/share/doc/core-sounds-en.txt.gz"
    texts.parent.mkdir(parents=True)
    texts.write_bytes(
        gzip.compress(b"; comment: x\nhello: Hello: you\ndigits/1: one\nbeep: [a beep]\nmissing: text\nempty:\n")
    )
    speech.store(tmp_path, speech.clips(tmp_path))
    found = list(speech._read(tmp_path))
    assert [(each["name"], each["text"]) for each in found] == [
        ("beep", ""),
        ("digits/1", "one"),
        ("hello", "Hello: you"),
    ]
    assert all(Path(each["audio"]).is_file() for each in found)


def test_files_that_speak_of_rights(tmp_path: Path) -> None:
    for number, (text, states) in enumerate(
        {"<score/>": False, "<rights>me</rights>": True, "All Rights Reserved": True}.items()
    ):
        path = tmp_path / f"{number}.mxl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("META-INF/container.xml", "<container/>")
            archive.writestr("x.xml", text)
        assert music.states_restriction(path) is states
        plain = tmp_path / f"{number}.xml"
        plain.write_text(text)
        assert music.states_restriction(plain) is states


@pytest.mark.slow
def test_notes() -> None:
    music21 = pytest.importorskip("music21")
    score = music21.stream.Score([music21.converter.parse("tinyNotation: 4/4 c'2~ c'4 e'4 r2 g'2")])
    assert music.notes_of(score) == [[0, 0.0, 3.0, 72], [0, 3.0, 1.0, 76], [0, 6.0, 2.0, 79]]


# Registries


def test_tools_that_are_missing_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = lambda *_: None  # noqa: E731
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        DownloadError, match="x is a package of Debian, and there is no apt-get here: it works on Debian"
    ):
        fetching.debian_package("x", tmp_path, silent)
    with pytest.raises(DownloadError, match=r"@a/b is a package of npm, and there is no npm here: install Node\.js"):
        fetching.npm_package("@a/b", "1.0", tmp_path, silent)
    for name, text in {
        "apt-get": "echo W: no; echo 'E: Unable to locate package x' >&2; exit 100",
        "dpkg-deb": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(
        UnreachableError,
        match=r"could not download x \(E: Unable to locate package x\): .*has `apt-get update` been run\?",
    ):
        fetching.debian_package("x", tmp_path, silent)


def test_archives_that_are_wrong(tmp_path: Path) -> None:
    archive = tgz(tmp_path / "x.tgz", {"package/a.svg": b"a", "package/b/c.svg": b"c", "package/d.txt": b"d"})
    assert fetching.archive_member(archive, "package/d.txt") == b"d"
    assert fetching.archive_members(archive, "package/", ".svg") == {"a": b"a"}
    with pytest.raises(CorruptDownloadError, match=r"x\.tgz holds no file package/e"):
        fetching.archive_member(archive, "package/e")
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(CorruptDownloadError, match=r"x\.tgz is damaged"):
        fetching.archive_member(archive, "package/d.txt")
    with pytest.raises(CorruptDownloadError, match=r"x\.tgz is damaged"):
        fetching.archive_members(archive, "package/", ".svg")
    with pytest.raises(CorruptDownloadError, match=r"x\.tgz is damaged"):
        fetching.wheel_member(archive, "x")


def test_an_optional_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing: dict[str, ModuleType | None] = {"resvg_py": None, "music21": None, "pysword.modules": None, "rdata": None}
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    silent: Any = lambda *_: None  # noqa: E731
    with pytest.raises(ConfigError, match=r"drawings are SVG: this needs resvg-py: pip install 'polyformer\[train\]'"):
        drawings.read_drawings(tmp_path)
    with pytest.raises(ConfigError, match="the chorales come with music21: this needs music21"):
        music._fetch(tmp_path, silent)
    with pytest.raises(ConfigError, match="this needs pysword"):
        verses._fetch(tmp_path, silent)
