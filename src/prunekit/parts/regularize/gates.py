"""Gates that open and close while a network is trained, of any distribution, on weights or whole units."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from prunekit import hard_concrete
from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError, shown
from prunekit.graph import Coupled, Group, unit_masks
from prunekit.graph.members import entries
from prunekit.masks import MaskedOptimizer, Masks, lowest
from prunekit.measure.counts import count
from prunekit.parts.granularity import Elements, Granularity, Unit
from prunekit.parts.regularize.base import Regularizer, StepHooks, check_gradients_are_there
from prunekit.settings import LARGE, WHOLE
from prunekit.targets import Target, check_layers, fits_layer, owner_of, unwrap

Counted = Literal["gates", "positions", "parameters", "macs"]
"""What a share is of: the gates themselves, each once or as often as its unit has positions; or the
parameters or MACs that the open ones leave."""


RAMP = 1000
"""The steps over which the target falls where nobody says how long the training is."""


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
        """The group's values, 1 for entries without a gate, in the shape that multiplies.

        Args:
            values: (gates,), or (examples, gates) along the first dimension.
            dims: of what is multiplied.
        """
        every = torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)
        shape = [-1 if dim == self.dim else 1 for dim in range(dims)]
        if values.dim() == 2:
            shape[0] = len(values)
        return every[..., self.gates.to(values.device)].view(shape)


class Gates(nn.Module):
    """The gates of a network in groups, and the Lagrangians that lead to their densities.

    A distribution of gates is a subclass, which keeps what is learned in lists of parameters, a tensor of the
    gates' shape in each for every group.

    What the training does not run stays as it is: groups whose gates have never had a gradient are open, and
    not counted. So is everything before the first step.

    Attributes:
        who: the name of the regularizer.
        names: of the groups: units by the names of their groups, weights by their full names.
        lagrangians: one for each density.
        steps: () int64, the steps of the optimizer so far.
        ran: (groups,) whether the training has run what a group's gates multiply.
        values: of the run under way, or the last.
        by_example: whether each example has values of its own in training, which multiply what reads the
            units, in place of its weights.
    """

    steps: Tensor
    ran: Tensor
    by_example = False

    def __init__(self, names: Iterable[str], settings: GateRegularizer) -> None:
        super().__init__()
        self.who, self.names = settings.name, tuple(names)
        self.lagrangians = nn.ModuleList(map(settings.lagrangian, settings.densities.values()))
        self._led = [
            [place for place, name in enumerate(self.names) if fits_layer(pattern, name)]
            for pattern in settings.densities
        ]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ran", torch.zeros(len(self.names), dtype=torch.bool))
        self.values: list[Tensor] = []
        self._inside, self._whole = 0, False

    def __getstate__(self) -> dict[str, Any]:
        """Without the values of a run, which have a graph behind them."""
        return {**vars(self), "values": [], "_inside": 0}

    @abstractmethod
    def sample(self, *learned: Tensor) -> Tensor:
        """Values of a group's gates for a batch, from what is learned of them, with their gradient."""

    @abstractmethod
    def gate(self, *learned: Tensor) -> Tensor:
        """The values after the training, 0 where a gate is closed."""

    @abstractmethod
    def opened(self, *learned: Tensor) -> Tensor:
        """The values after the training of gates that stay though they would be closed."""

    @abstractmethod
    def rank(self, *learned: Tensor) -> Tensor:
        """Any number that is the higher, the further a gate is open."""

    @abstractmethod
    def openness(self, *learned: Tensor) -> Tensor:
        """How far each gate is open, 0 to 1, with its gradient."""

    def penalty(self, share: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        """What is minimised beside the loss, times a strength: the share that is expected to be open.

        Args:
            share: of what is counted that gates leave, from how far those of each group are open.
        """
        return share([self.openness(*learned) for learned in self.learned])

    @property
    def learned(self) -> list[tuple[Tensor, ...]]:
        """By group what is learned of its gates."""
        lists = [each for each in self._modules.values() if isinstance(each, nn.ParameterList)]
        return list(zip(*(each._parameters.values() for each in lists), strict=True))

    @property
    def counted(self) -> list[bool]:
        """Which groups have run; all as long as none has."""
        ran: list[bool] = self.ran.tolist()
        return ran if any(ran) else [True] * len(ran)

    @property
    def led(self) -> list[tuple[hard_concrete.Lagrangian, list[int], int]]:
        """By density: its Lagrangian, the places of its groups that are counted, and how many of their gates
        stay.
        """
        counted, learned = self.counted, self.learned
        found = []
        for lagrangian, every in zip(self.lagrangians, self._led, strict=True):
            assert isinstance(lagrangian, hard_concrete.Lagrangian)
            if places := [place for place in every if counted[place]]:
                total = sum(learned[place][0].numel() for place in places)
                found.append((lagrangian, places, max(1, round(lagrangian.wanted * total))))
        return found

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
        ran = [learned[0].grad is not None for learned in self.learned]
        if not all(self.ran.tolist()):
            self.ran |= self.ran.new_tensor(ran)
        if not (any(ran) or bool(self.ran.any())):
            raise InputError(
                f"{self.who}: the training runs nothing that has gates, which are those of "
                f"{', '.join(self.names)}"
            )

    def of_examples(self, place: int, examples: int) -> Tensor:
        """(examples, gates) values of a group in training, for gates that are `by_example`."""
        raise NotImplementedError

    def draw(self) -> None:
        """New samples in training, the final gates in evaluation."""
        if not self.training:
            self.values = self.final()
            return
        self.values = [self.sample(*learned) for learned in self.learned]

    def final(self) -> list[Tensor]:
        """The gates after the training: where a number is to stay, the most probably open ones, exactly."""
        found = [torch.ones_like(first) for first, *_ in self.learned]
        if not bool(self.steps):
            return found
        learned = self.learned
        for place, counts in enumerate(self.counted):
            if counts:
                found[place] = self.gate(*learned[place])
        for _, places, staying in self.led:
            flat = torch.cat([self.rank(*learned[place]).detach().flatten() for place in places])
            sizes = [found[place].numel() for place in places]
            closed = lowest(flat, len(flat) - staying).split(sizes)  # type: ignore[no-untyped-call]
            for one, shut in zip(places, closed, strict=True):
                gate = found[one]
                opened = torch.where(gate != 0, gate, self.opened(*learned[one]))
                found[one] = opened * ~shut.view(gate.shape)
        return found


def check_no_gates(who: str, model: nn.Module) -> None:
    """Refuse a network that has gates.

    Raises:
        InputError: naming who would act on them as on weights.
    """
    if any(isinstance(module, Gates) for module in unwrap(model).modules()):
        raise InputError(f"{who}: the network has gates already: remove() them first, or attach them last")


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
        self._cost = [] if coupled is None or settings.counts == "gates" else _costs(coupled, settings.counts)
        read = self._axes(coupled, names)
        self.gates = settings.gates({name: kept[name] for name in names}, like)
        by_example = coupled is not None and self.gates.by_example
        inputs = _inputs(settings.name, coupled, read) if coupled and by_example else {}
        self._orders: dict[str, list[str]] = {}
        places = _places(model, read)
        for place, name in places.items():
            owner = owner_of(model, place)
            # the first parameter's factors hold the gates, so that a state of the network has them once
            gated = _Gated(self.gates, read[name], holds=not self._orders)
            self._orders[place] = list(owner._parameters)
            parametrize.register_parametrization(owner, place.rpartition(".")[2], gated, unsafe=True)
        self._hooks: list[Any] = [StepHooks(optimizer, before=self._before_step)]
        for part in _running(model, places):
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
                    _axis(place, member, parameters[member.tensor].shape[member.dim])
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
            _give_own_class(owner)
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


def _places(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Every place of these parameters, by one of its full names: the one of a tied weight that is given."""
    wanted = {id(model.get_parameter(name)): name for name in names}
    found: dict[tuple[int, str], tuple[str, str]] = {}
    for place, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in wanted:
            owner, own = owner_of(model, place), place.rpartition(".")[2]
            found.setdefault((id(owner), own), (place, wanted[id(parameter)]))
    return dict(found.values())


def _running(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The modules that read these parameters when they run: their owners and all that these are inside of."""
    paths = [name.split(".")[:-1] for name in names]
    inside = {".".join(path[:end]) for path in paths for end in range(len(path) + 1)}
    return list(dict.fromkeys(model.get_submodule(name) for name in sorted(inside)))


def _inputs(who: str, coupled: Coupled, read: Mapping[str, Any]) -> dict[str, list[Axis]]:
    """By layer the axes of what it takes that have units.

    Raises:
        ModelError: where a parameter reads units, but not as a layer of its own, called on them alone.
    """
    found: dict[str, list[Axis]] = {}
    for place, group in enumerate(coupled.groups):
        if group.normalised:
            raise ModelError(
                f"{who}: {group.normalised[0]!r} takes statistics over the units of {group.name!r}, which "
                "noise on what is read behind it does not change: set 'noise' to 'batch'"
            )
        for each in coupled.inputs(group):
            axis = Axis(place, each.axis, each.units)
            own = found.setdefault(each.module, [])
            if each.axis == 0 or any(
                one.place == place and not (one.dim == axis.dim and one.gates.equal(axis.gates))
                for one in own
            ):
                raise _no_examples(who, each.module)
            if all(one.place != place for one in own):
                own.append(axis)
    for name, axes in read.items():
        owner = name.rpartition(".")[0]
        if not {axis.place for axis in axes} <= {axis.place for axis in found.get(owner, ())}:
            raise _no_examples(who, owner)
    return found


def _no_examples(who: str, layer: str) -> ModelError:
    return ModelError(
        f"{who}: the layer {layer!r} is not called by itself on a batch of examples whose units lie along "
        "one other axis, so examples cannot have noise of their own: set 'noise' to 'batch'"
    )


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


def _positions(coupled: Coupled, group: Group, macs: Mapping[str, float]) -> float:
    """How often a unit of a group is computed for an example: the MACs of what makes it over its weights."""
    parameters = dict(coupled.model.named_parameters())
    for member in group.producers:
        owner = member.tensor.rpartition(".")[0]
        if macs.get(owner) and member.tensor in parameters and parameters[member.tensor].dim() > 1:
            return macs[owner] / parameters[member.tensor].numel()
    return 1.0


def _costs(coupled: Coupled, counts: Counted) -> list[tuple[float, list[Axis], list[int]]]:
    """Of each parameter what it costs whole, the axes along which it gets smaller, and their lengths."""
    model = coupled.model
    layers: dict[str, float] = {}
    if counts != "parameters":
        layers = {each.name: float(each.macs) for each in count(model, coupled.example_inputs).layers}
    if counts == "positions":
        return [
            (_positions(coupled, group, layers) * group.units, [every], [group.units])
            for place, group in enumerate(coupled.groups)
            for every in [Axis(place, 0, torch.arange(group.units))]
        ]
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

    def lagrangian(self, density: float) -> hard_concrete.Lagrangian:
        """What leads to a density."""
        rates = (self.multiplier_lr, self.multiplier_lr)
        return hard_concrete.Lagrangian(
            density, ramp=self.ramp or RAMP, rates=rates, curvature=self.curvature
        )

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
