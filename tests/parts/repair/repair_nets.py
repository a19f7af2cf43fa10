"""Networks with units that others can replace, and a repair in isolation, for the tests here."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from prunekit.graph import Coupled, unit_masks
from prunekit.masks import Masks
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Unit
from prunekit.parts.repair import Repair
from prunekit.statistics import StatContext, collect
from prunekit.task import Task


def context_of(net: nn.Module, repair: Repair, inputs: Tensor, removed: dict[str, list[int]]) -> StepContext:
    """What a step tells a repair that removes these units of these groups."""
    elements = Unit().elements(net, example_inputs=inputs[:2])
    before = {name: flags for name, flags in elements.all_kept().items() if name in removed}
    kept = {name: flags.clone() for name, flags in before.items()}
    for name, units in removed.items():
        kept[name][units] = False
    batches = [(part, torch.zeros(len(part))) for part in inputs.split(40)]  # the last one is smaller
    subject = StatContext(net, [], kept=before, coupled=elements.coupled)
    found = collect(subject, batches, repair.needs, task=Task(lambda x, y: x.sum()))
    masks = elements.masks(Masks(kept))
    return StepContext(
        model=net,
        masks=masks,
        statistics=found,
        coupled=elements.coupled,
        kept=Masks(before),
        kept_after=Masks(kept),
    )


def mend_groups(coupled: Coupled, repair: Repair, inputs: Tensor, removed: dict[str, list[int]]) -> Masks:
    """Remove units of coupled groups and repair the layers that read them; the masks."""
    net = coupled.model
    before = {group.name: torch.ones(group.units, dtype=torch.bool) for group in coupled.groups}
    kept = {name: flags.clone() for name, flags in before.items()}
    for name, units in removed.items():
        kept[name][units] = False
    subject = StatContext(net, [], coupled=coupled, kept=before)
    found = collect(
        subject, [(inputs, torch.zeros(len(inputs)))], repair.needs, task=Task(lambda x, y: x.sum())
    )
    masks = unit_masks(net, coupled.traced.plan, kept)
    told = StepContext(
        model=net, masks=masks, statistics=found, coupled=coupled, kept=Masks(before), kept_after=Masks(kept)
    )
    repair.check(told)
    repair(told)
    return masks


def mend(net: nn.Module, repair: Repair, inputs: Tensor, removed: dict[str, list[int]]) -> StepContext:
    """Remove and repair, as the loop does."""
    told = context_of(net, repair, inputs, removed)
    repair(told)
    told.masks.apply(net)
    return told


@torch.no_grad()
def mlp(sizes: tuple[int, ...] = (7, 9, 5, 3), act: type[nn.Module] = nn.Sigmoid) -> nn.Sequential:
    """Float64; layers `0`, `2`, ..."""
    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1]).double()


def convnet(padding: int = 0, *, bias: bool = True, last: int = 2) -> nn.Sequential:
    """Two convolutions and, behind a flatten, a linear layer, for 2 x 8 x 8; layers `0`, `2`, `5`."""
    torch.manual_seed(2)
    rows = ((6 + 2 * padding - 3) // 2 + 1) * ((6 + 2 * padding - 2) // 1 + 1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.Sigmoid(),
        nn.Conv2d(6, 4, (3, 2), stride=(2, 1), padding=padding, bias=bias),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * rows, last),
    ).double()


@torch.no_grad()
def make(net: nn.Module, layer: str, unit: int, like: int | None, sign: float = 1.0) -> None:
    """Make a unit of a layer with a sigmoid the same as another, its opposite, or constant."""
    module = net.get_submodule(layer)
    if like is None:
        module.weight[unit] = 0
        return
    module.weight[unit] = sign * module.weight[like]
    module.bias[unit] = sign * module.bias[like]


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
