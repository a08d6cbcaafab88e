"""Which of several continuations fits (Zellers et al., 2018), by a multiple-choice head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from polyformer.errors import GenerationError
from polyformer.tasks.base import TaskModel, network_inputs, read_texts, require_capability
from polyformer.tasks.classification import Label, ranked


@torch.inference_mode()
def choose(model: TaskModel, prompt: str, choices: Sequence[str], *, truncate: bool = False) -> list[Label]:
    """The choices with their probabilities, best first.

    Args:
        prompt: what is asked or begun.
        choices: at least two answers or continuations.
        truncate: texts longer than the model reads are cut; otherwise they are an error.

    Raises:
        GenerationError: there is nothing to choose from.
    """
    require_capability(model, "choose")
    if isinstance(choices, str) or len(choices) < 2:
        raise GenerationError("choices must be a list of at least two texts")
    given = list(choices)
    encodings = read_texts(model, [prompt] * len(given), given, truncate=truncate, what="choose")
    inputs: dict[str, Any] = {name: part[None] for name, part in network_inputs(model, encodings).items()}
    scores = model.network.pack()(**inputs).logits[0].double().softmax(-1).cpu()
    return ranked(given, scores, None)
