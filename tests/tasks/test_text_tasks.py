"""Tasks on texts against transformers' pipelines with the same weights, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from sentences import SENTENCES

import polyformer
from polyformer.errors import CapabilityError, ConfigError, GenerationError, TokenizerError, TruncationWarning
from polyformer.tasks.tagging import _entities, _Word

Load = Callable[..., Any]


# --- masked words -------------------------------------------------------------------------------------------------


def test_fill_mask_is_the_references(load: Load) -> None:
    model, folder = load(transformers.BertForMaskedLM)
    texts = ["Paris is the [MASK] of France.", "the [MASK] fox jumps over the [MASK] dog", "[MASK]"]
    pipeline = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    results = model.fill_mask(texts, top_k=4)
    for text, ours in zip(texts, results, strict=True):
        theirs = pipeline(text, top_k=4)
        places = (ours, theirs) if isinstance(theirs[0], list) else ([ours], [theirs])
        for our_place, their_place in zip(*places, strict=True):
            assert [guess.token_id for guess in our_place] == [one["token"] for one in their_place]
            for guess, one in zip(our_place, their_place, strict=True):
                assert guess.score == pytest.approx(one["score"], rel=1e-4)
    best = results[0][0]  # with another vocabulary (training it is not always the same) it may go on with a word
    space = "" if pipeline.tokenizer.convert_ids_to_tokens(best.token_id).startswith("##") else " "
    assert best.text == f"Paris is the{space}{best.token} of France."
    first, second = model.fill_mask(texts[1], top_k=1)
    assert first[0].text.endswith("fox jumps over the [MASK] dog")
    assert second[0].text.startswith("the [MASK] fox jumps over the")


def test_fill_mask_with_targets(load: Load) -> None:
    model, _ = load(transformers.BertForMaskedLM)
    text = "the [MASK] of france"
    every = {guess.token_id: guess.score for guess in model.fill_mask(text, top_k=1000)}
    assert sum(every.values()) == pytest.approx(1)
    chosen = model.fill_mask(text, targets=["the", "of"])
    assert {guess.token for guess in chosen} == {"the", "of"}
    assert all(guess.score == pytest.approx(every[guess.token_id]) for guess in chosen)
    with pytest.raises(GenerationError, match=r"the target 'qqqq' is not one token of the vocabulary, but \[UNK\]"):
        model.fill_mask(text, targets=["qqqq"])
    with pytest.raises(GenerationError, match="'again and' is not one token of the vocabulary, but again, and"):
        model.fill_mask(text, targets=["again and"])
    with pytest.raises(GenerationError, match=r"text 1 has no \[MASK\]: write it where a word is missing"):
        model.fill_mask([text, "nothing here"])
    with pytest.raises(GenerationError, match="top_k is 0"):
        model.fill_mask(text, top_k=0)


# --- labels -------------------------------------------------------------------------------------------------------

NAMES = {0: "ham", 1: "spam", 2: "neither"}


@pytest.mark.parametrize("problem_type", [None, "single_label_classification", "multi_label_classification"])
def test_classify_is_the_references(load: Load, problem_type: str | None) -> None:
    model, folder = load(
        transformers.BertForSequenceClassification, id2label=NAMES, problem_type=problem_type, num_labels=3
    )
    assert model.labels == ("ham", "spam", "neither")
    pipeline = transformers.pipeline("text-classification", model=str(folder), device="cpu")
    results = model.classify(SENTENCES)
    for ours, theirs in zip(results, pipeline(SENTENCES, top_k=None), strict=True):
        assert [one.label for one in ours] == [one["label"] for one in theirs]
        for our, their in zip(ours, theirs, strict=True):
            assert our.score == pytest.approx(their["score"], rel=1e-4)
    (best,) = model.classify(SENTENCES[0], top_k=1)
    assert best.to_json() == {"label": results[0][0].label, "score": pytest.approx(results[0][0].score, rel=1e-5)}
    other = model.classify(SENTENCES[0], multi_label=problem_type != "multi_label_classification")
    assert sum(one.score for one in other) != pytest.approx(sum(one.score for one in results[0]))


def test_pairs_and_regression(load: Load) -> None:
    model, folder = load(transformers.BertForSequenceClassification, num_labels=1, problem_type="regression")
    (label,) = model.classify(SENTENCES[0], pairs=SENTENCES[1], truncate=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.BertForSequenceClassification.from_pretrained(folder)
    given = tokenizer(SENTENCES[0], SENTENCES[1], truncation="longest_first", max_length=48, return_tensors="pt")
    assert given["token_type_ids"].any()
    with torch.no_grad():
        expected = float(reference(**given).logits)
    # A sum near zero of numbers near one, in float32: what is left of it has no more than six decimals.
    assert label.score == pytest.approx(expected, rel=1e-4, abs=2e-6)
    with pytest.raises(GenerationError, match="there are 1 texts, but 2 second texts"):
        model.classify("a", pairs=["b", "c"])


@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot_is_the_references(load: Load, multi_label: bool) -> None:
    names = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    model, folder = load(transformers.BertForSequenceClassification, id2label=names, num_labels=3)
    pipeline = transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")
    labels, template = ["tea", "money", "travel"], "this text is about {}"
    ours = model.classify(SENTENCES[:3], labels=labels, multi_label=multi_label, template=template)
    theirs = pipeline(SENTENCES[:3], labels, multi_label=multi_label, hypothesis_template=template)
    for our, their in zip(ours, theirs, strict=True):
        assert [one.label for one in our] == their["labels"]
        assert [one.score for one in our] == pytest.approx(their["scores"], rel=1e-4)
    for mistaken, message in (
        ([], "labels are empty"),
        ("tea", r"labels are a list of words, not one text: labels=\['tea', \.\.\.\]"),
        (["tea", " "], "label 1 is blank"),
        (["tea", "money", "tea"], "the label 'tea' is given twice"),
    ):
        with pytest.raises(GenerationError, match=message):
            model.classify(SENTENCES[0], labels=mistaken)


def test_what_classify_refuses(load: Load) -> None:
    model, folder = load(transformers.BertForSequenceClassification, id2label=NAMES, num_labels=3)
    with pytest.raises(CapabilityError, match="need a model that tells entailment, but this one tells ham, spam"):
        model.classify("x", labels=["a"])
    with pytest.raises(TokenizerError, match=r"text 1 has \d+ tokens, but the model reads at most 48"):
        model.classify(["short", "long " * 60])
    with pytest.warns(TruncationWarning, match="1 of 1 texts were longer"):
        assert len(model.classify("long " * 60, truncate=True)) == 3
    with pytest.raises(CapabilityError, match="this bert model cannot tag; it can classify, embed"):
        model.tag("x")
    values = json.loads((folder / "config.json").read_text())
    values["id2label"] = {"0": "ham", "5": "spam", "2": "neither"}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="id2label must name the labels 0 to 2 of the head"):
        polyformer.load(folder)


def test_label_names_survive(load: Load, tmp_path: Path) -> None:
    model, _ = load(
        transformers.BertForSequenceClassification,
        id2label=NAMES,
        num_labels=3,
        problem_type="multi_label_classification",
    )
    model.save(tmp_path / "out")
    reference = transformers.pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    again = polyformer.load(tmp_path / "out", device="cpu")
    assert again.labels == model.labels and again.problem_type == model.problem_type
    theirs = reference(SENTENCES, top_k=None)
    for ours, once_more, their in zip(model.classify(SENTENCES), again.classify(SENTENCES), theirs, strict=True):
        assert ours == once_more
        assert [one.label for one in ours] == [one["label"] for one in their]
        assert [one.score for one in ours] == pytest.approx([one["score"] for one in their], rel=1e-4)


# --- names --------------------------------------------------------------------------------------------------------

TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_tag_is_the_references(load: Load, strategy: str) -> None:
    model, folder = load(transformers.BertForTokenClassification, id2label=TAGS, num_labels=5)
    pipeline = transformers.pipeline(
        "token-classification", model=str(folder), aggregation_strategy=strategy, device="cpu"
    )
    found = 0
    for text, ours in zip(SENTENCES, model.tag(SENTENCES, strategy=strategy), strict=True):
        theirs = pipeline(text)
        assert [(one.label, one.start, one.end) for one in ours] == [
            (one["entity_group"], one["start"], one["end"]) for one in theirs
        ]
        for our, their in zip(ours, theirs, strict=True):
            assert our.score == pytest.approx(float(their["score"]), rel=1e-3)
            assert our.text == text[our.start : our.end]
        found += len(ours)
    assert found > 20


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-PER I-PER O B-LOC", ["PER:ab", "LOC:d"]),
        ("B-PER B-PER I-PER I-LOC", ["PER:a", "PER:bc", "LOC:d"]),
        ("I-PER I-PER O I-PER", ["PER:ab", "PER:d"]),
        ("B-PER E-PER S-PER I-PER", ["PER:ab", "PER:c", "PER:d"]),
        ("PER PER O LOC", ["PER:ab", "LOC:d"]),
        ("B-PER O I-PER L-PER", ["PER:a", "PER:cd"]),
    ],
)
def test_grouping(labels: str, expected: list[str]) -> None:
    words = [_Word(number, number + 1, label, 0.5) for number, label in enumerate(labels.split())]
    entities = _entities("abcd", words, "O", True)
    assert [f"{one.label}:{one.text}" for one in entities] == expected
    single = _entities("abcd", words, "O", False)
    assert [one.text for one in single] == [letter for letter, word in zip("abcd", words) if word.label != "O"]


def test_an_unknown_strategy(load: Load) -> None:
    model, _ = load(transformers.BertForTokenClassification, id2label=TAGS, num_labels=5)
    assert all(" " not in word.text for word in model.tag(SENTENCES[0], grouped=False))
    with pytest.raises(GenerationError, match="strategy 'last' is not one of first, average, max"):
        model.tag("x", strategy="last")


def test_tag_reads_long_texts_in_windows(load: Load) -> None:
    """Every word is found once, with its place; one window is the same as none."""
    model, folder = load(transformers.BertForTokenClassification, id2label=TAGS, num_labels=5)
    assert model.tag(SENTENCES, stride=8) == model.tag(SENTENCES)
    text = " ".join(SENTENCES)
    with pytest.raises(TokenizerError, match="the model reads at most 48"):
        model.tag(text)
    tokens = model.tokenizer.encode(text, add_special_tokens=False)
    assert len(tokens) > 100
    words = model.tag(text, stride=20, outside="none of these", grouped=False)
    pieces = model.tokenizer.backend.encode(text, add_special_tokens=False)
    expected: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(pieces.word_ids, pieces.offsets, strict=True):
        expected[word] = (min(expected.get(word, (start, end))[0], start), end)
    assert [(one.start, one.end) for one in words] == list(expected.values())
    # Token 49 stands in the second window only (tokens 26 to 71), behind [CLS] and 23 others.
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    windows = tokenizer(text, max_length=48, stride=20, truncation=True, return_overflowing_tokens=True)
    assert windows["input_ids"][1][24] == tokens[49] and len(windows["input_ids"][1]) == 48
    reference = transformers.BertForTokenClassification.from_pretrained(folder)
    with torch.no_grad():
        scores = reference(torch.tensor([windows["input_ids"][1]])).logits[0].softmax(-1)
    start, end = expected[pieces.word_ids[49]]
    first = next(number for number, place in enumerate(pieces.offsets) if place[0] == start)
    middle = next(one for one in words if (one.start, one.end) == (start, end))
    assert middle.score == pytest.approx(float(scores[first - 25].max()), rel=1e-4)
    with pytest.raises(GenerationError, match="leave truncate out"):
        model.tag(text, stride=8, truncate=True)
    with pytest.raises(TokenizerError, match="windows of 48 tokens, of which 2 are special, cannot share 46"):
        model.tag(text, stride=46)


# --- answers ------------------------------------------------------------------------------------------------------


def brute_force(folder: Path, question: str, context: str, longest: int) -> tuple[str, float]:
    """The best answer of a short context, from the definition."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = transformers.BertForQuestionAnswering.from_pretrained(folder)
    given = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, places = given.pop("offset_mapping")[0].tolist(), given.sequence_ids(0)
    with torch.no_grad():
        output = reference(**given)
    inside = [number for number, place in enumerate(places) if place == 1]
    kept = [0, *inside]
    start = dict(zip(kept, output.start_logits[0, kept].double().softmax(-1).tolist(), strict=True))
    end = dict(zip(kept, output.end_logits[0, kept].double().softmax(-1).tolist(), strict=True))
    spans = {(a, b): start[a] * end[b] for a in inside for b in inside if a <= b < a + longest}
    first, last = max(spans, key=lambda span: spans[span])
    return context[offsets[first][0] : offsets[last][1]], spans[first, last]


