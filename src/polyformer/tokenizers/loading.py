"""Load the tokenizer of a model folder, whichever files it comes in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from polyformer.errors import TokenizerError
from polyformer.tokenizers.marian import load_marian
from polyformer.tokenizers.sentencepiece import (
    CONTROL,
    USER_DEFINED,
    Piece,
    SentencePieceModel,
    read_sentencepiece,
)
from polyformer.tokenizers.text import ROLES, TextTokenizer, TokenizerSettings
from polyformer.tokenizers.vocabulary_files import (
    CLASS_OF_MODEL_TYPE,
    CONVERT,
    BuiltTokenizer,
    Merges,
    bos_eos_processor,
    build_bpe,
    build_from_sentencepiece,
    build_wordpiece,
)

SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")
CARRIED_ENTRIES = ("model_max_length", "padding_side", "truncation_side", "model_input_names")


def load_tokenizer(folder: str | Path) -> TextTokenizer | None:
    """The tokenizer of a folder, or None when it holds no tokenizer file.

    The first of these decides: tokenizer.json; Marian's source.spm, target.spm and vocab.json; a SentencePiece model
    (tokenizer.model, spiece.model, spm.model); vocab.json with merges.txt; vocab.txt. Beside it are read
    tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja, additional_chat_templates/
    and generation_config.json.

    Raises:
        TokenizerError: a file that is damaged or of a kind that cannot be reproduced, with its name and the remedy.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TokenizerError(f"{folder} is not a folder: give the folder that holds the tokenizer's files")
    config = _read_object(folder / "tokenizer_config.json")
    if (folder / "source.spm").is_file() and not (folder / "tokenizer.json").is_file():
        return load_marian(folder, config, _special_tokens(folder, config))
    built = _build(folder, config)
    if built is None:
        return None
    special = {**built.special_tokens, **_special_tokens(folder, config)}
    additional = (*built.additional_special_tokens, *_additional_special_tokens(folder, config))
    _add_tokens(built.backend, folder, config, {*special.values(), *additional})
    if not (folder / "tokenizer.json").is_file():
        _take_spaces(built.backend, folder, config)
    settings = TokenizerSettings(
        special_tokens=special,
        additional_special_tokens=tuple(dict.fromkeys(additional)),
        chat_templates=_chat_templates(folder, config),
        extra_eos_token_ids=_extra_eos_token_ids(folder, config),
        clean_up_spaces=bool(config.get("clean_up_tokenization_spaces")),
        carried={name: config[name] for name in CARRIED_ENTRIES if name in config},
    )
    tokenizer = TextTokenizer(built.backend, settings)
    if built.around is not None:
        tokenizer.backend.post_processor = built.around(tokenizer.backend, config)
    elif not built.has_template:
        _surround(tokenizer, config, built)
    return tokenizer


def _build(folder: Path, config: Mapping[str, Any]) -> BuiltTokenizer | None:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        # The file says everything: transformers too ignores add_bos_token and the like beside it.
        return BuiltTokenizer(_read_tokenizer_json(whole), {}, has_template=True)
    tokenizer_class = _tokenizer_class(folder, config)
    for name in SENTENCEPIECE_NAMES:
        path = folder / name
        if path.is_file():
            model = _with_renamed_pieces(read_sentencepiece(path), config)
            return _guarded(path, build_from_sentencepiece, model, tokenizer_class, config, str(path))
    path = folder / "vocab.json"
    if path.is_file():
        merges_path = folder / "merges.txt"
        if not merges_path.is_file():
            raise TokenizerError(f"{merges_path} is missing: vocab.json needs it to make a tokenizer")
        vocabulary = _read_vocabulary(path)
        return _guarded(merges_path, build_bpe, vocabulary, _read_merges(merges_path), tokenizer_class, config)
    path = folder / "vocab.txt"
    if path.is_file():
        lines = _read_text(path).split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        vocabulary = {line.removesuffix("\r"): number for number, line in enumerate(lines)}
        return _guarded(path, build_wordpiece, vocabulary, tokenizer_class, config)
    for path in (*sorted(folder.glob("*.tiktoken")), folder / "tekken.json", folder / "tiktoken.model"):
        if path.is_file():
            raise TokenizerError(f"{path} is a tokenizer file of a kind that cannot be read: {CONVERT}")
    return None


