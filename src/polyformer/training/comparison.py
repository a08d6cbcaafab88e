"""Training runs side by side: one table, and what `probes` finds about their networks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyformer.checkpoints.disk import write_whole
from polyformer.checkpoints.loading import CONFIG_FILE, open_checkpoint
from polyformer.errors import ConfigError, DataError, TrainingError
from polyformer.generation.generate import generate
from polyformer.generation.settings import GenerationSettings
from polyformer.tokenizers.loading import load_tokenizer
from polyformer.training.charts import readable
from polyformer.training.comparison_plots import draw_curves, draw_losses, require_matplotlib
from polyformer.training.counted import COUNTED_MODEL
from polyformer.training.probes import RecallTask, gradient_norms, recall, require_language_model, training_throughput
from polyformer.training.run_folder import RunFolder, read_journal

PROBES = ("recall", "gradients", "throughput")
Say = Callable[[str], object]


@dataclass(frozen=True)
class Point:
    """The held-out loss at one place of a run, and what it had cost so far."""

    step: int
    loss: float
    tokens: float
    seconds: float
    flops: float


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Attributes:
        folder: of the run.
        name: of the folder; longer where two runs would have the same.
        architecture: of its network, in a word or two.
        parameters: of the network.
        tokens, seconds, flops: of the whole run; None where they are not known.
        tokens_per_second: the median of the journal's lines; None without.
        loss: on held-out data, of the model that was saved.
        points: the held-out loss while it was trained.
    """

    folder: Path
    name: str
    architecture: str
    parameters: int
    tokens: int | None
    seconds: float | None
    flops: float | None
    tokens_per_second: float | None
    loss: float | None
    points: tuple[Point, ...]

    @property
    def is_counted(self) -> bool:
        """Whether it is a model of n-grams, which no probe is for."""
        return (RunFolder(self.folder).model / COUNTED_MODEL).is_file()


@dataclass
class Comparison:
    """Runs, and what the probes found: probe -> name of the run -> its values by distance or context."""

    runs: list[Run]
    probes: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        runs = [{**asdict(run), "folder": str(run.folder)} for run in self.runs]
        return {"runs": runs, "probes": self.probes, "notes": self.notes}


@dataclass(frozen=True)
class ProbeSettings:
    """What the probes do.

    Attributes:
        task: of recall; distances beyond a network's context are left out.
        gradient_length: tokens of the texts for gradients.
        gradient_rows: texts.
        text: for gradients; None lets each network write its own.
        contexts: lengths of rows for throughput.
        batch_tokens: of a step, for throughput.
        device: where.
    """

    task: RecallTask = field(default_factory=RecallTask)
    gradient_length: int = 257
    gradient_rows: int = 8
    text: str | None = None
    contexts: tuple[int, ...] = (128, 256, 512, 1024, 2048)
    batch_tokens: int = 4096
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


