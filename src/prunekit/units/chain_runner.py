"""One forward pass of a chain, cut where layers read units: nothing before a cut is computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.chain import (
    Chain,
    Kind,
    Stage,
    UnitGroup,
    bias_of,
    linear,
    unit_dim,
    weight_of,
    with_gains,
)
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.units.chain_derivatives import adjoints, second_derivatives
from prunekit.units.chain_suffix import batched_suffix, contributions, mlp_suffix
from prunekit.units.runner import BUDGET_BYTES, Run, Runner

_IDLE = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)  # in evaluation mode
_CACHE_BYTES = 2**21  # a block of variants stays in the processor's caches


@dataclass(frozen=True)
class Link:
    """A group of units and the layer that reads it.

    Attributes:
        group: the units.
        consumer: the layer that reads them.
        between: the stages from here to the next link's consumer, or to the end of the chain.
        flat: whether there are only linear layers and pointwise stages on rows (n, features) from here on.
        bytes_behind: what one variant of one example needs at most, from the consumer on.
    """

    group: UnitGroup
    consumer: Stage
    between: tuple[Stage, ...]
    flat: bool
    bytes_behind: int


class ChainRunner(Runner):
    """A chain with its links, and the sizes that memory is planned by.

    Attributes:
        links: the groups with their consumers, front to back.
        before: the stages before the first consumer.
        bytes_per_example: what a pass needs for one example.
    """

    def __init__(
        self,
        chain: Chain,
        example: Tensor,
        groups: Sequence[str] | None = None,
        budget_bytes: int = BUDGET_BYTES,
    ):
        """Look at a chain with one example (1, ...) of its inputs.

        Raises:
            InputError: if the chain has no group of units, or none of one of these names, or does not take
                such an example.
        """
        if not chain.groups:
            raise InputError("the network has no group of units: there is one layer only")
        super().__init__(chain, groups, budget_bytes)
        self._modules = chain.modules
        with evaluating(*chain.modules), torch.no_grad():
            shapes = _shapes(chain.stages, example)
        busy = [place for place, stage in enumerate(chain.stages) if not _is_idle(stage, shapes[place])]
        stages = tuple(chain.stages[place] for place in busy)
        shapes = [*(shapes[place] for place in busy), shapes[-1]]
        places = {stage.name: place for place, stage in enumerate(stages) if stage.module is not None}
        positions = [places[group.consumer] for group in chain.groups]
        self.before = stages[: positions[0]]
        flat_from = _flat_from(stages, shapes)
        ends = [*positions[1:], len(stages)]
        size = example.element_size()
        numbers = [shape.numel() for shape in shapes]
        # a stage's input and output are alive together; the consumers' inputs and outputs stay
        pairs = [size * (a + b) for a, b in pairwise(numbers)]
        self.links = tuple(
            Link(group, stages[at], stages[at + 1 : end], at >= flat_from, max(pairs[at:]))
            for group, at, end in zip(chain.groups, positions, ends, strict=True)
        )
        self.bytes_per_example = max(pairs) + sum(pairs[at] for at in positions)

    def run(
        self, inputs: Tensor, targets: Tensor, error: Loss, kept: Mapping[str, Tensor]
    ) -> ActivationCache:
        """The activations of inputs (n, ...)."""
        return ActivationCache(self, inputs, targets, error, kept)

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode for the chain's modules."""
        return evaluating(*self._modules)


