"""Training on many devices: a process for each, in a grid of three dimensions, and PyTorch's own means for the rest.

* shard: every weight, its gradient and its moments are divided; a layer is put together when it is computed (FSDP2:
  Zhao et al., 2023; Rajbhandari et al., 2020). Each process reads other rows.
* replicate: copies of such a group, which exchange gradients only (hybrid sharding).
* tensor: the heads of attention and the inner units of feed-forward parts are divided, so that a layer is computed by
  several processes together, on the same rows (Shoeybi et al., 2019).

`start_group` is for the beginning of a process that ``torchrun`` has started, `parallelize` divides a network.
"""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from polyformer.core import Attention, FeedForward, Linear, Stack
from polyformer.core.config import Config
from polyformer.core.placement import parse_device
from polyformer.core.positions import Relative
from polyformer.errors import ConfigError, PolyformerError
from polyformer.objectives.base import Batch
from polyformer.training.data.loader import EvaluationLoader
from polyformer.training.group import Alone, Group
from polyformer.training.recipe import ParallelSection
from polyformer.training.trainer import Spare

Value = TypeVar("Value")

# While one process prepares data or trains a tokenizer, the others wait so long.
_PATIENCE = timedelta(days=2)
_AXES = ("replicate", "shard", "tensor")


def is_first_process() -> bool:
    """Whether this is the process that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def said_once() -> Iterator[None]:
    """A block in which every process finds the same mistake: the first one says it, the others just end."""
    try:
        yield
    except PolyformerError:
        if not is_first_process():
            raise SystemExit(1) from None
        raise


class Processes:
    """The processes that train together, as one of them sees it.

    Attributes:
        mesh: the grid, [replicate, shard, tensor].
        processes: how many there are.
        size: how many of them read different rows: replicate * shard.
        rank: which rows this one reads, from 0; those of one tensor-parallel group read the same.
        first: whether this is the one that writes and speaks.
        gradient_factor: what gradients must be multiplied by to be sums over all rows.
        began_here: whether the processes met for this; then they part at its end.
    """

    def __init__(self, mesh: DeviceMesh, *, began_here: bool):
        self.mesh = mesh
        self.began_here = began_here
        self.tensor = mesh.size(2)
        self.processes = mesh.size()
        self.size = self.processes // self.tensor
        self.rank = distributed.get_rank() // self.tensor
        self.first = distributed.get_rank() == 0
        self.gradient_factor = 1.0
        self._leads_machine = os.environ.get("LOCAL_RANK", "0") == "0"
        self._waiting = distributed.new_group(backend="gloo", timeout=_PATIENCE)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over those who read different rows, the same bits everywhere: decisions follow from it."""
        total = value.clone()
        distributed.all_reduce(total)
        return total / self.tensor if self.tensor > 1 else total

    def add_up(self, gradients: Sequence[Tensor]) -> None:
        """Gradients of what is not divided become sums over all processes, in place; FSDP adds up the others."""
        for gradient in gradients:
            if not isinstance(gradient, DTensor):
                gradient.copy_(self.sum(gradient) / self.gradient_factor)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self._waiting)
        return bool(flags)

    def last_micro_batch(self, network: nn.Module, last: bool) -> None:
        """Called before each micro-batch: gradients travel after the last."""
        root = _plain(network)
        root.set_requires_gradient_sync(last)
        root.set_is_last_backward(last)

    @contextmanager
    def reading(self, network: nn.Module) -> Iterator[None]:
        """A block in which the network is read, by any of its methods, without backward passes.

        Weights outside the layers are put together for it, and given up after it: otherwise the next pass would take
        them for the weights, which may have changed since.
        """
        root = _plain(network)
        root.unshard()
        try:
            yield
        finally:
            root.reshard()

    # --- doing things in turn ---------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Until all are here."""
        distributed.barrier(group=self._waiting)

    def require_all(self, error: BaseException | None) -> None:
        """Go on together or not at all: called by all, each with its error or None.

        Raises:
            The error; SystemExit where only others have one. They say what it was.
        """
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise SystemExit(1)

    def share(self, make: Callable[[], Value]) -> Value:
        """What ``make()`` gives on the first process, on all of them.

        Raises:
            As ``make``; on the other processes SystemExit: the first says what was wrong.
        """
        box: list[Any] = [None]
        error: BaseException | None = None
        if self.first:
            try:
                box = [pickle.dumps(make())]
            except BaseException as caught:
                error = caught
        self.require_all(error)
        distributed.broadcast_object_list(box, src=0, group=self._waiting)
        value: Value = pickle.loads(box[0])
        return value

    def in_turns(self, make: Callable[[], Value]) -> Value:
        """``make()`` on each: the first process before all others, then the first of each machine, then the rest.

        What one puts into a cache on disk, the next find there.
        """
        turn = 0 if self.first else 1 if self._leads_machine else 2
        made: list[Value] = []
        for number in range(3):
            error: BaseException | None = None
            if number == turn:
                try:
                    made.append(make())
                except BaseException as caught:
                    error = caught
            self.require_all(error)
        return made[0]


