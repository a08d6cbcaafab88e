"""What architectures differ in, measured: how far back they recall, how far back gradients reach, how fast they train.

Each probe takes language models (whatever is called like `DecoderOnly` and scores its own vocabulary) and gives plain
data. They do not change the networks they are given, nor anyone's random numbers.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from polyformer.core.config import require
from polyformer.core.embeddings import TokenEmbedding
from polyformer.objectives.causal import CausalLM
from polyformer.objectives.tokens import check_writer

Progress = Callable[[int, int], None]


def require_language_model(config: Any, what: str) -> None:
    """
    Raises:
        ConfigError: this is no network that continues a text by itself; ``what`` is what needs one.
    """
    check_writer(what, config)
    require(
        not hasattr(config, "decoder_start_token_id"), f"{what} is for networks without a source, not {config.kind}"
    )


@contextmanager
def _own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


# --- recall ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecallTask:
    """Recall of a token k steps back, learned from nothing: a task of long time lags (Hochreiter and Schmidhuber, 1997,
    section 5) with a key to be named (as the copying memory of Arjovsky et al., 2016, and Bai et al., 2018).

    A row is some noise, a key, k - 1 tokens of noise, and a query; what comes after the query is the key. A network of
    each architecture begins with new weights and a farthest distance of 1, and k is drawn evenly on a logarithmic scale
    up to it; whenever the network is right nearly always, the farthest is doubled (a curriculum: Bengio et al., 2009;
    without one, recurrent networks do not find the task at all within so few steps). Then every k is tried apart.
    Training tells what the architecture can carry, where a model of a language that is asked as it is would also tell
    what its texts had taught it.

    Attributes:
        distances: the k that are tried; the farthest is also the farthest that is learned.
        keys: tokens that can be asked for. By chance 1 / keys are right.
        noise: tokens that stand between.
        steps, batch_size, learning_rate: of learning with AdamW. Learning ends early where the farthest distance is
            learned.
        mastered: mean loss of the last 20 steps at which the farthest distance is doubled.
        trials: rows for each distance.
        seed: of weights and rows.
    """

    distances: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    keys: int = 16
    noise: int = 16
    steps: int = 1000
    batch_size: int = 32
    learning_rate: float = 3e-3
    mastered: float = 0.1
    trials: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require(len(self.distances) >= 1, "there is no distance to recall over")
        require(min(self.distances) >= 1, f"a distance is {min(self.distances)}, but it must be at least 1")
        for name in ("keys", "noise", "steps", "batch_size", "trials"):
            least = 2 if name == "keys" else 1
            require(getattr(self, name) >= least, f"{name} is {getattr(self, name)}, but it must be at least {least}")

    @property
    def vocabulary(self) -> int:
        """Tokens that it takes: noise, then keys, then the query."""
        return self.noise + self.keys + 1


@dataclass(frozen=True)
class Recall:
    """How well a token is recalled.

    Attributes:
        accuracy: distance -> share of the trials that were right; without distances beyond the network's context.
        chance: the share that guessing gets right.
        steps: of learning that were taken.
    """

    accuracy: dict[int, float]
    chance: float
    steps: int

    @property
    def reach(self) -> int:
        """The farthest distance up to which at least half of all keys are recalled; 0 where none are."""
        near = 0
        for distance in sorted(self.accuracy):
            if self.accuracy[distance] < 0.5:
                break
            near = distance
        return near


def recall(
    config: Any,
    task: RecallTask | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Recall:
    """How far back an architecture learns to recall a token; see `RecallTask`.

    Args:
        config: of a language model; its weights are made anew.
        device: where.
        progress: called with the steps done and the steps in all.

    Raises:
        ConfigError: this is no language model, or its vocabulary or context is too small for the task.
    """
    task, place = task or RecallTask(), torch.device(device)
    require_language_model(config, "the probe of recall")
    require(
        config.vocab_size >= task.vocabulary,
        f"recall needs {task.vocabulary} tokens, but the network has {config.vocab_size}: lower keys or noise",
    )
    limit = math.inf if config.max_positions is None else config.max_positions - _MOST_BEFORE - 1
    distances = [distance for distance in sorted(set(task.distances)) if distance <= limit]
    require(bool(distances), f"the network's context of {config.max_positions} tokens is too short for this task")
    random = np.random.default_rng(task.seed)
    with _own_randomness(task.seed, place):
        network = config.build().to(place)
        steps = _learn(network, task, distances[-1], random, progress)
        network.eval()
        accuracy = {distance: _accuracy(network, task, distance, random) for distance in distances}
    return Recall(accuracy, 1 / task.keys, steps)


_MOST_BEFORE = 8  # tokens of noise before the key, so that no place in the row gives it away


def _learn(
    network: Any, task: RecallTask, farthest: int, random: np.random.Generator, progress: Progress | None
) -> int:
    optimizer = torch.optim.AdamW(network.parameters(), lr=task.learning_rate, weight_decay=0.01)
    recent: deque[float] = deque(maxlen=20)
    reach = 1
    network.train()
    for step in range(task.steps):
        for group in optimizer.param_groups:
            group["lr"] = task.learning_rate * min(1.0, (step + 1) / 50)
        distance = round(math.exp(random.uniform(0, math.log(reach))))
        ids, keys = _recall_rows(task, distance, task.batch_size, random, network.device)
        loss = functional.cross_entropy(_after_query(network, ids), keys)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if progress is not None:
            progress(step + 1, task.steps)
        if len(recent) == recent.maxlen and statistics.fmean(recent) < task.mastered:
            if reach == farthest:
                return step + 1
            reach = min(2 * reach, farthest)
            recent.clear()
    return task.steps


@torch.no_grad()
def _accuracy(network: Any, task: RecallTask, distance: int, random: np.random.Generator) -> float:
    right = 0
    for begin in range(0, task.trials, task.batch_size):
        rows = min(task.batch_size, task.trials - begin)
        ids, keys = _recall_rows(task, distance, rows, random, network.device)
        right += int((_after_query(network, ids).argmax(-1) == keys).sum())
    return right / task.trials


def _recall_rows(
    task: RecallTask, distance: int, rows: int, random: np.random.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows [rows, before + 1 + distance] whose last token is the query, and the keys [rows] ``distance`` before it."""
    before = int(random.integers(_MOST_BEFORE + 1))
    ids = torch.from_numpy(random.integers(0, task.noise, (rows, before + 1 + distance)))
    keys = torch.from_numpy(random.integers(task.noise, task.noise + task.keys, rows))
    ids[:, before] = keys
    ids[:, -1] = task.noise + task.keys
    return ids.to(device), keys.to(device)