# --- runs -----------------------------------------------------------------------------------------------------------


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """
    Raises:
        TrainingError: a folder holds no finished run, or stands there twice.
    """
    names = _names(folders)
    return [_read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders' paths, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(folder for number, folder in enumerate(folders) if parts[number] in parts[:number])
        raise TrainingError(f"{twice} stands there twice: name every run once")
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read_run(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    if not folder.has_run:
        raise TrainingError(f"{path} holds no training run: give the folder that `polyformer train` wrote")
    try:
        summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(f"the run in {path} has not ended (no {folder.summary.name}): let it end first") from None
    except ValueError:
        raise TrainingError(f"{folder.summary} is not valid JSON: the summary of this run is damaged") from None
    events = list(read_journal(folder.journal)) if folder.journal.is_file() else []
    speeds = [event["tokens_per_second"] for event in events if event.get("tokens_per_second")]
    return Run(
        folder=path,
        name=name,
        architecture=_architecture(folder, summary),
        parameters=int(summary["parameters"]),
        tokens=summary.get("tokens"),
        seconds=summary.get("seconds"),
        flops=summary.get("flops"),
        tokens_per_second=float(np.median(speeds)) if speeds else None,
        loss=(summary.get("evaluation") or {}).get("loss"),
        points=_points(events),
    )


def _architecture(folder: RunFolder, summary: Mapping[str, Any]) -> str:
    if isinstance(summary.get("architecture"), str):
        return str(summary["architecture"])
    config = folder.model / CONFIG_FILE
    if not config.is_file():
        raise TrainingError(f"{folder.path} holds no model ({config} is missing): let the run end first")
    values = json.loads(config.read_text(encoding="utf-8"))
    network = values.get("network")
    if not isinstance(network, dict):
        return str(values.get("model_type"))
    return str(network.get("cell") or network.get("kind"))


def _points(events: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """The evaluations, with what the lines of training around them say was spent."""
    train = [event for event in events if event["event"] == "train"]
    steps = [0, *(event["step"] for event in train)]
    spent = {name: [0.0, *(float(event.get(name) or 0) for event in train)] for name in ("tokens", "seconds", "flops")}
    return tuple(
        Point(
            event["step"],
            event["loss"],
            **{name: float(np.interp(event["step"], steps, values)) for name, values in spent.items()},
        )
        for event in events
        if event["event"] == "evaluation" and event.get("loss") is not None
    )


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(
    runs: Sequence[Run],
    output: Path,
    *,
    probes: Sequence[str] = (),
    settings: ProbeSettings | None = None,
    say: Say | None = None,
) -> Comparison:
    """Compare runs, and write ``comparison.json``, ``comparison.md`` and the curves as pictures into a folder.

    Args:
        runs: from `read_runs`.
        output: the folder, made if need be.
        probes: of `PROBES`, on the networks that continue texts.
        settings: of the probes.
        say: told what is being done.

    Raises:
        ConfigError: a probe is not known or cannot be made with a network, or matplotlib is missing.
        DataError: the text for gradients is too short.
        CheckpointError: a model cannot be read.
    """
    chosen = settings or ProbeSettings()
    require_matplotlib()  # before hours of probing
    for probe in probes:
        if probe not in PROBES:
            raise ConfigError(f"there is no probe {probe!r}; there are {', '.join(PROBES)}")
    networks = [run for run in runs if not run.is_counted]
    for run in networks if probes else ():
        with open_checkpoint(RunFolder(run.folder).model) as checkpoint:
            require_language_model(checkpoint.config, f"{run.name}: a probe")
    found = Comparison(list(runs), notes=_notes(runs))
    for probe in probes:
        found.probes[probe] = {}
        for run in networks:
            if say is not None:
                say(f"{probe} of {run.name}")
            found.probes[probe][run.name] = _measure(probe, run, chosen)
    output.mkdir(parents=True, exist_ok=True)
    draw(found, output)
    write_whole(output / "comparison.json", json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")
    write_whole(output / "comparison.md", table(found) + "\n")
    return found


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    tokenizers = {run.name: _tokenizer_text(run) for run in runs}
    if len(set(tokenizers.values())) > 1:
        notes.append("the runs do not share a tokenizer: their losses for a token cannot be compared")
    return notes


def _tokenizer_text(run: Run) -> bytes | None:
    file = RunFolder(run.folder).tokenizer / "tokenizer.json"
    return file.read_bytes() if file.is_file() else None


def _measure(probe: str, run: Run, settings: ProbeSettings) -> dict[int, float]:
    model = RunFolder(run.folder).model
    with open_checkpoint(model) as checkpoint:
        if probe == "recall":
            return recall(checkpoint.config, settings.task, device=settings.device).accuracy
        if probe == "throughput":
            return training_throughput(
                checkpoint.config, settings.contexts, batch_tokens=settings.batch_tokens, device=settings.device
            )
        network: Any = checkpoint.load(dtype=torch.float32, device=settings.device)
    return dict(enumerate(gradient_norms(network, _texts(network, model, settings))))


def _texts(network: Any, model: Path, settings: ProbeSettings) -> Tensor:
    """Rows of tokens for gradients: of the text that was given, or written by the network itself."""
    limit = network.config.max_positions
    length = settings.gradient_length if limit is None else min(settings.gradient_length, limit)
    rows = settings.gradient_rows
    if settings.text is not None:
        tokenizer = load_tokenizer(model)
        if tokenizer is None:
            raise ConfigError(f"{model} has no tokenizer to read a text with: let the networks write their own")
        ids = tokenizer.encode(settings.text)
        if len(ids) < length:
            raise DataError(f"the text has {len(ids)} tokens, fewer than the {length} of one row: give a longer one")
        rows = min(rows, len(ids) // length)
        return torch.tensor(ids[: rows * length]).view(rows, length)
    first = np.random.default_rng(0).integers(0, network.config.vocab_size, rows).tolist()
    wanted = [
        GenerationSettings(max_new_tokens=length - 1, ignore_eos=True, seed=number) for number, _ in enumerate(first)
    ]
    written = generate(network, [[token] for token in first], wanted)
    return torch.tensor([[token, *one[0].token_ids] for token, one in zip(first, written, strict=True)])


# --- what is shown --------------------------------------------------------------------------------------------------


def table(comparison: Comparison) -> str:
    """All runs as a table in Markdown, and the probes below it."""
    header = ["run", "network", "parameters", "tokens", "FLOP", "seconds", "tokens/s", "held-out loss"]
    rows = [
        [
            run.name,
            run.architecture,
            readable(run.parameters),
            *(_cell(value) for value in (run.tokens, run.flops, run.seconds, run.tokens_per_second)),
            "–" if run.loss is None else f"{run.loss:.4f}",
        ]
        for run in comparison.runs
    ]
    parts = [_markdown(header, rows)]
    for probe, found in comparison.probes.items():
        places = _shown(probe, found)
        lines = [[name, *(_value(probe, values, place) for place in places)] for name, values in found.items()]
        parts.append(f"{_TITLES[probe]}\n\n" + _markdown(["run", *map(str, places)], lines))
    parts += [f"Note: {note}." for note in comparison.notes]
    return "\n\n".join(parts)


_TITLES = {
    "recall": "Share of tokens recalled, by how many steps back they stand:",
    "gradients": "Norm of the gradient, by how many steps back, as a share of that at the last token:",
    "throughput": "Training, tokens a second, by the length of the rows:",
}


def _shown(probe: str, found: Mapping[str, Mapping[int, float]]) -> list[int]:
    places = sorted({place for values in found.values() for place in values})
    if probe != "gradients":
        return places
    return [place for place in places if place and place & (place - 1) == 0]  # powers of two, of hundreds of places


def _value(probe: str, values: Mapping[int, float], place: int) -> str:
    if place not in values:
        return "–"
    if probe == "recall":
        return f"{values[place]:.0%}"
    if probe == "gradients":
        return f"{values[place] / values[0]:.1e}" if values[0] else "–"
    return readable(values[place])


def _cell(value: float | None) -> str:
    return "–" if not value else readable(value)


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in (header, *rows)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def draw(comparison: Comparison, output: Path) -> list[Path]:
    """The pictures of a comparison.

    Raises:
        ConfigError: matplotlib is missing.
    """
    pictures = [draw_losses(comparison.runs, output / "loss.png")]
    names = [run.name for run in comparison.runs]
    for probe, found in comparison.probes.items():
        values: Mapping[str, Mapping[int, float]] = found
        if probe == "gradients":
            values = {
                name: {place: value / one[0] for place, value in one.items() if one[0]} for name, one in found.items()
            }
        pictures.append(draw_curves(probe, values, names, output / f"{probe}.png"))
    return pictures
