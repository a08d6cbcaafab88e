"""The languages of multilingual Whisper models: the code in the vocabulary and the name."""

from __future__ import annotations

import difflib

from polyformer.errors import GenerationError
from polyformer.families.whisper import LANGUAGES as LANGUAGES

# Written without spaces between words: there every character may begin one.
SPACELESS = frozenset({"zh", "ja", "th", "lo", "my", "yue"})


def language_code(language: str) -> str:
    """The code of a language that is named by code or by name.

    Raises:
        GenerationError: there is none of that name; the nearest are given.
    """
    wanted = language.strip().lower()
    if wanted in LANGUAGES:
        return wanted
    names = {name: code for code, name in LANGUAGES.items()}
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, [*names, *LANGUAGES], n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ": give a code such as en, or a name such as english"
    raise GenerationError(f"there is no language {language!r}{hint}")