class ActivationCache(Run):
    """The activations of one chunk of n examples at every cut, with removed units at 0.

    Behind the first flat link tensors are kept as (features, n): one unit's values then lie side by side.

    Attributes:
        x: each consumer's input, (n, ...) or (features, n).
        z: each consumer's output, before the activation.
        outputs: (n, ...) the network's outputs.
    """

    def __init__(
        self, flow: ChainRunner, inputs: Tensor, targets: Tensor, error: Loss, kept: Mapping[str, Tensor]
    ):
        """Run the network on inputs (n, ...); kept: (units,) booleans by group, True where there is none."""
        super().__init__(flow, targets, error, kept)
        self.links = flow.links
        self._inputs = inputs
        self.x: list[Tensor] = []
        self.z: list[Tensor] = []
        for stage in flow.before:
            inputs = stage.run(inputs)
        self._go_on(0, inputs)

    def place(self, name: str) -> int:
        """The place of the group of that name among the links."""
        return next(place for place, link in enumerate(self.links) if link.group.name == name)

    def weighted(self, name: str, units: Tensor, strength: Tensor | None = None) -> Tensor:
        """See `Run.weighted`: a change of what the unit's consumer puts out, run from there on."""
        place = self.place(name)
        # an accelerator wants large blocks, a processor blocks that stay in its cache
        on_cpu = units.device.type == "cpu"
        block_bytes = min(self.budget_bytes // 2, _CACHE_BYTES) if on_cpu else self.budget_bytes // 2
        suffix = mlp_suffix if self.links[place].flat else batched_suffix
        return suffix(
            self, place, units, torch.ones_like(units) if strength is None else strength, block_bytes
        )

    def derivatives(self, names: Sequence[str], *, second: bool) -> dict[str, tuple[Tensor, Tensor | None]]:
        """See `Run.derivatives`: by the derivatives around each link, see `chain_derivatives`."""
        places = {name: self.place(name) for name in names}
        around = adjoints(self, min(places.values(), default=0))
        found = {}
        for name, place in places.items():
            found[name] = (around[place].first, second_derivatives(self, place, around) if second else None)
            self.judged(self.sizes[name])
        return found

    def remove(self, name: str, unit: int) -> None:
        """See `Run.remove`: what is behind the unit is computed again."""
        place = self.place(name)
        link, x = self.links[place], self.x[place]
        group = link.group
        own = slice(unit * group.repeat, (unit + 1) * group.repeat)
        if link.flat:
            self.z[place].addmm_(weight_of(link.consumer)[:, own], x[own], alpha=-1)
            x[own] = 0
        else:
            index = torch.tensor([unit], device=x.device)
            self.z[place] -= contributions(link.consumer, group, x, index)[0]
            x.narrow(unit_dim(link.consumer, x), own.start, group.repeat).zero_()
        self._go_on(place + 1, self.between(place, self.z[place]))

    def _go_on(self, place: int, x: Tensor) -> None:
        """From the input of the consumer at `place` to the outputs."""
        del self.x[place:], self.z[place:]
        for number in range(place, len(self.links)):
            link = self.links[number]
            gains = self.kept.get(link.group.name)
            if link.flat and (number == 0 or not self.links[number - 1].flat):
                x = x.T.contiguous()
            if gains is not None and not bool(gains.all()):
                x = with_gains(x, link.group, 0 if link.flat else unit_dim(link.consumer, x), gains)
            owner = self._inputs if number == 0 else self.z[number - 1]
            if _same_memory(x, owner):  # `remove` writes zeros into x, which its source must not see
                x = x.clone()
            self.x.append(x)
            if link.flat:
                self.z.append(linear(weight_of(link.consumer), bias_of(link.consumer), x))
            else:
                self.z.append(link.consumer.run(x))
            x = self.between(number, self.z[number])
        self.outputs = x.T if self.links[-1].flat else x

    def between(self, place: int, z: Tensor) -> Tensor:
        """From a consumer's output to the next cut."""
        for stage in self.links[place].between:
            z = stage.run(z)
        return z


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _is_idle(stage: Stage, shape: torch.Size) -> bool:
    """Whether a stage passes on what it is given, of this shape: as dropout does, and to flatten rows."""
    return type(stage.module) in _IDLE or (stage.kind is Kind.FLATTEN and len(shape) == 2)


def _shapes(stages: Sequence[Stage], example: Tensor) -> list[torch.Size]:
    """The shape of one example before each stage and after the last."""
    shapes = [example.shape]
    for stage in stages:
        try:
            example = stage.run(example)
        except (RuntimeError, ValueError, IndexError) as reason:
            shape = ", ".join(map(str, shapes[0][1:]))
            raise InputError(
                f"the network does not take inputs of the shape (N, {shape}): "
                f"{stage.name!r} says: {str(reason).splitlines()[0]}"
            ) from reason
        shapes.append(example.shape)
    return shapes


def _flat_from(stages: Sequence[Stage], shapes: Sequence[torch.Size]) -> int:
    """The first stage from which on there is nothing but linear layers and pointwise stages on rows."""
    place = len(stages)
    while place and len(shapes[place - 1]) == len(shapes[place]) == 2:
        stage = stages[place - 1]
        if not (isinstance(stage.module, nn.Linear) or stage.kind is Kind.POINTWISE):
            break
        place -= 1
    return place
