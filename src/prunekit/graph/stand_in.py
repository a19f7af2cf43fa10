"""Tensors without data that pass for those of the network while it is recorded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StandIn(Tensor):
    """A tensor of which there are shape, type and device, and no data."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, meta: Tensor, device: torch.device) -> StandIn:
        """One for a tensor on the meta device."""
        # a view of a parameter, which is no inference tensor, cannot be one
        with torch.inference_mode(False):
            made: StandIn = Tensor._make_wrapper_subclass(
                cls,
                meta.size(),
                strides=meta.stride(),
                storage_offset=meta.storage_offset(),
                dtype=meta.dtype,
                device=device,
            )
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """Shape and type: there are no entries to show."""
        return f"StandIn({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Nothing can be computed outside of a recording."""
        raise RuntimeError(f"{func} of a tensor without data")


def meta_of(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, layout and type on the meta device."""
    with torch.inference_mode(False):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
