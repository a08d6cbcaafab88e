"""A text tokenizer: text to token ids and back, with its special tokens and chat templates."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from polyformer.errors import TokenizerError
from polyformer.tokenizers.streaming import StreamDecoder, clean_up_spaces

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer knows beside its vocabulary.

    Attributes:
        special_tokens: role ("bos", "eos", "unk", "sep", "pad", "cls", "mask") -> the token's text.
        additional_special_tokens: further tokens that are control marks, not text.
        chat_templates: name -> Jinja source; the unnamed one is called "default".
        extra_eos_token_ids: ids that end a text beside the end-of-sequence token (end of turn, end of message).
        clean_up_spaces: decoding takes out spaces before punctuation, as transformers' clean_up_tokenization_spaces.
        carried: entries of tokenizer_config.json that mean nothing here and are written back by `save`.
    """

    special_tokens: Mapping[str, str] = field(default_factory=dict)
    additional_special_tokens: tuple[str, ...] = ()
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    extra_eos_token_ids: tuple[int, ...] = ()
    clean_up_spaces: bool = False
    carried: Mapping[str, Any] = field(default_factory=dict)


class _TokenText:
    """The text of the token with a role, or None."""

    def __init__(self, role: str):
        self._role = role

    def __get__(self, tokenizer: TextTokenizer, owner: type | None = None) -> str | None:
        return tokenizer.settings.special_tokens.get(self._role)


class _TokenId:
    """The id of the token with a role, or None."""

    def __init__(self, role: str):
        self._role = role

    def __get__(self, tokenizer: TextTokenizer, owner: type | None = None) -> int | None:
        token = tokenizer.settings.special_tokens.get(self._role)
        return None if token is None else tokenizer.token_to_id(token)


