"""Is a checkpoint whole, known and loadable? Answered from headers, in seconds, whatever its size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from polyformer.checkpoints.ctranslate2 import CTranslate2File
from polyformer.checkpoints.disk import readable_size
from polyformer.checkpoints.gguf import GGUFFile
from polyformer.checkpoints.loading import (
    CONFIG_FILE,
    build_on_meta,
    plan_for,
    read_config_file,
    recognize,
    recognize_ctranslate2,
    with_pooler,
)
from polyformer.checkpoints.saving import GENERATION_CONFIG_FILE
from polyformer.checkpoints.sources import open_tensors
from polyformer.checkpoints.tensor_source import TensorSource
from polyformer.core.dual_encoder import DualEncoder
from polyformer.errors import CheckpointError, PolyformerError

Status = Literal["ok", "note", "failed", "skipped"]

# Text in several scripts, with runs of spaces, a line end and an emoji of several code points.
ROUND_TRIP_TEXTS = ("Hello, world!", "naïve café, 12 345 €", "def f(x):\n    return x  # done", "你好 Привет 👩‍🚀")


@dataclass(frozen=True)
class Check:
    """The answer to one question about a checkpoint.

    Attributes:
        name: what was looked at.
        status: "ok"; "note" for something to know that does not stand in the way; "failed"; or "skipped", where an
            earlier failure left nothing to look at.
        details: what was found, one line each.
    """

    name: str
    status: Status
    details: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Attributes:
        path: the folder or the file.
        checks: in the order they were made.
    """

    path: Path
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the checkpoint can be loaded, as far as its headers tell."""
        return all(check.status in ("ok", "note") for check in self.checks)

    def lines(self) -> list[str]:
        """The report as text, for a terminal."""
        lines = []
        for check in self.checks:
            lines += [f"{check.status:<8} {check.name:<10} {check.details[0] if check.details else ''}".rstrip()]
            lines += [f"{'':<20}{detail}" for detail in check.details[1:]]
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        checks = [{"name": c.name, "status": c.status, "details": list(c.details)} for c in self.checks]
        return {"path": str(self.path), "ok": self.ok, "checks": checks}


@dataclass
class _Findings:
    """What one check learned for the next ones."""

    path: Path
    source: TensorSource | None = None
    config: Any = None
    table: Any = None
    network: nn.Module | None = None
    notes: list[str] = field(default_factory=list)


class _Skip(Exception):
    """There is nothing to look at, because an earlier check failed."""


def validate(path: str | Path) -> Report:
    """Checks a checkpoint without loading it: files, config, tokenizer, weights and memory.

    Only headers are read, so it takes seconds for a network of any size. What is wrong with the checkpoint is in the
    report; nothing is raised for it.
    """
    path = Path(path)
    findings = _Findings(path)
    questions: tuple[tuple[str, Callable[[_Findings], list[str]]], ...] = (
        ("files", _check_files),
        ("config", _check_config),
        ("tokenizer", _check_tokenizer),
        ("weights", _check_weights),
        ("memory", _check_memory),
    )
    checks = [_ask(name, question, findings) for name, question in questions]
    if findings.source is not None:
        findings.source.close()
    return Report(path, tuple(checks))


def _ask(name: str, question: Callable[[_Findings], list[str]], findings: _Findings) -> Check:
    findings.notes = []
    try:
        details = question(findings)
    except _Skip as reason:
        return Check(name, "skipped", (str(reason),))
    except PolyformerError as error:
        return Check(name, "failed", tuple(line.strip() for line in str(error).splitlines()))
    except Exception as error:  # a broken model may break anything; the report says so and goes on
        return Check(name, "failed", (f"{type(error).__name__}: {error}",))
    return Check(name, "note" if findings.notes else "ok", (*details, *findings.notes))


def _check_files(findings: _Findings) -> list[str]:
    source = open_tensors(findings.path)
    findings.source = source
    names = source.names()
    total = readable_size(sum(source.nbytes(name) for name in names))
    kinds: dict[str, int] = {}
    for name in names:
        kind = source.type_name(name) if isinstance(source, GGUFFile) else str(source.dtype(name)).split(".")[1]
        kinds[kind] = kinds.get(kind, 0) + 1
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: -item[1]))
    return [f"{len(names)} tensors ({counted}), {total}"]


def _check_config(findings: _Findings) -> list[str]:
    from polyformer.tokenizers.images import load_image_processor

    path, source = findings.path, findings.source
    if isinstance(source, GGUFFile):
        known = recognize(path, source.metadata, source)
    elif isinstance(source, CTranslate2File):
        known = recognize_ctranslate2(source)
    elif path.suffix == ".gguf" or not path.exists():
        raise _Skip("the file could not be read")
    else:
        folder = path if path.is_dir() else path.parent
        values = read_config_file(folder / CONFIG_FILE)
        known = recognize(path, with_pooler(values, source), None)
        if unread := known.family.unread_keys(values):
            findings.notes.append(f"keys of {CONFIG_FILE} that are not known here: {', '.join(unread)}")
        if (folder / GENERATION_CONFIG_FILE).is_file():
            read_config_file(folder / GENERATION_CONFIG_FILE)
    findings.config, findings.table = known.config, known.table
    if _reads_pictures(known.config) and load_image_processor(path if path.is_dir() else path.parent) is None:
        findings.notes.append("there is no preprocessor_config.json: the model takes pixel values, not pictures")
    if known.config.vocab_size is None:
        return [f"{known.family.name}, reads pictures"]
    length = known.config.max_positions
    context = "no limit of length" if length is None else f"{length:,} tokens of context"
    return [f"{known.family.name}, vocabulary of {known.config.vocab_size:,}, {context}"]


def _reads_pictures(config: Any) -> bool:
    part = config.image if isinstance(config, DualEncoder.Config) else config
    encoder = getattr(part, "encoder", None)
    return encoder is not None and bool(encoder.input_name == "pixel_values")


def _check_tokenizer(findings: _Findings) -> list[str]:
    from polyformer.tokenizers.gguf import tokenizer_from_gguf
    from polyformer.tokenizers.loading import load_tokenizer

    path, source = findings.path, findings.source
    if isinstance(source, GGUFFile):
        tokenizer = tokenizer_from_gguf(source.metadata) if "tokenizer.ggml.model" in source.metadata else None
    elif path.suffix == ".gguf" or not path.exists():
        raise _Skip("the file could not be read")
    else:
        tokenizer = load_tokenizer(path if path.is_dir() else path.parent)
    if tokenizer is None and findings.config is not None and findings.config.vocab_size is None:
        return ["none is needed: the network reads no text"]
    if tokenizer is None:
        findings.notes.append("there is none: the model takes and gives token ids")
        return []
    largest = 0
    for text in ROUND_TRIP_TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        largest = max([largest, *ids])
        back = tokenizer.decode(ids)
        if back != text:
            again = tokenizer.decode(tokenizer.encode(back, add_special_tokens=False))
            if again != back:
                raise CheckpointError(
                    f"the tokenizer does not give text back: {text!r} became {back!r}, then {again!r}"
                )
            findings.notes.append(f"the tokenizer changes text: {text!r} comes back as {back!r}")
    size = tokenizer.vocab_size
    if findings.config is not None and max(size, largest + 1) > findings.config.vocab_size:
        raise CheckpointError(
            f"the tokenizer has {max(size, largest + 1):,} tokens, and the network {findings.config.vocab_size:,}: "
            "it belongs to another model"
        )
    chat = "with a chat template" if tokenizer.chat_template is not None else "without a chat template"
    return [f"{size:,} tokens, {chat}"]


def _check_weights(findings: _Findings) -> list[str]:
    if findings.config is None:
        raise _Skip("without a config it is not known which weights there must be")
    findings.network = build_on_meta(findings.config)
    if findings.source is None:
        raise _Skip("the files could not be read")
    plan = plan_for(findings.network, findings.table, findings.source)
    plan.raise_if_broken(findings.path.name)
    stored = [name for step in plan.steps for name in step.theirs if not findings.source.dtype(name).is_floating_point]
    if stored:
        raise CheckpointError(f"{stored[0]} holds {findings.source.dtype(stored[0])} and not floating numbers")
    return [f"all {len(plan.steps)} fit by name and shape"]


def _check_memory(findings: _Findings) -> list[str]:
    if findings.network is None:
        raise _Skip("without a config the size is not known")
    count = sum(parameter.numel() for parameter in findings.network.parameters())
    half, full = count * 2, count * 4
    available = _available_memory()
    if available is not None and half > available:
        findings.notes.append(f"this machine has {readable_size(available)} available: too little on the CPU")
    elif available is not None and full > available:
        findings.notes.append(f"this machine has {readable_size(available)} available: load it as bfloat16 on the CPU")
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0]
        findings.notes.append(f"the GPU has {readable_size(free)} free")
    return [f"{count:,} parameters: {readable_size(half)} as bfloat16 or float16, {readable_size(full)} as float32"]


def _available_memory() -> int | None:
    """Bytes that programs can have without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None
