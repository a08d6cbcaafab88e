"""Training: tokens per second of a small GPT, beside a plain loop with transformers' GPT-2, and beside its Trainer.

Both sides begin with the same weights and read the same batches of the same text; the losses are compared at the end.
They take turns, each in a process of its own, as its users have it: our trainer has the C library keep freed memory and
the system join it into large pages, which would speed up whatever else the process does.

The network is nanoGPT's small one: 6 layers of 384, 256 tokens, characters, a batch of 16; AdamW, clipping at 1, and
no dropout. Computation is in bfloat16 by autocast where the processor has instructions for it, else in float32.

Our trainer computes the batch as micro-batches at the same time, one for each core (`micro_batches_at_once`), which the
others have no way to do; ``--at-once 1`` has it use all cores for each operation, as they do.

    python benchmarks/training.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import common
import numpy as np
import torch

LENGTH, ROWS, LEARNING_RATE, DECAY, CLIP = 256, 16, 1e-3, 0.1, 1.0
IN_TURN = 4
"""Steps of one side before it is the other's turn."""


class Text:
    """Rows of characters, one after the other."""

    def __init__(self, ids: np.ndarray):
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids) // LENGTH

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.ids[index * LENGTH : (index + 1) * LENGTH]}


def characters(count: int) -> tuple[Text, int]:
    """So many characters of Jane Austen's novels as numbers, and how many different ones there are."""
    from polyformer.training.data.reading import read_documents

    text = "".join(document["text"] for document in read_documents("austen"))[:count]
    alphabet = {letter: number for number, letter in enumerate(sorted(set(text)))}
    return Text(np.array([alphabet[letter] for letter in text], np.int64)), len(alphabet)


def make_model(vocabulary: int) -> Any:
    import polyformer
    from polyformer.families import find_family

    values = {
        "vocab_size": vocabulary,
        "n_positions": LENGTH,
        "n_embd": 384,
        "n_layer": 6,
        "n_head": 6,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    family = find_family("gpt2")
    model = polyformer.build(family.read_config(values), device="cpu", seed=0)
    model.family = family
    return model


class Clock:
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def tokens_per_second(self) -> float:
        """Of the median step; the first two warm up."""
        return ROWS * LENGTH / statistics.median(self.seconds[2:])


class Ours:
    """Our trainer, one step at a time."""

    def __init__(self, network: torch.nn.Module, text: Text, steps: int, precision: str, at_once: int = 1):
        from polyformer.objectives import CausalLM
        from polyformer.training.data.loader import Loader
        from polyformer.training.optimizers import OptimizerSettings, make_optimizers
        from polyformer.training.schedules import Schedule
        from polyformer.training.trainer import Observer, Trainer, TrainerSettings

        self.clock = clock = Clock()

        class Watch(Observer):
            def on_step(self, report: Any) -> None:
                clock.losses.append(report.loss)
                self.utilization = report.utilization

        self.watch = Watch()
        objective = CausalLM()
        settings = OptimizerSettings("adamw", LEARNING_RATE, DECAY, betas=(0.9, 0.95))
        self.loader = Loader(text, objective, batch_size=ROWS, micro_batch_size=ROWS // at_once, seed=0)
        self.trainer = Trainer(
            network,
            objective,
            self.loader,
            optimizers=make_optimizers(network, settings),
            schedule=Schedule("constant", steps),
            settings=TrainerSettings(
                steps=steps, gradient_clipping=CLIP, precision=precision, micro_batches_at_once=at_once
            ),
            observers=[self.watch],
        )

    def run(self, steps: int) -> None:
        """So many more steps."""
        begin = time.perf_counter()
        clock, watch = self.clock, self.watch
        inner = type(watch).on_step

        def on_step(report: Any) -> None:
            nonlocal begin
            inner(watch, report)
            now = time.perf_counter()
            clock.seconds.append(now - begin)
            begin = now

        watch.on_step = on_step  # type: ignore[method-assign]
        trainer = self.trainer
        trainer.settings = replace(trainer.settings, steps=trainer.progress.step + steps)
        trainer.run()


def decayed(network: torch.nn.Module) -> list[dict[str, Any]]:
    """nanoGPT's groups: matrices decay, vectors do not."""
    parameters = list(network.parameters())
    return [
        {"params": [one for one in parameters if one.dim() >= 2], "weight_decay": DECAY},
        {"params": [one for one in parameters if one.dim() < 2], "weight_decay": 0.0},
    ]


class PlainLoop:
    """What people write: forward, backward, clip, step."""

    def __init__(self, folder: str, batches: np.ndarray, precision: str):
        self.batches = iter(torch.from_numpy(batches))
        self.peer, self.precision, self.clock = load_peer(folder).train(), precision, Clock()
        self.optimizer = torch.optim.AdamW(decayed(self.peer), lr=LEARNING_RATE, betas=(0.9, 0.95))

    def run(self, steps: int) -> Clock:
        """So many more steps; gives all so far."""
        for _ in range(steps):
            begin = time.perf_counter()
            ids = next(self.batches)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
                loss = self.peer(input_ids=ids, labels=ids).loss
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.peer.parameters(), CLIP)
            self.optimizer.step()
            self.clock.losses.append(loss.item())
            self.clock.seconds.append(time.perf_counter() - begin)
        return self.clock


class TheirTrainer:
    """transformers' own Trainer on the same batches."""

    def __init__(self, folder: str, batches: np.ndarray, precision: str):
        self.peer, self.batches, self.precision = load_peer(folder), torch.from_numpy(batches), precision

    def run(self, steps: int) -> Clock:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        clock = Clock()

        class Watch(TrainerCallback):
            begin = 0.0

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.begin = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.seconds.append(time.perf_counter() - self.begin)

            def on_log(self, arguments: Any, state: Any, control: Any, logs: Any = None, **__: Any) -> None:
                if logs and "loss" in logs:
                    clock.losses.append(logs["loss"])

        rows = [{"input_ids": row, "labels": row} for batch in self.batches[:steps] for row in batch]
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=ROWS,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                weight_decay=DECAY,
                adam_beta2=0.95,
                max_grad_norm=CLIP,
                bf16=self.precision == "bfloat16",
                use_cpu=True,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                dataloader_num_workers=0,
            )

            class InOrder(Trainer):
                def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
                    return torch.utils.data.SequentialSampler(rows)

            InOrder(self.peer, arguments, train_dataset=rows, callbacks=[Watch()]).train()
        return clock


