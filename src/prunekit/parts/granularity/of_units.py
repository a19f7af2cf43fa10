"""Granularities of whole units and of pieces of maxout units, which they find in a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError
from prunekit.graph import (
    INPUT,
    Combine,
    Coupled,
    Group,
    Pool,
    Scored,
    alike,
    smaller,
    traced,
    unit_masks,
)
from prunekit.graph.capture import made_up_inputs
from prunekit.masks import Masks, lowest_per_row
from prunekit.models import Maxout
from prunekit.parts.base import Requirement
from prunekit.parts.granularity.of_weights import Elements, Granularity, Weight, unless_all
from prunekit.settings import WHOLE
from prunekit.targets import (
    Known,
    Target,
    check_patterns,
    check_plain,
    check_whole,
    device_of,
    find_targets,
    types_of,
    unwrap,
)

Kind = Literal[
    "filters",
    "neurons",
    "heads",
    "head width",
    "MLP width",
    "residual stream",
    "embedding",
    "input features",
]
"""What groups of units consist of."""


class Unit(Weight):
    """Whole units of any network: neurons, filters, heads, each with all that is coupled to it.

    Filters, neurons, heads and their widths are found through residual sums, concatenations and reshapes
    from a run on an example: the first of the data, or `example_inputs`, or one that is made up of the shape
    that the first layer reads. A unit that is removed is off: all weights that make it, go along with it and
    read it are zero. Where statistics run over the units, as in layer norms over a residual stream, zeros
    still count in them until the units are taken out.

    A score of weights is taken over the unit's incoming weights, so that `magnitude` becomes the L1 norm of
    the filter (Li et al. 2016).

    Attributes:
        pool: how scores of weights become one of the unit, within each parameter that it has a part in.
        combine: how several such parameters count, or several places where the unit's outputs are watched.
        over: which parameters are scored: those that make the unit, or `all` that go with it.
        kinds: of groups that are pruned; all by default.
        residual: whether the widths of residual streams are pruned, too.
        inputs: whether the network's input features are units, too.
        round_to: what stays of a group is a multiple of it, where the group is not smaller: removals that an
            allocation asks for beyond such a multiple are left out.
    """

    name = "unit"
    level = "units"
    paper = (
        "filters by their norm: Li et al. 2016, arXiv 1608.08710; groups: Fang et al. 2023 (DepGraph), arXiv "
        "2301.12900"
    )
    counts = "units"
    by_example = True
    pool: Pool = "sum"
    combine: Combine = "mean"
    over: Scored = "producers"
    kinds: tuple[Kind, ...] | None = Field(default=None, min_length=1)
    residual: bool = False
    inputs: bool = False
    round_to: int = Field(default=1, ge=1, le=WHOLE)

    @property
    def requires(self) -> tuple[Requirement, ...]:  # type: ignore[override]
        """Input features are read, but not made, by weights."""
        if not self.inputs or self.over == "all":
            return ()
        return (
            Requirement(
                "score",
                lambda score: not score.of_weights,
                "the network's input features have no incoming weights for the score {value} to look at: "
                "use a score of units, such as 'outgoing_norm', or the granularity's over 'all'",
            ),
        )

    def elements(
        self,
        model: nn.Module,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        example_inputs: Inputs | None = None,
    ) -> Units:
        """The units of the groups that fit the patterns; the network's outputs are none.

        A pattern fits a group by the group's name, or by the name or type of a layer that makes its units, or
        of that layer's parameter. The network's input features are chosen where they are asked for, whatever
        `targets` says. Without `example_inputs` some are made up where that is possible.

        Raises:
            InputError: if a pattern matches nothing.
            ModelError: if the network cannot be exported, or nothing is left to prune, with the reasons.
        """
        model = unwrap(model)
        check_whole(model)
        if example_inputs is None:
            example_inputs = made_up_inputs(model)
        found = traced(model, example_inputs, residual=self.residual, inputs=self.inputs)
        known = {group.name: _known(model, group) for group in found.plan.groups}
        check_patterns([*(targets or ()), *ignore], list(known.items()), "group; groups")
        chosen = [
            group
            for group in found.plan.groups
            if (targets is None or group.name == INPUT or known[group.name].fits(targets))
            and not known[group.name].fits(ignore)
            and (self.kinds is None or group.kind in self.kinds)
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
            model,
            tuple(
                Target(group.name, group.name, "units", torch.Size([group.units]), least if least > 1 else 0)
                for group in left
                for least in [len(alike(group))]
            ),
            Coupled(
                model, found, tuple(group.name for group in left), example_inputs, self.combine, self.over
            ),
        )
        check_plain(model, elements.parameters, units=True)
        return elements

    def pooled(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Over the parts that a unit has in each parameter, by `pool`, and over parameters, by `combine`."""
        found = elements.coupled
        assert found is not None
        return {name: found.pooled(scores, found.group(name), self.pool) for name in elements.names}

    def rounded(self, size: int, removed: int) -> int:
        """The most that can go, up to `removed`, if a multiple has to stay, or everything."""
        return size - min(size, math.ceil((size - removed) / self.round_to) * self.round_to)


