"""Train a tokenizer on texts: byte-level BPE, WordPiece, unigram, bytes or characters.

The same texts give the same tokenizer, bit for bit, on any number of threads. The trainers of the `tokenizers` library
visit words in the random order of a hash table. Only byte-level BPE does not depend on it; where another kind would,
its words are counted by the library and put in order here first.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from polyformer.errors import ConfigError, DataError
from polyformer.tokenizers.plan import CHATML, CHATML_TEMPLATE, CHATML_TOKENS, ROLES_AROUND, TokenizerPlan
from polyformer.tokenizers.streaming import byte_alphabet
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings
from polyformer.tokenizers.unigram import train_unigram
from polyformer.tokenizers.vocabulary_files import bos_eos_processor, cls_sep_processor

Progress = Callable[[str, int, int | None], None]  # what is done, how much of it, of how much (None: not known)

CONTINUED = "##"
LONGEST_WORD = 100  # of WordPiece, in characters: a longer one is unknown (Devlin et al. 2018)
SECTION = 1 << 16  # characters that are worked on at once, so that a text of any length takes little memory


def train_tokenizer(
    texts: Iterable[str],
    kind: str = "bpe",
    vocab_size: int | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> TextTokenizer:
    """Train a tokenizer.

    Args:
        texts: whole documents, read once; an iterator may give more than memory holds. Bytes need none and read none.
        kind, vocab_size, options: see `TokenizerPlan`.
        progress: called with what is being done, how much of it is done, and how much there is or None.

    Raises:
        ConfigError: an option that cannot be; special tokens and alphabet that do not fit into vocab_size.
        DataError: no text at all, or something else than valid Unicode.
    """
    plan = TokenizerPlan.of(kind=kind, vocab_size=vocab_size, **options)
    backend = _TRAINERS[plan.kind](plan, _Reader(texts, progress), progress)
    special = [AddedToken(token, normalized=False, special=True) for token in plan.first_tokens]
    sentinels = [AddedToken(token, normalized=False, special=True) for token in reversed(plan.sentinel_tokens)]
    backend.add_special_tokens([*special, *sentinels])
    _surround(backend, plan)
    return TextTokenizer(backend, _settings(backend, plan))


def _settings(backend: Tokenizer, plan: TokenizerPlan) -> TokenizerSettings:
    by_role = plan.tokens_by_role
    additional = [token for token in (*plan.first_tokens, *plan.sentinel_tokens) if token not in by_role.values()]
    template = CHATML_TEMPLATE if plan.chat == CHATML else plan.chat
    if template is not None:
        _try_template(template, by_role)
    end_of_turn = backend.token_to_id(CHATML_TOKENS[1])
    return TokenizerSettings(
        special_tokens=by_role,
        additional_special_tokens=tuple(additional),
        chat_templates={} if template is None else {"default": template},
        extra_eos_token_ids=() if end_of_turn is None or template is None else (end_of_turn,),
    )


def _try_template(template: str, by_role: Mapping[str, str]) -> None:
    """A template that fails on the simplest conversation fails now, and not after the training."""
    from polyformer.tokenizers.chat_template import render_chat_template

    marks = {f"{role}_token": token for role, token in by_role.items()}
    messages = [{"role": "user", "content": "Hi!"}]
    render_chat_template(template, messages, add_generation_prompt=True, variables=marks)


def _surround(backend: Tokenizer, plan: TokenizerPlan) -> None:
    roles = ROLES_AROUND[plan.template]
    vocabulary = backend.get_vocab()
    named = {role: (plan.tokens_by_role[role], vocabulary[plan.tokens_by_role[role]]) for role in roles}
    if plan.template == "cls-sep":
        backend.post_processor = cls_sep_processor(named["cls"], named["sep"])
    elif roles:
        backend.post_processor = bos_eos_processor(named.get("bos"), named.get("eos"))


# --- the kinds --------------------------------------------------------------------------------------------------------


def _bpe(plan: TokenizerPlan, reader: _Reader, progress: Progress | None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    _normalize(backend, plan)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, cut]) if plan.split_digits else cut
    backend.decoder = decoders.ByteLevel()
    assert plan.vocab_size is not None
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocab_size - len(plan.sentinel_tokens),
        min_frequency=plan.min_frequency or 2,
        initial_alphabet=sorted(byte_alphabet()),
        special_tokens=plan.first_tokens,
        show_progress=False,
    )
    reader.feed(backend, trainer)
    merged = {"".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]}
    for token in plan.first_tokens:
        if token in merged:
            raise ConfigError(
                f"the special token {token!r} occurs as a word in the data: choose another, like <|{token}|>"
            )
    return backend


def _wordpiece(plan: TokenizerPlan, reader: _Reader, progress: Progress | None) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token=plan.unknown))
    backend.normalizer = normalizers.BertNormalizer(lowercase=plan.lowercase)
    cut = pre_tokenizers.BertPreTokenizer()
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, digits]) if plan.split_digits else cut
    words = _count_words(backend, reader)
    letters = _alphabet(words, plan)
    words = {word: count for word, count in words.items() if len(word) <= LONGEST_WORD and letters.issuperset(word)}
    inner = {CONTINUED + letter for word in words for letter in word[1:]}
    alphabet = [*sorted(letters), *sorted(inner)]
    plan.require_room(len(alphabet), "characters (first and inner ones of words)")
    # Joining equal numbers of pairs goes by ids. Named as special tokens, characters get theirs in this order; the
    # library would give them out in the order of its hash table.
    assert plan.vocab_size is not None
    trainer = trainers.BpeTrainer(
        vocab_size=plan.vocab_size - len(plan.sentinel_tokens),
        min_frequency=plan.min_frequency or 2,
        special_tokens=[*plan.first_tokens, *alphabet],
        continuing_subword_prefix=CONTINUED,
        show_progress=False,
    )
    joiner = Tokenizer(models.BPE(continuing_subword_prefix=CONTINUED))
    joiner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    joiner.train_from_iterator(_written_out(words), trainer)
    vocabulary = json.loads(joiner.to_str())["model"]["vocab"]
    backend.model = models.WordPiece(
        vocab=vocabulary,
        unk_token=plan.unknown,
        max_input_chars_per_word=LONGEST_WORD,
        continuing_subword_prefix=CONTINUED,
    )
    backend.decoder = decoders.WordPiece(prefix=CONTINUED)
    return backend


def _written_out(words: Mapping[str, int]) -> Iterator[str]:
    """Every word as often as it occurs, in texts of bounded length."""
    for word, count in sorted(words.items()):
        once = max(SECTION // (len(word) + 1), 1)
        for start in range(0, count, once):
            yield " ".join([word] * min(once, count - start))


def _unigram(plan: TokenizerPlan, reader: _Reader, progress: Progress | None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    is_sentencepiece = _normalize(backend, plan, default="nmt_nfkc") == "nmt_nfkc"
    # Where white space is kept as it is, no space is put in front of a text: decoding then gives back every text.
    scheme = "always" if is_sentencepiece else "never"
    cut = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, digits]) if plan.split_digits else cut
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    # A line end begins a piece, as a space does: words joined by line ends would be several times as many.
    lines = pre_tokenizers.Split("\n", behavior="merged_with_next")
    words = _count_words(backend, reader, lines)
    letters = _alphabet(words, plan)
    plan.require_room(len(letters), "characters")
    told = None if progress is None else lambda done, total: progress("pruning", done, total)
    pieces = train_unigram(
        _cut_at_unknown(words, letters), plan.room, min_frequency=plan.min_frequency or 2, progress=told
    )
    special = set(plan.first_tokens)
    vocabulary = [(token, 0.0) for token in plan.first_tokens]
    vocabulary += [(text, score) for text, score in pieces if text not in special]
    backend.model = models.Unigram(vocabulary, unk_id=plan.first_tokens.index(plan.unknown))
    return backend


def _cut_at_unknown(words: Mapping[str, int], letters: set[str]) -> dict[str, int]:
    if all(letters.issuperset(word) for word in words):
        return dict(words)
    known: Counter[str] = Counter()
    for word, count in words.items():
        parts = "".join(letter if letter in letters else " " for letter in word).split(" ")
        for part in filter(None, parts):
            known[part] += count
    return known


def _byte(plan: TokenizerPlan, reader: _Reader, progress: Progress | None) -> Tokenizer:
    backend = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    _normalize(backend, plan)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _character(plan: TokenizerPlan, reader: _Reader, progress: Progress | None) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    _normalize(backend, plan)
    counts: Counter[str] = Counter()
    for section in reader:
        counts.update(backend.normalizer.normalize_str(section) if backend.normalizer else section)
    letters = _alphabet(counts, plan)
    plan.require_room(len(letters), "characters")
    entries = [*plan.first_tokens, *sorted(letters - set(plan.first_tokens))]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    backend.model = models.BPE(vocab=vocabulary, merges=[], unk_token=plan.unknown, fuse_unk=False)
    backend.decoder = decoders.Fuse()
    return backend


_TRAINERS: dict[str, Callable[[TokenizerPlan, _Reader, Progress | None], Tokenizer]] = {
    "bpe": _bpe,
    "wordpiece": _wordpiece,
    "unigram": _unigram,
    "byte": _byte,
    "character": _character,
}


def _normalize(backend: Tokenizer, plan: TokenizerPlan, default: str = "none") -> str:
    """Sets the normalizer of a plan; gives the name of its normalization."""
    name = plan.normalization or default
    steps: dict[str, list[normalizers.Normalizer]] = {
        "none": [],
        "nfc": [normalizers.NFC()],
        "nfkc": [normalizers.NFKC()],
        "nmt_nfkc": [
            normalizers.Nmt(),
            normalizers.NFKC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ],
    }
    chosen = steps[name] + ([normalizers.Lowercase()] if plan.lowercase else [])
    if chosen:
        backend.normalizer = normalizers.Sequence(chosen)
    return name


# --- texts, words and characters --------------------------------------------------------------------------------------


class _Reader:
    """Texts in sections, each checked.

    Raises:
        DataError: a text is no valid Unicode; when all are read, there was nothing in them.
    """

    def __init__(self, texts: Iterable[str], progress: Progress | None):
        if isinstance(texts, (str, bytes)):
            raise DataError("a tokenizer is trained on a list of texts, not on one text: put it in a list")
        self._texts = texts
        self._progress = progress

    def __iter__(self) -> Iterator[str]:
        characters = 0
        for number, text in enumerate(self._texts):
            if not isinstance(text, str):
                raise DataError(f"text {number} is {type(text).__name__}, not str: give texts")
            for section in sections(text):
                try:
                    section.encode()
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"text {number} is not valid Unicode (it holds a lone surrogate): read it as UTF-8 with "
                        "errors='replace'"
                    ) from error
                yield section
                characters += len(section)
                if self._progress is not None:
                    self._progress("reading", characters, None)
        if not characters:
            raise DataError("there is no text to train a tokenizer on: the data is empty")

    def feed(self, backend: Tokenizer, trainer: trainers.Trainer) -> None:
        """Train the backend's model on all sections."""
        backend.train_from_iterator(iter(self), trainer)


