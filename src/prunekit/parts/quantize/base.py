"""What every quantisation is: which weights take few values, and what becomes of the other parameters."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from prunekit.errors import InputError, shown
from prunekit.parts.base import Part, Requirement
from prunekit.parts.context import StepContext
from prunekit.parts.regularize import StepHooks, check_gradients_are_there
from prunekit.statistics import Statistic
from prunekit.targets import Target, find_targets
from prunekit.training import Training


def within(least: float, most: float, *, of: type, whole: bool = False) -> BeforeValidator:
    """What refuses a number, or one of several, that is not in a range.

    Unions of types have no such words of their own.

    Args:
        least, most: the range.
        of: what may hold several: `list`, or `Mapping` for numbers by layers.
        whole: whether they are whole numbers.
    """
    holders = (list, tuple) if of is list else (of,)

    def check(given: Any) -> Any:
        several = isinstance(given, holders)
        if several and not given:
            raise ValueError("at least one number is needed")
        for number in (given.values() if isinstance(given, Mapping) else given) if several else [given]:
            kind = numbers.Integral if whole else numbers.Real
            if not isinstance(number, kind) or isinstance(number, bool) or not least <= number <= most:  # type: ignore[operator]
                word = "whole number" if whole else "number"
                raise ValueError(f"a {word} from {least:g} to {most:g} is needed, not {shown(number)}")
        return given

    return BeforeValidator(check)


Step = Annotated[float, Field(ge=0.01, le=100)]
"""Between two levels of a layer, in units of the root mean square of its nonzero weights."""


_OF_MATRICES: tuple[type[Optimizer], ...] = tuple(
    getattr(torch.optim, name) for name in ("Muon",) if hasattr(torch.optim, name)
)


def training_or_none(value: Any) -> Training | None:
    """A training, from its settings or None."""
    return None if value is None else Training.parse(value)


class HeldTensor(ABC):
    """One weight tensor that is held to few values, with a parameter that is trained beside it.

    Args:
        weight: the tensor.
        beside: in the weight's group of the optimizer, where it needs a gradient.
    """

    def __init__(self, weight: nn.Parameter, beside: nn.Parameter) -> None:
        self.weight, self.beside = weight, beside
        self._group: dict[str, Any] | None = None

    def attach(self, optimizer: Optimizer) -> list[Any]:
        """Hooks, and the parameter beside the weight; nothing where the optimizer does not train that.

        Raises:
            InputError: if the optimizer trains nothing but matrices.
        """
        for group in optimizer.param_groups:
            if any(each is self.weight for each in group["params"]):
                if self.beside.requires_grad and self.beside.numel():
                    _check_trains_vectors(optimizer)
                    group["params"].append(self.beside)
                self._group = group
                return [self, StepHooks(optimizer, before=self._before, after=self._after)]
        return []

    def remove(self) -> None:
        """Take the parameter out of the optimizer."""
        assert self._group is not None
        self._group["params"] = [each for each in self._group["params"] if each is not self.beside]

    @abstractmethod
    def settle(self, half: bool) -> None:
        """Give the weights their values for good; an average over the training may have set them.

        Args:
            half: whether the values are rounded to half precision.
        """

    @abstractmethod
    def _before(self, *_: Any) -> None:
        """Called before each step of the optimizer, when the gradients are those of the loss."""

    @abstractmethod
    def _after(self, *_: Any) -> None:
        """Called after each step of the optimizer."""


class FewValues:
    """Weights of a network that are held to few values, in a training and behind it.

    Args:
        who: what an optimizer is refused for.
        tensors: the weights.
        half: whether the values are rounded to half precision in the end.
    """

    def __init__(self, who: str, tensors: Sequence[HeldTensor], *, half: bool) -> None:
        self._who, self._tensors, self._half = who, tensors, half

    def attach(self, model: nn.Module, optimizer: Optimizer) -> list[Any]:
        """Act in a training, behind all that acts on gradients; the handles that are returned end that.

        Raises:
            InputError: if the optimizer's gradients are not there before its step, or it trains nothing but
                matrices.
        """
        check_gradients_are_there(self._who, optimizer)
        return [handle for tensor in self._tensors for handle in tensor.attach(optimizer)]

    def settle(self) -> None:
        """Give the weights their values for good, when no training is to follow."""
        for tensor in self._tensors:
            tensor.settle(self._half)


class Quantizer(Part):
    """Few values for the weights of the network that the last step leaves, under its masks.

    It acts once, when the last step's retraining is over.

    Attributes:
        changes: whether it does anything.
        measures: the statistics that it is computed from, of the network behind the last step.
        needs_data: whether the values cannot be chosen without data.
        plans: how the values are trained, in order; none for not at all.
    """

    home: ClassVar[str] = "prunekit.parts.quantize"
    changes: ClassVar[bool] = True
    measures: ClassVar[tuple[Statistic, ...]] = ()
    needs_data: ClassVar[bool] = False
    plans: ClassVar[tuple[Training, ...]] = ()

    def check(self, model: nn.Module) -> None:
        """Refuse a network that it cannot act on, before anything is changed.

        Raises:
            InputError, ModelError: naming the setting or the layer.
        """
        self.targets(model)

    @abstractmethod
    def targets(self, model: nn.Module) -> tuple[Target, ...]:
        """The weights that take few values.

        Raises:
            InputError: if a pattern matches nothing.
            ModelError: if there is no such weight, or one that is no plain parameter.
        """

    def filled(self, model: nn.Module) -> list[str]:
        """The full names of those that hold any number: a layer without inputs or outputs has none."""
        names = [target.name for target in self.targets(model)]
        return [name for name in names if model.get_parameter(name).numel()]

    @abstractmethod
    def stages(self, context: StepContext) -> Iterator[tuple[FewValues, Training | None]]:
        """Choose the values, and yield them with the training that goes on from there.

        Each stage is trained, if it has a training, and settled before the next is asked for.

        Args:
            context: behind the last step, with the network, its masks and what it `measures`.
        """

    @abstractmethod
    def round_rest(self, model: nn.Module) -> None:
        """Round what is small beside the weights, when these have their values."""


class NoQuantization(Quantizer):
    """The weights stay as they are."""

    name = "none"
    changes = False

    def targets(self, model: nn.Module) -> tuple[Target, ...]:
        """None."""
        return ()

    def stages(self, context: StepContext) -> Iterator[tuple[FewValues, Training | None]]:
        """None."""
        return iter(())

    def round_rest(self, model: nn.Module) -> None:
        """Nothing is rounded."""


class LayerQuantizer(Quantizer):
    """Few values for the weights of all linear and convolution layers, pruned or not.

    Attributes:
        training: how the values are trained, with the recipe's loss; None for not at all.
        ignore: patterns of layers whose weights stay as they are.
        half_biases: whether numbers become those of half precision, which a file holds in two bytes without
            loss, by default they do: not biases alone, but the values that the weights of layers take, all
            parameters of no or one dimension (biases, scales and shifts of norms, slopes), and means and
            variances that batch norms keep. Tensors that half precision is too coarse for stay as they are,
            and so do matrices that are no weight of a linear or convolution layer, such as embeddings, and
            layers that `ignore` names.
        bias_bits: how few values the biases of linear and convolution layers take instead: the whole
            multiples of a step of each layer, 2^bits - 1 of them; by default as `half_biases` says.
        zero_dead: whether weights of units that died become zero, and what such a unit puts out goes into
            biases before these are rounded, so that more is removed than the schedule says; where the network
            cannot be traced they stay.
    """

    requires: ClassVar[tuple[Requirement, ...]] = (
        Requirement(
            "stop",
            lambda stop: stop.name == "none",
            "{part} acts behind the last step, before which the stop {value} may end the pruning: "
            "leave it out",
        ),
    )

    training: Annotated[Training | None, BeforeValidator(training_or_none)] = None
    ignore: tuple[str, ...] = ()
    half_biases: bool = True
    bias_bits: int | None = Field(default=None, ge=2, le=12)
    zero_dead: bool = False

    @property
    def plans(self) -> tuple[Training, ...]:  # type: ignore[override]
        """The training."""
        return () if self.training is None else (self.training,)

    def targets(self, model: nn.Module) -> tuple[Target, ...]:
        """The weights of linear and convolution layers, but for those that are ignored."""
        return find_targets(model, None, self.ignore)

    def round_rest(self, model: nn.Module) -> None:
        """Half precision, and few values for biases, if that is asked for; and no zero has a sign."""
        on_grid = [] if self.bias_bits is None else _biases(model)
        for bias in on_grid:
            bias.data.copy_(rounded_to_grid(bias.data, self.bias_bits or 0))
        if self.half_biases:
            done = {id(bias) for bias in on_grid}
            small: list[Tensor] = [
                each for each in model.parameters() if each.dim() < 2 and id(each) not in done
            ]
            norms = [each for each in model.modules() if isinstance(each, _BatchNorm)]
            small += [norm.running_mean for norm in norms if norm.running_mean is not None]
            for values in small:
                if values.is_floating_point():
                    values.data.copy_(rounded_to_half(values.data))
            for norm in norms:
                if norm.running_var is not None:
                    norm.running_var.copy_(_rounded_variance(norm.running_var, norm.eps))
        for each in model.parameters():
            each.data.add_(0)  # -0 + 0 is 0; a file that is right to the bit tells the two apart


def _check_trains_vectors(optimizer: Optimizer) -> None:
    if isinstance(optimizer, _OF_MATRICES):
        raise InputError(
            f"quantize: the values that weights share are a vector, and {type(optimizer).__name__} trains "
            "nothing but matrices: use another optimizer"
        )


def _biases(model: nn.Module) -> list[Tensor]:
    """Those of linear and convolution layers."""
    layers = (each for each in model.modules() if isinstance(each, nn.Linear | _ConvNd))
    return [layer.bias for layer in layers if layer.bias is not None]


@dataclass(frozen=True)
class Counted:
    """How few the values of some weights are.

    Attributes:
        levels: the number of values beside zero, by the full names of the weights.
        bits: the entropy of the values, zeros included, in bits per weight.
    """

    levels: Mapping[str, int]
    bits: float

    @classmethod
    def of(cls, model: nn.Module, targets: Sequence[Target]) -> Counted:
        """Count the values of each weight tensor by itself."""
        levels, bits, total = {}, 0.0, 0
        for target in targets:
            weight = model.get_parameter(target.name).detach()
            values, counts = torch.unique(weight, return_counts=True)
            levels[target.name] = int((values != 0).sum())
            counts = counts.double()
            bits += float((counts * (weight.numel() / counts).log2()).sum())
            total += weight.numel()
        return cls(levels, bits / total if total else 0.0)


def rounded_to_half(values: Tensor) -> Tensor:
    """The nearest numbers of half precision, in the type of the values.

    They stay as they are where it is too coarse for the greatest magnitude of them, which is then beyond its
    largest number, or below its least with all digits.
    """
    half = torch.finfo(torch.float16)
    if not values.numel() or not bool(half.tiny <= values.abs().max() <= half.max):
        return values
    return values.half().to(values.dtype)


def _rounded_variance(values: Tensor, added: float) -> Tensor:
    """The same of what a batch norm divides by; they stay, too, where one of them would change much."""
    rounded = rounded_to_half(values)
    few_digits = torch.finfo(torch.float16).eps
    return values if bool(((rounded - values).abs() > few_digits * (values + added)).any()) else rounded


def rounded_to_grid(values: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits - 1 whole multiples of a step, which is rounded to half precision.

    The outermost are the greatest magnitude there is; values that are all 0 stay so.
    """
    most = 2 ** (bits - 1) - 1
    step = rounded_to_half(values.abs().max() / most) if values.numel() else values.new_zeros(())
    if not bool(step > 0):
        return torch.zeros_like(values)
    return (values / step).round().clamp(-most, most) * step
