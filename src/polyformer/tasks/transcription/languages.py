"""The languages of multilingual Whisper models: the code in the vocabulary and the name."""

from __future__ import annotations

import difflib

from polyformer.errors import GenerationError

_NAMES = (
    "en english, zh chinese, de german, es spanish, ru russian, ko korean, fr french, ja japanese, pt portuguese, "
    "tr turkish, pl polish, ca catalan, nl dutch, ar arabic, sv swedish, it italian, id indonesian, hi hindi, "
    "fi finnish, vi vietnamese, he hebrew, uk ukrainian, el greek, ms malay, cs czech, ro romanian, da danish, "
    "hu hungarian, ta tamil, no norwegian, th thai, ur urdu, hr croatian, bg bulgarian, lt lithuanian, la latin, "
    "mi maori, ml malayalam, cy welsh, sk slovak, te telugu, fa persian, lv latvian, bn bengali, sr serbian, "
    "az azerbaijani, sl slovenian, kn kannada, et estonian, mk macedonian, br breton, eu basque, is icelandic, "
    "hy armenian, ne nepali, mn mongolian, bs bosnian, kk kazakh, sq albanian, sw swahili, gl galician, mr marathi, "
    "pa punjabi, si sinhala, km khmer, sn shona, yo yoruba, so somali, af afrikaans, oc occitan, ka georgian, "
    "be belarusian, tg tajik, sd sindhi, gu gujarati, am amharic, yi yiddish, lo lao, uz uzbek, fo faroese, "
    "ht haitian creole, ps pashto, tk turkmen, nn nynorsk, mt maltese, sa sanskrit, lb luxembourgish, my myanmar, "
    "bo tibetan, tl tagalog, mg malagasy, as assamese, tt tatar, haw hawaiian, ln lingala, ha hausa, ba bashkir, "
    "jw javanese, su sundanese, yue cantonese"
)
LANGUAGES: dict[str, str] = dict(one.split(" ", 1) for one in _NAMES.split(", "))
"""Code -> name, in the order of the vocabulary."""

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
