"""How an encoder-decoder is proven: both stacks against Hugging Face's class, number by number."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from proof import close, randomise, saved_gradients
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyformer.checkpoints.loading import open_checkpoint

BATCH, SOURCE, TARGET = 3, 17, 13


def saved_pair(hf_class: type, hf_config: Any, folder: Path, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A random model in evaluation mode, buffers of the scores random too, also saved to ``folder``."""
    hf_config._attn_implementation = "eager"
    model = hf_class(hf_config).to(dtype)
    # Sinusoids are parameters there, but nothing that is learned.
    fixed = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    model = randomise(model).eval()
    for name, value in fixed.items():
        model.get_parameter(name).copy_(value)
    for name, buffer in model.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(3)).to(dtype))
    model.save_pretrained(folder)
    return model


def text_inputs(vocab_size: int, *, first: int = 5) -> dict[str, Tensor]:
    """A source of text, padded on the right, and a target."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(first, vocab_size, (BATCH, SOURCE), generator=generator)
    mask = torch.ones_like(source)
    mask[0, -5:] = 0
    mask[2, -1:] = 0
    return {"input_ids": source, "attention_mask": mask}


def prove_encoder_decoder(
    hf_class: type,
    hf_config: Any,
    folder: Path,
    *,
    tolerance: float = 1e-8,
    source: dict[str, Tensor] | None = None,
    first: int = 5,
    hidden: slice = slice(None),
    loads_back: bool = True,
) -> Any:
    """One class in float64: config round trip, hidden states, attention and scores of both sides, cache, padding,
    gradients, export.

    Args:
        tolerance: 1e-8, or 1e-5 where the reference rounds to float32 inside (the caller says why).
        source: what the encoder reads; None makes a text.
        first: the smallest id used.
        hidden: which hidden states of the encoder are compared (where the last is before the final norm there, it
            is compared as last_hidden_state only).
        loads_back: False where transformers cannot load its own files of this class (the caller says why).

    Returns:
        Our network.
    """
    hf = saved_pair(hf_class, hf_config, folder)
    with open_checkpoint(folder) as checkpoint:
        family = checkpoint.family
        unread = family.unread_keys(checkpoint.values)
        assert unread == []
        network: Any = checkpoint.load()
    values = family.write_config(network.config)
    assert family.read_config(values) == network.config
    assert values["architectures"] == [hf_class.__name__]
    given = source or text_inputs(hf_config.vocab_size, first=first)
    generator = torch.Generator().manual_seed(2)
    vocab_size = network.config.vocab_size
    target = torch.randint(first, vocab_size, (BATCH, TARGET), generator=generator)
    _prove_outputs(hf, network, given, target, tolerance, hidden)
    _prove_cache(network, given, target)
    if "attention_mask" in given:
        _prove_alone(network, given, target)
    _prove_gradients(hf, network, family, given, target, 10 * tolerance, folder / "gradients")
    _prove_export(hf_class, network, family, folder, given, target, tolerance, loads_back=loads_back)
    return network


def _prove_outputs(
    hf: Any, network: Any, given: dict[str, Tensor], target: Tensor, tolerance: float, hidden: slice
) -> None:
    with torch.no_grad():
        theirs = hf(
            **given, decoder_input_ids=target, output_hidden_states=True, output_attentions=True, use_cache=False
        )
        ours = network(**given, decoder_input_ids=target, output_hidden_states=True, output_attentions=True)
    real = given.get("attention_mask", torch.ones(theirs.encoder_last_hidden_state.shape[:2])).bool()
    if network.bridge is None:
        close(
            ours.encoder.last_hidden_state[real],
            theirs.encoder_last_hidden_state[real],
            tolerance,
            "last state of the encoder",
        )
    for number, their in enumerate(theirs.encoder_hidden_states[hidden]):
        close(ours.encoder.hidden_states[number][real], their[real], tolerance, f"encoder state {number}")
    assert len(ours.hidden_states) == len(theirs.decoder_hidden_states)
    for number, their in enumerate(theirs.decoder_hidden_states):
        close(ours.hidden_states[number], their, tolerance, f"decoder state {number}")
    for number, their in enumerate(theirs.cross_attentions):
        close(ours.cross_attentions[number], their, tolerance, f"cross-attention {number}")
    for number, their in enumerate(theirs.decoder_attentions):
        close(ours.attentions[number], their, tolerance, f"decoder attention {number}")
    if "logits" in theirs:
        close(ours.logits, theirs.logits, tolerance, "logits")


def _prove_cache(network: Any, given: dict[str, Tensor], target: Tensor) -> None:
    """In pieces with a cache that keeps the source: the numbers of the whole."""
    with torch.no_grad():
        whole = network(**given, decoder_input_ids=target)
        cache = network.new_cache()
        cuts = [0, 3, 4, 9, *range(10, TARGET + 1)]
        pieces = []
        for start, stop in itertools.pairwise(cuts):
            part = given if start == 0 else {}
            pieces.append(network(**part, decoder_input_ids=target[:, start:stop], cache=cache).last_hidden_state)
    close(torch.cat(pieces, dim=1), whole.last_hidden_state, 1e-10, "cached against whole")


def _prove_alone(network: Any, given: dict[str, Tensor], target: Tensor) -> None:
    with torch.no_grad():
        together = network(**given, decoder_input_ids=target).last_hidden_state
        for row in range(BATCH):
            real = given["attention_mask"][row].bool()
            alone = network(input_ids=given["input_ids"][row : row + 1, real], decoder_input_ids=target[row : row + 1])
            close(together[row], alone.last_hidden_state[0], 1e-10, f"row {row} alone")


def _prove_gradients(
    hf: Any, network: Any, family: Any, given: dict[str, Tensor], target: Tensor, tolerance: float, folder: Path
) -> None:
    hf.zero_grad()
    network.zero_grad()
    for model in (hf, network):
        output = model(**given, decoder_input_ids=target)
        scores = output.last_hidden_state if getattr(output, "logits", None) is None else output.logits
        weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        (scores * weight).mean().backward()
    gradients = saved_gradients(hf, folder)
    parameters = dict(network.named_parameters())
    compared = 0
    for step in family.weight_table(network.config).steps(set(parameters)):
        found = [
            torch.zeros_like(parameters[name]) if parameters[name].grad is None else parameters[name].grad
            for name in step.ours
        ]
        for name, gradient in zip(step.theirs, step.to_theirs(found), strict=True):
            # A table of its own that is the embedding's there: the gradients are split differently.
            if name in gradients and not (name == "shared.weight" and "head.weight" in parameters):
                close(gradient, gradients[name], tolerance, f"gradient of {name}")
                compared += 1
    assert compared >= 0.8 * len(gradients), "the table's names and Hugging Face's hardly meet"


def _prove_export(
    hf_class: Any,
    network: Any,
    family: Any,
    folder: Path,
    given: Any,
    target: Tensor,
    tolerance: float,
    *,
    loads_back: bool,
) -> None:
    """Our file holds what theirs holds, bit by bit; transformers finds every weight, and the same numbers."""
    parameters = dict(network.named_parameters())
    written: dict[str, Tensor] = {}
    for step in family.weight_table(network.config).steps(set(parameters)):
        made = step.to_theirs([parameters[name].detach() for name in step.ours])
        written.update(zip(step.theirs, (tensor.clone().contiguous() for tensor in made), strict=True))
    tensors = load_file(folder / "model.safetensors")
    for name in set(written) & set(tensors):
        assert torch.equal(written[name], tensors[name]), f"{name} is not bit-equal"
    # Sinusoids are no weights, and what pools a picture is not what a decoder looks at.
    left_out = ("embed_positions", "encoder.pooler.")
    rest = {name for name in tensors if name not in written and not any(part in name for part in left_out)}
    assert not rest, f"{rest} are not written"
    if not loads_back:
        return
    back = folder / "back"
    back.mkdir()
    (back / "config.json").write_text(json.dumps(family.write_config(network.config)))
    save_file(written, back / "model.safetensors", metadata={"format": "pt"})
    model, report = hf_class.from_pretrained(
        back, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    # Some classes save sinusoids and others do not: they compute them where they are missing.
    report["missing_keys"] = {name for name in report["missing_keys"] if not any(part in name for part in left_out)}
    problems = {kind: found for kind, found in report.items() if found}
    assert not problems, f"transformers did not load the folder cleanly: {problems}"
    with torch.no_grad():
        theirs, ours = (m(**given, decoder_input_ids=target) for m in (model.eval(), network))
    pair = [each.last_hidden_state if getattr(each, "logits", None) is None else each.logits for each in (ours, theirs)]
    close(*pair, tolerance, "scores after export")
