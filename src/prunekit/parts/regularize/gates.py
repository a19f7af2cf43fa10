"""Gates that open and close while a network is trained: L0 regularisation of weights and of whole units."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from prunekit import hard_concrete
from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError
from prunekit.graph import Coupled, unit_masks
from prunekit.graph.members import entries
from prunekit.masks import Masks, lowest
from prunekit.measure.counts import count
from prunekit.parts.granularity import Elements, Granularity, Unit, Weight
from prunekit.parts.regularize.base import Regularizer, StepHooks, check_gradients_are_there
from prunekit.settings import LARGE, WHOLE
from prunekit.targets import owner_of, unwrap

Counted = Literal["gates", "parameters", "macs"]
"""What a share is of: the gates themselves, or the parameters or MACs that the open ones leave."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Entries along one dimension of a parameter that have gates.

    Attributes:
        place: of the group, among all.
        dim: the dimension.
        gates: (entries,) int64, the gate of each entry; -1 for none.
    """

    place: int
    dim: int
    gates: Tensor

    def along(self, values: Tensor, dims: int) -> Tensor:
        """The group's values (gates,), 1 for entries without a gate, in the shape that multiplies."""
        every = torch.cat([values, values.new_ones(1)])
        shape = [-1 if dim == self.dim else 1 for dim in range(dims)]
        return every[self.gates.to(values.device)].view(shape)


class Gates(nn.Module):
    """The gates of a network: hard-concrete ones of groups, and the Lagrangian that leads to their density.

    What the training does not run stays as it is: groups whose gates have never had a gradient are open, and
    not counted. So is everything before the first step.

    Attributes:
        names: of the groups: units by the names of their groups, weights by their full names.
        locations: log alpha of each group's gates.
        lagrangian: None where a strength is given.
        steps: () int64, the steps of the optimizer so far.
        ran: (groups,) whether the training has run what a group's gates multiply.
        values: of the run under way, or the last.
    """

    steps: Tensor
    ran: Tensor

    def __init__(self, shapes: Mapping[str, torch.Size], like: Tensor, settings: L0) -> None:
        super().__init__()
        self.names = tuple(shapes)
        start = float(hard_concrete.location_of(torch.tensor(settings.openness, dtype=torch.float64)))
        self.locations = nn.ParameterList(
            start + 0.01 * torch.randn(shape, dtype=like.dtype, device=like.device)
            for shape in shapes.values()
        )
        self.lagrangian = settings.lagrangian()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ran", torch.zeros(len(shapes), dtype=torch.bool))
        self.values: list[Tensor] = []
        self._inside, self._whole = 0, False

    def __getstate__(self) -> dict[str, Any]:
        """Without the values of a run, which have a graph behind them."""
        return {**vars(self), "values": [], "_inside": 0}

    @property
    def counted(self) -> list[bool]:
        """Which groups have run; all as long as none has."""
        ran: list[bool] = self.ran.tolist()
        return ran if any(ran) else [True] * len(ran)

    @property
    def target(self) -> int | None:
        """How many of the gates that are counted stay; None where no density is given."""
        if self.lagrangian is None:
            return None
        sizes = [location.numel() for location in self.locations]
        counted = sum(size for size, counts in zip(sizes, self.counted, strict=True) if counts)
        return max(1, round(self.lagrangian.wanted * counted))

    def begin(self, *_: Any) -> None:
        """A run of the whole network begins."""
        self.draw()
        self._inside, self._whole = 1, self.training

    def enter(self, *_: Any) -> None:
        """A run of a part of the network begins, which is a run of its own where none of the whole is.

        After one of the whole, until the step of the optimizer, it is none: parts may run anew in the
        backward pass, as checkpoints of activations do, and need the gates of the forward pass.
        """
        if self._outside:
            self.draw()
        self._inside += 1

    def leave(self, *_: Any) -> None:
        """A run ends, of the network or a part."""
        self._inside = max(self._inside - 1, 0)

    def read(self) -> list[Tensor]:
        """The values for a parameter; outside of any run, new ones."""
        if self._outside:
            self.draw()
        return self.values

    @property
    def _outside(self) -> bool:
        return not self._inside and not (self._whole and self.training)

    def stepping(self) -> None:
        """A step of the optimizer begins, when gradients say what has run.

        Raises:
            InputError: where nothing has.
        """
        self._whole = False
        for place, location in enumerate(self.locations):
            if location.grad is not None and not bool(self.ran[place]):
                self.ran[place] = True
        if not bool(self.ran.any()):
            raise InputError(
                f"l0: the training runs nothing that has gates, which are those of {', '.join(self.names)}"
            )

    def draw(self) -> None:
        """New samples in training, the final gates in evaluation."""
        if not self.training:
            self.values = self.final()
            return
        self.values = []
        for location in self.locations:
            uniform = torch.rand(location.shape, dtype=location.dtype, device=location.device)
            self.values.append(hard_concrete.sample(location, uniform.clamp(1e-6, 1 - 1e-6)))

    def final(self) -> list[Tensor]:
        """The gates after the training: where a number is to stay, the most probably open ones, exactly."""
        found = [torch.ones_like(location) for location in self.locations]
        if not bool(self.steps):
            return found
        places = [place for place, counts in enumerate(self.counted) if counts]
        locations = [self.locations[place] for place in places]
        gates = [hard_concrete.final_gate(location) for location in locations]
        if (target := self.target) is not None:
            flat = torch.cat([location.detach().flatten() for location in locations])
            sizes = [each.numel() for each in gates]
            closed = lowest(flat, len(flat) - target).split(sizes)  # type: ignore[no-untyped-call]
            gates = [
                # one that stays, though its final gate is closed, is as open as the distribution's median
                torch.where(gate > 0, gate, torch.sigmoid(location)) * ~shut.view(gate.shape)
                for gate, location, shut in zip(gates, locations, closed, strict=True)
            ]
        for place, gate in zip(places, gates, strict=True):
            found[place] = gate
        return found


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
        values = self._gates[0].read()
        if isinstance(self._axes, int):
            return weight * values[self._axes]
        for axis in self._axes:
            weight = weight * axis.along(values[axis.place], weight.dim())
        return weight