def test_answer_is_the_best_span(load: Load) -> None:
    model, folder = load(transformers.BertForQuestionAnswering)
    for context in SENTENCES[:3]:
        found = model.answer("Who wrote it?", context, max_answer_tokens=4)
        text, score = brute_force(folder, "Who wrote it?", context, 4)
        assert (found.text, found.score) == (text, pytest.approx(score, rel=1e-4))
        assert context[found.start : found.end] == found.text


def test_answers_in_a_long_context(load: Load) -> None:
    """Every window is judged: the best answer is found wherever it stands, with its place in the whole text."""
    model, _ = load(transformers.BertForQuestionAnswering)
    context = " ".join(SENTENCES * 4)
    answers = model.answer("who", context, top_k=5, max_answer_tokens=3)
    assert len({(one.start, one.end) for one in answers}) == 5
    assert [one.score for one in answers] == sorted((one.score for one in answers), reverse=True)
    assert all(context[one.start : one.end] == one.text for one in answers)
    assert max(one.start for one in model.answer("who", context, top_k=30)) > 300
    empty = model.answer("who", SENTENCES[0], impossible=True, top_k=500)
    assert any(one.text == "" for one in empty)
    with pytest.raises(TokenizerError, match="the question takes"):
        model.answer("why " * 60, context)
    with pytest.raises(GenerationError, match="context 0 is empty"):
        model.answer("who", "  ")
    with pytest.raises(GenerationError, match="there are 2 questions, but 1 contexts"):
        model.answer(["a", "b"], ["c"])


