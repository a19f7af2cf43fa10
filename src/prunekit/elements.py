"""What a recipe counts and removes on a model: single weights, or whole units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.graph import (
    INPUT,
    Combine,
    Coupled,
    Group,
    Scored,
    alike,
    of_units,
    smaller,
    traced,
    unit_masks,
)
from prunekit.graph.capture import Inputs
from prunekit.graph.chain import Chain
from prunekit.graph.chain_view import chain_view
from prunekit.graph.example_inputs import made_up_inputs
from prunekit.masks import Masks
from prunekit.maxout import Maxout
from prunekit.targets import Target, check_plain, find_targets, matches, owner_of, unwrap


@dataclass(frozen=True)
class Elements(ABC):
    """The elements that a recipe chooses from.

    Attributes:
        targets: what they belong to: one parameter of weights, or one group of units each.
    """

    targets: tuple[Target, ...]

    @property
    def names(self) -> list[str]:
        """The targets' names."""
        return [target.name for target in self.targets]

    @property
    def chain(self) -> Chain | None:
        """The chain of layers whose units are counted; None where weights are."""
        return None

    @property
    def coupled(self) -> Coupled | None:
        """The groups whose units are counted; None where something else is."""
        return None

    @property
    @abstractmethod
    def parameters(self) -> list[str]:
        """The full names of the weights that a score may look at."""

    @abstractmethod
    def all_kept(self, model: nn.Module) -> Masks:
        """Flags that keep every element."""

    @abstractmethod
    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """The masks over parameters that remove what is not kept."""

    @abstractmethod
    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """The elements of a target that go first: those removed already, and what is zero anyway."""

    def smaller(self, model: nn.Module, kept: Masks) -> nn.Module:
        """A copy of the model without what is not kept, to be counted or timed.

        Raises:
            InputError: where single elements cannot be taken out.
        """
        raise InputError("only whole units can be taken out of a network: use the granularity 'unit'")

    def shielded(self, name: str, scores: Tensor) -> Tensor:
        """The scores of a target, with infinity for elements that must stay whatever they score."""
        return scores


class Weights(Elements):
    """Single weights: what is counted is what is masked."""

    @property
    def parameters(self) -> list[str]:
        """The pruned parameters."""
        return self.names

    def all_kept(self, model: nn.Module) -> Masks:
        """One flag per weight, on its device."""
        return Masks.ones(model, self.names)

    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """The flags themselves."""
        return kept

    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """Zeros count as removed, so that pruning twice removes no more than once."""
        assert weight is not None
        return ~kept[name] | (weight == 0)


@dataclass(frozen=True)
class Units(Elements):
    """Neurons, filters, heads, head widths, streams and input features, each with all that is coupled to it.

    Attributes:
        found: the groups, with the network whose weights say which units are off already.
    """

    found: Coupled

    @property
    def coupled(self) -> Coupled:
        """The groups."""
        return self.found

    @cached_property
    def chain(self) -> Chain | None:
        """The network as a path of layers, on which some things are faster; None where it is none."""
        try:
            chain = chain_view(self.found.model, self.found.traced, inputs=INPUT in self.names)
        except ModelError:
            return None
        units = {group.name: group.units for group in chain.groups}
        return chain if all(units.get(target.name) == target.size for target in self.targets) else None

    @property
    def parameters(self) -> list[str]:
        """The parameters that are scored; buffers are none."""
        own = dict(self.found.model.named_parameters())
        members = (member for group in self.found.groups for member in self.found.members(group))
        return list(dict.fromkeys(member.tensor for member in members if member.tensor in own))

    def all_kept(self, model: nn.Module) -> Masks:
        """One flag per unit."""
        device = next(unwrap(model).parameters()).device
        return Masks(
            {target.name: torch.ones(target.size, dtype=torch.bool, device=device) for target in self.targets}
        )

    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """All slices of parameters that go with the units: what makes them, goes along and reads them."""
        return unit_masks(model, self.found.traced.plan, kept, allow_empty=True)

    def smaller(self, model: nn.Module, kept: Masks) -> nn.Module:
        """The units are taken out of a copy; input features are off, but stay."""
        flags = {name: each for name, each in kept.items() if name != INPUT}
        return smaller(model, self.found.traced, flags, self.found.example_inputs)

    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """Those that nothing reads, or that nothing makes where no layer reads them, count as removed."""
        own, group = dict(self.found.model.named_parameters()), self.found.group(name)
        members = [member for member in group.consumers if member.tensor in own]
        read = [
            of_units(own[member.tensor].detach().abs(), member, "max")
            for member in members or group.producers
            if member.tensor in own
        ]
        return ~kept[name] | (torch.stack(read).nan_to_num(0.0).amax(0) == 0)

    def shielded(self, name: str, scores: Tensor) -> Tensor:
        """The best unit of those that reach into the same tensors, where these are not all: none is left out.

        That a whole group is not left without is the allocation's to see to, by its floor.
        """
        shielded = scores.double().clone()
        several = alike(self.found.group(name))
        for units in several if len(several) > 1 else ():
            best = units[int(scores[units].argmax())]
            shielded[best] = torch.inf
        return shielded


