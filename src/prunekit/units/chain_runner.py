"""One forward pass of a chain, cut where layers read units: nothing before a cut is computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.chain import Chain, UnitGroup
from prunekit.graph.chain_stages import Stage
from prunekit.units.layers import contributions, leaves_rows, pointwise, unit_dim, with_gains

BUDGET_BYTES = 256 * 2**20
"""Default for the memory that one call may use for activations."""

# a chunk of examples: large enough for efficient products of matrices, small enough for the shared cache
_CHUNK_BYTES = 32 * 2**20


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


class ChainRunner:
    """A chain with its links, and the sizes that memory is planned by.

    Attributes:
        links: the groups with their consumers, front to back.
        before: the stages before the first consumer.
        bytes_per_example: what a pass needs for one example.
    """

    def __init__(self, chain: Chain, example: Tensor):
        """Look at a chain with one example (1, ...) of its inputs.

        Raises:
            InputError: if the chain has no group of units, or does not take such an example.
        """
        if not chain.groups:
            raise InputError("the network has no group of units: there is one layer only")
        self.chain = chain
        places = {stage.name: place for place, stage in enumerate(chain.stages) if stage.module is not None}
        positions = [places[group.consumer] for group in chain.groups]
        self.before = chain.stages[: positions[0]]
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

    def chosen(self, groups: Sequence[str] | None) -> tuple[Link, ...]:
        """The links of the groups of these names; all without names.

        Raises:
            InputError: for a name that the chain does not have.
        """
        if groups is None:
            return self.links
        wanted = {self.chain.group(name).name for name in groups}
        return tuple(link for link in self.links if link.group.name in wanted)

    def chunks(self, examples: int, budget_bytes: int) -> Iterator[slice]:
        """Slices of the examples whose passes fit the budget."""
        at_once = max(1, min(budget_bytes // 2, _CHUNK_BYTES) // self.bytes_per_example)
        parts = -(-examples // at_once)
        at_once = -(-examples // parts)  # even parts
        for start in range(0, examples, at_once):
            yield slice(start, min(start + at_once, examples))


def pieces(
    chain: Chain, inputs: Tensor | Iterable[Tensor], budget_bytes: int
) -> Iterator[tuple[ChainRunner, Tensor]]:
    """The inputs in pieces (n, ...) whose activations fit the budget, each with the chain's flow.

    Args:
        chain: the network.
        inputs: (N, ...), or batches of them.
        budget_bytes: memory for activations.

    Raises:
        InputError: if there are no examples.
    """
    flow: ChainRunner | None = None
    for batch in [inputs] if isinstance(inputs, Tensor) else inputs:
        if not isinstance(batch, Tensor) or batch.dim() < 2:
            raise InputError("inputs must be a tensor (N, ...) or batches of such tensors")
        if len(batch) == 0:
            continue
        flow = flow or ChainRunner(chain, batch[:1])
        for chunk in flow.chunks(len(batch), budget_bytes):
            yield flow, batch[chunk]
    if flow is None:
        raise InputError("there are no examples to watch the units on")


class ActivationCache:
    """The activations of one chunk of n examples at every cut, with removed units at 0.

    Behind the first flat link tensors are kept as (features, n): one unit's values then lie side by side.

    Attributes:
        x: each consumer's input, (n, ...) or (features, n).
        z: each consumer's output, before the activation.
        outputs: (n, ...) the network's outputs.
    """

    def __init__(self, flow: ChainRunner, inputs: Tensor, kept: Mapping[str, Tensor]):
        """Run the network on inputs (n, ...); kept: (units,) booleans by group, True where there is none."""
        self.links = flow.links
        self.kept = kept
        self._inputs = inputs
        self.x: list[Tensor] = []
        self.z: list[Tensor] = []
        for stage in flow.before:
            inputs = stage.run(inputs)
        self._go_on(0, inputs)

    def remove(self, place: int, unit: int) -> None:
        """Switch off one unit of the link at `place`; what is behind is brought up to date.

        The mapping of kept units is the caller's to change.
        """
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


def weight_of(consumer: Stage) -> Tensor:
    """A linear layer's weights (outputs, inputs)."""
    assert isinstance(consumer.module, nn.Linear)
    return consumer.module.weight.detach()


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
