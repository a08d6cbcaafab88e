"""Build tokenizers from vocabulary files: byte-level BPE, word-end BPE, WordPiece and SentencePiece.

Such files hold the vocabulary only. How a text is cut before the vocabulary is used depends on the tokenizer class that
the model was trained with, which tokenizer_config.json (or config.json's model type) names; each class is one entry of
the tables below. A class that is not there is refused: a guess would give wrong ids without any error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from polyformer.errors import TokenizerError
from polyformer.tokenizers.sentencepiece import CONTROL, SPACE, Piece, SentencePieceModel, build_sentencepiece

CONVERT = (
    "convert it to tokenizer.json with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
)
WORD_END = "</w>"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
T5_SENTINELS = 100

Config = Mapping[str, Any]  # tokenizer_config.json
Merges = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class BuiltTokenizer:
    """A tokenizer, and what its class says where the config is silent."""

    backend: Tokenizer
    special_tokens: Mapping[str, str]
    additional_special_tokens: tuple[str, ...] = ()
    add_bos: bool = False
    add_eos: bool = False
    has_template: bool = False  # the special tokens around a text are set already (BERT, RoBERTa, T5, CLIP)
    around: Callable[[Tokenizer, Config], Any] | None = None  # makes that template when all tokens are known


def byte_level_pre_tokenizer(pattern: str | None = None, *, add_prefix_space: bool = False) -> Any:
    """Bytes as printable characters, after a cut into words: GPT-2's own pattern, or another one."""
    if pattern is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )


def bos_eos_processor(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> processors.TemplateProcessing:
    """Puts these (token, id) before and after every text, and around both texts of a pair."""
    before = [f"{bos[0]}:0"] if bos else []
    after = [f"{eos[0]}:0"] if eos else []
    second = [part.replace(":0", ":1") if part.endswith(":0") else part for part in (*before, "$B:0", *after)]
    single = [*before, "$A:0", *after]
    return processors.TemplateProcessing(
        single=single, pair=[*single, *second], special_tokens=[token for token in (bos, eos) if token]
    )


# --- byte-level and word-end BPE: vocab.json and merges.txt -----------------------------------------------------------


def _gpt2(vocabulary: dict[str, int], merges: Merges, config: Config) -> BuiltTokenizer:
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = byte_level_pre_tokenizer(add_prefix_space=bool(config.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return BuiltTokenizer(backend, {"unk": end, "bos": end, "eos": end} if end in vocabulary else {})


def _qwen2(vocabulary: dict[str, int], merges: Merges, config: Config) -> BuiltTokenizer:
    built = _gpt2(vocabulary, merges, config)
    built.backend.normalizer = normalizers.NFC()
    prefix = bool(config.get("add_prefix_space"))
    built.backend.pre_tokenizer = byte_level_pre_tokenizer(QWEN2_SPLIT, add_prefix_space=prefix)
    end = "<|endoftext|>"
    return BuiltTokenizer(built.backend, {"unk": end, "eos": end, "pad": end})


def _roberta(vocabulary: dict[str, int], merges: Merges, config: Config) -> BuiltTokenizer:
    built = _gpt2(vocabulary, merges, config)
    tokens = {
        "bos": "<s>",
        "eos": "</s>",
        "unk": "<unk>",
        "sep": "</s>",
        "pad": "<pad>",
        "cls": "<s>",
        "mask": "<mask>",
    }
    cls, sep = (str(_named(config, f"{role}_token") or tokens[role]) for role in ("cls", "sep"))
    built.backend.post_processor = processors.RobertaProcessing(
        (sep, _required(vocabulary, sep)),
        (cls, _required(vocabulary, cls)),
        add_prefix_space=bool(config.get("add_prefix_space")),
        trim_offsets=True,
    )
    return BuiltTokenizer(built.backend, tokens, has_template=True)


def _openai_gpt(vocabulary: dict[str, int], merges: Merges, config: Config) -> BuiltTokenizer:
    unk = str(_named(config, "unk_token") or "<unk>")
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END, unk_token=unk))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.BPEDecoder(suffix=WORD_END)
    return BuiltTokenizer(backend, {"unk": unk})


def _whisper(vocabulary: dict[str, int], merges: Merges, config: Config) -> BuiltTokenizer:
    built = _gpt2(vocabulary, merges, config)
    end = "<|endoftext|>"
    return BuiltTokenizer(built.backend, {"unk": end, "bos": end, "eos": end}, around=_whisper_processor)


def _whisper_processor(backend: Tokenizer, config: Config) -> processors.TemplateProcessing:
    """<|startoftranscript|>, the language and the task if the config names them, <|notimestamps|>; text; the end."""
    before = ["<|startoftranscript|>"]
    if config.get("language"):
        before.append(f"<|{config['language']}|>")
    if config.get("task"):
        before.append(f"<|{config['task']}|>")
    if not config.get("predict_timestamps"):
        before.append("<|notimestamps|>")
    end = _named(config, "eos_token") or "<|endoftext|>"
    return around_processor(backend, before, [end])


CLIP_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def _clip(vocabulary: dict[str, int], merges: Merges, config: Config) -> BuiltTokenizer:
    """Lower case, words with a mark at their end (Radford et al. 2021, section 2.4)."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    unknown = str(_named(config, "unk_token") or end)
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END, unk_token=unknown))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    backend.decoder = decoders.Sequence(
        [decoders.ByteLevel(), decoders.Replace(WORD_END, " "), decoders.Strip(" ", 0, 1)]
    )
    tokens = {"unk": unknown, "bos": start, "eos": end, "pad": end}
    first, last = (str(_named(config, f"{role}_token") or tokens[role]) for role in ("bos", "eos"))
    backend.post_processor = bos_eos_processor(
        (first, _required(vocabulary, first)), (last, _required(vocabulary, last))
    )
    return BuiltTokenizer(backend, tokens, has_template=True)


BPE_CLASSES: dict[str, Callable[[dict[str, int], Merges, Config], BuiltTokenizer]] = {
    "GPT2Tokenizer": _gpt2,
    "Qwen2Tokenizer": _qwen2,
    "RobertaTokenizer": _roberta,
    "BartTokenizer": _roberta,
    "OpenAIGPTTokenizer": _openai_gpt,
    "WhisperTokenizer": _whisper,
    "CLIPTokenizer": _clip,
}


def build_bpe(
    vocabulary: dict[str, int], merges: Merges, tokenizer_class: str | None, config: Config
) -> BuiltTokenizer:
    """A tokenizer from vocab.json and merges.txt.

    Without a class name, a vocabulary with word-end marks is openai-gpt's and any other is GPT-2's.

    Raises:
        TokenizerError: a class that is not known; a special token that is not in the vocabulary.
    """
    if tokenizer_class is None:
        ends = any(token.endswith(WORD_END) for token in vocabulary)
        tokenizer_class = "OpenAIGPTTokenizer" if ends else "GPT2Tokenizer"
    return _choose(BPE_CLASSES, tokenizer_class, "vocab.json and merges.txt")(vocabulary, merges, config)


# --- WordPiece: vocab.txt ---------------------------------------------------------------------------------------------

BERT_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
BERT_TOKENS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}


def build_wordpiece(vocabulary: dict[str, int], tokenizer_class: str | None, config: Config) -> BuiltTokenizer:
    """BERT's tokenizer (Devlin et al. 2018): basic cutting at spaces and punctuation, then the longest pieces.

    Reads do_lower_case (default True), strip_accents (default: as do_lower_case) and tokenize_chinese_chars (True).

    Raises:
        TokenizerError: a class that is not known, an option that is not supported, special tokens missing.
    """
    if tokenizer_class is not None:
        _choose(dict.fromkeys(BERT_CLASSES, True), tokenizer_class, "vocab.txt")
    if config.get("do_basic_tokenize") is False:
        raise TokenizerError("tokenizer_config.json sets do_basic_tokenize to false, which is not supported")
    tokens = {role: str(_named(config, f"{role}_token") or token) for role, token in BERT_TOKENS.items()}
    backend = Tokenizer(WordPiece(vocab=vocabulary, unk_token=tokens["unk"]))
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = cls_sep_processor(
        (tokens["cls"], _required(vocabulary, tokens["cls"])), (tokens["sep"], _required(vocabulary, tokens["sep"]))
    )
    _required(vocabulary, tokens["unk"])
    return BuiltTokenizer(backend, tokens, has_template=True)


def cls_sep_processor(cls: tuple[str, int], sep: tuple[str, int]) -> processors.TemplateProcessing:
    """BERT's [CLS] text [SEP], and [CLS] text [SEP] other [SEP] for pairs."""
    return processors.TemplateProcessing(
        single=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0"],
        pair=[f"{cls[0]}:0", "$A:0", f"{sep[0]}:0", "$B:1", f"{sep[0]}:1"],
        special_tokens=list(dict([cls, sep]).items()),
    )


# --- SentencePiece: tokenizer.model, spiece.model, spm.model ----------------------------------------------------------


def _llama(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    backend = build_sentencepiece(model, where)
    prefix = config.get("add_prefix_space")
    has_prefix = model.add_dummy_prefix if prefix is None else bool(prefix)
    if config.get("legacy") is False:
        # A prefix space in front of the whole text only, not after each special token.
        scheme = "first" if has_prefix else "never"
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    elif has_prefix != model.add_dummy_prefix:
        steps = [normalizers.Prepend(SPACE)] if has_prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return BuiltTokenizer(backend, model.special_tokens(), add_bos=True)


def _gemma(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    built = _plain_sentencepiece(model, config, where)
    turns = tuple(mark for mark in ("<start_of_turn>", "<end_of_turn>") if built.backend.token_to_id(mark) is not None)
    return BuiltTokenizer(built.backend, model.special_tokens(), turns, add_bos=True)


def _t5(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    backend = _by_words(model, where)
    eos = str(_named(config, "eos_token") or model.special_tokens().get("eos", "</s>"))
    eos_id = backend.token_to_id(eos)
    if eos_id is None:
        raise TokenizerError(f"{where} has no {eos}: name the end-of-sequence token in tokenizer_config.json")
    backend.post_processor = bos_eos_processor(None, (eos, eos_id))
    # The sentinels that stand for masked spans are not in the file; they follow its pieces, the last one first.
    count = int(config.get("extra_ids", T5_SENTINELS))
    sentinels = tuple(f"<extra_id_{number}>" for number in range(count))
    missing = [sentinel for sentinel in reversed(sentinels) if backend.token_to_id(sentinel) is None]
    backend.add_special_tokens(missing)
    return BuiltTokenizer(backend, model.special_tokens(), sentinels, has_template=True)


def around_processor(backend: Tokenizer, before: Sequence[str], after: Sequence[str]) -> processors.TemplateProcessing:
    """Puts these tokens before and after a text, and once around a pair of texts.

    Raises:
        TokenizerError: one of them is not in the vocabulary.
    """
    ids = {token: backend.token_to_id(token) for token in (*before, *after)}
    missing = [token for token, number in ids.items() if number is None]
    if missing:
        raise TokenizerError(f"the vocabulary has no {missing[0]}, which stands around texts: fetch its files again")
    return processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=list(ids.items())
    )


# The codes of languages that follow the vocabulary (Liu et al. 2020; Tang et al. 2020).
# fmt: off
MBART_LANGUAGES = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT", "ja_XX",
    "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK", "tr_TR", "vi_VN",
    "zh_CN",
)
MBART50_LANGUAGES = (
    *MBART_LANGUAGES,
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK", "ml_IN", "mn_MN",
    "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK",
    "xh_ZA", "gl_ES", "sl_SI",
)
# fmt: on
FAIRSEQ_TOKENS = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}


def _renumbered(model: SentencePieceModel, before: Sequence[Piece], skip: int, after: Sequence[str]) -> Any:
    """The model with its first ``skip`` pieces replaced, and more behind: as fairseq numbers a vocabulary."""
    last = [Piece(text, 0.0, CONTROL) for text in after]
    unknown = next(number for number, piece in enumerate(before) if piece.text == "<unk>")
    return replace(model, pieces=[*before, *model.pieces[skip:], *last], unk_id=unknown)


FAIRSEQ_START = [Piece(text, 0.0, CONTROL) for text in ("<s>", "<pad>", "</s>", "<unk>")]


def _by_words(model: SentencePieceModel, where: str, *, prefix: bool = True) -> Tokenizer:
    """A text is cut at spaces first, and every word begins with the mark of a space."""
    backend = build_sentencepiece(model, where)
    backend.normalizer = normalizers.Precompiled(model.precompiled_charsmap) if model.precompiled_charsmap else None
    scheme = "always" if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    return backend


def _pair_of_ends(backend: Tokenizer) -> processors.TemplateProcessing:
    """RoBERTa's <s> text </s>, and <s> text </s></s> other </s> for pairs."""
    return processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("<s>", "</s>")],
    )