_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)")  # where all kinds cut between words


def sections(text: str, size: int = SECTION) -> Iterator[str]:
    """The text in parts of about this many characters, cut between words, and inside a word only if it is as long."""
    start = 0
    while len(text) - start > 2 * size:
        cut = _CUT.search(text, start + size, start + 2 * size)
        end = cut.start() if cut else start + 2 * size
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _count_words(
    backend: Tokenizer, reader: _Reader, further: pre_tokenizers.PreTokenizer | None = None
) -> dict[str, int]:
    """How often each word occurs, as the backend normalizes and cuts texts, and ``further`` cuts them.

    A trainer that is to join nothing counts them on all threads; its state, as pickle would write it, holds them.
    """
    counter = Tokenizer(models.BPE())
    if backend.normalizer is not None:
        counter.normalizer = backend.normalizer
    cuts = [backend.pre_tokenizer, *([] if further is None else [further])]
    counter.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    trainer = trainers.BpeTrainer(vocab_size=0, show_progress=False)
    reader.feed(counter, trainer)
    words = json.loads(trainer.__getstate__())["BpeTrainer"]["words"]
    if not any(word.strip("▁") for word in words):
        raise DataError("there is no word to train a tokenizer on: the data is blank")
    return words


def _alphabet(counts: Mapping[str, int], plan: TokenizerPlan) -> set[str]:
    """The characters that are known: those of words, by how often they occur."""
    letters: Counter[str] = Counter()
    for word, count in counts.items():
        for letter in word:
            letters[letter] += count
    least = (plan.min_frequency or 1) if plan.kind == "character" else 1
    ranked = sorted(
        (letter for letter, count in letters.items() if count >= least), key=lambda one: (-letters[one], one)
    )
    if not ranked:
        raise DataError(f"no character occurs {least:,} times in the data: choose a lower min_frequency")
    return set(ranked[: plan.limit_alphabet])
