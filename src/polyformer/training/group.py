"""The processes that train together, as the trainer knows them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

from torch import Tensor, nn

Value = TypeVar("Value")


class Group(Protocol):
    """The processes that train together, as one of them sees it: `parallel.Processes` are many, `Alone` is one."""

    rank: int
    size: int
    processes: int
    tensor: int
    first: bool
    gradient_factor: float

    def sum(self, value: Tensor) -> Tensor: ...

    def add_up(self, gradients: Sequence[Tensor]) -> None: ...

    def any(self, flag: bool) -> bool: ...

    def last_micro_batch(self, network: nn.Module, last: bool) -> None: ...

    def reading(self, network: nn.Module) -> AbstractContextManager[None]: ...

    def wait(self) -> None: ...

    def require_all(self, error: BaseException | None) -> None: ...

    def share(self, make: Callable[[], Value]) -> Value: ...

    def in_turns(self, make: Callable[[], Value]) -> Value: ...


class Alone:
    """One process."""

    rank = 0
    size = 1
    processes = 1
    tensor = 1
    first = True
    gradient_factor = 1.0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value

    def add_up(self, gradients: Sequence[Tensor]) -> None:
        """Gradients of what is not divided become sums over all processes, in place."""

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return flag

    def last_micro_batch(self, network: nn.Module, last: bool) -> None:
        """Called before each micro-batch: gradients travel after the last."""

    def reading(self, network: nn.Module) -> AbstractContextManager[None]:
        """A block in which the network is read without backward passes."""
        return nullcontext()

    def wait(self) -> None:
        """Until all are here."""

    def require_all(self, error: BaseException | None) -> None:
        """Go on together or not at all."""
        if error is not None:
            raise error

    def share(self, make: Callable[[], Value]) -> Value:
        """What the first process makes, on all."""
        return make()

    def in_turns(self, make: Callable[[], Value]) -> Value:
        """Made by each, the first before the others."""
        return make()
