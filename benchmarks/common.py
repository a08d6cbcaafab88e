"""What the benchmarks share: facts and limits of the machine, timing in turns, fresh processes, tables."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results"
DEFAULT_MODEL = "smollm2-135m-instruct"
TEXT_FILE = FOLDER.parent / "LICENSE"
"""English text that is always at hand: what the models read."""

_INSTRUCTION_SETS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "bf16", "i8mm", "sve"),
)

# Both sides run from files on this machine, and print nothing but what is asked for.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.update(_QUIET)  # before anything imports those libraries


# --- the command line of every benchmark ----------------------------------------------------------------------------


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        prog=f"python benchmarks/{name}.py", description=(description or "").split("\n")[0]
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="catalogue name, folder or .gguf file (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="few and small: shows that it works, not how fast")
    parser.add_argument(
        "--output", type=Path, help=f"the JSON file (benchmarks/results/{name}.json; with --quick none)"
    )
    return parser


def output_of(name: str, options: argparse.Namespace) -> Path | None:
    """The file that the results are kept in, if any."""
    if options.output is not None:
        return options.output
    return None if options.quick else RESULTS / f"{name}.json"


def finish(result: Mapping[str, Any], path: Path | None) -> None:
    """Keep the result in a file and print it as one line, the last."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    print(json.dumps(result), flush=True)


def model_name(source: str) -> str:
    """What to call a model in results: never the path of somebody's folder."""
    return Path(source).name if os.path.sep in source else source


def threads(machine: Mapping[str, Any]) -> str:
    """How many threads were used, in words."""
    return "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of text; the first column is aligned left, the others right."""
    widths = [max(len(line[place]) for line in [columns, *rows]) for place in range(len(columns))]
    print(f"\n{title}\n")
    for line in [columns, ["-" * width for width in widths], *rows]:
        first, *others = (text.rjust(width) for text, width in zip(line, widths))
        print("  " + "  ".join([line[0].ljust(len(first)), *others]))
    print(flush=True)


# --- the machine ----------------------------------------------------------------------------------------------------


