"""Any labels for pictures: each is put into a sentence, and compared with the picture (Radford et al., 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from polyformer.errors import GenerationError, TokenizerError
from polyformer.tasks.base import Progress, require_capability, require_tokenizer
from polyformer.tasks.classification import own_labels, ranked
from polyformer.tasks.embedding import embed
from polyformer.tasks.embedding_pictures import embed_images
from polyformer.tasks.pictures import BATCH_PICTURES, as_pictures
from polyformer.tokenizers.image_files import Picture

TEMPLATE = "This is a photo of {}."


@torch.inference_mode()
def classify_images_zero_shot(
    model: Any,
    images: Picture | Sequence[Picture],
    *,
    labels: Sequence[str] | None = None,
    multi_label: bool | None = None,
    top_k: int | None = None,
    template: str | Sequence[str] = TEMPLATE,
    batch_size: int = BATCH_PICTURES,
    progress: Progress = None,
) -> Any:
    """How well each of one's own labels fits a picture.

    Args:
        images: one or many: paths, bytes, Pillow images or arrays.
        labels: what the picture may show.
        multi_label: each label has a probability of its own, instead of all together one; None takes what the model
            was trained for (SigLIP: its own; CLIP: together).
        top_k: only so many labels; None gives all.
        template: with ``{}`` where the label goes. Several are averaged (section 3.1.4 of the paper).
        batch_size: pictures that go through the network together.

    Returns:
        For one picture a list of `Label`, best first; for a list a list of these.

    Raises:
        GenerationError: no labels, a blank one, one twice, or a template without a place for them.
        TokenizerError: a picture cannot be read, or a label is too long.
    """
    require_capability(model, "classify")
    if not labels:
        raise GenerationError(
            'this model compares pictures with words of yours: give labels, for example labels=["a cat", "a dog"] '
            '(--label "a cat" --label "a dog")'
        )
    names = own_labels(labels)
    templates = [template] if isinstance(template, str) else list(template)
    for one in templates:
        if "{}" not in one:
            raise GenerationError(f"the template {one!r} has no {{}} where the label goes")
    if top_k is not None and top_k < 1:
        raise GenerationError(f"top_k is {top_k}, but it must be at least 1")
    sentences = [one.replace("{}", name) for name in names for one in templates]
    tokenizer, limit = require_tokenizer(model, "read labels"), model.context_length
    for sentence in sentences:
        tokens = len(tokenizer.encode(sentence))
        if limit is not None and tokens > limit:
            raise TokenizerError(
                f"the label in {sentence[:60]!r} makes {tokens} tokens with its template, but the model reads at most "
                f"{limit}: shorten it"
            )
    texts = torch.from_numpy(embed(model, sentences)).double().view(len(names), len(templates), -1).mean(1)
    texts = torch.nn.functional.normalize(texts, dim=-1)
    given, alone = as_pictures(images)
    vectors = torch.from_numpy(embed_images(model, given, batch_size=batch_size, progress=progress)).double()
    network = model.network
    logits = vectors.reshape(len(given), -1) @ texts.T * network.logit_scale.detach().double().cpu().exp()
    alike = network.logit_bias is not None
    if alike:
        logits = logits + network.logit_bias.detach().double().cpu()
    scores: Tensor = logits.sigmoid() if (alike if multi_label is None else multi_label) else logits.softmax(-1)
    results = [ranked(names, row, top_k) for row in scores]
    return results[0] if alone else results
