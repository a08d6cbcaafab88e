"""Labels, what is written, and retrieval: figures against the libraries of the field, and by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

import polyformer
from polyformer.baselines import RecurrentLM
from polyformer.core.encoder_decoder import EncoderDecoder
from polyformer.errors import CapabilityError, ConfigError, DataError
from polyformer.evaluation import evaluate
from polyformer.evaluation.labels import judged
from polyformer.evaluation.written import lead, rouge
from polyformer.tokenizers.training import train_tokenizer


def test_labels_are_judged_as_scikit_learn_does() -> None:
    random = np.random.default_rng(0)
    names = ["a", "b", "c", "never"]
    true = [names[number] for number in random.integers(0, 3, 60)]
    predicted = [names[number] for number in random.integers(0, 3, 60)]
    values = judged(true, predicted, names)
    assert values["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    table = precision_recall_fscore_support(true, predicted, labels=names, zero_division=0)
    for number, name in enumerate(names):
        found = [values[f"{what}_{name}"] for what in ("precision", "recall", "f1")]
        assert found == pytest.approx([column[number] for column in table[:3]])
    assert values["macro_f1"] == pytest.approx(table[2].mean())


class Judge:
    """Says "long" of texts of more than four letters."""

    labels = ("short", "long")
    capabilities = ("classify",)

    def classify(self, texts: Sequence[str], **options: Any) -> Any:
        assert options == {"top_k": 1, "truncate": True, "progress": None}
        return [[SimpleNamespace(label="long" if len(text) > 4 else "short", score=0.9)] for text in texts]


def test_labels_by_name_and_by_number() -> None:
    documents = [
        {"text": "tree", "label": 0},
        {"text": "forest", "label": "long"},
        {"text": "sea", "label": np.int64(1)},
        {"text": "ocean", "label": 1.0},
    ]
    found = evaluate(Judge(), documents)
    assert found.measure == "labels" and found.documents == 4
    assert found.values["accuracy"] == 0.75 and found.values["recall_long"] == pytest.approx(2 / 3)
    assert found.examples[2] == {"text": "sea", "label": "long", "predicted": "short", "score": 0.9}


@pytest.mark.parametrize("label", ["lengthy", 2, -1, 0.5, True])
def test_a_label_that_the_model_does_not_know(label: Any) -> None:
    with pytest.raises(DataError, match=r"document 1 has the label .*, but the model's are short, long"):
        evaluate(Judge(), [{"text": "tree", "label": label}])


@pytest.fixture(scope="module")
def writer() -> Any:
    """A new encoder-decoder, with a tokenizer."""
    from proof_objectives import translator

    texts = ["one two three four five six seven eight nine ten"] * 3
    tokenizer = train_tokenizer(texts, "character", purpose="encoder-decoder", sentinels=0)
    config: EncoderDecoder.Config = translator()
    made = polyformer.build(config, seed=0)
    made.tokenizer = tokenizer
    return made


def test_translations_are_counted_as_sacrebleu_does(writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = ["the cat sat on the mat today", "a dog barked at the moon all night"]
    written = ["the cat sat on a mat today", "a dog barked at the moon"]
    monkeypatch.setattr("polyformer.evaluation.written.write", lambda *_: written)
    documents = [{"source": "x", "target": target} for target in targets]
    found = evaluate(writer, documents, "translation")
    assert found.values["bleu"] == pytest.approx(BLEU().corpus_score(written, [targets]).score)
    assert found.values["chrf"] == pytest.approx(CHRF().corpus_score(written, [targets]).score)
    assert found.notes[0].startswith("BLEU nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert found.examples[0] == {"source": "x", "target": targets[0], "written": written[0]}


def test_summaries_beside_the_first_sentence(writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = ["A reader of mails. It has colours, v1.2 and more.", "plays games"]
    targets = ["reads mails", "plays games"]
    written = ["mail reader", "plays games"]
    monkeypatch.setattr("polyformer.evaluation.written.write", lambda *_: written)
    found = evaluate(
        writer, [{"source": one, "target": other} for one, other in zip(sources, targets)], "summary", num_beams=2
    ).values
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)

    def mean(texts: Sequence[str], name: str) -> float:
        return float(np.mean([scorer.score(target, one)[name].fmeasure for target, one in zip(targets, texts)]))

    assert found["rouge1"] == pytest.approx(mean(written, "rouge1"))
    assert found["rougeL"] == pytest.approx(mean(written, "rougeL"))
    assert found["exact"] == 0.5
    assert found["lead_rouge1"] == pytest.approx(mean(["A reader of mails.", "plays games"], "rouge1"))
    assert found["lead_words_rouge1"] == pytest.approx(mean(["A reader", "plays games"], "rouge1"))


def test_the_first_sentence() -> None:
    assert lead(" Version 1.2 is out! Get it.") == "Version 1.2 is out!"
    assert lead("no end") == "no end"
    assert rouge(["the cats"], ["a cat"])["rouge1"] == pytest.approx(0.5)  # stems


def test_a_model_writes(writer: Any) -> None:
    documents = [{"source": "one two three four", "target": "five"}, {"source": "six", "target": "seven"}]
    cut = evaluate(writer, documents, "translation", source_length=3, max_new_tokens=6)
    short = [{**document, "source": document["source"][:2]} for document in documents]
    assert [one["written"] for one in cut.examples] == [
        one["written"] for one in evaluate(writer, short, "translation", max_new_tokens=6).examples
    ]
    whole = evaluate(writer, documents, "translation", max_new_tokens=6)
    assert [one["written"] for one in whole.examples] == [
        one.text for one in writer.translate([document["source"] for document in documents], max_new_tokens=6)
    ]
    with pytest.raises(ConfigError, match="source_length is 1"):
        evaluate(writer, documents, "translation", source_length=1)
    with pytest.raises(CapabilityError, match="name the measure, translation or summary"):
        evaluate(writer, documents)


class Pairs:
    """Pictures and texts as vectors that are given."""

    capabilities = ("embed", "embed_images", "classify")
    labels = None

    def embed(self, texts: Sequence[str]) -> Any:
        return np.array([[float(text[0]), float(text[1])] for text in texts])

    def embed_images(self, images: Sequence[Any], progress: Any = None) -> Any:
        return np.array(images, float)


def test_retrieval() -> None:
    documents = [
        {"image": (5, 0), "text": "10"},
        {"image": (0, 3), "text": "01"},
        {"image": (0, 1), "text": "11"},  # nearer to the second text
        {"image": (2, 2), "text": "11"},  # the same text as the third
    ]
    values = evaluate(Pairs(), documents).values
    assert values["text_recall@1"] == 0.75 and values["text_recall@5"] == 1.0
    assert values["image_recall@1"] == 0.75  # the second text is as near to the third picture as to its own
    assert values["chance@1"] == 0.25 and values["chance@5"] == 1.0


def test_a_model_that_tells_nothing_apart_recalls_nothing() -> None:
    documents = [{"image": (1, 1), "text": "10"}, {"image": (1, 1), "text": "20"}, {"image": (1, 1), "text": "30"}]
    values = evaluate(Pairs(), documents).values
    assert values["text_recall@1"] == values["image_recall@1"] == 0.0
    with pytest.raises(DataError, match="at least two"):
        evaluate(Pairs(), documents[:1])


def test_sources(tmp_path: Path) -> None:
    file = tmp_path / "mails.jsonl"
    file.write_text('{"body": "tree", "label": 0, "split": "test"}\n{"body": "sea", "label": 1, "split": "train"}\n')
    assert evaluate(Judge(), file, fields={"text": "body"}).values["accuracy"] == 0.5
    assert evaluate(Judge(), file, split="test", fields={"text": "body"}).values["accuracy"] == 1.0
    assert evaluate(Judge(), file, fields={"text": "body"}).notes[0].startswith("on every part of the data")
    assert not evaluate(Judge(), file, split="test", fields={"text": "body"}).notes
    assert evaluate(Judge(), file, limit=1, fields={"text": "body"}).documents == 1
    with pytest.raises(DataError, match="document 1 has no field 'bdy': did you mean body"):
        evaluate(Judge(), file, fields={"text": "bdy"})
    with pytest.raises(DataError, match="validation"):
        evaluate(Judge(), file, split="validation")
    with pytest.raises(ConfigError, match="limit is 0"):
        evaluate(Judge(), file, limit=0)


def test_measures_that_do_not_fit() -> None:
    model = polyformer.build(RecurrentLM.Config(40, 8), seed=0)
    with pytest.raises(ConfigError, match="no measure 'langage': did you mean language"):
        evaluate(model, [{"text": "a"}], "langage")
    with pytest.raises(CapabilityError, match="cannot classify"):
        evaluate(model, [{"text": "a", "label": 0}], "labels")
    with pytest.raises(CapabilityError, match="does not turn one text into another"):
        evaluate(model, [{"source": "a", "target": "b"}], "translation")
    with pytest.raises(CapabilityError, match="no measure fits this model; it can fill_mask"):
        evaluate(SimpleNamespace(capabilities=("fill_mask",), labels=None), [{"text": "a"}])