class Gating:
    """Gates in a network, from being put in to being hardened: a handle, whose removal hardens them.

    A frozen parameter is left as it is: single weights of it have no gates, and neither have units that it
    makes, goes along with or reads.

    Args:
        settings: of the gates.
        model: the network, without wrappers.
        optimizer: gets a group of parameters more.
        elements: what has gates.
    """

    def __init__(self, settings: L0, model: nn.Module, optimizer: Optimizer, elements: Elements) -> None:
        self._settings, self._model, self._optimizer = settings, model, optimizer
        kept = {name: flags.shape for name, flags in elements.all_kept().items()}
        names = _trained(elements)
        coupled = self._coupled = None if elements.coupled is None else replace(elements.coupled, names=names)
        like = next(iter(elements.weights.values()))
        self._cost = [] if coupled is None or settings.counts == "gates" else _costs(coupled, settings.counts)
        read = self._axes(coupled, names)
        self.gates = Gates({name: kept[name] for name in names}, like, settings)
        self._orders: dict[str, list[str]] = {}
        for name, axes in read.items():
            owner = owner_of(model, name)
            # the first parameter's factors hold the gates, so that a state of the network has them once
            gated = _Gated(self.gates, axes, holds=not self._orders)
            self._orders[name] = list(owner._parameters)
            parametrize.register_parametrization(owner, name.rpartition(".")[2], gated, unsafe=True)
        self._hooks: list[Any] = [StepHooks(optimizer, before=self._before_step)]
        for part in _running(model, read):
            begin = self.gates.begin if part is model else self.gates.enter
            self._hooks.append(part.register_forward_pre_hook(begin))
            self._hooks.append(part.register_forward_hook(self.gates.leave, always_call=True))
        base = optimizer.param_groups[0]["lr"]
        optimizer.add_param_group(
            {
                "params": list(self.gates.locations),
                "lr": settings.lr,
                "weight_decay": 0.0,
                "relative_lr": settings.lr / base if base else 1.0,
            }
        )
        self._group = optimizer.param_groups[-1]

    def _axes(self, coupled: Coupled | None, names: Sequence[str]) -> Mapping[str, Sequence[Axis] | int]:
        """By parameter: the axes that are multiplied, where units are read; or the place of its own gates."""
        if coupled is None:
            return {name: place for place, name in enumerate(names)}
        parameters = dict(self._model.named_parameters())
        found: dict[str, list[Axis]] = {}
        for place, name in enumerate(names):
            readers = [each for each in coupled.group(name).consumers if each.tensor in parameters]
            if not readers:
                raise ModelError(
                    f"l0: no layer of its own reads the units of {name!r}, so there is nothing that their "
                    "gates could multiply"
                )
            for member in readers:
                found.setdefault(member.tensor, []).append(
                    _axis(place, member, parameters[member.tensor].shape[member.dim])
                )
        return found

    def share(self) -> Tensor:
        """The expected share of what is counted that open gates leave, with its gradient."""
        gates = self.gates
        probabilities = [
            hard_concrete.open_probability(location) if counts else torch.ones_like(location)
            for location, counts in zip(gates.locations, gates.counted, strict=True)
        ]
        if not self._cost:  # the gates themselves are counted
            counted = zip(probabilities, gates.counted, strict=True)
            return torch.cat([each.flatten() for each, counts in counted if counts]).mean()
        total = sum(cost for cost, _, _ in self._cost)
        left = probabilities[0].new_zeros(())
        for cost, axes, sizes in self._cost:
            part = torch.as_tensor(cost / total, dtype=left.dtype, device=left.device)
            for axis, size in zip(axes, sizes, strict=True):
                part = part * axis.along(probabilities[axis.place], 1 + axis.dim).sum() / size
            left = left + part
        return left

    def _before_step(self, *_: Any) -> None:
        """Add the penalty's gradient."""
        gates = self.gates
        gates.stepping()
        counted = zip(gates.locations, gates.counted, strict=True)
        locations = [location for location, counts in counted if counts]
        with torch.enable_grad():
            share = self.share()
            if gates.lagrangian is None:
                assert self._settings.strength is not None
                penalty = self._settings.strength * share
            else:
                penalty = gates.lagrangian(share, int(gates.steps))
            gradients = torch.autograd.grad(penalty, locations)
        for location, gradient in zip(locations, gradients, strict=True):
            location.grad = gradient if location.grad is None else location.grad + gradient
        gates.steps += 1

    @torch.no_grad()
    def remove(self) -> None:
        """Harden the gates: values that stay carry them, what is closed is exactly zero, and they are gone.

        The network is then the one that it was with its gates in evaluation mode.
        """
        gates = self.gates.eval()
        if (lagrangian := gates.lagrangian) is not None and 0 < int(gates.steps) < lagrangian.ramp:
            warnings.warn(
                f"l0: the gates are hardened after {int(gates.steps)} steps, while their target falls over "
                f"{lagrangian.ramp:g}: more of them are open than stay, and closing the rest at once costs "
                "accuracy",
                stacklevel=2,
            )
        gates.begin()
        for name in self._orders:
            owner, own = owner_of(self._model, name), name.rpartition(".")[2]
            hardened = getattr(owner, own).detach().clone()
            _give_own_class(owner)
            parametrize.remove_parametrizations(owner, own, leave_parametrized=False)
            self._model.get_parameter(name).copy_(hardened)
        for name, order in reversed(self._orders.items()):
            owner = owner_of(self._model, name)
            for own in order:  # in the order of before, which states and optimizers go by
                owner._parameters[own] = owner._parameters.pop(own)
        if self._coupled is not None:
            flags = {name: value > 0 for name, value in zip(gates.names, gates.values, strict=True)}
            plan = self._coupled.traced.plan
            unit_masks(self._model, plan, flags, allow_empty=True).apply(self._model)
        for hook in self._hooks:
            hook.remove()
        self._optimizer.param_groups[:] = [
            group for group in self._optimizer.param_groups if group is not self._group
        ]
        for location in gates.locations:
            self._optimizer.state.pop(location, None)