def _with_renamed_pieces(model: SentencePieceModel, config: Mapping[str, Any]) -> SentencePieceModel:
    """The config may give new names to pieces that the file keeps free (<unused3>, [control_8])."""
    pieces = list(model.pieces)
    texts = {piece.text for piece in pieces}
    for number, entry in (config.get("added_tokens_decoder") or {}).items():
        content = entry.get("content") if isinstance(entry, Mapping) else None
        if str(number).isdecimal() and int(number) < len(pieces) and isinstance(content, str) and content not in texts:
            kind = CONTROL if entry.get("special") else USER_DEFINED
            pieces[int(number)] = Piece(content, pieces[int(number)].score, kind)
    return replace(model, pieces=pieces)


def _guarded(path: Path, build: Any, *arguments: Any) -> BuiltTokenizer:
    try:
        return build(*arguments)
    except TokenizerError as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise TokenizerError(message) from error
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise TokenizerError(f"{path} does not make a tokenizer ({_one_line(error)}): fetch its files again") from error


def _tokenizer_class(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The class that says how texts are cut; the general ones of transformers say nothing, so the model type does."""
    name = config.get("tokenizer_class")
    if isinstance(name, str) and name not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return name
    model_type = _read_object(folder / "config.json").get("model_type")
    if not isinstance(model_type, str):
        return None
    return CLASS_OF_MODEL_TYPE.get(model_type, f"of model type {model_type}")


# --- reading files ----------------------------------------------------------------------------------------------------


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text (byte {error.start}): fetch the file again") from error
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror or error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} when there is no file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}): fetch the file again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__} where an object should be: fetch it again")
    return value


def _read_tokenizer_json(path: Path) -> Tokenizer:
    text = _read_text(path)
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exceptions
        raise TokenizerError(f"{path} is not a whole tokenizer ({_one_line(error)}): fetch the file again") from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    vocabulary = _read_object(path)
    for token, number in vocabulary.items():
        if not isinstance(number, int) or number < 0:
            raise TokenizerError(f"{path} gives {token!r} the id {number!r}: ids are whole numbers; fetch it again")
    if not vocabulary:
        raise TokenizerError(f"{path} is empty: fetch the file again")
    return vocabulary


def _read_merges(path: Path) -> Merges:
    merges = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise TokenizerError(f"{path} line {number} is not two tokens ({line[:40]!r}): fetch the file again")
        merges.append((left, right))
    return merges


# --- special and added tokens -----------------------------------------------------------------------------------------


def _content(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        return value["content"]
    raise TokenizerError(f"{where} is not a token: it must be a string or an object with content")


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Role -> token; tokenizer_config.json is asked first, special_tokens_map.json where that is silent."""
    older = _read_object(folder / "special_tokens_map.json")
    tokens = {}
    for role in ROLES:
        key = f"{role}_token"
        source, name = (config, "tokenizer_config.json") if key in config else (older, "special_tokens_map.json")
        token = _content(source.get(key), f"{folder / name}: {key}")
        if token is not None:
            tokens[role] = token
    return tokens


def _additional_special_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    older = _read_object(folder / "special_tokens_map.json")
    found: list[str] = []
    for source, name in ((config, "tokenizer_config.json"), (older, "special_tokens_map.json")):
        for key in ("additional_special_tokens", "extra_special_tokens"):
            values = source.get(key) or []
            values = values.values() if isinstance(values, Mapping) else values
            contents = [_content(value, f"{folder / name}: {key}") for value in values]
            found += [content for content in contents if content is not None]
    return tuple(dict.fromkeys(found))


def _add_tokens(backend: Tokenizer, folder: Path, config: Mapping[str, Any], special: set[str]) -> None:
    """Add the tokens that the config lists and the vocabulary files do not hold, under the ids the config gives."""
    listed = config.get("added_tokens_decoder")
    where = folder / "tokenizer_config.json"
    if listed is None:
        where = folder / "added_tokens.json"
        listed = {
            str(number): {"content": content, "special": content in special, "normalized": content not in special}
            for content, number in _read_object(where).items()
        }
    try:
        tokens = {int(number): AddedToken(**_token_fields(entry)) for number, entry in listed.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(f"{where} lists an added token wrongly ({_one_line(error)}): fetch it again") from error
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for number in sorted(tokens):
        token = tokens[number]
        if token.content in known:
            continue
        backend.add_tokens([token])
        if backend.token_to_id(token.content) != number:
            raise TokenizerError(
                f"{where} gives {token.content!r} the id {number}, but the vocabulary files lead to"
                f" {backend.token_to_id(token.content)}: the files do not belong together"
            )


def _take_spaces(backend: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Special tokens that the config describes as objects take the spaces around them, if it says so."""
    older = _read_object(folder / "special_tokens_map.json")
    for role in ROLES:
        key = f"{role}_token"
        entry = config.get(key, older.get(key))
        if isinstance(entry, Mapping) and (entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word")):
            token = AddedToken(**{**_token_fields(entry), "special": True, "normalized": False})
            if backend.token_to_id(token.content) is not None:
                backend.add_special_tokens([token])


def _token_fields(entry: Mapping[str, Any]) -> dict[str, Any]:
    allowed = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: entry[name] for name in allowed if name in entry}


def _surround(tokenizer: TextTokenizer, config: Mapping[str, Any], built: BuiltTokenizer) -> None:
    """Put the beginning and end of sequence around texts, as the config says or else as the tokenizer class does."""
    ends: list[tuple[str, int] | None] = []
    for role, default in (("bos", built.add_bos), ("eos", built.add_eos)):
        wanted = config.get(f"add_{role}_token", default)
        token = tokenizer.settings.special_tokens.get(role)
        if not wanted or token is None:
            ends.append(None)
            continue
        token_id = tokenizer.token_to_id(token)
        ends.append(None if token_id is None else (token, token_id))
    if any(ends):
        tokenizer.backend.post_processor = bos_eos_processor(*ends)


# --- what else the folder says ----------------------------------------------------------------------------------------


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files of their own come before the config's entry, which is one template or a list of named ones."""
    templates = {}
    single = folder / "chat_template.jinja"
    if single.is_file():
        templates["default"] = _read_text(single)
    more = folder / "additional_chat_templates"
    if more.is_dir():
        templates.update({path.stem: _read_text(path) for path in sorted(more.glob("*.jinja"))})
    if templates:
        return templates
    entry = config.get("chat_template")
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    try:
        named = entry.items() if isinstance(entry, Mapping) else [(one["name"], one["template"]) for one in entry]
        templates = dict(named)
    except (TypeError, KeyError) as error:
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'}: chat_template is malformed: fetch it again"
        ) from error
    if not all(isinstance(text, str) for text in (*templates, *templates.values())):
        raise TokenizerError(f"{folder / 'tokenizer_config.json'}: chat_template is malformed: fetch it again")
    return templates


def _extra_eos_token_ids(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids at which generation_config.json ends a text, and those that `TextTokenizer.save` wrote down."""
    ids: list[int] = []
    for source, key in (
        (config, "extra_eos_token_ids"),
        (_read_object(folder / "generation_config.json"), "eos_token_id"),
    ):
        value = source.get(key)
        ids += [value] if isinstance(value, int) else list(value or [])
    return tuple(dict.fromkeys(ids))
