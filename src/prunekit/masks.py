"""Masks: which weights are kept by parameter name, how the lowest are chosen, and zeros that stay zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.errors import InputError
from prunekit.targets import unwrap


def lowest(values: Tensor, count: int) -> Tensor:
    """A boolean tensor of the shape of `values` that marks exactly `count` of the lowest of them.

    Among equal values the one with the lower position (in row-major order) goes first, so the choice is the
    same on every machine. The threshold is found in linear time and without the size limit of
    `torch.quantile`.

    Args:
        values: any shape; minus infinity is allowed, NaN is not.
        count: 0 <= count <= values.numel().
    """
    flat = values.flatten()
    if not 0 <= count <= flat.numel():
        raise ValueError(f"cannot choose {count} of {flat.numel()} values")
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = _kth_lowest(flat, count)
    chosen = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.count_nonzero())]] = True
    return chosen.view(values.shape)


def _kth_lowest(flat: Tensor, count: int) -> Tensor:
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        # a partition without the positions, which `kthvalue` carries along: three times as fast
        return flat.new_tensor(np.partition(flat.detach().numpy(), count - 1)[count - 1])
    return flat.kthvalue(count).values


def lowest_per_row(values: Tensor, count: int) -> Tensor:
    """For a matrix, marks exactly `count` of the lowest values of every row, ties by position."""
    order = values.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)


class Masks(Mapping[str, Tensor]):
    """One boolean tensor per pruned parameter, keyed by the parameter's full name; True = kept.

    The mapping is not changed after it is made: a step of a schedule makes new masks.

    Raises:
        InputError: if a mask is not a boolean tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise InputError(f"the mask of {name} must be a boolean tensor (True = kept)")
        self._masks = dict(masks)

    @classmethod
    def ones(cls, model: nn.Module, names: list[str] | tuple[str, ...]) -> Masks:
        """Masks that keep everything, on the devices of the parameters."""
        return cls({name: torch.ones_like(_parameter(model, name), dtype=torch.bool) for name in names})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.kept:,} of {self.total:,} kept)"

    @property
    def total(self) -> int:
        """The number of weights that can be pruned."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def kept(self) -> int:
        """The number of weights that are kept."""
        return sum(int(mask.sum()) for mask in self._masks.values())

    @property
    def sparsity(self) -> float:
        """The fraction removed of the original count, in [0, 1]."""
        return 1 - self.kept / self.total if self.total else 0.0

    @property
    def compression_ratio(self) -> float:
        """Original over remaining count; infinite when nothing is left."""
        kept = self.kept
        return self.total / kept if kept else float("inf")

    def replace(self, changed: Mapping[str, Tensor]) -> Masks:
        """New masks in which some layers are exchanged."""
        return Masks({**self._masks, **changed})

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set every removed weight of the model to exactly zero, in place.

        Raises:
            InputError: if a parameter is missing or has another shape than its mask; nothing is changed then.
        """
        pairs = [(self._parameter(model, name), mask) for name, mask in self.items()]
        for parameter, mask in pairs:
            parameter.masked_fill_(~mask.to(parameter.device), 0)

    def parameters(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """The model's parameters beside their masks."""
        return [(self._parameter(model, name), mask) for name, mask in self.items()]

    def _parameter(self, model: nn.Module, name: str) -> nn.Parameter:
        try:
            parameter = _parameter(model, name)
        except AttributeError:
            raise InputError(f"the model has no parameter {name!r} that the masks name") from None
        if parameter.shape != self[name].shape:
            raise InputError(
                f"{name} has shape {tuple(parameter.shape)}, its mask {tuple(self[name].shape)}: "
                "the masks belong to another model"
            )
        return parameter

    def state_dict(self) -> dict[str, Any]:
        """The masks as plain tensors, for a checkpoint."""
        return dict(self._masks)


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter of this name, also of a network in wrappers, under which it has another one."""
    try:
        return model.get_parameter(name)
    except AttributeError:
        return unwrap(model).get_parameter(name)


class MaskedOptimizer:
    """Multiplies the weights by their masks after every step of an optimizer.

    Momentum and weight decay can move a removed weight whatever its gradient is, so the mask acts after the
    step, and the moments of removed weights are cleared when the masks change. The model itself is not
    touched: its state_dict keys, `copy.deepcopy`, `torch.compile` and DDP work as before.

    Args:
        model: the network.
        optimizer: of its training.
        masks: that act from now on.
        before: called before each step.
        after: called after each step, once the masks have acted.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        masks: Masks,
        *,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._model, self._optimizer, self._after = model, optimizer, after
        self.update(masks)
        self._handles: list[RemovableHandle] = [optimizer.register_step_post_hook(self._after_step)]
        if before is not None:
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: before()))

    def update(self, masks: Masks) -> None:
        """Take new masks: zero what they remove, and clear its moments."""
        self.resume(masks)
        self._clear_moments()

    def resume(self, masks: Masks) -> None:
        """Take the masks of a checkpoint: the moments that belong to them are the optimizer's to load."""
        pairs = masks.parameters(self._model)
        self._weights: list[Tensor] = [parameter for parameter, _ in pairs]
        self._booleans = [mask for _, mask in pairs]
        self._factors = self._as_factors()
        masks.apply(self._model)

    def forget(self) -> None:
        """Moments of other values say nothing about those that the network has now."""
        self._optimizer.state.clear()

    def remove(self) -> None:
        """Stop acting on the optimizer."""
        for handle in self._handles:
            handle.remove()

    @staticmethod
    def on(optimizer: Optimizer) -> list[MaskedOptimizer]:
        """Those that act on an optimizer now; its hooks are where they are written down."""
        hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
        owners = (getattr(hook, "__self__", None) for hook in hooks)
        return [owner for owner in owners if isinstance(owner, MaskedOptimizer)]

    def shares(self, model: nn.Module) -> str | None:
        """The first parameter of a network that is of the one whose weights are masked here; None if none."""
        own = {id(parameter) for parameter in self._model.parameters()}
        named = unwrap(model).named_parameters()
        return next((name for name, parameter in named if id(parameter) in own), None)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # once per step of the training, so it does no more than it must: one fused multiplication
        weights = [weight.detach() for weight in self._weights]
        try:
            torch._foreach_mul_(weights, self._factors)
        except RuntimeError:  # the model was moved to another device since
            self._factors = self._as_factors()
            torch._foreach_mul_(weights, self._factors)
        if self._after is not None:
            self._after()

    def _as_factors(self) -> list[Tensor]:
        """The masks as 0 and 1 of the weights' own dtype and device, which multiply fastest."""
        return [
            mask.to(device=weight.device, dtype=weight.dtype)
            for mask, weight in zip(self._booleans, self._weights, strict=True)
        ]

    @torch.no_grad()
    def _clear_moments(self) -> None:
        for weight, mask in zip(self._weights, self._booleans, strict=True):
            for value in self._optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.masked_fill_(~mask.to(value.device), 0)


