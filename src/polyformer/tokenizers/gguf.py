"""Build a tokenizer from the metadata of a GGUF file.

The keys are those of the GGUF specification (tokenizer.ggml.*); what they mean is what llama.cpp does with them:
`tokenizer.ggml.model` names the algorithm, `tokenizer.ggml.pre` how byte-level BPE cuts texts into words. GGUF carries
no Unicode normalizer, so none is applied (the tokenizer.json of some models, such as Qwen2, composes characters first).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece

from polyformer.errors import TokenizerError
from polyformer.tokenizers.sentencepiece import (
    BPE_MODEL,
    CONTROL,
    NORMAL,
    SPACE,
    UNIGRAM_MODEL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    build_sentencepiece,
)
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings
from polyformer.tokenizers.vocabulary_files import (
    QWEN2_SPLIT,
    bos_eos_processor,
    byte_level_pre_tokenizer,
    cls_sep_processor,
)

# The names under which GGUF keeps the ids of special tokens; "seperator" is the format's own spelling.
ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
# Control tokens that end a turn or a message; files often name one of them only.
END_NAMES = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>")

_LETTERS_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST_LLAMA3 = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_WORD_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

LLAMA3_SPLIT = rf"{_LETTERS_LLAMA3}|\p{{N}}{{1,3}}|{_REST_LLAMA3}"
TEKKEN_SPLIT = rf"{_WORD_UPPER}|{_WORD_LOWER}|\p{{N}}|{_REST_SLASH}"
GPT4O_SPLIT = rf"{_WORD_UPPER}{_CONTRACTION}|{_WORD_LOWER}{_CONTRACTION}|\p{{N}}{{1,3}}|{_REST_SLASH}"
# Code points of the letters with case that DeepSeek's first tokenizer lists: Lu, Ll and Lt of an early Unicode, without
# the mathematical alphabets. Numbers, because Unicode normalization changes several of the letters.
DEEPSEEK_LETTERS = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C "
    "38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B "
    "1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 "
    "1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 "
    "2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B "
    "2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 "
    "FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF "
    "1E900-1E943 "
)
DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"


def _letters(ranges: str) -> str:
    """A character class of code points and ranges of them, in hexadecimal."""
    parts = ["-".join(rf"\x{{{code}}}" for code in entry.split("-")) for entry in ranges.split()]
    return f"[{''.join(parts)}]"


def _cut(*patterns: str, gpt2: bool = True) -> Any:
    """Each pattern in turn isolates its matches; GPT-2's own pattern (or none) cuts what is left."""
    steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2)])


@dataclass(frozen=True)
class WordCut:
    """How byte-level BPE cuts a text into words, under one name of tokenizer.ggml.pre.

    Attributes:
        build: makes the pre-tokenizer.
        ignore_merges: a word that is a token as it stands is not built from merges.
        add_bos: the beginning of sequence is added where the file does not say.
    """

    build: Callable[[], Any]
    ignore_merges: bool = False
    add_bos: bool = False


# llama.cpp cuts the texts of files that name no cut in a way that no published model was trained with, and warns of it;
# here and in transformers "default" means GPT-2's own cut.
_GPT2 = WordCut(byte_level_pre_tokenizer)
_DIGITS_THEN_GPT2 = WordCut(lambda: _cut(r"\p{N}"))
_LLAMA3 = WordCut(lambda: byte_level_pre_tokenizer(LLAMA3_SPLIT), ignore_merges=True, add_bos=True)
_LLAMA3_PLAIN = WordCut(lambda: byte_level_pre_tokenizer(LLAMA3_SPLIT))
_QWEN2 = WordCut(lambda: byte_level_pre_tokenizer(QWEN2_SPLIT))
_GPT4O = WordCut(lambda: byte_level_pre_tokenizer(GPT4O_SPLIT))
_FALCON = WordCut(
    lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), behavior="isolated"),
        ]
    )
)
_DEEPSEEK_LLM = WordCut(
    lambda: _cut(
        "[\r\n]",
        rf"\s?{_letters(DEEPSEEK_LETTERS)}+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        DEEPSEEK_CJK,
        r"\p{N}+",
        gpt2=False,
    )
)
_DEEPSEEK_CODER = WordCut(lambda: _cut("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}", gpt2=False))

WORD_CUTS: dict[str, WordCut] = {
    **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4"), _GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _DIGITS_THEN_GPT2
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _LLAMA3_PLAIN),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "grok-2"), _QWEN2),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "tekken": WordCut(lambda: byte_level_pre_tokenizer(TEKKEN_SPLIT), ignore_merges=True, add_bos=True),
    "falcon": _FALCON,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
}


