"""One forward pass of a chain, cut where layers read units: nothing before a cut is computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.chain import Chain, Stage, UnitGroup
from prunekit.modes import evaluating
from prunekit.units.chain_derivatives import adjoints, by_gain, second_derivatives
from prunekit.units.chain_layers import contributions, leaves_rows, pointwise, unit_dim, weight_of, with_gains
from prunekit.units.runner import LossDelta, Run, Runner
from prunekit.units.suffix import batched_suffix, mlp_suffix

_CACHE_BYTES = 2**21  # a block of variants stays in the processor's caches


@dataclass(frozen=True)
class Link:
    """A group of units and the layer that reads it.

    Attributes:
        group: the units.
        consumer: the layer that reads them.
        position: that layer's place among the stages.
        between: the stages from here to the next link's consumer, or to the end of the chain.
        flat: whether there are only linear layers and pointwise stages on rows (n, features) from here on.
    """

    group: UnitGroup
    consumer: Stage
    position: int
    between: tuple[Stage, ...]
    flat: bool


class ChainRunner(Runner):
    """A chain with its links, and the sizes that memory is planned by.

    Attributes:
        links: the groups with their consumers, front to back.
        before: the stages before the first consumer.
        bytes_per_example: what a pass needs for one example.
    """

    def __init__(self, chain: Chain, example: Tensor, groups: Sequence[str] | None = None):
        """Look at a chain with one example (1, ...) of its inputs.

        Raises:
            InputError: if the chain has no group of units, or none of one of these names, or does not take
                such an example.
        """
        if not chain.groups:
            raise InputError("the network has no group of units: there is one layer only")
        self.chain = chain
        self.sizes = {group.name: group.units for group in chain.groups}
        wanted = self.sizes if groups is None else {chain.group(name).name for name in groups}
        self.names = tuple(name for name in self.sizes if name in wanted)
        places = {stage.name: place for place, stage in enumerate(chain.stages) if stage.module is not None}
        positions = [places[group.consumer] for group in chain.groups]
        self.before = chain.stages[: positions[0]]
        with evaluating(*chain.modules), torch.no_grad():
            shapes = _shapes(chain.stages, example)
        flat_from = _flat_from(chain.stages, shapes)
        ends = [*positions[1:], len(chain.stages)]
        self.links = tuple(
            Link(group, chain.stages[at], at, chain.stages[at + 1 : end], at >= flat_from)
            for group, at, end in zip(chain.groups, positions, ends, strict=True)
        )
        size = example.element_size()
        numbers = [shape.numel() for shape in shapes]
        # a stage's input and output are alive together; the consumers' inputs and outputs stay
        peak = max(a + b for a, b in pairwise(numbers))
        self.bytes_per_example = size * (peak + sum(numbers[at] + numbers[at + 1] for at in positions))
        self._widest = {at: size * max(a + b for a, b in pairwise(numbers[at:])) for at in positions}

    def bytes_behind(self, link: Link) -> int:
        """What one variant of one example needs at most, from the link's consumer on."""
        return self._widest[link.position]

    def run(self, inputs: Tensor, kept: Mapping[str, Tensor]) -> ActivationCache:
        """The activations of inputs (n, ...)."""
        return ActivationCache(self, inputs, kept)

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode for the chain's modules."""
        return evaluating(*self.chain.modules)


class ActivationCache(Run):
    """The activations of one chunk of n examples at every cut, with removed units at 0.

    Behind the first flat link tensors are kept as (features, n): one unit's values then lie side by side.

    Attributes:
        x: each consumer's input, (n, ...) or (features, n).
        z: each consumer's output, before the activation.
        outputs: (n, ...) the network's outputs.
    """

    def __init__(self, flow: ChainRunner, inputs: Tensor, kept: Mapping[str, Tensor]):
        """Run the network on inputs (n, ...); kept: (units,) booleans by group, True where there is none."""
        self.flow, self.links, self.sizes, self.names = flow, flow.links, flow.sizes, flow.names
        self.kept = kept
        self._inputs = inputs
        self.x: list[Tensor] = []
        self.z: list[Tensor] = []
        for stage in flow.before:
            inputs = stage.run(inputs)
        self._go_on(0, inputs)

    def place(self, name: str) -> int:
        """The place of the group of that name among the links."""
        return next(place for place, link in enumerate(self.links) if link.group.name == name)

    def off(self, name: str, units: Tensor, judge: LossDelta, budget_bytes: int) -> Tensor:
        """See `Run.off`: the gain 0."""
        return self.weighted(name, units, torch.ones_like(units), judge, budget_bytes)

    def weighted(
        self, name: str, units: Tensor, strength: Tensor, judge: LossDelta, budget_bytes: int
    ) -> Tensor:
        """See `Run.weighted`: a change of what the unit's consumer puts out, run from there on."""
        place = self.place(name)
        # an accelerator wants large blocks, a processor blocks that stay in its cache
        on_cpu = units.device.type == "cpu"
        block_bytes = min(budget_bytes // 2, _CACHE_BYTES) if on_cpu else budget_bytes // 2
        if self.links[place].flat:
            return mlp_suffix(self, place, units, strength, judge, block_bytes)
        bytes_each = self.flow.bytes_behind(self.links[place])
        return batched_suffix(self, place, units, strength, judge, block_bytes, bytes_each)

    def derivatives(
        self, names: Sequence[str], judge: LossDelta, budget_bytes: int, *, second: bool
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """See `Run.derivatives`: by the derivatives around each link, see `chain_derivatives`."""
        places = {name: self.place(name) for name in names}
        around = adjoints(self, judge.error, judge.targets, min(places.values(), default=0))
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, place in places.items():
            curved = None
            if second:
                units = torch.arange(self.sizes[name], device=self.outputs.device)
                curved = second_derivatives(self, place, units, around, judge, budget_bytes // 4)
            found[name] = by_gain(self, place, around[place].x), curved
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
        self._go_on(place + 1, self.between(place)(self.z[place]))

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
            self.z.append(_flat_linear(link.consumer, x) if link.flat else link.consumer.run(x))
            x = self.between(number)(self.z[number])
        self.outputs = x.T if self.links[-1].flat else x

    def between(self, place: int) -> Callable[[Tensor], Tensor]:
        """From a consumer's output to the next cut, as a function."""
        link = self.links[place]

        def run(z: Tensor) -> Tensor:
            for stage in link.between:
                if not (link.flat and leaves_rows(stage)):
                    z = stage.run(z)
            return z

        return run


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _flat_linear(stage: Stage, x: Tensor) -> Tensor:
    """A linear layer on (features, n)."""
    module = stage.module
    assert isinstance(module, nn.Linear)
    if module.bias is None:
        return module.weight @ x
    return torch.addmm(module.bias.unsqueeze(1), module.weight, x)


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
    while place and len(shapes[place]) == 2:
        stage = stages[place - 1]
        linear = isinstance(stage.module, nn.Linear)
        if len(shapes[place - 1]) != 2 or not (linear or leaves_rows(stage) or pointwise(stage) is not None):
            break
        place -= 1
    return place
