"""Group lasso: a penalty on the norms of groups of weights, which brings whole groups to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.graph import Member
from prunekit.masks import Masks
from prunekit.parts.granularity import INPUTS_FIRST, Block, Kind, Unit, check_one_input, shaped_targets
from prunekit.parts.regularize.base import Regularizer, StepHooks, check_gradients_are_there
from prunekit.parts.regularize.gates import check_no_gates
from prunekit.settings import LARGE
from prunekit.targets import find_targets, unwrap


class GroupLasso(Regularizer):
    """strength * sum ||w_g||_2 over groups of weights, which drives whole groups to zero.

    `proximal` shrinks every group after each step of the optimizer, w_g <- w_g max(0, 1 - lr strength /
    ||w_g||), with the optimizer's own lr: groups become exactly zero, without a threshold. `subgradient` is
    the published form of SSL: strength w_g / ||w_g|| is added to the gradient, and after each step what is
    below `threshold` is set to zero. A group of zeros may come back while the training goes on; once a recipe
    has removed it, its masks act last, with the optimizer's moments cleared.

    Where two regularizers have groups that overlap, one shrinks after the other. Momentum m makes 1 / (1 - m)
    of a gradient, but not of a proximal step: with it the same strength weighs less by 1 - m than as a
    subgradient.

    Attributes:
        strength: the factor of the norms.
        groups: `units` are those of the granularity `unit`, each with all that makes it or goes along with
            it, biases and norms included; `blocks` those of the granularity `block`: residual branches with
            all of their own parameters; `heads` are the units that are attention heads; `channels` are
            the weights of a layer that read one of its inputs; `filter_shapes` are the weights of all filters
            of a convolution at one place: a column of its matrix.
        form: how it acts.
        root_of_size: whether a group counts by the root of its number of weights, too.
        threshold: of the form `subgradient`.
        targets: patterns of the layers; None for all that have such groups.
        ignore: patterns of what is left out.
    """

    name = "group_lasso"
    paper = "Yuan, Lin 2006, doi 10.1111/j.1467-9868.2005.00532.x; Wen et al. 2016 (SSL), arXiv 1608.03665"
    strength: float = Field(gt=0, le=LARGE)
    groups: Literal["units", "heads", "blocks", "channels", "filter_shapes"] = "units"
    form: Literal["proximal", "subgradient"] = "proximal"
    root_of_size: bool = False
    threshold: float = Field(default=1e-4, ge=0, le=LARGE)
    targets: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()

    @property
    def by_example(self) -> bool:  # type: ignore[override]
        """To find units or blocks."""
        return self.groups in ("units", "heads", "blocks")

    def check(self, model: nn.Module, example_inputs: Inputs | None = None) -> None:
        """The groups must be there, as the granularities `unit` and `block` or the layers have them."""
        self._trained(model, example_inputs)

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks | None = None,
        example_inputs: Inputs | None = None,
    ) -> list[Any]:
        """A hook after the optimizer's step, and one before it for the form `subgradient`."""
        if self.form == "subgradient":
            check_gradients_are_there(f"{self.name} 'subgradient'", optimizer)
        found = self._trained(model, example_inputs)
        if self.form == "proximal":
            return [StepHooks(optimizer, after=partial(self._shrink, found))]
        return [StepHooks(optimizer, before=partial(self._pull, found), after=partial(self._cut, found))]

    @torch.no_grad()
    def _shrink(self, found: Sequence[WeightGroups], optimizer: Optimizer, *_: Any) -> None:
        rates = {
            id(weight): float(group["lr"]) for group in optimizer.param_groups for weight in group["params"]
        }
        for each in found:
            each.shrink(self.strength * self._factors(each), rates)

    @torch.no_grad()
    def _pull(self, found: Sequence[WeightGroups], *_: Any) -> None:
        for each in found:
            each.pull(self.strength * self._factors(each))

    @torch.no_grad()
    def _cut(self, found: Sequence[WeightGroups], *_: Any) -> None:
        for each in found:
            each.cut(self.threshold)

    def _factors(self, groups: WeightGroups) -> Tensor | float:
        return groups.roots if self.root_of_size else 1.0

    def _trained(self, model: nn.Module, example_inputs: Inputs | None) -> list[WeightGroups]:
        check_no_gates(self.name, model)
        found = list(self._found(model, example_inputs))
        if not any(each.slices for each in found):
            raise InputError(f"{self.name}: all weights of its groups are frozen, so it would do nothing")
        return found

    def _found(self, model: nn.Module, example_inputs: Inputs | None) -> Iterator[WeightGroups]:
        model = unwrap(model)
        if self.by_example:
            kinds: tuple[Kind, ...] | None = ("heads",) if self.groups == "heads" else None
            granularity = Block() if self.groups == "blocks" else Unit(kinds=kinds)
            elements = granularity.elements(model, self.targets, self.ignore, example_inputs)
            coupled = elements.found
            own = dict(model.named_parameters())
            for group in coupled.groups:
                along = tuple(member for member in group.members if member.role == "along")
                members = dict.fromkeys((*group.producers, *along))
                yield WeightGroups(
                    group.units,
                    [_of_member(own[each.tensor], each) for each in members if each.tensor in own],
                )
            return
        if self.groups == "filter_shapes":
            for target in shaped_targets(model, self.targets, self.ignore):
                yield _columns(model.get_parameter(target.name), over=(0,))
            return
        for target in find_targets(model, self.targets, self.ignore):
            check_one_input(model, target)
            weight = model.get_parameter(target.name)
            inputs = 1 if target.types.isdisjoint(INPUTS_FIRST) else 0
            yield _columns(weight, over=tuple(dim for dim in range(weight.dim()) if dim != inputs))


