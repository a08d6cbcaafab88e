"""How a family is proven: the same random weights in Hugging Face's class and in ours, and every number compared.

Weights are large (standard deviation 0.2) and norms and biases random, so that a swap or a missing term shows.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyformer.families import find_family


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every parameter random: matrices N(0, 0.2²), vectors 1 + N(0, 0.3²) where they start near 1, else N(0, 0.3²)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            start = float(parameter.detach().double().mean()) if parameter.dim() == 1 else 0.0
            parameter.copy_(round(start) + noise * (0.3 if parameter.dim() == 1 else 0.2))
    return model


def saved(hf_class: type, hf_config: Any, folder: Path, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """A random Hugging Face model in evaluation mode, with plain attention and experts, also saved to ``folder``."""
    hf_config._attn_implementation = "eager"
    hf_config._experts_implementation = "eager"
    model = randomise(hf_class(hf_config).to(dtype)).eval()
    model.save_pretrained(folder)
    return model


def load_folder(folder: Path, dtype: torch.dtype | None = None) -> tuple[Any, torch.nn.Module, dict[str, Tensor]]:
    """(family, network, the file's tensors) of a folder that Hugging Face wrote, loaded by the family's table."""
    values = json.loads((folder / "config.json").read_text())
    family = find_family(values["model_type"])
    config = family.read_config(values)
    assert family.unread_keys(values) == []
    with torch.device("meta"):
        network = config.build()
    tensors = load_file(folder / "model.safetensors")
    ours = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    plan = family.weight_table(config).plan(ours, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    plan.raise_if_broken()
    state = {}
    for step in plan.steps:
        made = step.to_ours([tensors[name] for name in step.theirs])
        state.update(zip(step.ours, (tensor.to(dtype or tensor.dtype).clone() for tensor in made), strict=True))
    network.load_state_dict(state, assign=True, strict=True)
    return family, network.eval(), tensors


def hard_ids(vocab_size: int, length: int = 29, batch: int = 3, seed: int = 1) -> Tensor:
    return torch.randint(0, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    scale = max(1.0, float(theirs.detach().abs().max()))
    worst = float((ours.detach().double() - theirs.detach().double()).abs().max()) / scale
    assert worst <= tolerance, f"{what}: off by {worst:.3g} of the largest value, allowed {tolerance:g}"


def prove(
    hf_model: torch.nn.Module,
    folder: Path,
    *,
    tolerance: float,
    length: int = 29,
    gradient_tolerance: float | None = None,
    skip_hidden: Sequence[int] = (),
    by_length: bool = False,
) -> torch.nn.Module:
    """Compare a saved float64 model with ours: config round trip, logits, hidden states, padding, gradients, cache,
    export. ``tolerance`` is 1e-8 where the reference stays in float64, and 1e-5 where it rounds to float32 inside; the
    caller says which and why.

    Returns:
        Our network.
    """
    family, network, tensors = load_folder(folder)
    config = network.config
    assert family.read_config(family.write_config(config)) == config
    ids = hard_ids(config.vocab_size, length)
    _prove_forward(copy.deepcopy(hf_model), network, ids, tolerance, skip_hidden)
    _prove_padding(hf_model, network, ids, tolerance, by_length)
    _prove_gradients(hf_model, network, family, ids, gradient_tolerance or 10 * tolerance)
    if not by_length:  # a token's states depend on how long the sequence was when it came
        _prove_cache(network, ids)
    prove_export(network, family, tensors)
    return network


def _prove_forward(hf: Any, network: Any, ids: Tensor, tolerance: float, skip_hidden: Sequence[int]) -> None:
    with torch.no_grad():
        theirs = hf(ids, output_hidden_states=True, use_cache=False)
        ours = network(ids, output_hidden_states=True)
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for number, (our, their) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        if number not in skip_hidden:
            close(our, their, tolerance, f"hidden state {number}")
    close(ours.logits, theirs.logits, tolerance, "logits")


def _prove_padding(hf: Any, network: Any, ids: Tensor, tolerance: float, by_length: bool) -> None:
    """Padded on the left, the right and inside, each row's numbers are those it has alone in Hugging Face's class, and
    padded on the right those of its padded batch. (Padded on the left, its plain attention makes NaN in float64. Where
    angles depend on the length, its class takes that of the longest row and remembers it: a fresh copy a row, no
    batch.)
    """
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, -11:] = 0
    mask[2, 3:6] = 0
    right = torch.ones_like(ids)
    right[0, -4:] = 0
    with torch.no_grad():
        ours = network(ids, attention_mask=mask).logits
        for row in range(len(ids)):
            real = mask[row].bool()
            alone = copy.deepcopy(hf)(ids[row : row + 1, real], use_cache=False).logits[0]
            close(ours[row][real], alone, tolerance, f"row {row} padded against alone")
        if by_length:
            return
        theirs = hf(ids, attention_mask=right, use_cache=False).logits
        close(network(ids, attention_mask=right).logits[right.bool()], theirs[right.bool()], tolerance, "padded logits")


def _prove_gradients(hf: Any, network: Any, family: Any, ids: Tensor, tolerance: float) -> None:
    """Gradients of one loss, parameter by parameter, brought to their names by the table (its transforms are
    linear)."""
    weight = torch.randn(network(ids).logits.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for model in (hf, network):
        model.zero_grad()
        (model(ids).logits * weight).mean().backward()
    theirs = {name: p.grad for name, p in hf.named_parameters() if p.grad is not None}
    ours = dict(network.named_parameters())
    compared = 0
    for step in family.weight_table(network.config).steps(set(ours)):
        grads = [ours[name].grad if ours[name].grad is not None else torch.zeros_like(ours[name]) for name in step.ours]
        for name, grad in zip(step.theirs, step.to_theirs(grads), strict=True):
            if name in theirs:
                close(grad, theirs[name], tolerance, f"gradient of {name}")
                compared += 1
    assert compared >= 0.5 * len(theirs), "the table's names and Hugging Face's hardly meet"


def _prove_cache(network: Any, ids: Tensor) -> None:
    """Fed in pieces with a cache: the numbers of the whole."""
    with torch.no_grad():
        whole = network(ids).logits
        cache = network.new_cache()
        cuts = [0, 7, 8, 9, 20, *range(21, ids.shape[1] + 1)]
        pieces = [network(ids[:, a:b], cache=cache).logits for a, b in itertools.pairwise(cuts)]
    close(torch.cat(pieces, dim=1), whole, 1e-10, "cached against whole")


def saved_gradients(hf: Any, folder: Path) -> dict[str, Tensor]:
    """The gradients of a Hugging Face model under the names of its files, which some classes change in memory."""
    holder = copy.deepcopy(hf)
    with torch.no_grad():
        for buffer in holder.buffers():
            if buffer.is_floating_point():
                buffer.fill_(torch.nan)
        for parameter, original in zip(holder.parameters(), hf.parameters(), strict=True):
            parameter.copy_(torch.full_like(original, torch.nan) if original.grad is None else original.grad)
    holder.save_pretrained(folder)
    saved = load_file(folder / "model.safetensors")
    return {name: gradient for name, gradient in saved.items() if not gradient.isnan().any()}


def prove_export(network: Any, family: Any, tensors: dict[str, Tensor]) -> None:
    """What the table writes is bit-equal to the file it read."""
    ours = dict(network.named_parameters())
    written: dict[str, Tensor] = {}
    for step in family.weight_table(network.config).steps(set(ours)):
        made = step.to_theirs([ours[name].detach() for name in step.ours])
        written.update(zip(step.theirs, made, strict=True))
    assert set(written) <= set(tensors)
    for name, tensor in written.items():
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), f"{name} is not bit-equal"


def prove_float32(hf_class: type, hf_config: Any, folder: Path, tolerance: float = 1e-4) -> None:
    """The same in float32, relative to the largest logit."""
    model = saved(hf_class, hf_config, folder, torch.float32)
    _, network, _ = load_folder(folder)
    ids = hard_ids(network.config.vocab_size)
    with torch.no_grad():
        close(network(ids).logits, model(ids, use_cache=False).logits, tolerance, "float32 logits")


def prove_loads_in_transformers(
    network: Any, family: Any, folder: Path, hf_class: Any, *, tolerance: float = 1e-5, attention: str = "eager"
) -> None:
    """Written as a folder, the network loads in transformers: no key missing or unexpected, the same logits, and what
    transformers writes again is bit-equal to what we wrote.

    Args:
        folder: where to write; it may exist.
        hf_class: the class that reads it, such as ``LlamaForCausalLM``.
        tolerance: of the logits, as in `prove`.
        attention: its implementation there.
    """
    ours = dict(network.named_parameters())
    written: dict[str, Tensor] = {}
    for step in family.weight_table(network.config).steps(set(ours)):
        made = step.to_theirs([ours[name].detach() for name in step.ours])
        written.update(zip(step.theirs, (tensor.clone().contiguous() for tensor in made), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(family.write_config(network.config)))
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    model, report = hf_class.from_pretrained(
        folder,
        dtype=network.dtype,
        attn_implementation=attention,
        experts_implementation="eager",
        output_loading_info=True,
    )
    problems = {kind: found for kind, found in report.items() if found}
    assert not problems, f"transformers did not load the folder cleanly: {problems}"
    ids = hard_ids(network.config.vocab_size)
    with torch.no_grad():
        close(network(ids).logits, model.eval()(ids, use_cache=False).logits, tolerance, "logits after export")
    model.save_pretrained(folder / "again")
    again = load_file(folder / "again" / "model.safetensors")
    assert set(again) == set(written)
    for name, tensor in written.items():
        assert torch.equal(tensor, again[name]), f"{name} is not bit-equal after transformers read and wrote it"
