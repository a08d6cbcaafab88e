"""Text to train small tokenizers on, and text that is hard to tokenize."""

from __future__ import annotations

import argparse
import inspect
import json
import random
import typing

import pytest


@pytest.fixture(scope="session")
def corpus() -> list[str]:
    """Lines of Python source and of several scripts: enough for small vocabularies that differ from one another."""
    source = "\n".join(inspect.getsource(module) for module in (argparse, json, random, typing))
    foreign = [
        "naïve café – déjà vu, señor Ångström",
        "你好世界，今天天气很好。",
        "こんにちは、世界のみなさん",
        "Привет, мир! Как дела?",
        "مرحبا بالعالم",
        "I'm sure they'll say it's what we've done, don't you're",
        "1 22 333 4444 55555",
    ]
    return source.splitlines() + foreign * 40


@pytest.fixture(scope="session")
def hard_texts(corpus: list[str]) -> list[str]:
    written = [
        "",
        " ",
        "   ",
        "hello world",
        " one leading",
        "  two leading",
        "trailing  ",
        "a    b",
        "tab\tnewline\nreturn\r\nend\n\n\n",
        "if x:\n\t\treturn  y[0]\n",
        "e\u0301 x\u0301\u0302 émigré",
        "👩\u200d👩\u200d👧 family 🏳️\u200d🌈 😀\ufe0f",
        "你好，世界。今日は",
        "مرحبا بالعالم ١٢٣",
        "हिन्दी ไทย 한국어",
        "\u200bzero\u00a0width\u2028line",
        "\x00\x01\x7f control \x1b[0m",
        "½ ² Ⅷ 10,000.50",
        "ﬁ ligature ™ ﷺ",
        "▁ under ▁▁",
        "Ġ looks like bytes ÿ",
        "don't STOP. I'LL go, ok?!",
        "https://example.org/a_b?c=d&e=%20",
        "\U0010ffff\ufffd\ufffe",
        "word" * 600,
    ]
    return written + random.Random(7).sample(corpus, 60)
