"""What tokenizer to train: its kind, its size, its special tokens. Checked before any data is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from polyformer.errors import ConfigError
from polyformer.tokenizers.text import ROLES

KINDS = ("bpe", "wordpiece", "unigram", "byte", "character")
# What stands around a text -> the roles of special tokens that it needs.
ROLES_AROUND: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "cls-sep": ("cls", "sep"),
    "eos": ("eos",),
    "bos": ("bos",),
    "bos-eos": ("bos", "eos"),
}
NORMALIZATIONS = ("none", "nfc", "nfkc", "nmt_nfkc")
SENTINEL = "<extra_id_{}>"
CHATML = "chatml"
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
CHATML_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
UNKNOWN = "<unk>"


@dataclass(frozen=True)
class Purpose:
    """The special tokens that a kind of model needs, in the order of their ids, and which stand around a text."""

    special_tokens: Mapping[str, str]
    additional_special_tokens: tuple[str, ...] = ()
    sentinels: int = 0
    around: str = "nothing"
    chat_template: str | None = None


_END = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": "<|padding|>"}
PURPOSES = {
    # GPT-NeoX's names; fill-in-the-middle and chat as StarCoder 2 and ChatML write them.
    "decoder": Purpose(_END),
    "code": Purpose(_END, ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>")),
    "chat": Purpose(_END, CHATML_TOKENS, chat_template=CHATML),
    # BERT's.
    "encoder": Purpose(
        {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}, around="cls-sep"
    ),
    # T5's: the decoder starts with the padding token; sentinels stand for masked spans.
    "encoder-decoder": Purpose({"pad": "<pad>", "eos": "</s>", "unk": UNKNOWN}, sentinels=100, around="eos"),
    # BART's.
    "denoising": Purpose(
        {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": UNKNOWN, "mask": "<mask>", "cls": "<s>", "sep": "</s>"},
        around="bos-eos",
    ),
    # The decoder starts with <s>.
    "translation": Purpose({"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": UNKNOWN}, around="eos"),
}


@dataclass(frozen=True)
class TokenizerPlan:
    """What tokenizer to train. A plan that cannot be carried out on any data is refused when it is made.

    Attributes:
        kind: "bpe" (bytes, joined), "wordpiece" (BERT's), "unigram" (SentencePiece's), "byte" or "character".
        vocab_size: entries, special tokens and sentinels included; fewer where the data gives no more. Not needed for
            bytes and characters.
        purpose: the model it is for, one of PURPOSES: which special tokens there are and which stand around a text.
        special_tokens: role -> token, over those of the purpose.
        additional_special_tokens: further control tokens.
        sentinels: how many <extra_id_N> there are; they come last, the first one at the very end, as T5 has them.
        around: "nothing", "cls-sep" ([CLS] text [SEP]), "eos" (text </s>), "bos" or "bos-eos". Default: as
            the purpose has it.
        min_frequency: what occurs less often is no entry: a pair to be joined or a piece (default 2), or a character
            (default 1).
        limit_alphabet: the most characters that are known, those that occur most often; the others are unknown.
        lowercase: take upper case as lower case; WordPiece drops accents with it, as BERT's uncased models.
        split_digits: each digit is a token of its own.
        normalization: "none", "nfc", "nfkc", or "nmt_nfkc": SentencePiece's, with every run of white space one space.
            Default: that one for unigram, "none" for others; WordPiece has its own and takes no other.
        chat_template: a Jinja source, or "chatml", which brings its tokens.

    Raises:
        ConfigError: a value that cannot be, or an option that this kind has no use for.
    """

    kind: str = "bpe"
    vocab_size: int | None = None
    purpose: str = "decoder"
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    additional_special_tokens: Sequence[str] = ()
    sentinels: int | None = None
    around: str | None = None
    min_frequency: int | None = None
    limit_alphabet: int | None = None
    lowercase: bool = False
    split_digits: bool = False
    normalization: str | None = None
    chat_template: str | None = None

    @classmethod
    def of(cls, **options: Any) -> TokenizerPlan:
        """A plan from named options. Raises ConfigError where one is not known."""
        known = [one.name for one in fields(cls)]
        for name in options:
            _require_known("option of a tokenizer", name, known)
        return cls(**options)

    def __post_init__(self) -> None:
        _require_known("kind of tokenizer", self.kind, KINDS)
        _require_known("purpose of a tokenizer", self.purpose, PURPOSES)
        if not isinstance(self.special_tokens, Mapping):
            raise ConfigError(f"special_tokens is {self.special_tokens!r}: it maps roles to tokens, like eos: <end>")
        for role, token in self.special_tokens.items():
            _require_known("role of a special token", role, ROLES)
            _require_token(token, f"special_tokens.{role}")
        if isinstance(self.additional_special_tokens, str) or not isinstance(self.additional_special_tokens, Sequence):
            raise ConfigError(
                f"additional_special_tokens is {self.additional_special_tokens!r}: it is a list of tokens"
            )
        for token in self.additional_special_tokens:
            _require_token(token, "additional_special_tokens")
        if self.around is not None:
            _require_known("template around a text", self.around, ROLES_AROUND)
        if self.normalization is not None:
            _require_known("normalization", self.normalization, NORMALIZATIONS)
        for name, least in (("vocab_size", 1), ("min_frequency", 1), ("limit_alphabet", 1), ("sentinels", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ConfigError(f"{name} is {value!r}: it is a whole number of at least {least}")
        if self.chat_template is not None and not isinstance(self.chat_template, str):
            raise ConfigError(f"chat_template is {self.chat_template!r}: it is a Jinja source, or {CHATML!r}")
        for name in ("lowercase", "split_digits"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: it is true or false")
        self._refuse_what_has_no_use()
        for role in ROLES_AROUND[self.template]:
            if role not in self.tokens_by_role:
                raise ConfigError(
                    f"around={self.template!r} needs the special token {role!r}: add it to special_tokens"
                )
        if self.kind in ("bpe", "byte"):
            self.require_room(256, "bytes")

    def _refuse_what_has_no_use(self) -> None:
        useless = {
            "min_frequency": self.kind == "byte" and self.min_frequency is not None,
            "limit_alphabet": self.kind in ("bpe", "byte") and self.limit_alphabet is not None,
            "split_digits": self.kind in ("byte", "character") and self.split_digits,
            "normalization": self.kind == "wordpiece" and self.normalization is not None,
        }
        for name, is_useless in useless.items():
            if is_useless:
                raise ConfigError(f"a {self.kind} tokenizer has no use for {name}: leave it out")
        if self.vocab_size is None and self.kind not in ("byte", "character"):
            raise ConfigError(f"a {self.kind} tokenizer needs a vocab_size, for example 4096")
        if self.kind == "byte" and self.vocab_size is not None and self.vocab_size != 256 + self.reserved:
            raise ConfigError(
                f"vocab_size is {self.vocab_size}, but a byte tokenizer has 256 bytes and {self.reserved} special "
                f"tokens, {256 + self.reserved} in all: leave it out"
            )

    # --- what follows from it -----------------------------------------------------------------------------------------

    @property
    def template(self) -> str:
        return self.around or PURPOSES[self.purpose].around

    @property
    def tokens_by_role(self) -> dict[str, str]:
        tokens = {**PURPOSES[self.purpose].special_tokens, **self.special_tokens}
        if self.kind in ("wordpiece", "unigram", "character"):
            tokens.setdefault("unk", UNKNOWN)
        return tokens

    @property
    def unknown(self) -> str:
        return self.tokens_by_role["unk"]

    @property
    def chat(self) -> str | None:
        return self.chat_template or PURPOSES[self.purpose].chat_template

    @property
    def first_tokens(self) -> list[str]:
        """All special tokens but the sentinels, in the order of their ids."""
        chat = CHATML_TOKENS if self.chat == CHATML else ()
        more = (*PURPOSES[self.purpose].additional_special_tokens, *self.additional_special_tokens, *chat)
        return list(dict.fromkeys((*self.tokens_by_role.values(), *more)))

    @property
    def sentinel_tokens(self) -> list[str]:
        """<extra_id_0>, ...: the order of their numbers. Their ids run the other way."""
        count = PURPOSES[self.purpose].sentinels if self.sentinels is None else self.sentinels
        return [SENTINEL.format(number) for number in range(count)]

    @property
    def reserved(self) -> int:
        return len(set(self.first_tokens) | set(self.sentinel_tokens))

    @property
    def room(self) -> int:
        """Entries that are left for the data."""
        assert self.vocab_size is not None  # checked when the plan was made
        return self.vocab_size - self.reserved

    def require_room(self, alphabet: int, what: str) -> None:
        """
        Raises:
            ConfigError: the alphabet and the special tokens do not fit into vocab_size.
        """
        least = alphabet + self.reserved
        if self.vocab_size is not None and self.vocab_size < least:
            fewer = "" if self.kind in ("bpe", "byte") else ", or give a limit_alphabet"
            raise ConfigError(
                f"vocab_size is {self.vocab_size}, but {alphabet:,} {what} and {self.reserved} special tokens make "
                f"{least:,}: give at least that{fewer}"
            )


def _require_known(what: str, name: Any, known: Iterable[str]) -> None:
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    raise ConfigError(f"{name!r} is no {what}; {hint}")


def _require_token(token: Any, where: str) -> None:
    if not isinstance(token, str) or not token.strip():
        raise ConfigError(f"{where} is {token!r}: a special token is a text that is not blank")
