"""Gates in a network, from being put in to being hardened; and the regularizer that puts them there."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from prunekit import hard_concrete
from prunekit.batches import Inputs
from prunekit.errors import InputError, shown
from prunekit.graph import Coupled, unit_masks
from prunekit.graph.copies import give_own_class
from prunekit.masked_optimizer import MaskedOptimizer
from prunekit.masks import Masks
from prunekit.parts.granularity import Elements, Granularity, Unit
from prunekit.parts.regularize.base import Regularizer, StepHooks, check_gradients_are_there
from prunekit.parts.regularize.gate_axes import (
    Axis,
    Counted,
    axis_of,
    costs,
    inputs_with_units,
    places_of,
    running,
)
from prunekit.parts.regularize.gates import Gates, check_no_gates
from prunekit.settings import LARGE, WHOLE
from prunekit.targets import Target, check_layers, fits_layer, owner_of, unwrap

RAMP = 1000
"""The steps over which the target falls where nobody says how long the training is."""


class _Gated(nn.Module):
    """A parameter times the gates of its entries."""

    def __init__(self, gates: Gates, axes: Sequence[Axis] | int, *, holds: bool) -> None:
        super().__init__()
        self._gates = (gates,)
        self._axes = axes
        if holds:
            self.gates = gates

    def forward(self, weight: Tensor) -> Tensor:
        """With the values of this run."""
        (gates,) = self._gates
        values = gates.read()
        if gates.by_example and gates.training:
            return weight
        if isinstance(self._axes, int):
            return weight * values[self._axes]
        for axis in self._axes:
            weight = weight * axis.along(values[axis.place], weight.dim())
        return weight


class _Noise:
    """What a layer takes, times the gates of each example in training."""

    def __init__(self, gates: Gates, axes: Sequence[Axis]) -> None:
        self._gates, self._axes = gates, axes

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """With the values of this run."""
        gates = self._gates
        gates.read()
        if not gates.training:
            return None
        taken, *others = args
        for axis in self._axes:
            values = gates.of_examples(axis.place, len(taken))
            taken = taken * axis.along(values, taken.dim())
        return (taken, *others)


class Gating:
    """Gates in a network, from being put in to being hardened: a handle, whose removal hardens them.

    A frozen parameter is left as it is: single weights of it have no gates, and neither have units that it
    makes, goes along with or reads. Gates of a tied weight act in all of its places.

    Args:
        settings: of the gates.
        model: the network, without wrappers.
        optimizer: gets a group of parameters more.
        elements: what has gates.
    """

    def __init__(
        self, settings: GateRegularizer, model: nn.Module, optimizer: Optimizer, elements: Elements
    ) -> None:
        self._settings, self._model, self._optimizer = settings, model, optimizer
        kept = {name: flags.shape for name, flags in elements.all_kept().items()}
        names = settings.chosen(_trained(settings.name, elements))
        coupled = self._coupled = None if elements.coupled is None else replace(elements.coupled, names=names)
        like = next(iter(elements.weights.values()))
        self._cost = [] if coupled is None or settings.counts == "gates" else costs(coupled, settings.counts)
        read = self._axes(coupled, names)
        self.gates = settings.gates({name: kept[name] for name in names}, like)
        by_example = coupled is not None and self.gates.by_example
        inputs = inputs_with_units(settings.name, coupled, read) if coupled and by_example else {}
        self._orders: dict[str, list[str]] = {}
        places = places_of(model, read)
        for place, name in places.items():
            owner = owner_of(model, place)
            # the first parameter's factors hold the gates, so that a state of the network has them once
            gated = _Gated(self.gates, read[name], holds=not self._orders)
            self._orders[place] = list(owner._parameters)
            parametrize.register_parametrization(owner, place.rpartition(".")[2], gated, unsafe=True)
        self._hooks: list[Any] = [StepHooks(optimizer, before=self._before_step)]
        for part in running(model, places):
            begin = self.gates.begin if part is model else self.gates.enter
            self._hooks.append(part.register_forward_pre_hook(begin))
            self._hooks.append(part.register_forward_hook(self.gates.leave, always_call=True))
        for name, taken in inputs.items():
            noise = _Noise(self.gates, taken)
            self._hooks.append(model.get_submodule(name).register_forward_pre_hook(noise))
        base = optimizer.param_groups[0]["lr"]
        optimizer.add_param_group(
            {
                "params": [each for learned in self.gates.learned for each in learned],
                "lr": settings.lr,
                "weight_decay": 0.0,
                "relative_lr": settings.lr / base if base else 1.0,
            }
        )
        self._group = optimizer.param_groups[-1]

    def _axes(self, coupled: Coupled | None, names: Sequence[str]) -> Mapping[str, Sequence[Axis] | int]:
        """By parameter: the axes that are multiplied, where units are read; or the place of its own gates.

        Where statistics of a norm run over the units, or no layer reads them, as the width of heads, they are
        multiplied wherever they are made, too: there a mask is felt before a reader.
        """
        if coupled is None:
            return {name: place for place, name in enumerate(names)}
        parameters = dict(self._model.named_parameters())
        found: dict[str, list[Axis]] = {}
        for place, name in enumerate(names):
            group = coupled.group(name)
            own = [each for each in group.consumers if each.tensor in parameters]
            if not own or group.normalised:
                own = [each for each in group.members if each.tensor in parameters]
            for member in own:
                found.setdefault(member.tensor, []).append(
                    axis_of(place, member, parameters[member.tensor].shape[member.dim])
                )
        return found

    def share(self) -> Tensor:
        """The expected share of what is counted that open gates leave, with its gradient."""
        return self._left([self.gates.openness(*learned) for learned in self.gates.learned])

    def _left(self, openness: Sequence[Tensor]) -> Tensor:
        """The same of gates that are as far open as is said."""
        counted = self.gates.counted
        if not self._cost:  # the gates themselves are counted
            there = zip(openness, counted, strict=True)
            return _mean([each for each, counts in there if counts])
        openness = [
            each if counts else torch.ones_like(each) for each, counts in zip(openness, counted, strict=True)
        ]
        total = sum(cost for cost, _, _ in self._cost)
        left = openness[0].new_zeros(())
        for cost, axes, sizes in self._cost:
            part = torch.as_tensor(cost / total, dtype=left.dtype, device=left.device)
            for axis, size in zip(axes, sizes, strict=True):
                part = part * axis.along(openness[axis.place], 1 + axis.dim).sum() / size
            left = left + part
        return left

    def _before_step(self, *_: Any) -> None:
        """Add the penalty's gradient."""
        gates = self.gates
        gates.stepping()
        counted = zip(gates.learned, gates.counted, strict=True)
        learned = [each for group, counts in counted if counts for each in group]
        with torch.enable_grad():
            penalties = []
            if self._settings.strength is not None:
                penalties.append(self._settings.strength * gates.penalty(self._left))
            for lagrangian, places, _staying in gates.led:
                share = _mean([gates.openness(*gates.learned[place]) for place in places])
                penalties.append(lagrangian(share, int(gates.steps)))
            gradients = torch.autograd.grad(penalties, learned)
        for each, gradient in zip(learned, gradients, strict=True):
            each.grad = gradient if each.grad is None else each.grad.add_(gradient)
        gates.steps += 1

    @torch.no_grad()
    def remove(self) -> None:
        """Harden the gates: values that stay carry them, what is closed is exactly zero, and they are gone.

        The network is then the one that it was with its gates in evaluation mode.
        """
        if not self._hooks:
            return  # they are gone already
        gates = self.gates.eval()
        ramp = self._settings.ramp or RAMP
        if gates.led and 0 < int(gates.steps) < ramp:
            warnings.warn(
                f"{gates.who}: the gates are hardened after {int(gates.steps)} steps, while their target "
                f"falls over {ramp:,}: more of them are open than stay, and closing the rest at "
                "once costs accuracy",
                stacklevel=2,
            )
        gates.begin()
        hardened: dict[nn.Parameter, Tensor] = {}
        for name in self._orders:
            owner, own = owner_of(self._model, name), name.rpartition(".")[2]
            values = getattr(owner, own).detach().clone()
            give_own_class(owner)
            parametrize.remove_parametrizations(owner, own, leave_parametrized=False)
            hardened.setdefault(self._model.get_parameter(name), values)
        for parameter, values in hardened.items():
            parameter.copy_(values)
        for name, order in reversed(self._orders.items()):
            owner = owner_of(self._model, name)
            for own in order:  # in the order of before, which states and optimizers go by
                owner._parameters[own] = owner._parameters.pop(own)
        if self._coupled is not None:
            flags = {name: value != 0 for name, value in zip(gates.names, gates.values, strict=True)}
            plan = self._coupled.traced.plan
            unit_masks(self._model, plan, flags, allow_empty=True).apply(self._model)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._optimizer.param_groups[:] = [
            group for group in self._optimizer.param_groups if group is not self._group
        ]
        for learned in gates.learned:
            for each in learned:
                self._optimizer.state.pop(each, None)