def find_units(
    model: nn.Module,
    targets: Sequence[str] | None,
    ignore: Sequence[str],
    *,
    example_inputs: Inputs | None = None,
    kinds: Collection[str] | None = None,
    residual: bool = False,
    inputs: bool = False,
    combine: Combine = "mean",
    scored: Scored = "producers",
) -> Units:
    """The units that the patterns choose; the network's outputs are none.

    A pattern fits a group by the group's name, or by the name or type of a layer that makes its units, or of
    that layer's parameter. The network's input features are chosen where they are asked for, whatever
    `targets` says.

    Args:
        model: the network.
        targets: patterns, as of `find_targets`; None for all groups.
        ignore: patterns of groups that stay.
        example_inputs: what the network can be run on; without, they are made up where that is possible.
        kinds: of the groups; None for all.
        residual: whether the widths of residual streams are groups.
        inputs: whether the network's input features are a group, too.
        combine: see `Coupled`.
        scored: see `Coupled`.

    Raises:
        InputError: if a pattern matches nothing.
        ModelError: if the network cannot be exported, or nothing is left that can be pruned, with reasons.
    """
    model = unwrap(model)
    if example_inputs is None:
        example_inputs = made_up_inputs(model)
    found = traced(model, example_inputs, residual=residual, inputs=inputs)
    names = {group.name: _names(model, group) for group in found.plan.groups}
    for pattern in (*(targets or ()), *ignore):
        if not any(_fits(pattern, each) for each in names.values()):
            raise InputError(f"{pattern!r} matches no group; groups are: {', '.join(names) or 'none'}")
    chosen = [
        group
        for group in found.plan.groups
        if (
            targets is None
            or group.name == INPUT
            or any(_fits(pattern, names[group.name]) for pattern in targets)
        )
        and not any(_fits(pattern, names[group.name]) for pattern in ignore)
        and (kinds is None or group.kind in kinds)
    ]
    left = [group for group in chosen if group.frozen is None]
    if not left:
        reasons = "; ".join(f"{group.name} ({group.kind}): {group.frozen}" for group in chosen)
        there = ", ".join(sorted({group.kind for group in found.plan.prunable}))
        raise ModelError(
            f"the recipe chooses no group that can be pruned: {reasons or 'none fits'}; "
            f"kinds that can be pruned are: {there or 'none'}"
        )
    elements = Units(
        tuple(
            Target(group.name, group.name, "units", (group.units,), least=least if least > 1 else 0)
            for group in left
            for least in [len(alike(group))]
        ),
        Coupled(model, found, tuple(group.name for group in left), example_inputs, combine, scored),
    )
    check_plain(model, [_target(model, name) for name in elements.parameters])
    return elements


def _names(model: nn.Module, group: Group) -> tuple[set[str], set[str]]:
    """The names that a group is known by, and the types of the layers that make its units."""
    names: set[str] = {group.name}
    types: set[str] = set()
    for member in group.producers:
        layer = member.tensor.rpartition(".")[0]
        names.update((member.tensor, layer))
        types.update(kind.__name__ for kind in type(owner_of(model, member.tensor)).__mro__)
    return names, types


def _fits(pattern: str, known: tuple[set[str], set[str]]) -> bool:
    names, types = known
    return pattern in types or any(pattern == name or matches(pattern, name) for name in names)


def _target(model: nn.Module, name: str) -> Target:
    owner = owner_of(model, name)
    return Target(name, name.rpartition(".")[0], type(owner).__name__, tuple(model.get_parameter(name).shape))


@dataclass(frozen=True)
class Pieces(Elements):
    """The pieces of maxout layers: (units, pieces) flags each."""

    @property
    def parameters(self) -> list[str]:
        """The weights that make the pieces."""
        return [f"{name}.layer.weight" for name in self.names]

    def all_kept(self, model: nn.Module) -> Masks:
        """One flag per piece; those that are all zero count as removed."""
        model = unwrap(model)
        return Masks({name: maxout(model, name).present() for name in self.names})

    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """Rows and biases of the layers that make the pieces."""
        masks = {}
        for name, flags in kept.items():
            for short, parameter in maxout(unwrap(model), name).layer.named_parameters(recurse=False):
                shape = (-1, *[1] * (parameter.dim() - 1))
                masks[f"{name}.layer.{short}"] = flags.flatten().view(shape).expand_as(parameter).clone()
        return Masks(masks)

    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """Those removed already."""
        return ~kept[name]


def maxout(model: nn.Module, name: str) -> Maxout:
    """The maxout layer of that name."""
    module = model.get_submodule(name)
    assert isinstance(module, Maxout)
    return module


def find_pieces(model: nn.Module, targets: Sequence[str] | None, ignore: Sequence[str]) -> Pieces:
    """The pieces of the chosen maxout layers.

    Raises:
        InputError: if a pattern matches nothing, or no maxout layer of several pieces is left.
        ModelError: as `find_targets`.
    """
    layers = {target.layer for target in find_targets(model, targets, ignore)}
    chosen = tuple(
        Target(name, name, "pieces", (module.units, module.pieces))
        for name, module in unwrap(model).named_modules()
        if isinstance(module, Maxout) and f"{name}.layer" in layers and module.pieces > 1
    )
    if not chosen:
        raise InputError("the recipe chooses no maxout layer (prunekit.maxout.Maxout) with several pieces")
    return Pieces(chosen)
