"""How a network that reads pictures is proven, alone or beside one that reads text: number by number."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from proof import close, load_folder, prove_export, saved, saved_gradients
from proof_encoder import _prove_loads_back
from torch import Tensor

BATCH = 3


def picture(height: int, width: int, channels: int = 3, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def prove_pictures(
    hf_class: Any,
    hf_config: Any,
    folder: Path,
    given: dict[str, Tensor],
    *,
    tolerance: float = 1e-8,
    sizes: tuple[tuple[int, int], ...] = (),
    size_tolerance: float | None = None,
    encode: Callable[[Any, dict[str, Tensor]], Any] | None = None,
) -> Any:
    """One class in float64: config round trip, hidden states, attention, scores, other sizes of pictures, gradients,
    export.

    Args:
        given: what both are called with.
        sizes: other (height, width) of pictures, for which positions are interpolated.
        size_tolerance: of those, where the reference rounds to float32 inside (the caller says why).
        encode: (network, what is given) -> its `Output`; None calls the network.

    Returns:
        Our network.
    """
    hf = saved(hf_class, hf_config, folder)
    family, network, tensors = load_folder(folder)
    values = family.write_config(network.config)
    assert family.read_config(values) == network.config
    assert values["architectures"] == [hf_class.__name__]
    encode = encode or (lambda network, given: network(**given, output_hidden_states=True, output_attentions=True))
    with torch.no_grad():
        # Some of these classes round attention to float32 where they show it.
        _compare(encode(network, given), _call(hf, given, attentions=True), max(tolerance, 1e-6))
        hf.set_attn_implementation("sdpa")
        _compare(encode(network, given), _call(hf, given), tolerance)
        for height, width in sizes:
            other = {**given, "pixel_values": picture(height, width)}
            _compare(encode(network, other), _call(hf, other, interpolate=True), size_tolerance or tolerance)
    _prove_gradients(hf, network, family, given, encode, 10 * tolerance, folder / "gradients")
    prove_export(network, family, tensors)
    _prove_loads_back(hf_class, network, family, tensors, folder / "back")
    return network


def _call(hf: Any, given: dict[str, Tensor], *, interpolate: bool = False, attentions: bool = False) -> Any:
    takes = "interpolate_pos_encoding" in inspect.signature(hf.forward).parameters
    options = {"interpolate_pos_encoding": True} if takes and interpolate else {}
    return hf(**given, **options, output_hidden_states=True, output_attentions=attentions)


def _compare(ours: Any, theirs: Any, tolerance: float, without: tuple[str, ...] = ()) -> None:
    compared = 0
    for our_name, their_name in (("text_output", "text_model_output"), ("image_output", "vision_model_output")):
        if getattr(theirs, their_name, None) is not None:
            # CLIP's pair puts the projection where the pooled vector of a tower was.
            _compare(getattr(ours, our_name), getattr(theirs, their_name), tolerance, without=("pooler_output",))
            compared += 1
    if getattr(theirs, "hidden_states", None):
        # The last of ours is after the final norm; transformers gives that as last_hidden_state.
        for number, their in enumerate(theirs.hidden_states[:-1]):
            close(ours.hidden_states[number], their, tolerance, f"hidden state {number}")
        assert len(ours.hidden_states) == len(theirs.hidden_states)
        for number, their in enumerate(getattr(theirs, "attentions", None) or ()):
            close(ours.attentions[number], their, tolerance, f"attention {number}")
    for name in ("last_hidden_state", "pooler_output", "logits", "logits_per_text", "text_embeds", "image_embeds"):
        their = getattr(theirs, name, None)
        if their is None or name in without:
            continue
        our = getattr(ours, name)
        assert our is not None and our.shape == their.shape, f"{name} is not there, or of another shape"
        close(our, their, tolerance, name)
        compared += 1
    assert compared, "nothing was compared"


def _prove_gradients(
    hf: Any, network: Any, family: Any, given: Any, encode: Any, tolerance: float, folder: Path
) -> None:
    def backward(output: Any) -> None:
        names = ("logits_per_text", "logits", "text_embeds", "image_embeds", "pooler_output", "last_hidden_state")
        part = next(getattr(output, name) for name in names if getattr(output, name, None) is not None)
        weight = torch.randn(part.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        (part * weight).mean().backward()

    hf.zero_grad()
    network.zero_grad()
    backward(_call(hf, given))
    backward(encode(network, given))
    gradients = saved_gradients(hf, folder)
    parameters = dict(network.named_parameters())
    compared = set()
    for step in family.weight_table(network.config).steps(set(parameters)):
        found = [
            torch.zeros_like(parameters[name]) if parameters[name].grad is None else parameters[name].grad
            for name in step.ours
        ]
        for name, gradient in zip(step.theirs, step.to_theirs(found), strict=True):
            if name in gradients:
                close(gradient, gradients[name], tolerance, f"gradient of {name}")
                compared.add(name)
    assert compared == set(gradients)