class _Metadata:
    """The tokenizer keys of a GGUF file, with their types checked."""

    def __init__(self, metadata: Mapping[str, Any]):
        self._metadata = metadata
        self.tokens = self._strings("tokens")
        if not self.tokens:
            raise TokenizerError("the GGUF file holds no tokens (tokenizer.ggml.tokens): it has no tokenizer inside")
        self.kinds = self._numbers("token_type") or [NORMAL] * len(self.tokens)

    def get(self, key: str, default: Any = None) -> Any:
        return self._metadata.get(f"tokenizer.ggml.{key}", default)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self.get(key, default))

    def _list(self, key: str) -> list[Any]:
        values = self.get(key)
        if values is None:
            return []
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
            raise TokenizerError(f"tokenizer.ggml.{key} in the GGUF file is not a list: the file is damaged")
        return list(values)

    def _strings(self, key: str) -> list[str]:
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            raise TokenizerError(f"tokenizer.ggml.{key} in the GGUF file holds something else than text: it is damaged")
        return values

    def _numbers(self, key: str) -> list[Any]:
        values = self._list(key)
        if values and len(values) < len(self.tokens):
            raise TokenizerError(
                f"tokenizer.ggml.{key} in the GGUF file has {len(values)} entries for {len(self.tokens)} tokens:"
                " the file is damaged"
            )
        return values

    @property
    def scores(self) -> list[float]:
        scores = self._numbers("scores")
        if not scores:
            raise TokenizerError("the GGUF file has no tokenizer.ggml.scores, which its tokenizer model needs")
        return scores

    @property
    def merges(self) -> list[tuple[str, str]]:
        merges = []
        for line in self._strings("merges"):
            cut = line.find(" ", 1)
            if cut < 0 or cut == len(line) - 1:
                raise TokenizerError(f"tokenizer.ggml.merges in the GGUF file holds {line[:40]!r}: it is damaged")
            merges.append((line[:cut], line[cut + 1 :]))
        return merges

    def pieces(self) -> list[Piece]:
        return [Piece(*entry) for entry in zip(self.tokens, self.scores, self.kinds, strict=False)]

    def role(self, role: str, default: int | None = None) -> str | None:
        """The token with a role; ids outside the vocabulary mean that there is none."""
        number = self.get(ROLE_KEYS[role], default)
        if not isinstance(number, int) or not 0 <= number < len(self.tokens):
            return None
        return self.tokens[number]

    def roles(self, defaults: Mapping[str, int]) -> dict[str, str]:
        found = {role: self.role(role, defaults.get(role)) for role in ROLE_KEYS}
        return {role: token for role, token in found.items() if token is not None}


