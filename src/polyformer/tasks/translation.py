"""Translation by an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polyformer.errors import GenerationError
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.base import Progress, as_list, require_capability, require_tokenizer
from polyformer.tasks.sequence_to_sequence import (
    fitting,
    generate_from,
    own_options,
    require_words,
    warn_of_unfinished,
)
from polyformer.tokenizers.encodings import warn_of_cuts
from polyformer.tokenizers.marian import MarianTokenizer


@dataclass(frozen=True)
class Translation:
    """A text in another language.

    Attributes:
        text: the translation.
        score: of beam search, its log-probability per token to the power of ``length_penalty``; None otherwise.
    """

    text: str
    score: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


def translate(
    model: Any,
    texts: str | Sequence[str],
    *,
    source_language: str | None = None,
    target_language: str | None = None,
    prefix: str = "",
    truncate: bool = False,
    progress: Progress = None,
    **options: Any,
) -> Any:
    """Translate texts.

    Args:
        source_language, target_language: for models of many languages, as their vocabulary names them: ``"es"`` or
            ``"spa"`` of a Marian model (its ``>>spa<<``), ``"es_XX"`` of mBART. Leave them out for a model of one pair.
        prefix: words that stand before each text, for models that are told so what to do (T5: "translate English to
            German: ").
        truncate: texts longer than the model reads are cut; otherwise they are an error.
        options: of `GenerationSettings`; what the model's own files say is used where they say nothing.

    Returns:
        A `Translation` for one text, a list of them for a list.

    Raises:
        GenerationError: a language the model does not know, a text that is blank or too long, or an unknown option.
    """
    require_capability(model, "translate")
    tokenizer = require_tokenizer(model, "translate")
    given, alone = as_list(texts)
    require_words(given, "translate")
    settings = GenerationSettings.from_options({**own_options(model, options), **options})
    marian = None if target_language is None else tokenizer.token_to_id(f">>{target_language}<<")
    if source_language is not None and (marian is not None or target_language is None):
        raise GenerationError("source_language is for models that are told both languages (mBART): leave it out")
    source_token = _language(tokenizer, source_language)
    if target_language is not None and marian is None:
        settings = settings.replace(forced_bos_token_id=_language(tokenizer, target_language))
    sources, cut = [], 0
    for text in given:
        ids = tokenizer.encode(prefix + text)
        if marian is not None:
            ids = [marian, *ids]
        if source_token is not None:
            ids = _with_language(tokenizer, ids, source_token)
        sources.append(fitting(model, ids, truncate=truncate))
        cut += len(sources[-1]) < len(ids)
    warn_of_cuts(cut, len(given))
    made = generate_from(model, sources, settings, progress=progress)
    warn_of_unfinished(made, options.get("max_new_tokens"))
    results = [Translation((one[0].text or "").strip(), one[0].score) for one in made]
    return results[0] if alone else results


def _language(tokenizer: Any, language: str | None) -> int | None:
    if language is None:
        return None
    found = [tokenizer.token_to_id(form) for form in (language, f"__{language}__")]
    token = next((one for one in found if one is not None and one in tokenizer.special_token_ids), None)
    if token is None:
        raise GenerationError(
            f"the model has no language {language!r}; it has {', '.join(languages(tokenizer)) or 'no language tokens'}"
        )
    return int(token)


def languages(tokenizer: Any) -> list[str]:
    """The languages that a tokenizer has tokens for, as `translate` takes them."""
    found = [code[2:-2] for code in tokenizer.language_codes] if isinstance(tokenizer, MarianTokenizer) else []
    for token_id in sorted(tokenizer.special_token_ids):
        token = tokenizer.id_to_token(token_id)
        if token.startswith(">>") and token.endswith("<<"):
            found.append(token[2:-2])
        elif len(token) == 5 and token[2] == "_" and token[:2].islower() and token[3:].isupper():
            found.append(token)
    return found


def _with_language(tokenizer: Any, ids: list[int], language: int) -> list[int]:
    """The source with its language where the tokenizer had put another one, or else in front (mBART-50) or at the end
    (mBART)."""
    codes = {tokenizer.token_to_id(name) for name in languages(tokenizer)}
    if ids and ids[-1] in codes:
        return [*ids[:-1], language]
    if ids and ids[0] in codes:
        return [language, *ids[1:]]
    raise GenerationError("this tokenizer puts no language into a source: leave source_language out")
