"""How close what a model writes comes to what a person wrote: BLEU and chrF of translations, ROUGE of summaries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from polyformer.errors import CapabilityError, ConfigError
from polyformer.evaluation.base import Document, Evaluation, Progress, texts_of
from polyformer.generation.settings import GenerationSettings
from polyformer.tasks.base import require_tokenizer
from polyformer.tasks.sequence_to_sequence import fitting, generate_from, own_options
from polyformer.training.data.files import require

_SHOWN = 8
_ROUGE = ("rouge1", "rouge2", "rougeL")
_FIRST_SENTENCE = re.compile(r"(?s).*?[.!?](?=\s|$)")


def evaluate_translation(
    model: Any,
    documents: Sequence[Document],
    *,
    source_length: int | None = None,
    prefix: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Translations of each ``source`` beside ``target``.

    Args:
        source_length: longer sources are cut to so many tokens; None cuts only what the model cannot read.
        prefix: words before each source.
        options: of `GenerationSettings`.

    Returns:
        values "bleu" (Papineni et al., 2002) and "chrf" (Popović, 2015), of all documents together as sacrebleu counts
        them (Post, 2018), whose signatures are in the notes.

    Raises:
        CapabilityError: the model does not turn one text into another.
        ConfigError: sacrebleu is not installed.
        DataError: a document lacks a field.
    """
    sacrebleu = _package("sacrebleu")
    targets = texts_of(documents, "target")
    written = write(model, texts_of(documents, "source"), source_length, prefix, options, progress)
    bleu, chrf = sacrebleu.metrics.BLEU(), sacrebleu.metrics.CHRF()
    values = {
        "bleu": float(bleu.corpus_score(written, [targets]).score),
        "chrf": float(chrf.corpus_score(written, [targets]).score),
    }
    notes = [f"BLEU {bleu.get_signature()}", f"chrF {chrf.get_signature()}"]
    return Evaluation("translation", len(documents), values, _shown(documents, written), notes)


def evaluate_summary(
    model: Any,
    documents: Sequence[Document],
    *,
    source_length: int | None = None,
    prefix: str = "",
    progress: Progress | None = None,
    **options: Any,
) -> Evaluation:
    """Summaries of each ``source`` beside ``target``, and beside what needs no model: the first sentence.

    Args: see `evaluate_translation`.

    Returns:
        values "rouge1", "rouge2" and "rougeL" (Lin, 2004): the mean F-measures, with stemming; "exact", the share that
        is the target word for word; and, of the source's first sentence, "lead_rouge1", "lead_rouge2", "lead_rougeL";
        of as many of its first words as the target has, which knows more than a model does, "lead_words_rouge1" ….

    Raises:
        CapabilityError, DataError: as there.
        ConfigError: rouge-score is not installed.
    """
    _package("rouge_score.rouge_scorer")  # before an hour of writing
    sources, targets = texts_of(documents, "source"), texts_of(documents, "target")
    written = write(model, sources, source_length, prefix, options, progress)
    values = rouge(targets, written)
    values["exact"] = sum(map(str.__eq__, targets, written)) / len(targets)
    first = [lead(source) for source in sources]
    cut = [" ".join(source.split()[: len(target.split())]) for source, target in zip(sources, targets)]
    values.update({f"lead_{name}": value for name, value in rouge(targets, first).items()})
    values.update({f"lead_words_{name}": value for name, value in rouge(targets, cut).items()})
    return Evaluation("summary", len(documents), values, _shown(documents, written))


def lead(text: str) -> str:
    """The first sentence of a text: up to the first full stop, question or exclamation mark that a space follows."""
    found = _FIRST_SENTENCE.match(text.strip())
    return found.group() if found else text


def rouge(targets: Sequence[str], written: Sequence[str]) -> dict[str, float]:
    """Mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, with Porter's stemming.

    Raises:
        ConfigError: rouge-score is not installed.
    """
    scorer = _package("rouge_score.rouge_scorer").RougeScorer(_ROUGE, use_stemmer=True)
    scores = [scorer.score(target, one) for target, one in zip(targets, written, strict=True)]
    return {name: sum(score[name].fmeasure for score in scores) / len(scores) for name in _ROUGE}


def write(
    model: Any,
    sources: Sequence[str],
    source_length: int | None,
    prefix: str,
    options: Mapping[str, Any],
    progress: Progress | None,
) -> list[str]:
    """What the model makes of each source."""
    if "translate" not in model.capabilities:
        can = ", ".join(model.capabilities)
        raise CapabilityError(f"this model does not turn one text into another; it can {can}")
    tokenizer = require_tokenizer(model, "read texts")
    if source_length is not None and source_length < 2:
        raise ConfigError(f"source_length is {source_length}, but it must be at least 2")
    settings = GenerationSettings.from_options({**own_options(model, options), **options})
    rows = [fitting(model, tokenizer.encode(prefix + source), truncate=True, limit=source_length) for source in sources]
    return [(one[0].text or "").strip() for one in generate_from(model, rows, settings, progress=progress)]


def _shown(documents: Sequence[Document], written: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"source": document["source"], "target": document["target"], "written": text}
        for document, text in zip(documents[:_SHOWN], written)
    ]


def _package(module: str) -> Any:
    return require(module, "this measure", extra="evaluation")