def _trained(elements: Elements) -> tuple[str, ...]:
    """The parameters with weights to gate, or the groups of units, to which nothing frozen belongs.

    Raises:
        InputError: if there is none.
    """
    own = dict(elements.model.named_parameters())
    frozen = {name for name, parameter in own.items() if not parameter.requires_grad}
    coupled = elements.coupled
    found = tuple(
        name
        for name in elements.names
        if frozen.isdisjoint([name] if coupled is None else [m.tensor for m in coupled.group(name).members])
    )
    if not found:
        raise InputError(
            "l0: nothing can have gates: "
            + ("all weights are frozen" if coupled is None else "a frozen parameter makes or reads all units")
            + f" ({', '.join(sorted(frozen))})"
        )
    return found


def _running(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The modules that read these parameters when they run: their owners and all that these are inside of."""
    paths = [name.split(".")[:-1] for name in names]
    inside = {".".join(path[:end]) for path in paths for end in range(len(path) + 1)}
    return list(dict.fromkeys(model.get_submodule(name) for name in sorted(inside)))


def _give_own_class(module: nn.Module) -> None:
    """Let a parametrized module share its class with no copy: taking gates off one would change the other."""
    shared = type(module)
    own = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)


def _axis(place: int, member: Any, size: int) -> Axis:
    index, unit = entries(member)
    gates = torch.full((size,), -1)
    gates[index] = unit
    return Axis(place, member.dim, gates)


def _costs(coupled: Coupled, counts: Counted) -> list[tuple[float, list[Axis], list[int]]]:
    """Of each parameter what it costs whole, the axes along which it gets smaller, and their lengths."""
    model = coupled.model
    if counts == "macs":
        layers = {each.name: float(each.macs) for each in count(model, coupled.example_inputs).layers}
    axes: dict[str, list[Axis]] = {}
    parameters = dict(model.named_parameters())
    for place, group in enumerate(coupled.groups):
        for member in group.members:
            if member.tensor in parameters:
                size = parameters[member.tensor].shape[member.dim]
                axes.setdefault(member.tensor, []).append(_axis(place, member, size))
    found = []
    for name, parameter in parameters.items():
        cost = float(parameter.numel())
        if counts == "macs":
            is_weight = parameter.dim() > 1
            cost = layers.get(name.rpartition(".")[0], 0.0) if is_weight else 0.0
        own = axes.get(name, [])
        if cost:
            found.append((cost, own, [parameter.shape[axis.dim] for axis in own]))
    return found


class L0(Regularizer):
    """Hard-concrete gates on weights or whole units, with a penalty on what the open ones leave.

    Each gate multiplies a weight, or whatever reads a unit, biases of the unit included; one sample of all
    gates serves a batch. At the end of the training the gates are hardened: multiplied into the weights,
    with exact zeros where they are closed, which the allocation `zeros` removes. Give a `strength`, or a
    `density` that a Lagrangian l1 (s - t) + (c + l2) (s - t)^2 leads to: its multipliers rise with the excess
    of the share s over the target t, which falls linearly from 1, and in the end the gates that are most
    probably open stay, exactly so many.

    Frozen parameters are left as they are: they have no gates, and neither have units that one of them makes
    or reads. What the training does not run stays as it is, and is not counted.

    Attributes:
        of: what has gates: single weights, or the units that pruning by units would remove.
        inputs: whether the network's input features have gates, too.
        counts: what the penalised share is of; for weights the gates are the parameters.
        strength: of the penalty on the expected share, 0 to 1; the paper's λ times the number of gates over
            the number of training examples.
        density: the share of gates that stays.
        openness: the probability with which a gate is open at first.
        lr: of the gates; it falls with that of the weights.
        multiplier_lr: how fast the multipliers rise.
        curvature: c.
        ramp: the steps over which the target falls, at most all those of the training.
    """

    name = "l0"
    paper = "Louizos, Welling, Kingma 2018, arXiv 1712.01312; Lagrangian: Xia et al. 2022, arXiv 2204.00408"
    interruptible: ClassVar[bool] = False
    of: Literal["units", "weights"] = "units"
    inputs: bool = False
    counts: Counted = "gates"
    strength: float | None = Field(default=None, gt=0, le=LARGE)
    density: float | None = Field(default=None, gt=0, lt=1)
    openness: float = Field(default=0.9, gt=0, lt=1)
    lr: float = Field(default=0.01, gt=0, le=LARGE)
    multiplier_lr: float = Field(default=0.1, gt=0, le=LARGE)
    curvature: float = Field(default=100.0, ge=0, le=LARGE)
    ramp: int = Field(default=1000, ge=1, le=WHOLE)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.strength is None) == (self.density is None):
            raise ValueError("give either 'strength' (of the penalty) or 'density' (the share that stays)")
        if self.of == "weights" and (self.inputs or self.counts != "gates"):
            raise ValueError("of 'weights' there are no 'inputs', and 'counts' is 'gates'")
        if self.density is not None and self.counts != "gates":
            raise ValueError("a 'density' is a share of the gates: leave 'counts' at 'gates'")
        return self

    def check(self, model: nn.Module) -> None:
        """There must be something to gate, and no gates yet."""
        inner = unwrap(model)
        if any(isinstance(module, Gates) for module in inner.modules()):
            raise InputError("l0: the network has gates already: remove() them first")

    def check_length(self, steps: int) -> None:
        """The target must be down before the training ends, where there is one."""
        if self.density is not None and 0 < steps < self.ramp:
            raise InputError(
                f"l0: the target falls over ramp = {self.ramp:,} steps, but the training has only {steps:,}: "
                "more gates would be open in the end than stay, and closing the rest at once costs accuracy: "
                "set 'ramp' to half of the steps, or train longer"
            )

    def lagrangian(self) -> hard_concrete.Lagrangian | None:
        """What leads to the density; None where a strength is given."""
        if self.density is None:
            return None
        rates = (self.multiplier_lr, self.multiplier_lr)
        return hard_concrete.Lagrangian(self.density, ramp=self.ramp, rates=rates, curvature=self.curvature)

    @property
    def by_example(self) -> bool:  # type: ignore[override]
        """To find units and what they cost."""
        return self.of == "units"

    @property
    def _granularity(self) -> Granularity:
        return Weight() if self.of == "weights" else Unit(inputs=self.inputs)

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
        elements = self._granularity.elements(inner, None, (), example_inputs)
        for name, mask in (masks or {}).items():
            if not bool(mask.all()):
                raise InputError(
                    f"l0: {name} is pruned already, by masks: gates are for a training before the first "
                    "removal"
                )
        return [Gating(self, inner, optimizer, elements)]