def _xlm_roberta(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    prefix = bool(config.get("add_prefix_space", True))
    backend = _by_words(_renumbered(model, FAIRSEQ_START, 3, ["<mask>"]), where, prefix=prefix)
    backend.post_processor = _pair_of_ends(backend)
    return BuiltTokenizer(backend, FAIRSEQ_TOKENS, has_template=True)


def _camembert(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    # The vocabulary of another program stands before the file's own <s> and </s>, which are used.
    names = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED")
    start = [Piece(name, -100.0 if name == "<unk>NOTUSED" else 0.0, CONTROL) for name in names]
    backend = _by_words(
        _renumbered(model, start, 1, ["<mask>"]), where, prefix=bool(config.get("add_prefix_space", True))
    )
    backend.post_processor = _pair_of_ends(backend)
    return BuiltTokenizer(backend, FAIRSEQ_TOKENS, has_template=True)


def _mbart(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    backend = _by_words(_renumbered(model, FAIRSEQ_START, 3, [*MBART_LANGUAGES, "<mask>"]), where)
    backend.post_processor = around_processor(backend, [], ["</s>", str(config.get("src_lang") or "en_XX")])
    return BuiltTokenizer(backend, FAIRSEQ_TOKENS, MBART_LANGUAGES, has_template=True)


def _mbart50(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    backend = _by_words(_renumbered(model, FAIRSEQ_START, 3, [*MBART50_LANGUAGES, "<mask>"]), where)
    backend.post_processor = around_processor(backend, [str(config.get("src_lang") or "en_XX")], ["</s>"])
    tokens = {role: token for role, token in FAIRSEQ_TOKENS.items() if role != "bos"}
    return BuiltTokenizer(backend, tokens, MBART50_LANGUAGES, has_template=True)


def _pegasus(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    # Tokens of pretraining stand between the first two pieces and the others (Zhang et al. 2020).
    offset = int(config.get("offset", 103))
    unused = tuple(f"<unk_{number}>" for number in range(2, offset))
    names = ("<pad>", "</s>", "<mask_1>", "<mask_2>", *unused)
    pieces = [Piece(name, -100.0 if name in unused else 0.0, CONTROL) for name in names]
    renumbered = replace(model, pieces=[*pieces, *model.pieces[2:]], unk_id=model.unk_id + offset)
    backend = _by_words(renumbered, where)
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    steps = [normalizers.Precompiled(model.precompiled_charsmap)] if model.precompiled_charsmap else []
    backend.normalizer = normalizers.Sequence([*steps, spaces])
    backend.post_processor = around_processor(backend, [], ["</s>"])
    tokens = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask_2>"}
    return BuiltTokenizer(backend, tokens, ("<mask_1>", *unused), has_template=True)


def _siglip(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    """Lower case and no punctuation (the "canonicalize" of Big Vision), then T5's way."""
    backend = _by_words(model, where)
    steps: list[Any] = [normalizers.Lowercase()] if config.get("do_lower_case", True) else []
    steps.append(normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""))
    if model.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.precompiled_charsmap))
    backend.normalizer = normalizers.Sequence(steps)
    backend.post_processor = around_processor(backend, [], ["</s>"])
    return BuiltTokenizer(backend, {"eos": "</s>", "unk": "<unk>", "pad": "</s>"}, has_template=True)


def _plain_sentencepiece(model: SentencePieceModel, config: Config, where: str) -> BuiltTokenizer:
    return BuiltTokenizer(build_sentencepiece(model, where), model.special_tokens())


SENTENCEPIECE_CLASSES: dict[str, Callable[[SentencePieceModel, Config, str], BuiltTokenizer]] = {
    "LlamaTokenizer": _llama,
    "CodeLlamaTokenizer": _llama,
    "GemmaTokenizer": _gemma,
    "T5Tokenizer": _t5,
    "MT5Tokenizer": _t5,
    "XLMRobertaTokenizer": _xlm_roberta,
    "CamembertTokenizer": _camembert,
    "MBartTokenizer": _mbart,
    "MBart50Tokenizer": _mbart50,
    "PegasusTokenizer": _pegasus,
    "SiglipTokenizer": _siglip,
    "PreTrainedTokenizer": _plain_sentencepiece,
}


def build_from_sentencepiece(
    model: SentencePieceModel, tokenizer_class: str | None, config: Config, where: str
) -> BuiltTokenizer:
    """A tokenizer from a SentencePiece model.

    Without a class name, the file alone decides, and no special tokens are put around a text unless the config asks.

    Raises:
        TokenizerError: a class that is not known (several change the file's ids), or a model kind not supported.
    """
    name = tokenizer_class or "PreTrainedTokenizer"
    return _choose(SENTENCEPIECE_CLASSES, name, "a SentencePiece model")(model, config, where)


# --- shared -----------------------------------------------------------------------------------------------------------

CLASS_OF_MODEL_TYPE = {
    "gpt2": "GPT2Tokenizer",
    "gpt_neo": "GPT2Tokenizer",
    "gptj": "GPT2Tokenizer",
    "gpt_bigcode": "GPT2Tokenizer",
    "starcoder2": "GPT2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "bart": "BartTokenizer",
    "openai-gpt": "OpenAIGPTTokenizer",
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "llama": "LlamaTokenizer",
    "mistral": "LlamaTokenizer",
    "mixtral": "LlamaTokenizer",
    "phi3": "LlamaTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "t5": "T5Tokenizer",
    "mt5": "T5Tokenizer",
    "umt5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "mbart": "MBartTokenizer",
    "pegasus": "PegasusTokenizer",
    "whisper": "WhisperTokenizer",
    "marian": "MarianTokenizer",
    "clip": "CLIPTokenizer",
    "clip_text_model": "CLIPTokenizer",
    "siglip": "SiglipTokenizer",
    "siglip_text_model": "SiglipTokenizer",
}


def _named(config: Config, key: str) -> str | None:
    value = config.get(key)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _required(vocabulary: Mapping[str, int], token: str) -> int:
    if token not in vocabulary:
        raise TokenizerError(f"the vocabulary has no {token}: name the special tokens in tokenizer_config.json")
    return vocabulary[token]


def _choose(table: Mapping[str, Any], tokenizer_class: str, files: str) -> Any:
    name = tokenizer_class.removesuffix("Fast")
    if name not in table:
        raise TokenizerError(
            f"the tokenizer class {tokenizer_class} cannot be built from {files}"
            f" (known: {', '.join(sorted(table))}): {CONVERT}"
        )
    return table[name]