def _mean(values: Sequence[Tensor]) -> Tensor:
    """Over the elements of all, without a copy of them."""
    total = torch.stack([each.sum() for each in values]).sum()
    return total / sum(each.numel() for each in values)


def _trained(who: str, elements: Elements) -> tuple[Target, ...]:
    """The parameters with weights to gate, or the groups of units, to which nothing frozen belongs.

    Raises:
        InputError: if there is none.
    """
    own = dict(elements.model.named_parameters())
    frozen = {name for name, parameter in own.items() if not parameter.requires_grad}
    coupled = elements.coupled
    found = tuple(
        target
        for target in elements.targets
        for name in [target.name]
        if frozen.isdisjoint([name] if coupled is None else [m.tensor for m in coupled.group(name).members])
    )
    if found and len(found) < len(elements.targets):
        left_out = [target.name for target in elements.targets if target not in found]
        warnings.warn(
            f"{who}: there are no gates on {left_out[0]!r}"
            + (f" and {len(left_out) - 1} more" if left_out[1:] else "")
            + f", for parameters are frozen, such as {min(frozen)}: strength and density are of the others",
            stacklevel=2,
        )
    if not found:
        raise InputError(
            f"{who}: nothing can have gates: "
            + ("all weights are frozen" if coupled is None else "a frozen parameter makes or reads all units")
            + f" ({', '.join(sorted(frozen))})"
        )
    return found


