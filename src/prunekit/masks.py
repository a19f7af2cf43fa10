"""Masks: which weights are kept, a validated mapping from parameter names to boolean tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.targets import unwrap


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
        model = unwrap(model)
        return cls({name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names})

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
            parameter = unwrap(model).get_parameter(name)
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
