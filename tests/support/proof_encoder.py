"""How an encoder of text is proven: every head of a family against Hugging Face's class, number by number."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from proof import close, load_folder, prove_export, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

BATCH, COLUMNS, CHOICES = 3, 23, 2


def inputs_for(hf: Any, vocab_size: int, *, first: int = 5, types: int = 0) -> dict[str, Tensor]:
    """Random ids (from ``first`` on, so that none is padding), padded on the right, with types of tokens if any."""
    choices = (CHOICES,) if "MultipleChoice" in type(hf).__name__ else ()
    generator = torch.Generator().manual_seed(1)
    shape = (BATCH, *choices, COLUMNS)
    given = {"input_ids": torch.randint(first, vocab_size, shape, generator=generator)}
    mask = torch.ones(shape, dtype=torch.long)
    mask[0, ..., -6:] = 0
    mask[1, ..., -1:] = 0
    given["attention_mask"] = mask
    if types and "token_type_ids" in inspect.signature(hf.forward).parameters:
        given["token_type_ids"] = torch.randint(0, types, shape, generator=generator)
    return given


def scores_of(theirs: Any) -> dict[str, Tensor]:
    """The scores of a Hugging Face output under our names."""
    if "start_logits" in theirs:
        return {"logits": torch.stack([theirs.start_logits, theirs.end_logits], dim=-1)}
    if "prediction_logits" in theirs:
        return {"logits": theirs.prediction_logits, "sequence_logits": theirs.seq_relationship_logits}
    names = ("logits", "pooler_output")
    return {name: theirs[name] for name in names if name in theirs and theirs[name] is not None}


def prove_encoder(
    hf_class: type,
    hf_config: Any,
    folder: Path,
    *,
    tolerance: float = 1e-8,
    types: int = 0,
    first: int = 5,
    pad: int = 0,
) -> Any:
    """One class of a family in float64: config round trip, hidden states, attention, scores, padding, gradients,
    export. ``tolerance`` is looser only where the reference rounds to float32 inside; the caller says why.

    Args:
        types: kinds of tokens; 0 where they are not told apart.
        first: the smallest id used.
        pad: the id that stands where there is padding.

    Returns:
        Our network.
    """
    hf = saved(hf_class, hf_config, folder)
    family, network, tensors = load_folder(folder)
    values = family.write_config(network.config)
    assert family.read_config(values) == network.config
    assert values["architectures"] == [hf_class.__name__]
    given = inputs_for(hf, hf_config.vocab_size, types=types, first=first)
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, pad)
    _prove_outputs(hf, network, given, tolerance)
    _prove_alone(network, given)
    _prove_gradients(hf, network, family, given, 10 * tolerance)
    prove_export(network, family, tensors)
    _prove_loads_back(hf_class, network, family, tensors, folder / "back")
    return network


def _prove_outputs(hf: Any, network: Any, given: dict[str, Tensor], tolerance: float) -> None:
    real = given["attention_mask"].flatten(0, -2).bool()
    with torch.no_grad():
        theirs = hf(**given, output_hidden_states=True, output_attentions=True)
        ours = network(**given, output_hidden_states=True, output_attentions=True)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for number, (our, their) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        close(our[real], their[real], tolerance, f"hidden state {number}")
    for number, their in enumerate(theirs.attentions):
        rows = real[:, None, :].expand(-1, their.shape[1], -1)
        close(ours.attentions[number][rows], their[rows], tolerance, f"attention {number}")
    expected = scores_of(theirs)
    assert expected or hf.__class__.__name__.endswith("Model")
    for name, their in expected.items():
        our = getattr(ours, name)
        assert our.shape == their.shape, f"{name} is {list(our.shape)}, not {list(their.shape)}"
        if their.shape[:2] == real.shape:  # of single tokens: padding means nothing
            our, their = our[real], their[real]
        close(our, their, tolerance, name)


def _prove_alone(network: Any, given: dict[str, Tensor]) -> None:
    """A text's numbers do not depend on its neighbours, nor on the side of the padding."""
    if given["input_ids"].dim() == 3:
        return
    with torch.no_grad():
        together = network(**given)
        turned = network(**{name: value.roll(6, dims=1) for name, value in given.items()})
        for row in range(BATCH):
            real = given["attention_mask"][row].bool()
            alone = network(**{name: value[row : row + 1, real] for name, value in given.items()})
            close(together.last_hidden_state[row, real], alone.last_hidden_state[0], 1e-10, f"row {row} alone")
            if row == 0:
                moved = turned.last_hidden_state[row, real.roll(6)]
                close(moved, alone.last_hidden_state[0], 1e-10, "padded on the left")


def _prove_gradients(hf: Any, network: Any, family: Any, given: dict[str, Tensor], tolerance: float) -> None:
    def loss(output: Any, scores: dict[str, Tensor]) -> Tensor:
        parts = list(scores.values()) or [output.last_hidden_state]
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            weight = torch.randn(part.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            if part.shape[:2] == given["attention_mask"].shape:
                weight = weight * given["attention_mask"].view(*part.shape[:2], *[1] * (part.dim() - 2))
            total = total + (part * weight).mean()
        return total

    hf.zero_grad()
    network.zero_grad()
    theirs = hf(**given)
    expected = scores_of(theirs)
    loss(theirs, expected).backward()
    ours = network(**given)
    loss(ours, {name: getattr(ours, name) for name in expected}).backward()
    gradients = {name: parameter.grad for name, parameter in hf.named_parameters() if parameter.grad is not None}
    parameters = dict(network.named_parameters())
    compared = 0
    for step in family.weight_table(network.config).steps(set(parameters)):
        found = [
            torch.zeros_like(parameters[name]) if parameters[name].grad is None else parameters[name].grad
            for name in step.ours
        ]
        for name, gradient in zip(step.theirs, step.to_theirs(found), strict=True):
            if name in gradients and len(step.theirs) == 1:
                close(gradient, gradients[name], tolerance, f"gradient of {name}")
                compared += 1
    assert compared >= 0.8 * len(gradients), "the table's names and Hugging Face's hardly meet"


def _prove_loads_back(hf_class: Any, network: Any, family: Any, tensors: dict[str, Tensor], folder: Path) -> None:
    """Written by our table, transformers finds every weight and no other, bit-equal."""
    parameters = dict(network.named_parameters())
    written: dict[str, Tensor] = {}
    for step in family.weight_table(network.config).steps(set(parameters)):
        made = step.to_theirs([parameters[name].detach() for name in step.ours])
        written.update(zip(step.theirs, (tensor.clone().contiguous() for tensor in made), strict=True))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(family.write_config(network.config)))
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    model, report = hf_class.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    problems = {kind: found for kind, found in report.items() if found}
    assert not problems, f"transformers did not load the folder cleanly: {problems}"
    model.save_pretrained(folder / "again")
    again = load_file(folder / "again" / "model.safetensors")
    assert set(again) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), f"{name} is not bit-equal after the round trip"