# --- beginning and end ----------------------------------------------------------------------------------------------


def grid_shape(section: ParallelSection, processes: int) -> tuple[int, int, int]:
    """(replicate, shard, tensor) for so many processes.

    Raises:
        ConfigError: their product cannot be that number.
    """
    others = section.replicate * section.tensor
    shard = section.shard or max(1, processes // others)
    if others * shard != processes:
        words = f"replicate {section.replicate} x shard {section.shard or 'any'} x tensor {section.tensor}"
        started = "one process was" if processes == 1 else f"{processes} processes were"
        raise ConfigError(
            f"parallel: {words} does not make the number of processes, for {started} started: start as many with "
            "torchrun (--nnodes, --nproc-per-node), or change the recipe"
        )
    return section.replicate, shard, section.tensor


def process_device(device: str | torch.device | None) -> torch.device:
    """The device of this process: under ``torchrun`` on GPUs, the one with its number on its machine.

    Raises:
        ConfigError: there is no such device, or a number was given, which would be the same for all.
    """
    many = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not (many and torch.cuda.is_available()):
        return parse_device(device)
    if device is not None and str(device) != "cuda":
        place = parse_device(device)
        if place.type == "cuda":
            raise ConfigError(f"device {place} is one GPU, but every process takes its own: say 'cuda'")
        return place
    # Not by `parse_device`, which tries the first GPU: all would keep something there.
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ConfigError(
            f"process {number} of this machine has no GPU, for there are {count}: start at most {count} here "
            "(torchrun --nproc-per-node)"
        )
    return torch.device("cuda", number)


@contextmanager
def process_group(section: ParallelSection, device: torch.device) -> Iterator[Group]:
    """`start_group`, and at the end `end_group`; after an error the process just ends, for the others may hang."""
    group = start_group(section, device)
    yield group
    end_group(group)


def start_group(section: ParallelSection, device: torch.device) -> Group:
    """Meet the other processes that ``torchrun`` has started: over NCCL between GPUs, over gloo otherwise.

    Whoever trains several times in one process calls `torch.distributed.init_process_group` once before: it is then
    left as it is, while meeting anew after parting does not work with every ``torchrun``.

    Args:
        section: of the recipe.
        device: of this process, from `process_device`.

    Raises:
        ConfigError: the recipe is for another number of processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    with said_once():
        shape = grid_shape(section, processes)
    if processes == 1:
        return Alone()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    begins = not distributed.is_initialized()
    if begins:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Processes(init_device_mesh(device.type, shape, mesh_dim_names=_AXES), began_here=begins)


def end_group(group: Group) -> None:
    """Part when all are ready."""
    if isinstance(group, Processes):
        group.wait()
        if group.began_here:
            distributed.destroy_process_group()


# --- the network ----------------------------------------------------------------------------------------------------


def check_parallel(section: ParallelSection, config: Config, *, precision: str = "float32") -> None:
    """
    Raises:
        ConfigError: the layers of a network with this config cannot be divided among ``section.tensor`` processes.
    """
    if section.tensor > 1 and precision == "float16":
        raise ConfigError("parallel.tensor does not go with precision float16, which scales the loss: use bfloat16")
    _check_layers(config, section.tensor)


def _check_layers(config: Config, count: int) -> None:
    if count == 1:
        return
    layers = 0
    for path, part in config.traverse():
        if isinstance(part, Attention.Config):
            layers += 1
            for name in ("num_heads", "num_key_value_heads"):
                _require_divisible(f"{path}.{name}", getattr(part, name), count)
            joint_norm = part.query_key_norm is not None and part.query_key_norm.size != part.head_dim
            _refuse(joint_norm, path, "normalizes queries over all heads together")
            _refuse(part.sinks, path, "has sinks")
            _refuse(isinstance(part.positions, Relative.Config), path, "has relative positions")
        elif isinstance(part, FeedForward.Config):
            layers += 1
            _require_divisible(f"{path}.intermediate_size", part.intermediate_size, count)
        elif isinstance(part, Stack.Config):
            _refuse(part.bias is not None, path, "adds a bias to the scores of each head")
    if not layers:
        raise ConfigError(f"parallel.tensor is {count}, but {config.kind} has no attention to divide: use shard")


def _require_divisible(name: str, value: int, count: int) -> None:
    if value % count:
        raise ConfigError(f"parallel.tensor is {count}, but {name} is {value}, which it does not divide: use shard")


def _refuse(condition: bool, path: str, what: str) -> None:
    if condition:
        raise ConfigError(f"parallel.tensor divides heads among processes, but {path} {what}: use shard")


def parallelize(network: nn.Module, group: Group, *, compile: bool = False) -> None:
    """Divide a network among the processes, in place; on the CPU before, each part is then on the group's device.

    Args:
        compile: compile every layer (`torch.compile`).

    Raises:
        ConfigError: it cannot be divided so.
    """
    if not isinstance(group, Processes):
        return
    from torch.distributed.fsdp import FSDPModule, fully_shard

    _check_layers(network.config, group.tensor)  # type: ignore[arg-type]
    for parameter in network.parameters():
        distributed.broadcast(parameter.data, src=0)  # machines may differ in what they make of a seed
    if group.tensor > 1:
        _divide_layers(network, group.mesh["tensor"])
    mesh = group.mesh["replicate", "shard"] if group.mesh.size(0) > 1 else group.mesh["shard"]
    for stack in [module for module in network.modules() if isinstance(module, Stack)]:
        stack.layers[-1].register_forward_hook(_keep_gradients)
        for layer in stack.layers:
            if compile:
                layer.compile()
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    numbers = _set_apart_numbers(network, group.mesh.device_type)
    # Nobody writes into what a network gives; that it may be a view of something is no danger.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # The rest stays together after a forward pass: objectives go on with the head (`network.score`).
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    for module, name, number in numbers:
        module.register_parameter(name, number)
    assert isinstance(network, FSDPModule)
    _add_gradients(network, group)


def _set_apart_numbers(network: nn.Module, device: str) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Take out the parameters that are single numbers, which cannot be divided: every process keeps them whole, and
    `Processes.add_up` sums their gradients."""
    numbers = []
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.dim() == 0:
                parameter.data = parameter.data.to(device)
                numbers.append((module, name, parameter))
                delattr(module, name)
    return numbers


def _add_gradients(network: Any, group: Processes) -> None:
    """Gradients of the processes are added, and not averaged: losses are sums, which are divided once."""
    if hasattr(network, "set_gradient_divide_factor"):
        for module in network.modules():
            if hasattr(module, "set_gradient_divide_factor"):
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    else:
        group.gradient_factor = float(group.size)


def _keep_gradients(layer: nn.Module, inputs: Any, outputs: Any) -> None:
    """Below a head that is trained alone nothing has gradients. FSDP finds the end of a backward pass by layers, so
    one of them must take part."""
    hidden = outputs[0]
    if torch.is_grad_enabled() and layer.training and not hidden.requires_grad:
        hidden.requires_grad_()


def _plain(network: nn.Module) -> Any:
    """The network in a compiled one."""
    return getattr(network, "_orig_mod", network)


# --- tensor parallelism ---------------------------------------------------------------------------------------------


def _divide_layers(network: nn.Module, mesh: DeviceMesh) -> None:
    """Each process gets some heads of every attention and some inner units of every feed-forward part.

    The maps into them are divided by rows of their matrix, so that nothing need be exchanged; the map out of them by
    columns, and its results are added up. Everything else is computed by all alike.
    """
    for module in list(network.modules()):
        if isinstance(module, Attention):
            into, out = [module.query, module.key, module.value], module.output
            for norm in (module.query_norm, module.key_norm):
                if norm is not None:
                    _share_norm(norm, mesh)
        elif isinstance(module, FeedForward):
            into, out = [linear for linear in (module.gate, module.up) if linear is not None], module.down
        else:
            continue
        module.register_forward_pre_hook(_given_to_all(mesh), with_kwargs=True)
        for linear in into:
            _divide(linear, mesh, 0)
            linear.register_forward_hook(lambda module, inputs, output: output.to_local())
        _divide(out, mesh, 1)
        out.register_forward_pre_hook(lambda module, inputs: (_as_part(inputs[0], mesh, -1),))
        out.register_forward_hook(
            lambda module, inputs, output: output.redistribute(placements=[Replicate()]).to_local()
        )


def _divide(linear: Linear, mesh: DeviceMesh, dimension: int) -> None:
    """Divide the matrix along a dimension; the bias belongs to the rows."""
    for name, parameter in list(linear.named_parameters(recurse=False)):
        placement = Shard(dimension) if name == "weight" or dimension == 0 else Replicate()
        _replace(linear, name, distribute_tensor(parameter.detach(), mesh, [placement]))


def _replace(module: nn.Module, name: str, value: Tensor) -> None:
    wanted = module.get_parameter(name).requires_grad
    module.register_parameter(name, nn.Parameter(value, requires_grad=wanted))


def _given_to_all(mesh: DeviceMesh) -> Callable[..., Any]:
    """A hook that marks what a module reads as the same on all processes. In the backward pass, what each found out
    about it is then added up, once."""

    def mark(value: Tensor) -> Tensor:
        return DTensor.from_local(value, mesh, [Replicate()], run_check=False)

    def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        first, *others = inputs
        if options.get("source") is not None:
            options = {**options, "source": mark(options["source"])}
        return (mark(first), *others), options

    return hook


def _as_part(value: Tensor, mesh: DeviceMesh, dimension: int) -> Tensor:
    return DTensor.from_local(value, mesh, [Shard(dimension % value.dim())], run_check=False)


def _share_norm(norm: nn.Module, mesh: DeviceMesh) -> None:
    """A norm of each head by itself: all processes have its weights, and each uses them on its own heads."""
    for name, parameter in list(norm.named_parameters(recurse=False)):
        _replace(norm, name, distribute_tensor(parameter.detach(), mesh, [Replicate()]))
    norm.register_forward_pre_hook(lambda module, inputs: (_as_part(inputs[0], mesh, 2),))
    norm.register_forward_hook(lambda module, inputs, output: output.to_local())


# --- what the first process does for all ----------------------------------------------------------------------------


def gather(network: nn.Module, group: Group) -> dict[str, Tensor]:
    """The whole weights by name, on the CPU of the first process; the others, which take part in it, get none."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Tensor] = get_model_state_dict(_plain(network), options=options)  # type: ignore[assignment]
    return weights if group.first else {}


def with_spares(loader: EvaluationLoader) -> Iterator[Batch]:
    """The batches of held-out data of this process. Where it has no rows, it takes part with the first one, which is
    then not counted."""
    spare: Batch | None = None
    for batch in loader:
        if batch is None:
            spare = spare or loader.first_row()
            yield Spare(spare)
        else:
            yield batch