def _densities(given: Any) -> Any:
    """A share, or shares by pattern, or None, as they are given."""
    if isinstance(given, Mapping) and not (given and all(isinstance(pattern, str) for pattern in given)):
        raise ValueError(
            f"a share, or shares by patterns of groups or layers, are needed, not {shown(given)}"
        )
    for where, share in given.items() if isinstance(given, Mapping) else [(None, given)]:
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not (number and 0 < share < 1) and given is not None:
            place = "" if where is None else f" of {shown(where)}"
            raise ValueError(f"a share above 0 and below 1 is needed{place}, not {shown(share)}")
    return given


class GateRegularizer(Regularizer):
    """Gates on what is learned to be left out, in a training: what all distributions of them have in common.

    Attributes:
        inputs: whether the network's input features have gates, too.
        counts: what the penalised share is of.
        strength: of the penalty.
        density: the share of gates that stays, or by patterns of groups or layers the shares of theirs.
        lr: of the gates; it falls with that of the weights.
        multiplier_lr: how fast the multipliers rise.
        curvature: c.
        ramp: the steps over which the target falls, at most all those of the training; None for half of them,
            or 1,000 in a loop of your own, which does not say how long it is.
    """

    interruptible: ClassVar[bool] = False
    by_example: ClassVar[bool] = True
    inputs: bool = False
    counts: Counted = "gates"
    strength: float | None = Field(default=None, gt=0, le=LARGE)
    density: Annotated[float | dict[str, float] | None, BeforeValidator(_densities)] = None
    lr: float = Field(default=0.01, gt=0, le=LARGE)
    multiplier_lr: float = Field(default=0.1, gt=0, le=LARGE)
    curvature: float = Field(default=100.0, ge=0, le=LARGE)
    ramp: int | None = Field(default=None, ge=1, le=WHOLE)

    @model_validator(mode="after")
    def _density_of_gates(self) -> Self:
        if self.density is not None and self.counts != "gates":
            raise ValueError("a 'density' is a share of the gates: leave 'counts' at 'gates'")
        return self

    @abstractmethod
    def gates(self, shapes: Mapping[str, torch.Size], like: Tensor) -> Gates:
        """New gates.

        Args:
            shapes: of each group, by name.
            like: a weight, for dtype and device.
        """

    def check(self, model: nn.Module, example_inputs: Inputs | None = None) -> None:
        """There must be something to gate, and no gates yet."""
        check_no_gates(self.name, model)

    def of_length(self, steps: int) -> Self:
        """With a target that falls over half of the steps, where `ramp` does not say over how many.

        Raises:
            InputError: if that is longer than the training.
        """
        if self.ramp is None:
            return self.model_copy(update={"ramp": max(1, steps // 2)})
        if self.density is not None and 0 < steps < self.ramp:
            raise InputError(
                f"{self.name}: the target falls over ramp = {self.ramp:,} steps, but the training has only "
                f"{steps:,}: more gates would be open in the end than stay, and closing the rest at once "
                "costs accuracy: leave 'ramp' out, for half of the steps, or train longer"
            )
        return self

    @property
    def densities(self) -> dict[str, float]:
        """By pattern; that of all gates by `*`."""
        if isinstance(self.density, float):
            return {"*": self.density}
        return self.density or {}

    @property
    def leading(self) -> dict[str, hard_concrete.Lagrangian]:
        """By pattern what leads to its density, new each time."""
        rates = (self.multiplier_lr, self.multiplier_lr)
        return {
            pattern: hard_concrete.Lagrangian(
                density, ramp=self.ramp or RAMP, rates=rates, curvature=self.curvature
            )
            for pattern, density in self.densities.items()
        }

    def chosen(self, targets: Sequence[Target]) -> tuple[str, ...]:
        """The names of what has gates: of all that can, or where there are densities, of what has one.

        Raises:
            InputError: if a pattern fits nothing, or several fit the same.
        """
        who = f"{self.name}: density"
        check_layers(who, self.densities, targets, "group or layer that can have gates; they")
        found = []
        for target in targets:
            fitting = [pattern for pattern in self.densities if fits_layer(pattern, target.name)]
            if len(fitting) > 1:
                raise InputError(
                    f"{who}: {fitting[0]!r} and {fitting[1]!r} both match {target.layer or target.name}: let "
                    "only one of them match"
                )
            if fitting or not self.densities:
                found.append(target.name)
        return tuple(found)

    @property
    def _granularity(self) -> Granularity:
        return Unit(inputs=self.inputs)

    def attach(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks | None = None,
        example_inputs: Inputs | None = None,
    ) -> list[Any]:
        """Gates in the network, and a group of parameters more in the optimizer; removing the handle hardens
        them.

        Raises:
            InputError: if a layer with gates is masked as well, or the network has gates already.
        """
        inner = unwrap(model)
        self.check(inner)
        check_gradients_are_there(self.name, optimizer)
        if any(each.shares(inner) for each in MaskedOptimizer.on(optimizer)):
            raise InputError(
                f"{self.name}: the optimizer carries the masks of a session: gates are for a training before "
                "the first removal, so attach the session when they are removed"
            )
        if any("initial_lr" in group for group in optimizer.param_groups):
            raise InputError(
                f"{self.name}: the optimizer has a learning-rate scheduler already, which would not know of "
                "the gates, a group of parameters more: attach them before it is made"
            )
        elements = self._granularity.elements(inner, None, (), example_inputs)
        for name, mask in (masks or {}).items():
            if not bool(mask.all()):
                raise InputError(
                    f"{self.name}: {name} is pruned already, by masks: gates are for a training before the "
                    "first removal"
                )
        return [Gating(self, inner, optimizer, elements)]
