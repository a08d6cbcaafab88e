"""Marian's tokenizer (Junczys-Dowmunt et al. 2018): two SentencePiece models, one for each language, one vocabulary.

The models cut texts into pieces; the ids of pieces are not the models' own but those of ``vocab.json``, which both
languages share. Texts may begin with the code of the language to translate into (``>>fra<<``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel

from polyformer.errors import TokenizerError
from polyformer.tokenizers.sentencepiece import SPACE, build_sentencepiece, parse_sentencepiece
from polyformer.tokenizers.text import TextTokenizer, TokenizerSettings

LANGUAGE_CODE = re.compile(r">>[^<>\s]+<<")
# Entries of tokenizer_config.json that are written back.
CARRIED = ("source_lang", "target_lang", "model_max_length", "separate_vocabs", "sp_model_kwargs")
SPECIAL_TOKENS = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


class MarianTokenizer(TextTokenizer):
    """A `TextTokenizer` whose texts to read and texts to write are cut by different models.

    Args:
        vocabulary: piece -> id, shared by both languages.
        files: the content of ``source.spm`` and ``target.spm``.
        where: the folder, for error messages.
    """

    def __init__(
        self, vocabulary: Mapping[str, int], files: Mapping[str, bytes], settings: TokenizerSettings, where: str
    ):
        unknown = settings.special_tokens["unk"]
        for role, token in settings.special_tokens.items():
            if token not in vocabulary:
                raise TokenizerError(f"{where}/vocab.json has no {token} ({role}): fetch the folder's files again")
        backend = Tokenizer(WordLevel(dict(vocabulary), unk_token=unknown))
        backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        super().__init__(backend, settings)
        self._vocabulary = dict(vocabulary)
        self._files = dict(files)
        self._sides = {name: _pieces_of(data, f"{where}/{name}") for name, data in files.items()}
        special = sorted(settings.special_tokens.values(), key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, special)) + ")")
        self._unknown_id = self._vocabulary[unknown]

    @property
    def language_codes(self) -> tuple[str, ...]:
        """Codes of the languages that the model writes (">>fra<<"); none where it writes only one."""
        return tuple(token for token in self._vocabulary if LANGUAGE_CODE.fullmatch(token))

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[list[int]]:
        """The token ids of each text to be translated."""
        return self._encode(texts, "source.spm", add_special_tokens, parse_special)

    def encode_target(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """The token ids of each translation."""
        return self._encode(texts, "target.spm", add_special_tokens, True)

    def _encode(
        self, texts: Sequence[str], side: str, add_special_tokens: bool, parse_special: bool
    ) -> list[list[int]]:
        if isinstance(texts, str):
            raise TokenizerError("encode_batch takes a list of texts; for one text call encode")
        end = [self._vocabulary[self.settings.special_tokens["eos"]]] if add_special_tokens else []
        batch = []
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TokenizerError(f"text {position} is {type(text).__name__}, not str: decode bytes to str first")
            parts = self._special.split(text) if parse_special else [text]
            ids = [number for part in parts for number in self._ids(part, side, parse_special)]
            batch.append(ids + end)
        return batch

    def _ids(self, part: str, side: str, parse_special: bool) -> list[int]:
        if parse_special and self._special.fullmatch(part):
            return [self._vocabulary[part]]
        first: list[str] = []
        code = re.match(">>.*?<<", part, re.DOTALL) if parse_special else None
        if code is not None:
            first, part = [code.group()], part[code.end() :]
        try:
            cutter = self._sides[side].backend if parse_special else self._sides[side]._plain_backend
            pieces = cutter.encode(part, add_special_tokens=False).tokens
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError(
                "a text is not valid Unicode (it holds a lone surrogate): read it as UTF-8 with errors='replace'"
            ) from error
        return [self._vocabulary.get(piece, self._unknown_id) for piece in (*first, *pieces)]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the files of the layout, which transformers' MarianTokenizer loads with equal ids.

        Raises:
            TokenizerError: the folder cannot be written.
        """
        config: dict[str, Any] = {**self.settings.carried, "tokenizer_class": "MarianTokenizer"}
        config.update({f"{role}_token": token for role, token in self.settings.special_tokens.items()})
        contents = {
            **self._files,
            "vocab.json": _as_json(self._vocabulary),
            "tokenizer_config.json": _as_json(config),
        }
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                _write_atomically(target / name, content)
        except OSError as error:
            raise TokenizerError(f"cannot write the tokenizer to {target}: {error.strerror or error}") from error


def load_marian(folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> MarianTokenizer:
    """The tokenizer of a folder with ``source.spm``, ``target.spm`` and ``vocab.json``.

    Raises:
        TokenizerError: a file is missing or damaged, or the languages have vocabularies of their own.
    """
    if config.get("separate_vocabs"):
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'} sets separate_vocabs: a vocabulary for each language is not supported"
        )
    files = {}
    for name in ("source.spm", "target.spm", "vocab.json"):
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"cannot read {folder / name}: {error.strerror or error}; a Marian tokenizer has source.spm, "
                "target.spm and vocab.json"
            ) from error
    try:
        vocabulary = json.loads(files.pop("vocab.json"))
    except ValueError as error:
        raise TokenizerError(f"{folder / 'vocab.json'} is not valid JSON ({error}): fetch the file again") from error
    if not isinstance(vocabulary, dict) or not all(isinstance(number, int) for number in vocabulary.values()):
        raise TokenizerError(f"{folder / 'vocab.json'} is not an object of pieces and ids: fetch the file again")
    roles = {role: special_tokens.get(role, token) for role, token in SPECIAL_TOKENS.items()}
    carried = {name: config[name] for name in CARRIED if name in config}
    return MarianTokenizer(vocabulary, files, TokenizerSettings(special_tokens=roles, carried=carried), str(folder))


def _pieces_of(data: bytes, where: str) -> TextTokenizer:
    return TextTokenizer(build_sentencepiece(parse_sentencepiece(data, where), where))


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