def check_attachable(model: nn.Module, optimizer: Any, masks: Masks) -> None:
    """Refuse an optimizer that does not train the pruned weights, or has masks of them already.

    Raises:
        InputError: naming the first weight that is not its own, or has masks.
    """
    if not isinstance(optimizer, Optimizer):
        raise InputError(f"the optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    for other in MaskedOptimizer.on(optimizer):
        shared = other.shares(model)
        if shared is not None:
            raise InputError(
                f"the optimizer ({type(optimizer).__name__}) carries the masks of another session already, "
                f"of the network that {shared} belongs to: detach() that session first"
            )
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    pairs = zip(masks, (parameter for parameter, _ in masks.parameters(model)), strict=True)
    strange = [(name, parameter) for name, parameter in pairs if id(parameter) not in own]
    trainable = [name for name, parameter in strange if parameter.requires_grad]
    if trainable:
        raise InputError(
            f"the optimizer ({type(optimizer).__name__}) does not train {trainable[0]}, which the recipe "
            "prunes: give it the parameters of this network, or freeze the weight or leave it out by 'ignore'"
        )
    if strange and not any(id(parameter) in own for parameter in model.parameters()):
        raise InputError(
            f"the optimizer ({type(optimizer).__name__}) trains no parameter of this network, such as "
            f"{strange[0][0]}"
        )
