"""Tasks with byte-level and SentencePiece tokenizers, whose tokens count spaces to words, and with other families."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from proof import randomise
from sentences import SENTENCES
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BartConfig,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

import polyformer
from polyformer.model import Model

TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
WORDS = ["the cat sat on the mat and saw Ada in Paris", "rivers of café and naïve friends in London"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Trained on a few sentences: RoBERTa's, XLM-R's and BART's."""
    folder = tmp_path_factory.mktemp("bytes")
    trained = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES, vocab_size=420, special_tokens=special, show_progress=False)
    trained.save_model(str(folder))
    files = dict(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    mask = transformers.AddedToken("<mask>", lstrip=True, normalized=False)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=150,
        hard_vocab_limit=False,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    pieces = tmp_path_factory.mktemp("pieces")
    (pieces / "sentencepiece.bpe.model").write_bytes(model.getvalue())
    return {
        "roberta": transformers.RobertaTokenizer(**files, mask_token=mask, model_max_length=40),
        "bart": transformers.RobertaTokenizer(**files, mask_token=mask, model_max_length=40),
        "xlm-roberta": transformers.XLMRobertaTokenizer.from_pretrained(pieces, mask_token=mask, model_max_length=40),
    }


@pytest.fixture(scope="module")
def load(tokenizers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Model, Path]]:
    configs: dict[str, Any] = {
        "roberta": (RobertaConfig, dict(type_vocab_size=1, max_position_embeddings=42, intermediate_size=48)),
        "xlm-roberta": (XLMRobertaConfig, dict(type_vocab_size=1, max_position_embeddings=42, intermediate_size=48)),
        "bart": (
            BartConfig,
            dict(
                max_position_embeddings=40,
                encoder_ffn_dim=48,
                decoder_ffn_dim=48,
                encoder_layers=2,
                decoder_layers=2,
                encoder_attention_heads=4,
                decoder_attention_heads=4,
                d_model=32,
            ),
        ),
    }

    def made(kind: str, hf_class: type, **options: Any) -> tuple[Model, Path]:
        tokenizer = tokenizers[kind]
        config_class, sizes = configs[kind]
        if "id2label" in options:
            options["label2id"] = {name: number for number, name in options["id2label"].items()}
        if kind != "bart":
            sizes = {**sizes, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = config_class(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **sizes,
            **options,
        )
        folder = tmp_path_factory.mktemp(kind)
        randomise(hf_class(config)).eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return polyformer.load(folder, device="cpu"), folder

    return made


@pytest.mark.parametrize(
    "kind, hf_class",
    [("roberta", transformers.RobertaForMaskedLM), ("xlm-roberta", transformers.XLMRobertaForMaskedLM)],
)
def test_fill_mask(load: Callable[..., Any], kind: str, hf_class: type) -> None:
    model, folder = load(kind, hf_class)
    pipeline = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    texts = ["Paris is the <mask> of France.", "the <mask> fox jumps over the <mask> dog", "<mask>"]
    for text, ours in zip(texts, model.fill_mask(texts, top_k=6), strict=True):
        theirs = pipeline(text, top_k=6)
        places = (ours, theirs) if isinstance(theirs[0], list) else ([ours], [theirs])
        for our_place, their_place in zip(*places, strict=True):
            assert [guess.token_id for guess in our_place] == [one["token"] for one in their_place]
            assert [guess.score for guess in our_place] == pytest.approx(
                [one["score"] for one in their_place], rel=1e-4
            )
    # A word that is asked for is the one that stands after a space.
    pieces = [model.tokenizer.id_to_token(number) for number in range(5, model.tokenizer.vocab_size)]
    piece = next(one for one in pieces if one[0] in "Ġ▁" and len(one) > 2 and one[1:].isascii() and one[1:].isalpha())
    (guess,) = model.fill_mask(texts[0], targets=[piece[1:]])
    assert model.tokenizer.id_to_token(guess.token_id) == piece
    assert guess.text == f"Paris is the {piece[1:]} of France."


def test_a_piece_that_goes_on_with_a_word(load: Callable[..., Any]) -> None:
    """It is written onto the word before, and a word after a space."""
    model, _ = load("roberta", transformers.RobertaForMaskedLM)
    for guess in model.fill_mask("the end <mask> here", top_k=400):
        piece = model.tokenizer.id_to_token(guess.token_id)
        if piece.isascii() and piece.isalpha():
            assert guess.text == f"the end{piece} here"
        elif piece.startswith("Ġ") and piece[1:].isascii() and piece[1:].isalpha():
            assert guess.text == f"the end {piece[1:]} here"


@pytest.mark.parametrize(
    "kind, hf_class",
    [
        ("roberta", transformers.RobertaForTokenClassification),
        ("xlm-roberta", transformers.XLMRobertaForTokenClassification),
    ],
)
@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_tag(load: Callable[..., Any], kind: str, hf_class: type, strategy: str) -> None:
    """Against the definition: the pipeline tells words of such tokenizers by a guess that cuts some of them."""
    model, folder = load(kind, hf_class, id2label=TAGS, num_labels=5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = hf_class.from_pretrained(folder)  # type: ignore[attr-defined]
    for text in WORDS:
        given = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            scores = reference(**given).logits[0].double().softmax(-1)
        expected = []
        for number, word in enumerate(text.split()):
            rows = scores[[column for column, one in enumerate(given.word_ids(0)) if one == number]]
            row = {"first": rows[0], "average": rows.mean(0), "max": rows[rows.amax(-1).argmax()]}[strategy]
            if TAGS[int(row.argmax())] != "O":
                expected.append((word, TAGS[int(row.argmax())][2:], pytest.approx(float(row.max()), rel=1e-4)))
        ours = model.tag(text, strategy=strategy, grouped=False)
        assert [(one.text, one.label, one.score) for one in ours] == expected
        assert len(ours) > 3 and all(one.text == text[one.start : one.end] for one in ours)


@pytest.mark.parametrize(
    "kind, hf_class",
    [
        ("roberta", transformers.RobertaForSequenceClassification),
        ("xlm-roberta", transformers.XLMRobertaForSequenceClassification),
        ("bart", transformers.BartForSequenceClassification),
    ],
)
def test_classify_and_zero_shot(load: Callable[..., Any], kind: str, hf_class: type) -> None:
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    model, folder = load(kind, hf_class, id2label=names, num_labels=3)
    texts = [" ".join(text.split()[:4]) for text in SENTENCES]
    theirs = transformers.pipeline("text-classification", model=str(folder), device="cpu")(texts, top_k=None)
    for our, their in zip(model.classify(texts), theirs, strict=True):
        assert [one.label for one in our] == [one["label"] for one in their]
        assert [one.score for one in our] == pytest.approx([one["score"] for one in their], rel=1e-4)
    pipeline = transformers.pipeline("zero-shot-classification", model=str(folder), device="cpu")
    labels, template = ["tea", "fox", "the"], "on {}"
    ours = model.classify(texts[:3], labels=labels, template=template)
    for our, their in zip(ours, pipeline(texts[:3], labels, hypothesis_template=template), strict=True):
        assert [one.label for one in our] == their["labels"]
        assert [one.score for one in our] == pytest.approx(their["scores"], rel=1e-4)


@pytest.mark.parametrize(
    "kind, hf_class",
    [
        ("roberta", transformers.RobertaForQuestionAnswering),
        ("xlm-roberta", transformers.XLMRobertaForQuestionAnswering),
    ],
)
def test_answer(load: Callable[..., Any], kind: str, hf_class: type) -> None:
    model, folder = load(kind, hf_class)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reference = hf_class.from_pretrained(folder)  # type: ignore[attr-defined]
    question, context = "who saw", "the fox saw the dog in Paris"
    given = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
    offsets, places = given.pop("offset_mapping")[0].tolist(), given.sequence_ids(0)
    with torch.no_grad():
        output = reference(**given)
    inside = [number for number, place in enumerate(places) if place == 1]
    kept = [0, *inside]
    start = dict(zip(kept, output.start_logits[0, kept].double().softmax(-1).tolist(), strict=True))
    end = dict(zip(kept, output.end_logits[0, kept].double().softmax(-1).tolist(), strict=True))
    spans = {(a, b): start[a] * end[b] for a in inside for b in inside if a <= b < a + 6}
    first, last = max(spans, key=lambda span: spans[span])
    found = model.answer(question, context, max_answer_tokens=6)
    assert found.text == context[offsets[first][0] : offsets[last][1]].strip() == context[found.start : found.end]
    assert found.score == pytest.approx(spans[first, last], rel=1e-4)


@pytest.mark.parametrize("kind", ["distilbert", "electra"])
def test_other_families(kind: str, tokenizer_files: Path, tmp_path: Path) -> None:
    """BERT's tokenizer, and no types of tokens (DistilBERT) or a narrow embedding (ELECTRA)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_files)
    sizes = dict(vocab_size=len(tokenizer), max_position_embeddings=48, num_labels=3)
    if kind == "distilbert":
        config: Any = DistilBertConfig(dim=32, hidden_dim=48, n_layers=2, n_heads=4, **sizes)
        hf_class: Any = transformers.DistilBertForSequenceClassification
    else:
        config = ElectraConfig(
            hidden_size=32, embedding_size=16, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, **sizes
        )
        hf_class = transformers.ElectraForSequenceClassification
    randomise(hf_class(config)).eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = polyformer.load(tmp_path, device="cpu")
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    for our, their in zip(model.classify(SENTENCES), pipeline(SENTENCES, top_k=None), strict=True):
        assert [one.label for one in our] == [one["label"] for one in their]
        assert [one.score for one in our] == pytest.approx([one["score"] for one in their], rel=1e-4)