def machine_facts() -> dict[str, Any]:
    """What the figures were measured on and with."""
    import torch

    facts = _processor_facts()
    busy = _busy_share()
    if busy is not None and busy > 0.05:
        print(f"Other programs keep the processor {busy:.0%} busy: the figures will be too low.", file=sys.stderr)
    return {
        **facts,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "busy_before": busy,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "polyformer")},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _processor_facts() -> dict[str, Any]:
    """Model, instruction sets and last-level cache of the processor, as far as the system tells."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    caches = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError, ValueError):
            caches.append(int(path.read_text().strip().removesuffix("K")) * 1024)
    return {
        "processor": fields.get("model name") or platform.processor() or "unknown",
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in flags],
        "last_level_cache_bytes": max(caches, default=None),
    }


def _busy_share(seconds: float = 0.5) -> float | None:
    """The part of the cores' time that others take while this program sleeps; None where the system does not say."""

    def ticks() -> tuple[int, int]:
        numbers = [int(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]  # all of them; idle and waiting for a disk

    try:
        total, idle = ticks()
        time.sleep(seconds)
        total_after, idle_after = ticks()
    except (OSError, ValueError, IndexError):
        return None
    return 1 - (idle_after - idle) / max(1, total_after - total)


def _memory_bytes() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _version(package: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def read_bandwidth(nbytes: int, *, seconds: float = 1.0) -> float:
    """Bytes per second that reductions over a buffer read, with all threads: the best of many.

    Two reductions are tried, for neither is the fastest everywhere: a sum, and a product of a matrix and a vector.
    """
    import torch

    columns = 1024
    buffer = torch.ones(max(1, nbytes // (4 * columns)), columns)
    vector = torch.ones(columns)
    best = min(_best_time(lambda: buffer.sum(), seconds / 2), _best_time(lambda: buffer @ vector, seconds / 2))
    return buffer.nbytes / best


def matmul_peak(dtype_name: str, size: int, *, seconds: float = 1.0) -> float:
    """Floating-point operations per second of a product of two square matrices, with all threads: the best of many."""
    import torch

    from polyformer.core.packing import fastest_product

    left, right = torch.randn(2, size, size).to(getattr(torch, dtype_name))
    multiply = fastest_product(left)
    return 2 * size**3 / _best_time(lambda: multiply(left, right), seconds)


def _best_time(call: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls that fit into so many seconds (three at least)."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_limits(model_bytes: int, *, quick: bool) -> dict[str, Any]:
    """Memory reads over a buffer far larger than the caches, and over one of the model's size, which a large cache may
    hold in part; the peak of matrix products."""
    large = 2**26 if quick else min(2**31, (_memory_bytes() or 2**33) // 8)
    seconds = 0.05 if quick else 1.5
    size = 256 if quick else 4096
    limits = {
        "read_bytes_per_second": read_bandwidth(large, seconds=seconds),
        "read_buffer_bytes": large,
        "model_size_read_bytes_per_second": read_bandwidth(model_bytes, seconds=seconds),
        "model_size_buffer_bytes": model_bytes,
        "matmul_size": size,
        "matmul_flops": {name: matmul_peak(name, size, seconds=seconds) for name in ("bfloat16", "float32")},
    }
    print(
        f"Memory reads: {limits['read_bytes_per_second'] / 1e9:.1f} GB/s over {large / 2**20:,.0f} MiB, "
        f"{limits['model_size_read_bytes_per_second'] / 1e9:.1f} GB/s over {model_bytes / 2**20:,.1f} MiB "
        "(the size of the weights)"
    )
    peaks = (f"{peak / 1e12:.2f} TFLOP/s in {name}" for name, peak in limits["matmul_flops"].items())
    print(f"Matrix products of {size} x {size}: {', '.join(peaks)}", flush=True)
    return limits


# --- timing ---------------------------------------------------------------------------------------------------------


def interleave(
    contenders: Mapping[str, Callable[[], object]], repetitions: int, *, warmups: int = 1
) -> dict[str, list[float]]:
    """Time the contenders in turns, so that what disturbs the machine for a while disturbs all of them.

    Returns:
        Seconds of every repetition, by contender; the n-th ones were measured one after the other.
    """
    for _ in range(warmups):
        for call in contenders.values():
            call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, call in contenders.items():
            gc.collect()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(peer: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times longer the peer took, pair by pair."""
    return spread([theirs / mine for theirs, mine in zip(peer, ours, strict=True)])


def show(values: Mapping[str, float], form: str = ".2f", factor: float = 1.0) -> str:
    """``median (min..max)``."""
    middle, low, high = (format(values[name] * factor, form) for name in ("median", "min", "max"))
    return f"{middle} ({low}..{high})"


# --- fresh processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One process that has ended.

    Attributes:
        seconds: from its start to its end.
        first_line_seconds: from its start to its first line of output; the same as `seconds` if it wrote none.
        values: its last line of output, if that is a JSON object; else empty.
    """

    seconds: float
    first_line_seconds: float
    values: dict[str, Any]


def run_fresh(command: Sequence[str]) -> Run:
    """Run a command to its end in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    with tempfile.TemporaryFile("w+") as complaints:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        first_line = time.perf_counter() - start
        rest, _ = process.communicate()
        seconds = time.perf_counter() - start
        if process.returncode:
            complaints.seek(0)
            said = complaints.read()[-2000:]
            raise RuntimeError(f"{' '.join(command)[:200]} failed with status {process.returncode}:\n{said}")
    lines = (first + rest).strip().splitlines()
    values = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Run(seconds, first_line if first else seconds, values)


class Worker:
    """A process that says when it is ready, and then answers one JSON line with another (`requests`, `answer`)."""

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> dict[str, Any]:
        """Wait for the next line that it says.

        Raises:
            RuntimeError: it has ended (and said why on standard error).
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with status {self._process.wait()} instead of answering")
        said: dict[str, Any] = json.loads(line)
        return said

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises as `ready`."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self.ready()

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def requests() -> Iterator[dict[str, Any]]:
    """What `Worker.ask` sends, inside the worker."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(**values: Any) -> None:
    """Answer a request, inside the worker."""
    print(json.dumps(values), flush=True)


def memory_status() -> dict[str, int]:
    """Resident memory of this process in bytes, now and at its highest; files that are mapped and read count."""
    fields: dict[str, int] = {}
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in ("VmRSS", "VmHWM"):
                fields[key] = int(value.split()[0]) * 1024
        return {"now": fields["VmRSS"], "peak": fields["VmHWM"]}
    except (OSError, KeyError):
        import resource

        import psutil

        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"now": psutil.Process().memory_info().rss, "peak": peak}


# --- the two sides --------------------------------------------------------------------------------------------------


def load_peer(folder: str | Path, dtype: str, *, gguf_file: str | None = None) -> Any:
    """The model as transformers loads it, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=getattr(torch, dtype), **options).eval()


def text_ids(model: Any, count: int) -> list[int]:
    """So many token ids of English text; random ones for a model without a tokenizer."""
    import torch

    if model.tokenizer is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(model.config.vocab_size, (count,), generator=generator).tolist()
    text = " ".join(TEXT_FILE.read_text(encoding="utf-8").split())
    ids: list[int] = model.tokenizer.encode(text, add_special_tokens=False)
    return (ids * (count // len(ids) + 1))[:count]


def check_context(model: Any, tokens: int) -> None:
    """
    Raises:
        SystemExit: the benchmark needs more tokens than the model's context has.
    """
    if model.context_length is not None and tokens > model.context_length:
        raise SystemExit(f"this benchmark needs {tokens} tokens, but the model's context is {model.context_length}")