@dataclass(frozen=True, eq=False)
class Slices:
    """What groups have of one parameter.

    Attributes:
        weight: the parameter.
        over: its dimensions along which a slice lies.
        group: the number of the group of each slice, in the parameter's shape with 1 for these dimensions;
            the number of groups for a slice of none.
    """

    weight: nn.Parameter
    over: tuple[int, ...]
    group: Tensor

    @property
    def squares(self) -> Tensor:
        """The sum of squares of each slice, in the shape of `group`, at least in single precision."""
        weight = self.weight.detach()
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if not self.over:
            return weight.square()
        return torch.linalg.vector_norm(weight, dim=self.over, keepdim=True).square_()


class WeightGroups:
    """Groups of weights, each with slices of one or more parameters; frozen ones are left as they are.

    Attributes:
        count: how many groups there are.
        slices: of the parameters that are trained.
        roots: (count,) the root of each group's number of weights.
    """

    def __init__(self, count: int, slices: Sequence[Slices]) -> None:
        self.count = count
        self.slices = [each for each in slices if each.weight.requires_grad]
        sizes = torch.zeros(count + 1, dtype=torch.float64)
        for each in self.slices:
            alike = each.weight.numel() // each.group.numel()
            sizes += alike * torch.bincount(each.group.flatten().cpu(), minlength=count + 1)
        device = slices[0].weight.device
        self.roots = sizes[:-1].sqrt().to(device)

    def norms(self, slices: Sequence[Slices]) -> Tensor:
        """(count,) the L2 norm of each group over these slices."""
        total = slices[0].squares.new_zeros(self.count + 1)
        for each in slices:
            total.index_add_(0, each.group.flatten(), each.squares.flatten().to(total.dtype))
        return total[:-1].sqrt_()

    def shrink(self, strength: Tensor | float, rates: dict[int, float]) -> None:
        """The proximal map of strength times the norms, at the rate of the first parameter.

        Args:
            strength: of all groups, or (count,).
            rates: the learning rate by the id of each parameter that the optimizer moves.
        """
        moved = [each for each in self._moved if id(each.weight) in rates]
        if not moved:
            return
        norms = self.norms(moved)
        step = rates[id(moved[0].weight)] * strength
        left = torch.where(norms > step, 1 - step / norms, 0.0)
        for each in moved:
            each.weight.mul_(self._spread(left, each, 1.0))

    def pull(self, strength: Tensor | float) -> None:
        """The gradient of strength times the norms, added to those of the parameters; 0 at 0."""
        moved = self._moved
        if not moved:
            return
        norms = self.norms(moved)
        pulls = torch.where(norms > 0, strength / norms, 0.0)
        for each in moved:
            assert each.weight.grad is not None
            each.weight.grad.addcmul_(each.weight, self._spread(pulls, each, 0.0))

    def cut(self, threshold: float) -> None:
        """Zero where a weight of a group is below the threshold."""
        for each in self._moved:
            each.weight.masked_fill_((each.weight.abs() < threshold) & (each.group < self.count), 0.0)

    @property
    def _moved(self) -> list[Slices]:
        return [each for each in self.slices if each.weight.grad is not None]

    def _spread(self, values: Tensor, slices: Slices, other: float) -> Tensor:
        """Values of groups for each of the slices, and another for those of none."""
        every = torch.cat([values, values.new_full((1,), other)])
        return every[slices.group].to(slices.weight.dtype)


def _columns(weight: nn.Parameter, over: tuple[int, ...]) -> WeightGroups:
    """Groups of one parameter, each along these dimensions."""
    shape = [1 if dim in over else size for dim, size in enumerate(weight.shape)]
    numbers = torch.arange(torch.Size(shape).numel(), device=weight.device).view(shape)
    return WeightGroups(numbers.numel(), [Slices(weight, over, numbers)])


def _of_member(weight: nn.Parameter, member: Member) -> Slices:
    numbers = torch.full((weight.shape[member.dim],), len(member.indices))
    for unit, indices in enumerate(member.indices):
        numbers[list(indices)] = unit
    shape = [1] * weight.dim()
    shape[member.dim] = -1
    over = tuple(dim for dim in range(weight.dim()) if dim != member.dim)
    return Slices(weight, over, numbers.to(weight.device).view(shape))