@dataclass(frozen=True)
class _Built:
    backend: Tokenizer
    special_tokens: dict[str, str]
    add_bos: bool = False
    add_eos: bool = False


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> TextTokenizer:
    """The tokenizer that a GGUF file carries.

    Args:
        metadata: the file's metadata, lists as Python lists. `tokenizer.ggml.model` may be gpt2 (byte-level BPE), llama
            (SentencePiece BPE), t5 (SentencePiece unigram) or bert (WordPiece).

    Raises:
        TokenizerError: no tokenizer inside, an unknown model or pre-tokenizer (the known ones are named), or lists
            that do not fit together.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise TokenizerError("the GGUF file has no tokenizer inside (no tokenizer.ggml.model)")
    if model not in MODELS:
        raise TokenizerError(f"unknown GGUF tokenizer model {model!r}: the known ones are {', '.join(sorted(MODELS))}")
    reader = _Metadata(metadata)
    try:
        built = MODELS[model](reader)
    except TokenizerError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise TokenizerError(f"the tokenizer in the GGUF file does not fit together ({reason})") from error
    settings = TokenizerSettings(
        special_tokens=built.special_tokens,
        chat_templates=_chat_templates(metadata),
        extra_eos_token_ids=_extra_eos_token_ids(reader),
    )
    tokenizer = TextTokenizer(built.backend, settings)
    _surround(tokenizer, reader, built)
    return tokenizer


def _surround(tokenizer: TextTokenizer, reader: _Metadata, built: _Built) -> None:
    ends: list[tuple[str, int] | None] = []
    for role, default in (("bos", built.add_bos), ("eos", built.add_eos)):
        token = built.special_tokens.get(role)
        token_id = None if token is None else tokenizer.token_to_id(token)
        wanted = reader.flag(f"add_{role}_token", default)
        ends.append((token, token_id) if wanted and token is not None and token_id is not None else None)
    if any(ends) and tokenizer.backend.post_processor is None:
        tokenizer.backend.post_processor = bos_eos_processor(*ends)


def _mark_added(backend: Tokenizer, reader: _Metadata, tokens: Sequence[str]) -> None:
    """Control tokens become special tokens; user-defined ones are found in texts as well, but are text."""
    marks = [
        (token, kind) for token, kind in zip(tokens, reader.kinds, strict=False) if kind in (CONTROL, USER_DEFINED)
    ]
    backend.add_tokens([AddedToken(token, normalized=False, special=kind == CONTROL) for token, kind in marks if token])


def _byte_level_bpe(reader: _Metadata) -> _Built:
    name = reader.get("pre", "default")
    if name not in WORD_CUTS:
        raise TokenizerError(f"unknown GGUF pre-tokenizer {name!r}: the known ones are {', '.join(sorted(WORD_CUTS))}")
    cut = WORD_CUTS[name]
    if reader.get("merges") is None:
        raise TokenizerError("the GGUF file has no tokenizer.ggml.merges, which a gpt2 tokenizer needs")
    vocabulary = {token: number for number, token in enumerate(reader.tokens)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=reader.merges, ignore_merges=cut.ignore_merges))
    backend.pre_tokenizer = cut.build()
    backend.decoder = decoders.ByteLevel()
    _mark_added(backend, reader, reader.tokens)
    return _Built(backend, reader.roles({}), add_bos=cut.add_bos)


def _sentencepiece_bpe(reader: _Metadata) -> _Built:
    backend = build_sentencepiece(_sentencepiece_model(reader, BPE_MODEL), "the GGUF file's tokenizer")
    return _Built(backend, reader.roles({"bos": 1, "eos": 2, "unk": 0}), add_bos=True)


def _sentencepiece_unigram(reader: _Metadata) -> _Built:
    model = _sentencepiece_model(reader, UNIGRAM_MODEL)
    backend = build_sentencepiece(model, "the GGUF file's tokenizer")
    return _Built(backend, reader.roles({"eos": 1, "unk": 2, "pad": 0}), add_eos=True)


def _sentencepiece_model(reader: _Metadata, model_type: int) -> SentencePieceModel:
    is_bpe = model_type == BPE_MODEL
    pieces = reader.pieces()
    # Unused entries fill the vocabulary up to the network's size; none of them can come out of a text.
    pieces = [Piece(piece.text, piece.score, UNKNOWN) if piece.kind == UNUSED else piece for piece in pieces]
    charsmap = reader.get("precompiled_charsmap") or b""
    charsmap = charsmap if isinstance(charsmap, bytes) else bytes(value & 0xFF for value in charsmap)
    return SentencePieceModel(
        pieces=pieces,
        model_type=model_type,
        byte_fallback=any(piece.text == "<0x00>" for piece in pieces),
        unk_id=reader.get("unknown_token_id", 0 if is_bpe else 2),
        precompiled_charsmap=charsmap,
        add_dummy_prefix=reader.flag("add_space_prefix", is_bpe),
        remove_extra_whitespaces=reader.flag("remove_extra_whitespaces", False),
    )


def _wordpiece(reader: _Metadata) -> _Built:
    # GGUF marks the pieces that begin a word with "▁"; WordPiece marks the others, with "##".
    tokens = [
        token if kind != NORMAL else token[1:] if token.startswith(SPACE) else f"##{token}"
        for token, kind in zip(reader.tokens, reader.kinds, strict=False)
    ]
    ids = {role: reader.get(ROLE_KEYS[role], default) for role, default in BERT_DEFAULTS.items()}
    ids["cls"] = reader.get("cls_token_id", reader.get("bos_token_id", BERT_DEFAULTS["cls"]))
    special = {role: tokens[number] for role, number in ids.items() if 0 <= number < len(tokens)}
    for role in ("unk", "cls", "sep"):
        if role not in special:
            raise TokenizerError(f"the GGUF file's bert tokenizer has no {role} token: the file is damaged")
    backend = Tokenizer(WordPiece(vocab={token: n for n, token in enumerate(tokens)}, unk_token=special["unk"]))
    lowercase = reader.flag("normalizer.lowercase", True)
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    _mark_added(backend, reader, tokens)
    backend.post_processor = cls_sep_processor((special["cls"], ids["cls"]), (special["sep"], ids["sep"]))
    return _Built(backend, special)


BERT_DEFAULTS = {"unk": 100, "cls": 101, "sep": 102, "pad": 0, "mask": 103}

MODELS: dict[str, Callable[[_Metadata], _Built]] = {
    "gpt2": _byte_level_bpe,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
    "bert": _wordpiece,
}


def _chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).removeprefix(".") or "default": value
        for key, value in metadata.items()
        if (key == prefix or key.startswith(prefix + ".")) and isinstance(value, str)
    }
    return templates


def _extra_eos_token_ids(reader: _Metadata) -> tuple[int, ...]:
    """Ends of turn and of message: those the file names, and control tokens with a known name, as llama.cpp does."""
    ids = [reader.get(key) for key in ("eot_token_id", "eom_token_id")]
    by_name = {token: number for number, token in enumerate(reader.tokens) if reader.kinds[number] == CONTROL}
    ids += [by_name.get(name) for name in END_NAMES]
    return tuple(dict.fromkeys(number for number in ids if isinstance(number, int) and number < len(reader.tokens)))
