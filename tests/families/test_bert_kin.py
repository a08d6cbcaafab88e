"""RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT and ELECTRA: every head against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from proof import close, load_folder, saved
from proof_encoder import prove_encoder

from polyformer.families import distilbert, electra
from polyformer.families.roberta import tasks_of

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 35,
    "layer_norm_eps": 1e-5,
}


def labels_for(name: str) -> dict[str, int]:
    return {"num_labels": 2 if "QuestionAnswering" in name else 5}


@pytest.mark.parametrize("name", tasks_of("Roberta"))
def test_roberta(name: str, tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        **SIZES, type_vocab_size=2, pad_token_id=1, classifier_dropout=0.3, **labels_for(name)
    )
    prove_encoder(getattr(transformers, name), config, tmp_path, types=2, pad=1)


@pytest.mark.parametrize("kind", ["XLMRoberta", "Camembert"])
@pytest.mark.parametrize("head", ["Model", "ForMaskedLM", "ForSequenceClassification"])
def test_kin_of_roberta(kind: str, head: str, tmp_path: Path) -> None:
    make = getattr(transformers, f"{kind}Config")
    config = make(**SIZES, type_vocab_size=1, pad_token_id=1, num_labels=3, hidden_act="relu")
    prove_encoder(getattr(transformers, kind + head), config, tmp_path, pad=1)


@pytest.mark.parametrize("name", distilbert.TASKS)
def test_distilbert(name: str, tmp_path: Path) -> None:
    config = transformers.DistilBertConfig(
        vocab_size=61,
        dim=24,
        n_layers=2,
        n_heads=4,
        hidden_dim=37,
        max_position_embeddings=35,
        activation="relu",
        dropout=0.2,
        qa_dropout=0.3,
        seq_classif_dropout=0.4,
        **labels_for(name),
    )
    prove_encoder(getattr(transformers, name), config, tmp_path)


@pytest.mark.parametrize("size", [24, 16])
@pytest.mark.parametrize("name", electra.TASKS)
def test_electra(name: str, size: int, tmp_path: Path) -> None:
    config = transformers.ElectraConfig(
        **SIZES, embedding_size=size, hidden_act="gelu_new", type_vocab_size=3, **labels_for(name)
    )
    network = prove_encoder(getattr(transformers, name), config, tmp_path, types=3)
    assert (network.encoder.embedding.projection is None) == (size == 24)


@pytest.mark.parametrize("kind", ["Roberta", "DistilBert", "Electra"])
def test_untied(kind: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {} if kind == "DistilBert" else SIZES
    small = {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 37, "vocab_size": 61} if not sizes else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, **small, tie_word_embeddings=False)
    hf = saved(getattr(transformers, f"{kind}ForMaskedLM"), config, tmp_path)
    family, network, _ = load_folder(tmp_path)
    assert network.masked_head.head.weight is not None
    ids = torch.randint(5, 61, (2, 9))
    with torch.no_grad():
        close(network(ids).logits, hf(ids).logits, 1e-8, "logits")
    assert family.read_config(family.write_config(network.config)) == network.config
