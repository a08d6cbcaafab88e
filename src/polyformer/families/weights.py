"""Reversible tables of weight names: one table reads a public checkpoint and writes it back.

A table is a list of rules. A rule says which of our parameters stand for which tensors of the file, and by which
reversible transform: the same tensor under another name, a transpose, a split of a fused projection, a permutation
of rotary halves. Names are patterns: ``{layer}`` and ``{expert}`` stand for a number. A rule whose own parameters
the network does not have (a bias it was built without, say) is silent, so one table serves every variant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from polyformer.errors import CheckpointError

Shape = tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------------
# Transforms: theirs -> ours and back, on real tensors and on meta tensors alike


@dataclass(frozen=True)
class Transform:
    """One tensor in, one tensor out, unchanged; subclasses override both directions."""

    @property
    def computes(self) -> bool:
        """Whether numbers change, and not only their places."""
        return False

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return theirs

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return ours


@dataclass(frozen=True)
class Transpose(Transform):
    """A linear layer that the file stores as [in, out] (the ``Conv1D`` of GPT and GPT-2)."""

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return [tensor.mT for tensor in theirs]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [tensor.mT for tensor in ours]


@dataclass(frozen=True)
class Split(Transform):
    """One fused tensor of the file becomes several of ours, cut along the first dimension."""

    sizes: tuple[int, ...]

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return list(theirs[0].split(list(self.sizes), dim=0))

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [torch.cat(ours, dim=0)]


@dataclass(frozen=True)
class KeepParts(Transform):
    """A fused tensor of the file, of which only the parts numbered ``kept`` are ours: the others are zeros there.

    Raises:
        CheckpointError: a part that is not ours holds something else.
    """

    sizes: tuple[int, ...]
    kept: tuple[int, ...]

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        parts = theirs[0].split(list(self.sizes), dim=0)
        for number, part in enumerate(parts):
            if number not in self.kept and not part.is_meta and bool(part.any()):
                raise CheckpointError("a part of a fused tensor should be zero, but is not: this is another network")
        return [parts[number] for number in self.kept]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        rest = ours[0].shape[1:]
        given = dict(zip(self.kept, ours, strict=True))
        parts = [given.get(number, ours[0].new_zeros(size, *rest)) for number, size in enumerate(self.sizes)]
        return [torch.cat(parts, dim=0)]


@dataclass(frozen=True)
class Unstack(Transform):
    """One tensor [n, ...] of the file becomes n of ours (experts that GGUF stacks)."""

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return list(theirs[0].unbind(0))

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [torch.stack(ours)]


@dataclass(frozen=True)
class Reshape(Transform):
    """The same numbers in another shape (GGUF drops dimensions of size one, for example)."""

    ours_shape: Shape
    theirs_shape: Shape

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return [tensor.reshape(self.ours_shape) for tensor in theirs]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [tensor.reshape(self.theirs_shape) for tensor in ours]


@dataclass(frozen=True)
class AddConstant(Transform):
    """Ours = theirs + value (GGUF adds the 1 of Gemma's normalization to the weight)."""

    value: float

    @property
    def computes(self) -> bool:
        return True

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return [tensor + self.value for tensor in theirs]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [tensor - self.value for tensor in ours]


@dataclass(frozen=True)
class InterleavedRotaryRows(Transform):
    """Rows of a query or key projection, per head: the file pairs rows (2i, 2i+1), ours pair (i, i + half).

    llama.cpp stores LLaMA weights in the first order, Hugging Face in the second.
    """

    num_heads: int

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return [self._swap(tensor, (-1, 2)) for tensor in theirs]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [self._swap(tensor, (2, -1)) for tensor in ours]

    def _swap(self, tensor: Tensor, pair: tuple[int, int]) -> Tensor:
        rest = tensor.shape[1:]
        return tensor.reshape(self.num_heads, *pair, *rest).transpose(1, 2).reshape(tensor.shape)


@dataclass(frozen=True)
class GroupedQueryKeyValue(Transform):
    """A fused projection laid out per key/value head: its group of query heads, then one key and one value head.

    Falcon and GPT-NeoX store it so: [num_key_value_heads, group + 2, head_dim, ...]. Ours: query, key, value.
    """

    num_heads: int
    num_key_value_heads: int
    head_dim: int

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        (fused,) = theirs
        rest = fused.shape[1:]
        group = self.num_heads // self.num_key_value_heads
        blocks = fused.reshape(self.num_key_value_heads, group + 2, self.head_dim, *rest)
        query, key, value = blocks.split([group, 1, 1], dim=1)
        return [part.reshape(-1, *rest) for part in (query, key, value)]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        rest = ours[0].shape[1:]
        blocks = [part.reshape(self.num_key_value_heads, -1, self.head_dim, *rest) for part in ours]
        return [torch.cat(blocks, dim=1).reshape(-1, *rest)]


@dataclass(frozen=True)
class Repeated(Transform):
    """The file holds the same tensor under ``count`` names; the last one counts."""

    count: int

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        return theirs[-1:]

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        return [ours[0].clone() for _ in range(self.count)]


@dataclass(frozen=True)
class Chain(Transform):
    """Several transforms one after the other, written in the direction theirs -> ours."""

    parts: tuple[Transform, ...]

    @property
    def computes(self) -> bool:
        return any(part.computes for part in self.parts)

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        for part in self.parts:
            theirs = part.to_ours(theirs)
        return theirs

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        for part in reversed(self.parts):
            ours = part.to_theirs(ours)
        return ours


def chain(*parts: Transform) -> Chain:
    """``chain(Transpose(), Split(...))``: first undo the transpose, then cut."""
    return Chain(parts)


# ---------------------------------------------------------------------------------------------------------------
# Rules and tables


def _names(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True, init=False)
class Rule:
    """Our parameters ``ours`` stand for the file's tensors ``theirs`` through ``transform``.

    Either side is one pattern or several. ``{layer}`` in a pattern is any number, the same on both sides.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform

    def __init__(self, ours: str | Sequence[str], theirs: str | Sequence[str], transform: Transform | None = None):
        object.__setattr__(self, "ours", _names(ours))
        object.__setattr__(self, "theirs", _names(theirs))
        object.__setattr__(self, "transform", transform or Transform())

    def below(self, ours: str, theirs: str) -> Rule:
        """The same rule with prefixes before the names of both sides: the part of a larger network."""
        return Rule(
            [f"{ours}{name}" for name in self.ours], [f"{theirs}{name}" for name in self.theirs], self.transform
        )

    def bind(self, our_names: Collection[str]) -> Iterable[Step]:
        """The concrete steps of this rule for a network that has ``our_names``."""
        pattern = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(self.ours[0])))
        for name in our_names:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            numbers = match.groupdict()
            ours = tuple(part.format(**numbers) for part in self.ours)
            if all(part in our_names for part in ours):
                yield Step(ours, tuple(part.format(**numbers) for part in self.theirs), self.transform)


@dataclass(frozen=True)
class Step:
    """One concrete move of weights: names on both sides, and the transform between them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    transform: Transform

    def to_ours(self, theirs: list[Tensor]) -> list[Tensor]:
        """The file's tensors, in the order of ``theirs``, as our tensors, in the order of ``ours``."""
        return self.transform.to_ours(theirs)

    def to_theirs(self, ours: list[Tensor]) -> list[Tensor]:
        """The way back, for export: ``to_theirs(to_ours(x))`` is bit-equal to x."""
        return self.transform.to_theirs(ours)


@dataclass(frozen=True)
class WeightTable:
    """The names of one family.

    Attributes:
        rules: which of our parameters stand for which tensors of the file.
        ignored: regular expressions for tensors of a file that hold no weights (masks, rotary frequencies) or a second
            copy of tied ones.
        optional_prefix: a beginning of names, such as ``"transformer."``, that some files leave out.
        writes_prefix: whether export writes it.
        aliases: (regular expression of a rule's name, what stands in its place in older files): ``LayerNorm.weight``
            was once ``LayerNorm.gamma``. Export writes the rule's name.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    optional_prefix: str = ""
    writes_prefix: bool = True
    aliases: tuple[tuple[str, str], ...] = ()

    def steps(self, our_names: Collection[str]) -> list[Step]:
        """Every step for a network with these parameters (for export).

        Raises:
            CheckpointError: a parameter has no rule, or more than one.
        """
        known = our_names if isinstance(our_names, (set, frozenset, dict)) else set(our_names)
        steps = [step for rule in self.rules for step in rule.bind(known)]
        covered: dict[str, int] = {}
        for step in steps:
            for name in step.ours:
                covered[name] = covered.get(name, 0) + 1
        wrong = [name for name in known if covered.get(name, 0) != 1]
        if wrong:
            raise CheckpointError(
                f"the weight table has no single rule for {', '.join(sorted(wrong)[:5])} ({len(wrong)} parameters): "
                "mend the family's rules"
            )
        return steps if self.writes_prefix else _without_prefix(steps, self.optional_prefix)

    def plan(self, our_shapes: Mapping[str, Shape], their_shapes: Mapping[str, Shape]) -> Plan:
        """Match a network against a file, by names and by shapes worked out on the meta device."""
        steps = replace(self, writes_prefix=True).steps(our_shapes)
        prefix = self.optional_prefix
        if prefix and not any(name.startswith(prefix) for name in their_shapes):
            steps = _without_prefix(steps, prefix)
        if self.aliases:
            steps = [
                Step(step.ours, tuple(self._name_in(their_shapes, name) for name in step.theirs), step.transform)
                for step in steps
            ]
        plan = Plan(steps)
        used: set[str] = set()
        for step in steps:
            used.update(step.theirs)
            absent = [name for name in step.theirs if name not in their_shapes]
            if absent:
                plan.missing.extend(absent)
            else:
                _check_shapes(step, our_shapes, their_shapes, plan)
        ignored = re.compile("|".join(f"(?:{pattern})" for pattern in self.ignored)) if self.ignored else None
        plan.unexpected = [n for n in their_shapes if n not in used and not (ignored and ignored.fullmatch(n))]
        return plan

    def _name_in(self, file: Collection[str], name: str) -> str:
        """The name itself if the file has it, else the first alias that the file has, else the name."""
        if name in file:
            return name
        others = (re.sub(pattern, other, name) for pattern, other in self.aliases)
        return next((other for other in others if other in file), name)


def _without_prefix(steps: list[Step], prefix: str) -> list[Step]:
    return [Step(step.ours, tuple(name.removeprefix(prefix) for name in step.theirs), step.transform) for step in steps]


def _check_shapes(step: Step, ours: Mapping[str, Shape], theirs: Mapping[str, Shape], plan: Plan) -> None:
    given = [theirs[name] for name in step.theirs]
    try:
        made = [tuple(t.shape) for t in step.to_ours([torch.empty(shape, device="meta") for shape in given])]
    except (RuntimeError, IndexError, ValueError):
        made = []
    if made == [tuple(ours[name]) for name in step.ours]:
        return
    try:
        wanted = [tuple(t.shape) for t in step.to_theirs([torch.empty(ours[n], device="meta") for n in step.ours])]
    except (RuntimeError, IndexError, ValueError):
        wanted = [tuple(ours[name]) for name in step.ours]
    for name, shape, want in zip(step.theirs, given, wanted, strict=False):
        if tuple(shape) != want:
            plan.misshaped.append((name, tuple(shape), want))


@dataclass
class Plan:
    """What loading a file into a network will do, and everything that stands in its way.

    Attributes:
        steps: the moves to make.
        missing: names the network needs and the file lacks.
        unexpected: names in the file that the network has no place for.
        misshaped: (name, shape in the file, shape the network needs).
    """

    steps: list[Step]
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[tuple[str, Shape, Shape]] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def describe(self, limit: int = 10) -> list[str]:
        """One line a problem, at most ``limit`` of each kind, with the nearest name where there is one."""
        lines = []
        for name in self.missing[:limit]:
            near = difflib.get_close_matches(name, self.unexpected[:2000], n=1, cutoff=0.75)
            lines.append(f"missing     {name}" + (f"   (nearest in the file: {near[0]})" if near else ""))
        lines += _more(self.missing, limit, "missing")
        lines += [f"unexpected  {name}" for name in self.unexpected[:limit]]
        lines += _more(self.unexpected, limit, "unexpected")
        for name, shape, want in self.misshaped[:limit]:
            lines.append(f"wrong shape {name}: the file has {list(shape)}, the network needs {list(want)}")
        lines += _more(self.misshaped, limit, "wrongly shaped")
        return lines

    def raise_if_broken(self, where: str = "the checkpoint") -> None:
        """
        Raises:
            CheckpointError: a weight is missing, unexpected or of the wrong shape; the message is a table of them.
        """
        if self.broken:
            counts = (
                f"{len(self.missing)} missing, {len(self.unexpected)} unexpected, {len(self.misshaped)} wrongly shaped"
            )
            raise CheckpointError("\n  ".join([f"{where} does not fit its config: weights {counts}", *self.describe()]))


def _more(items: Sequence[object], limit: int, kind: str) -> list[str]:
    return [f"... and {len(items) - limit} more {kind}"] if len(items) > limit else []