# --- choices and neighbours ---------------------------------------------------------------------------------------


def test_choose_and_follows(load: Load) -> None:
    model, folder = load(transformers.BertForMultipleChoice)
    choices = ["in London", "a dog", "again and again"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(["She lived"] * 3, choices, padding=True, return_tensors="pt")
    reference = transformers.BertForMultipleChoice.from_pretrained(folder)
    with torch.no_grad():
        scores = reference(**{name: part[None] for name, part in given.items()}).logits[0].softmax(-1).tolist()
    found = model.choose("She lived", choices)
    assert {one.label: one.score for one in found} == pytest.approx(dict(zip(choices, scores)), rel=1e-4)
    assert found[0].score == max(scores) or found[0].score == pytest.approx(max(scores))
    with pytest.raises(GenerationError, match="at least two"):
        model.choose("x", ["one"])

    model, folder = load(transformers.BertForNextSentencePrediction)
    # The tokenizers library makes a slightly other vocabulary in each process: the pair must fit into 48 tokens in all.
    sentences = [" ".join(SENTENCES[number].split()[:6]) for number in (2, 5)]
    reference = transformers.BertForNextSentencePrediction.from_pretrained(folder)
    with torch.no_grad():
        expected = float(reference(**tokenizer(*sentences, return_tensors="pt")).logits.softmax(-1)[0, 0])
    assert model.follows(*sentences) == pytest.approx(expected, rel=1e-4)


# --- from the command line ----------------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "polyformer", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_commands(load: Load, tmp_path: Path) -> None:
    model, folder = load(transformers.BertForTokenClassification, id2label=TAGS, num_labels=5)
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCES))
    code, out, _ = run("tag", str(folder), "--input-file", str(file), "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["text"] for line in lines] == SENTENCES
    assert lines[0]["entities"][0]["label"] == model.tag(SENTENCES[0])[0].label

    code, out, error = run("classify", str(folder), "hello")
    assert (code, out) == (2, "") and "cannot classify; it can tag, embed" in error

    _, folder = load(transformers.BertForQuestionAnswering)
    code, out, _ = run("answer", str(folder), "who", "--context", SENTENCES[0])
    assert code == 0 and len(out.splitlines()) == 1
    code, _, error = run("answer", str(folder), "who")
    assert code == 2 and "--context" in error

    _, folder = load(transformers.BertForMaskedLM)
    code, out, _ = run("fill-mask", str(folder), "the [MASK] fox", "--json", "-k", "2")
    assert code == 0 and len(json.loads(out)["masks"][0]) == 2
    code, _, error = run("fill-mask", str(folder), "the fox")
    assert code == 2 and "text 0 has no [MASK]" in error and "Traceback" not in error
