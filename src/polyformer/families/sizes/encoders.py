"""The sizes of networks that only read, with the heads they were pretrained with."""

from __future__ import annotations

from typing import Any

from polyformer.families.sizes.size import Size

_BERT_LIST = "transformers 4.4's list of pretrained models, which corrects the 110M and 340M of Devlin et al., 2019"
_LIST = "transformers 4.4's list of pretrained models"
_CARD = "model card of distilbert-base-multilingual-cased"
_ROBERTA_NOTE = "README of fairseq's RoBERTa"
_MODERNBERT = "Warner et al., 2024, section 2.1"
_ELECTRA_NOTE = "README of the authors' electra repository, the discriminator"
_ELECTRA_GENERATOR = "KerasHub's presets, rounded; they count a pooler instead of the head"


def _bert(vocab_size: int, width: int = 768, layers: int = 12, heads: int = 12) -> dict[str, Any]:
    """BERT guessed masked tokens and told whether a sentence follows; published counts are of both heads."""
    return {
        "architectures": ["BertForPreTraining"],
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _roberta(
    vocab_size: int, width: int = 768, layers: int = 12, heads: int = 12, name: str = "Roberta"
) -> dict[str, Any]:
    """Two of the 514 rows of positions stand for none."""
    return {
        "architectures": [f"{name}ForMaskedLM"],
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
    }


def _distilbert(vocab_size: int) -> dict[str, Any]:
    return {
        "architectures": ["DistilBertForMaskedLM"],
        "vocab_size": vocab_size,
        "dim": 768,
        "hidden_dim": 3072,
        "n_layers": 6,
        "n_heads": 12,
        "activation": "gelu",
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }


def _electra(embedding: int, width: int, layers: int, heads: int, head: str = "PreTraining") -> dict[str, Any]:
    return {
        "architectures": [f"ElectraFor{head}"],
        "vocab_size": 30522,
        "embedding_size": embedding,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }


def _modernbert(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "architectures": ["ModernBertForMaskedLM"],
        "vocab_size": 50368,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_activation": "gelu",
        "max_position_embeddings": 8192,
        "norm_eps": 1e-5,
        "local_attention": 128,
        "global_attn_every_n_layers": 3,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
        "pad_token_id": 50283,
    }


SIZES = (
    Size("bert-base-uncased", "bert", "110M", _BERT_LIST, values=_bert(30522)),
    Size("bert-base-cased", "bert", "109M", _BERT_LIST, values=_bert(28996)),
    Size("bert-base-multilingual-uncased", "bert", "168M", _BERT_LIST, values=_bert(105879)),
    Size("bert-base-multilingual-cased", "bert", "179M", _BERT_LIST, values=_bert(119547)),
    Size("bert-large-uncased", "bert", "336M", _BERT_LIST, values=_bert(30522, 1024, 24, 16)),
    Size("bert-large-cased", "bert", "335M", _BERT_LIST, values=_bert(28996, 1024, 24, 16)),
    Size("roberta-base", "roberta", "125M", _ROBERTA_NOTE, values=_roberta(50265)),
    Size("roberta-large", "roberta", "355M", _ROBERTA_NOTE, values=_roberta(50265, 1024, 24, 16)),
    Size(
        "xlm-roberta-base",
        "xlm-roberta",
        "270M",
        "Conneau et al., 2020, sizes of models in the appendix",
        2,
        _roberta(250002, name="XLMRoberta"),
    ),
    # Without the head it has 558.8 million, which the paper gives as 550M.
    Size(
        "xlm-roberta-large",
        "xlm-roberta",
        "560M",
        "README of fairseq's XLM-R",
        values=_roberta(250002, 1024, 24, 16, "XLMRoberta"),
    ),
    Size(
        "camembert-base",
        "camembert",
        "110M",
        "model card of almanach/camembert-base",
        2,
        _roberta(32005, name="Camembert"),
    ),
    Size("distilbert-base-uncased", "distilbert", "66M", "Sanh et al., 2019, table 3", values=_distilbert(30522)),
    Size("distilbert-base-cased", "distilbert", "65M", _LIST, values=_distilbert(28996)),
    # Without the head it has 134.7 million.
    Size("distilbert-base-multilingual-cased", "distilbert", "134M", _CARD, 2, _distilbert(119547)),
    Size("electra-small-discriminator", "electra", "14M", _ELECTRA_NOTE, values=_electra(128, 256, 12, 4)),
    Size("electra-base-discriminator", "electra", "110M", _ELECTRA_NOTE, 2, _electra(768, 768, 12, 12)),
    Size("electra-large-discriminator", "electra", "335M", _ELECTRA_NOTE, values=_electra(1024, 1024, 24, 16)),
    # The small generator was released as large as its discriminator; the others are a third and a quarter as wide, but
    # have the discriminator's table of tokens and its layers.
    Size(
        "electra-small-generator",
        "electra",
        "14M",
        _ELECTRA_GENERATOR,
        values=_electra(128, 256, 12, 4, "MaskedLM"),
    ),
    Size(
        "electra-base-generator",
        "electra",
        "34M",
        _ELECTRA_GENERATOR,
        values=_electra(768, 256, 12, 4, "MaskedLM"),
    ),
    Size(
        "electra-large-generator",
        "electra",
        "51M",
        _ELECTRA_GENERATOR,
        values=_electra(1024, 256, 24, 4, "MaskedLM"),
    ),
    Size("modernbert-base", "modernbert", "149M", _MODERNBERT, values=_modernbert(768, 1152, 22, 12)),
    Size("modernbert-large", "modernbert", "395M", _MODERNBERT, values=_modernbert(1024, 2624, 28, 16)),
)
