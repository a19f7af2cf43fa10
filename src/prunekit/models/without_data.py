"""Networks that are built for their shapes alone: their tensors have no data, and are not filled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_FILLING = frozenset({"normal_", "uniform_", "trunc_normal_", "fill_", "zero_", "copy_"})


@contextmanager
def without_data() -> Iterator[None]:
    """Modules that are made in this block have all tensors on the meta device, and take no memory.

    PyTorch takes longest over filling them, which changes nothing: it works out random numbers of a tensor
    without data by operators that load its compiler. So they are not filled.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Constructors whose tensors without data are not filled."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in _FILLING and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))