def load_peer(folder: str) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)


class Elsewhere:
    """A peer in a process of its own, which rests unless it is asked to run."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        self.connection.recv()  # it is ready
        self.clock = Clock()

    def run(self, steps: int) -> None:
        self.connection.send(steps)
        self.clock = self.connection.recv()


def _serve(connection: Any, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    peer = make(*arguments)
    connection.send(None)
    while True:
        try:
            steps = connection.recv()
        except EOFError:  # the benchmark has ended
            return
        connection.send(peer.run(steps))


def _rows(micro_batches: list[dict[str, torch.Tensor]]) -> np.ndarray:
    return torch.cat([batch["input_ids"] for batch in micro_batches]).numpy()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from polyformer.core.placement import has_bfloat16
    from polyformer.training.peak import measured_peak

    precision = options.precision or ("bfloat16" if has_bfloat16(torch.device("cpu")) else "float32")
    text, vocabulary = characters(ROWS * LENGTH * (options.steps + 8))
    model = make_model(vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        ours = Ours(model.network, text, options.steps, precision, options.at_once)
        batches = np.stack([_rows(ours.loader.step(number)) for number in range(options.steps)])
        plain, trainer = (Elsewhere(make, folder, batches, precision) for make in (PlainLoop, TheirTrainer))
    for _ in range(0, options.steps, IN_TURN):  # the speed of a shared machine drifts: both sides feel it
        plain.run(IN_TURN)
        ours.run(IN_TURN)
    trainer.run(options.steps)
    clocks = {"transformers, plain loop": plain.clock, "polyformer": ours.clock, "transformers, Trainer": trainer.clock}
    peak = measured_peak(torch.device("cpu"), getattr(torch, precision))
    flops = ours.trainer.progress.flops / ours.trainer.progress.tokens
    speed = {name: clock.tokens_per_second() for name, clock in clocks.items()}
    return {
        "precision": precision,
        "parameters": model.num_parameters,
        "steps": options.steps,
        "micro_batches_at_once": options.at_once,
        "tokens_per_second": {name: round(value, 1) for name, value in speed.items()},
        "ratio_to_plain_loop": round(speed["polyformer"] / speed["transformers, plain loop"], 3),
        "ratio_to_trainer": round(speed["polyformer"] / speed["transformers, Trainer"], 3),
        "peak_flops": peak,
        "utilization": round(speed["polyformer"] * flops / peak, 3),
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(plain.clock.losses, ours.clock.losses)),
        "last_losses": {name: clock.losses[-1] for name, clock in clocks.items() if clock.losses},
    }


def main() -> None:
    parser = common.make_parser("training", __doc__)
    parser.add_argument("--steps", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="default: what the processor is good at")
    parser.add_argument(
        "--at-once", type=int, help="micro-batches that ours computes at once (default: one a core, or 1)"
    )
    options = parser.parse_args()
    if options.at_once is None:
        options.at_once = torch.get_num_threads() if ROWS % torch.get_num_threads() == 0 else 1
    if options.at_once < 1 or ROWS % options.at_once:
        parser.error(f"--at-once {options.at_once}: {ROWS} rows are not shared evenly by so many")
    if options.quick:
        options.steps = 4
    machine = common.machine_facts()
    result = measure(options)
    rows = [
        [name, f"{value:,.0f}", f"{value / result['tokens_per_second']['transformers, plain loop']:.2f}"]
        for name, value in result["tokens_per_second"].items()
    ]
    common.print_table(f"Training in {result['precision']}", ("side", "tokens/s", "ratio"), rows)
    common.finish({"machine": machine, **result}, common.output_of("training", options))


if __name__ == "__main__":
    main()
