"""Whether one sentence follows another (Devlin et al., 2019, section 3.1)."""

from __future__ import annotations

import torch

from polyformer.tasks.base import TaskModel, network_inputs, read_texts, require_capability


@torch.inference_mode()
def follows(model: TaskModel, first: str, second: str, *, truncate: bool = False) -> float:
    """The probability that the second sentence stood after the first one.

    Args:
        truncate: pairs longer than the model reads are cut; otherwise they are an error.
    """
    require_capability(model, "follows")
    encodings = read_texts(model, [first], [second], truncate=truncate, what="judge sentences")
    output = model.network.pack()(**network_inputs(model, encodings))
    logits = output.logits if output.sequence_logits is None else output.sequence_logits
    return float(logits[0].double().softmax(-1)[0])
