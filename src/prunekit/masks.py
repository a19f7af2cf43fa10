"""Masks: which weights are kept, by the names of parameters, and how the lowest are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import InputError, starved
from prunekit.targets import is_shared_out, unwrap


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


_TIED_TOGETHER = 2**17
"""Values of rows with ties that are sorted at a time: they take four times their memory."""


def stable_order(values: Tensor) -> Tensor:
    """(rows, n) int64: the places of the values (rows, n) of each row from the lowest, ties by position."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.argsort(dim=1, stable=True)
    # NumPy's sort that is not stable is three times as fast, and of different values it gives the same
    order = torch.from_numpy(np.argsort(values.detach().numpy(), axis=1))
    ordered = values.gather(1, order)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(1).nonzero().flatten()
    del ordered
    for rows in torch.split(tied, max(1, _TIED_TOGETHER // max(1, values.shape[1]))):
        order[rows] = values[rows].argsort(dim=1, stable=True)
    return order


def lowest_per_row(values: Tensor, count: int) -> Tensor:
    """For a matrix, marks exactly `count` of the lowest values of every row, ties by position."""
    order = stable_order(values)[:, :count]
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
        self._counts: dict[str, tuple[int, int]] = {}  # by name (version of the tensor, weights kept)

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
        return sum(map(self.count, self))

    def count(self, name: str) -> int:
        """The number of weights of a parameter that are kept; counted once, unless the mask is written to."""
        mask = self._masks[name]
        version = -1 if mask.is_inference() else mask._version
        known, count = self._counts.get(name, (-1, 0))
        if known == -1 or known != version:
            # of DTensors each process counts its part, and all of them have to ask
            count = _count_shards(name, mask) if is_shared_out(mask) else int(mask.count_nonzero())
            self._counts[name] = version, count
        return count

    @property
    def sparsity(self) -> float:
        """The fraction removed of the original count, in [0, 1]."""
        return 1 - self.kept / self.total if self.total else 0.0

    @property
    def compression_ratio(self) -> float:
        """Original over remaining count; infinite when nothing is left."""
        kept = self.kept
        return self.total / kept if kept else float("inf")

    def starved(self, counts: str) -> tuple[str, ...]:
        """What is to be said of each layer of which almost nothing is left, while the network keeps more.

        Args:
            counts: what is flagged, such as "weights".
        """
        share = 1 - self.sparsity
        return tuple(
            f"{self.count(name):,} of {mask.numel():,} {counts} of {name} are left, and {share:.0%} of the "
            "whole network: take the allocation 'per_layer' or a higher floor, or name the layer in `ignore`"
            for name, mask in self.items()
            if starved(mask.shape, self.count(name), share)
        )

    def replace(self, changed: Mapping[str, Tensor]) -> Masks:
        """New masks in which some layers are exchanged."""
        masks = Masks({**self._masks, **changed})
        masks._counts = {name: each for name, each in self._counts.items() if name not in changed}
        return masks

    @torch.no_grad()
    def apply(self, model: nn.Module, *, unless_in: Masks | None = None) -> None:
        """Set every removed weight of the model to exactly zero, in place.

        Args:
            model: the network, also in wrappers, or a copy of it, such as an average of its weights.
            unless_in: masks that have acted already: what has the same tensor in them is left as it is.

        Raises:
            InputError: if a parameter is missing or has another shape than its mask; nothing is changed then.
        """
        acted = {id(mask) for mask in unless_in.values()} if unless_in is not None else set()
        for parameter, mask in self.parameters(model):
            if id(mask) not in acted:
                parameter.masked_fill_(~mask.to(parameter.device), 0)

    def parameters(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """The model's parameters beside their masks.

        Raises:
            InputError: as `apply`.
        """
        network = self.network(model)
        return [(self._parameter(network, name), mask) for name, mask in self.items()]

    def network(self, model: nn.Module) -> nn.Module:
        """The module in a model's wrappers (data parallel, compiled, averaged) whose names the masks have.

        It is what is inside all that are known, if none has them.
        """
        if not isinstance(model, nn.Module):
            raise InputError(
                f"masks act on a torch.nn.Module, not on {type(model).__name__}: "
                "copy its values into the network first"
            )
        found: nn.Module | None = model
        while found is not None:
            if all(_has_parameter(found, name) for name in self):
                return found
            found = unwrap(found) if unwrap(found) is not found else _only_child(found)
        return unwrap(model)

    def _parameter(self, network: nn.Module, name: str) -> nn.Parameter:
        try:
            parameter = network.get_parameter(name)
        except AttributeError:
            raise InputError(
                f"the model ({type(network).__name__}) has no parameter {name!r} that the masks name: "
                "give the network that was pruned, or a copy or an average of it"
            ) from None
        if parameter.shape != self[name].shape:
            raise InputError(
                f"{name} has shape {tuple(parameter.shape)}, its mask {tuple(self[name].shape)}: "
                "the masks belong to another model, or the network was shrunk"
            )
        return parameter

    def state_dict(self) -> dict[str, Any]:
        """The masks as plain tensors, for a checkpoint."""
        return dict(self._masks)


def _count_shards(name: str, mask: Tensor) -> int:
    from prunekit.distributed.sharded_ranking import count_true

    return count_true({name: mask})[name]


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter of this name, also of a network in wrappers, under which it has another one."""
    return (model if _has_parameter(model, name) else unwrap(model)).get_parameter(name)


def _has_parameter(module: nn.Module, name: str) -> bool:
    try:
        module.get_parameter(name)
    except AttributeError:
        return False
    return True


def _only_child(module: nn.Module) -> nn.Module | None:
    """The module inside that has all parameters of this one, as in a wrapper; None if there is none."""
    own = [*module.parameters(recurse=False)]
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    return children[0] if len(children) == 1 and not own else None