class MaxoutPiece(Granularity):
    """One piece of every unit of the maxout layers, in each step.

    The units stay, each with fewer pieces to take the maximum of, the same number in a layer and at least
    one; what an allocation asks for beyond a piece of every unit is left out. A score of weights is summed
    over a piece's incoming weights.
    """

    name = "maxout_piece"
    level = "pieces"
    paper = "Rueda, Grzeszick, Fink 2017, arXiv 1707.06838"
    counts = "pieces"

    def elements(
        self,
        model: nn.Module,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        example_inputs: Inputs | None = None,
    ) -> Pieces:
        """The pieces of the maxout layers that fit the patterns.

        Raises:
            InputError: if a pattern matches nothing, or no maxout layer of several pieces is left.
            ModelError: as `find_targets`.
        """
        model = unwrap(model)
        layers = {target.layer for target in find_targets(model, targets, ignore)}
        chosen = tuple(
            Target(name, name, "pieces", torch.Size([module.units, module.pieces]))
            for name, module in model.named_modules()
            if isinstance(module, Maxout) and f"{name}.layer" in layers and module.pieces > 1
        )
        if not chosen:
            raise InputError(
                "the recipe chooses no maxout layer (prunekit.models.Maxout) with several pieces"
            )
        return Pieces(model, chosen)

    def pooled(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Sums over the incoming weights of each piece."""
        return {
            target.name: scores[f"{target.name}.layer.weight"].flatten(1).double().sum(1).view(target.shape)
            for target in elements.targets
        }

    def select(self, scores: Tensor, count: int) -> Tensor:
        """Remove the same number of pieces from each unit, as many as `count` has for every one of them."""
        return ~lowest_per_row(scores, min(count // len(scores), scores.shape[1] - 1))

    def check(self, target: Target, sparsities: Sequence[float | None]) -> None:
        """The sparsities that a schedule states must be whole numbers of a unit's pieces and leave one."""
        pieces = target.shape[1]
        for sparsity in sparsities:
            if sparsity is None:  # the allocation states it
                continue
            removed = sparsity * pieces
            if abs(removed - round(removed)) > 1e-9 or not 0 < round(removed) < pieces:
                raise InputError(
                    f"sparsity {sparsity} does not fit the {pieces} pieces of the units of {target.name!r}: "
                    f"steps are multiples of 1/{pieces} up to {(pieces - 1) / pieces:g}"
                )


@dataclass(frozen=True)
class Units(Elements):
    """Neurons, filters, heads, head widths, streams and input features, each with all that is coupled to it.

    Attributes:
        found: the groups.
    """

    found: Coupled

    @property
    def coupled(self) -> Coupled:
        """The groups."""
        return self.found

    @property
    def parameters(self) -> list[str]:
        """The parameters that are scored; buffers are none."""
        own = dict(self.model.named_parameters())
        members = (member for group in self.found.groups for member in self.found.members(group))
        return list(dict.fromkeys(member.tensor for member in members if member.tensor in own))

    def all_kept(self) -> Masks:
        """One flag per unit."""
        device = device_of(self.model)
        return Masks(
            {
                target.name: torch.ones(target.shape, dtype=torch.bool, device=device)
                for target in self.targets
            }
        )

    def masks(self, kept: Masks) -> Masks:
        """All slices of parameters that go with the units: what makes them, goes along and reads them."""
        return unit_masks(self.model, self.found.traced.plan, kept, allow_empty=True)

    def smaller(self, kept: Masks) -> nn.Module:
        """The units are taken out of a copy; input features are off, but stay."""
        flags = {name: each for name, each in kept.items() if name != INPUT}
        return smaller(self.model, self.found.traced, flags, self.found.example_inputs)

    def gone(self, name: str, kept: Masks) -> Tensor:
        """Those that nothing reads, or that nothing makes where no layer reads them, count as removed."""
        return ~kept[name] | unless_all(self.found.off(self.found.group(name)))

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


def _known(model: nn.Module, group: Group) -> Known:
    """By its own name, and by the layers that make its units."""
    known = Known({group.name})
    for member in group.producers:
        layer = member.tensor.rpartition(".")[0]
        known.names.update((member.tensor, layer))
        known.types.update(types_of(model.get_submodule(layer)))
    return known


@dataclass(frozen=True)
class Pieces(Elements):
    """The pieces of maxout layers: (units, pieces) flags each."""

    @property
    def parameters(self) -> list[str]:
        """The weights that make the pieces."""
        return [f"{name}.layer.weight" for name in self.names]

    def all_kept(self) -> Masks:
        """One flag per piece; those that are all zero count as removed."""
        return Masks({name: maxout(self.model, name).present() for name in self.names})

    def masks(self, kept: Masks) -> Masks:
        """Rows and biases of the layers that make the pieces."""
        masks = {}
        for name, flags in kept.items():
            for short, parameter in maxout(self.model, name).layer.named_parameters(recurse=False):
                shape = (-1, *[1] * (parameter.dim() - 1))
                masks[f"{name}.layer.{short}"] = flags.flatten().view(shape).expand_as(parameter).clone()
        return Masks(masks)

    def gone(self, name: str, kept: Masks) -> Tensor:
        """Those removed already."""
        return ~kept[name]


def maxout(model: nn.Module, name: str) -> Maxout:
    """The maxout layer of that name."""
    module = model.get_submodule(name)
    assert isinstance(module, Maxout)
    return module
