"""Spam or not by counted words: TF-IDF and logistic regression (scikit-learn), on the split that the recipes use.

    python benchmarks/peers/tfidf.py
    python benchmarks/peers/tfidf.py --tokens 128 --tokenizer runs/spam-masked/model

The strength of regularization is chosen on the validation part. With ``--tokens`` a mail is cut to what a network of so
many positions reads. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from polyformer.evaluation.labels import judged
from polyformer.tokenizers.loading import load_tokenizer
from polyformer.training.data.reading import read_documents

NAMES = ("ham", "spam")


def part(split: str, cut: Any) -> tuple[list[str], list[str]]:
    documents = list(read_documents("spam-assassin", split=split))
    return [cut(document["text"]) for document in documents], [NAMES[document["label"]] for document in documents]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, help="cut mails to so many tokens, [CLS] and [SEP] included")
    parser.add_argument("--every", type=int, default=1, help="learn from every Nth mail only")
    parser.add_argument("--tokenizer", help="the folder of the tokenizer that counts them")
    options = parser.parse_args()
    if (options.tokens is None) != (options.tokenizer is None):
        parser.error("give --tokens and --tokenizer together")
    tokenizer = None if options.tokenizer is None else load_tokenizer(options.tokenizer)

    def cut(text: str) -> str:
        if tokenizer is None:
            return text
        ids = tokenizer.encode(text, add_special_tokens=False)[: options.tokens - 2]
        return str(tokenizer.decode(ids))

    begin = time.perf_counter()
    (texts, labels), held_out, test = (part(split, cut) for split in ("train", "validation", "test"))
    texts, labels = texts[:: options.every], labels[:: options.every]
    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2))
    rows = vectorizer.fit_transform(texts)
    best, chosen, strength = -1.0, None, 0.0
    for one in (1.0, 10.0, 100.0):
        classifier = LogisticRegression(C=one, max_iter=1000).fit(rows, labels)
        found = judged(held_out[1], list(classifier.predict(vectorizer.transform(held_out[0]))), NAMES)
        print(f"C={one:g}: accuracy on validation {found['accuracy']:.4f}", file=sys.stderr)
        if found["accuracy"] > best:
            best, chosen, strength = found["accuracy"], classifier, one
    assert chosen is not None
    values = judged(test[1], list(chosen.predict(vectorizer.transform(test[0]))), NAMES)
    values |= {"C": strength, "words": rows.shape[1], "documents": len(test[1])}
    values["seconds"] = round(time.perf_counter() - begin, 1)
    print(json.dumps(values))


if __name__ == "__main__":
    main()
