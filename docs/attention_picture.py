"""Makes docs/images/attention.png: what three heads of SmolLM2 look at while it reads a sentence.

Run it with ``python docs/attention_picture.py``; it needs the extra ``plot`` (matplotlib), and fetches the model if it
is not here.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

import polyformer

SENTENCE = "The cat sat on the mat, and the dog sat on the cat."
PICTURE = Path(__file__).parent / "images" / "attention.png"


def find_heads(weights: Tensor, tokens: list[int]) -> dict[str, tuple[int, int]]:
    """The (layer, head) that does most of each kind of looking.

    Args:
        weights: [layers, heads, tokens, tokens].
        tokens: their ids, with which earlier occurrences of the same token are found.
    """
    ids = torch.tensor(tokens)
    places = torch.arange(len(tokens))
    earlier = places[None, :] < places[:, None]
    same = (ids[:, None] == ids[None, :]) & earlier
    repeated = same.any(-1)
    kinds = {
        "the token before": weights.diagonal(-1, dim1=2, dim2=3)[..., 1:].mean(-1),
        "the same word, earlier": (weights * same).sum(-1)[..., repeated].mean(-1),
        "the first token": weights[..., 0][..., 1:].mean(-1),
    }
    return {
        kind: (int(score.argmax()) // weights.shape[1], int(score.argmax()) % weights.shape[1])
        for kind, score in kinds.items()
    }


def main() -> None:
    model = polyformer.load("smollm2-135m-instruct", dtype="float32", device="cpu")
    tokens = model.tokenizer.encode(SENTENCE)
    words = [model.tokenizer.decode([token]).strip() for token in tokens]
    with torch.inference_mode():
        attentions = model.network(torch.tensor([tokens]), output_attentions=True).attentions
    weights = torch.stack([attentions[number][0] for number in sorted(attentions)])
    figure, axes = plt.subplots(1, 3, figsize=(13.5, 5), layout="constrained")
    for axis, (kind, (layer, head)) in zip(axes, find_heads(weights, tokens).items(), strict=True):
        picture = axis.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=1)
        axis.set_title(f"{kind}\n(layer {layer}, head {head})", fontsize=12)
        axis.set_xticks(range(len(words)), words, rotation=90)
        axis.set_yticks(range(len(words)), words)
        axis.set_xlabel("looked at")
    axes[0].set_ylabel("looking")
    figure.colorbar(picture, ax=axes, label="weight", shrink=0.8)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main()