class TextTokenizer:
    """Text to token ids and back.

    Wraps a `tokenizers.Tokenizer`; the ids are those of the Hugging Face tokenizer of the same files. Tokens named in
    the settings become special tokens of the vocabulary, and are added to it where they are missing.
    """

    def __init__(self, backend: Tokenizer, settings: TokenizerSettings | None = None):
        self.settings = settings or TokenizerSettings()
        self.backend = backend
        # Copies that cut long texts, by how they do it; see `encodings`.
        self.truncating_backends: dict[tuple[int, int, str], Tokenizer] = {}
        # A tokenizer.json may carry the batch settings of its training run; a text is never cut or filled up silently.
        backend.no_truncation()
        backend.no_padding()
        unknown_roles = sorted(set(self.settings.special_tokens) - set(ROLES))
        if unknown_roles:
            raise TokenizerError(f"unknown special-token role {unknown_roles[0]!r}: the roles are {', '.join(ROLES)}")
        self._mark_special_tokens()

    def _mark_special_tokens(self) -> None:
        added = self.backend.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        plain = {token.content: token for token in added.values() if not token.special}
        by_role = [self.settings.special_tokens[role] for role in ROLES if role in self.settings.special_tokens]
        named = (*by_role, *self.settings.additional_special_tokens)
        missing = [content for content in dict.fromkeys(named) if content not in special]
        tokens = []
        for content in missing:
            token = plain.get(content) or AddedToken(content, normalized=False)
            token.special = True
            tokens.append(token)
        if tokens:
            self.backend.add_special_tokens(tokens)

    # --- text to ids ------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """The token ids of a text.

        Args:
            text: any valid Unicode text.
            add_special_tokens: add what the model expects around a text (beginning of sequence, [CLS] ... [SEP]).
            parse_special: text such as "<|im_end|>" becomes that special token; False takes it as plain text.

        Raises:
            TokenizerError: not a string, or a string that is not valid Unicode (a lone surrogate).
        """
        return self.encode_batch([text], add_special_tokens=add_special_tokens, parse_special=parse_special)[0]

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[list[int]]:
        """The token ids of each text; see `encode`."""
        if isinstance(texts, str):
            raise TokenizerError("encode_batch takes a list of texts; for one text call encode")
        backend = self.backend if parse_special else self._plain_backend
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise TokenizerError(f"text {position} is {type(text).__name__}, not str: decode bytes to str first")
        try:
            # The fast one leaves out where tokens stand in the text.
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError(
                "a text is not valid Unicode (it holds a lone surrogate): read it as UTF-8 with errors='replace'"
            ) from error
        except Exception as error:  # the library raises bare Exceptions
            raise TokenizerError(f"this tokenizer cannot encode the text: {error}") from error
        return [encoding.ids for encoding in encodings]

    @cached_property
    def _plain_backend(self) -> Tokenizer:
        # The switch is a setting of the whole object, not of a call; a copy keeps calls from other threads unharmed.
        description = json.loads(self.backend.to_str())
        if description["model"]["type"] == "Unigram":
            _hide_special_pieces(description)
        copy = Tokenizer.from_str(json.dumps(description))
        copy.encode_special_tokens = True
        return copy

    # --- ids to text ------------------------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids. Ids outside the vocabulary (padding of an embedding table) have no text.

        Raises:
            TokenizerError: an id is negative or not an integer.
        """
        try:
            text = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise TokenizerError("token ids must be integers from 0 to 2**32 - 1") from error
        return clean_up_spaces(text) if self._cleans_up else text

    def decode_batch(self, batch: Sequence[Sequence[int]], *, skip_special_tokens: bool = True) -> list[str]:
        """The text of each list of token ids; see `decode`."""
        return [self.decode(ids, skip_special_tokens=skip_special_tokens) for ids in batch]

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """A decoder that takes ids one at a time; its pieces, joined, equal `decode` of all the ids."""
        skipped = self.special_token_ids if skip_special_tokens else frozenset()
        return StreamDecoder(self.backend, skipped_ids=skipped, clean_up=self._cleans_up)

    @cached_property
    def _cleans_up(self) -> bool:
        # transformers ignores the setting for BPE, whose spaces are part of the text.
        return self.settings.clean_up_spaces and type(self.backend.model).__name__ != "BPE"

    # --- the vocabulary ---------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. (A network may have more rows, for alignment.)"""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary writes it ("Ġthe", "▁the"), or None."""
        return self.backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token with this id as the vocabulary writes it, or None."""
        return self.backend.id_to_token(token_id) if token_id >= 0 else None

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of all special tokens: those that `decode` skips."""
        return frozenset(
            token_id for token_id, token in self.backend.get_added_tokens_decoder().items() if token.special
        )

    bos_token = _TokenText("bos")
    eos_token = _TokenText("eos")
    unk_token = _TokenText("unk")
    sep_token = _TokenText("sep")
    pad_token = _TokenText("pad")
    cls_token = _TokenText("cls")
    mask_token = _TokenText("mask")
    bos_token_id = _TokenId("bos")
    eos_token_id = _TokenId("eos")
    unk_token_id = _TokenId("unk")
    sep_token_id = _TokenId("sep")
    pad_token_id = _TokenId("pad")
    cls_token_id = _TokenId("cls")
    mask_token_id = _TokenId("mask")

    @cached_property
    def sentinel_token_ids(self) -> tuple[int, ...]:
        """Ids of <extra_id_0>, <extra_id_1>, ..., which stand for masked spans (T5); empty where there are none."""
        found: list[int] = []
        while (token_id := self.token_to_id(f"<extra_id_{len(found)}>")) is not None:
            found.append(token_id)
        return tuple(found)

    @cached_property
    def fill_in_the_middle_ids(self) -> Mapping[str, int]:
        """Ids of the marks "prefix", "middle", "suffix" and "pad" of code models, those that there are."""
        spellings = ("<|fim_{}|>", "<fim_{}>", "<fim-{}>")
        found = {}
        for part in ("prefix", "middle", "suffix", "pad"):
            ids = [self.token_to_id(spelling.format(part)) for spelling in spellings]
            known = [token_id for token_id in ids if token_id is not None]
            if known:
                found[part] = known[0]
        return found

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what tokenizer.json says: tokenizers with the same one give the same ids.

        Entries that are null, false or empty are left out, so that one which a later library adds changes nothing.
        """
        description = _without_blanks(json.loads(self.backend.to_str()))
        text = json.dumps(description, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text: the end-of-sequence token, then ends of turn or message where the files name them."""
        first = () if self.eos_token_id is None else (self.eos_token_id,)
        return tuple(dict.fromkeys((*first, *self.settings.extra_eos_token_ids)))

    # --- conversations ----------------------------------------------------------------------------------------------

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Name -> Jinja source of every chat template."""
        return self.settings.chat_templates

    @property
    def chat_template(self) -> str | None:
        """The default chat template, or None."""
        return self.settings.chat_templates.get("default")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text that a conversation becomes.

        Args:
            messages: {"role": ..., "content": text or list of {"type": "text", "text": ...}} each.
            add_generation_prompt: end with the opening of the assistant's answer.
            chat_template: the name of one of this tokenizer's templates, or a Jinja source. Default: "tool_use" when
                there are tools and such a template, else "default".
            tools: JSON schemas of functions the model may call; documents: {"title", "text"} each.
            variables: passed to the template.

        Raises:
            TokenizerError: no template, a malformed message, or a template that fails or does too much work.
        """
        from polyformer.tokenizers.chat_template import render_chat_template  # Jinja costs a plain generation nothing

        source = self._choose_template(chat_template, has_tools=tools is not None)
        marks = {f"{role}_token": token for role, token in self.settings.special_tokens.items()}
        variables = {**marks, **variables, "tools": tools, "documents": documents}
        return render_chat_template(source, messages, add_generation_prompt=add_generation_prompt, variables=variables)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation; the template writes its special tokens itself. See `apply_chat_template`."""
        return self.encode(self.apply_chat_template(messages, **options), add_special_tokens=False)

    def _choose_template(self, choice: str | None, *, has_tools: bool) -> str:
        templates = self.settings.chat_templates
        if choice is not None:
            return templates.get(choice, choice)
        if has_tools and "tool_use" in templates:
            return templates["tool_use"]
        if "default" in templates:
            return templates["default"]
        if templates:
            raise TokenizerError(f"choose a chat template by name: {', '.join(sorted(templates))}")
        raise TokenizerError(
            "this tokenizer has no chat template (it is probably a base model): pass chat_template, or a plain prompt"
        )

    # --- files ------------------------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads with equal ids.

        Raises:
            TokenizerError: the folder cannot be written.
        """
        config: dict[str, Any] = {**self.settings.carried, "tokenizer_class": "PreTrainedTokenizerFast"}
        config.update({f"{role}_token": token for role, token in self.settings.special_tokens.items()})
        if self.settings.additional_special_tokens:
            config["additional_special_tokens"] = list(self.settings.additional_special_tokens)
        config["clean_up_tokenization_spaces"] = self.settings.clean_up_spaces
        if set(self.chat_templates) == {"default"}:
            config["chat_template"] = self.chat_templates["default"]
        elif self.chat_templates:
            config["chat_template"] = [
                {"name": name, "template": template} for name, template in self.chat_templates.items()
            ]
        if self.settings.extra_eos_token_ids:
            config["extra_eos_token_ids"] = list(self.settings.extra_eos_token_ids)
        target = Path(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
            _write_atomically(target / "tokenizer.json", self.backend.to_str())
            text = json.dumps(config, ensure_ascii=False, indent=2, sort_keys=True)
            _write_atomically(target / "tokenizer_config.json", text + "\n")
        except OSError as error:
            raise TokenizerError(f"cannot write the tokenizer to {target}: {error.strerror or error}") from error


def _hide_special_pieces(description: dict[str, Any]) -> None:
    """Keep a unigram model from finding special tokens in a text by itself: they are pieces like any other to it.

    Their pieces get names that no text holds. Ids stay: added tokens that are pieces take none of their own.
    """
    pieces = description["model"]["vocab"]
    texts = {text for text, _ in pieces}
    special = {token["content"] for token in description["added_tokens"] if token["special"]} & texts
    secret = secrets.token_hex(16)
    description["model"]["vocab"] = [
        [f"{secret} {number}" if text in special else text, score] for number, (text, score) in enumerate(pieces)
    ]
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] not in special]


def _without_blanks(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_blanks(inner)
            for name, inner in value.items()
            if inner is not None and inner is not False and inner != [] and inner != {}
        }
    return [_without_blanks(inner) for inner in value] if isinstance(value, list) else value


def _write_atomically(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