def _after_query(network: Any, ids: Tensor) -> Tensor:
    logits: Tensor = network.score(network(ids, with_logits=False).last_hidden_state[:, -1])
    return logits.float()


# --- gradients ------------------------------------------------------------------------------------------------------


def gradient_norms(network: Any, ids: Tensor) -> list[float]:
    """How far back the gradient of a loss reaches (Hochreiter, 1991; Bengio et al., 1994; Pascanu et al., 2013).

    The loss is that of the last token of each row, given those before it; its gradient is taken with respect to the
    vector that the token embedding gives for each earlier token. Weights and dropout play no part.

    Args:
        network: a language model with a token embedding.
        ids: [rows, length], the same text for all networks that are compared, or one that each finds likely.

    Returns:
        [length - 1]: the mean over rows of the norm, 0 steps back first: the token just before the one that is
        predicted, then the one before it, …

    Raises:
        ConfigError: this is no language model, or there are fewer than two tokens in a row.
    """
    require_language_model(network.config, "the probe of gradients")
    require(ids.dim() == 2 and ids.shape[1] >= 2, f"ids must be [rows, 2 or more], but they are {list(ids.shape)}")
    embedding = next((module for module in network.modules() if isinstance(module, TokenEmbedding)), None)
    require(embedding is not None, f"{network.config.kind} has no token embedding")
    assert embedding is not None
    embedded: list[Tensor] = []
    hook = embedding.register_forward_hook(lambda module, inputs, output: embedded.append(output))
    training = network.training
    ids = ids.to(network.device)
    try:
        # cuDNN's recurrent layers have gradients in training only, where dropout would take part.
        with torch.backends.cudnn.flags(enabled=False), torch.enable_grad():
            network.eval()
            logits = _after_query(network, ids[:, :-1])
            loss = functional.cross_entropy(logits, ids[:, -1], reduction="sum")
            (gradient,) = torch.autograd.grad(loss, embedded[0])
    finally:
        hook.remove()
        network.train(training)
    norms: list[float] = gradient.float().norm(dim=-1).mean(0).flip(0).tolist()
    return norms


# --- throughput -----------------------------------------------------------------------------------------------------


def training_throughput(
    config: Any,
    contexts: Sequence[int],
    *,
    batch_tokens: int = 4096,
    repeats: int = 3,
    precision: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[int, float]:
    """Tokens a second of whole training steps (loss, gradients, AdamW), by the length of the rows.

    What is done at once for all tokens of a row stays as fast; what goes from token to token slows down as rows get
    longer and fewer.

    Args:
        config: of a language model; its weights are made anew.
        contexts: lengths of rows; those beyond the network's context are left out.
        batch_tokens: tokens of a step, as rows of equal length; at least one row.
        repeats: steps that are timed, after one that is not; the fastest counts, since whatever else the machine does
            can only slow a step down.
        precision: of the computation.
        seed: of weights and tokens.
        progress: called with the contexts done and the contexts in all.

    Raises:
        ConfigError: this is no language model, or a number is not positive.
    """
    require_language_model(config, "the probe of throughput")
    for name, value in (("contexts", min(contexts, default=0)), ("batch_tokens", batch_tokens), ("repeats", repeats)):
        require(value >= 1, f"{name} must be at least 1, but {value} was given")
    place = torch.device(device)
    limit = math.inf if config.max_positions is None else config.max_positions
    found: dict[int, float] = {}
    with _own_randomness(seed, place):
        network = config.build().to(place).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
        fitting = [length for length in contexts if length <= limit]
        for number, length in enumerate(fitting, start=1):
            random = np.random.default_rng([seed, length])
            rows = max(1, batch_tokens // length)
            examples = [{"input_ids": random.integers(0, config.vocab_size, length)} for _ in range(rows)]
            batch = {name: value.to(place) for name, value in CausalLM().collate(examples).items()}
            seconds = [_timed_step(network, optimizer, batch, precision) for _ in range(repeats + 1)]
            found[length] = rows * length / min(seconds[1:])
            if progress is not None:
                progress(number, len(fitting))
    return found


def _timed_step(network: Any, optimizer: Any, batch: dict[str, Tensor], precision: torch.dtype) -> float:
    device = network.device
    _wait(device)
    begin = time.perf_counter()
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        loss = CausalLM()(network, batch)
    (loss.total / loss.count).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
