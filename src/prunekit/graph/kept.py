"""The entries of an axis that stay: taken out of a tensor, and put back at their places."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunekit.graph.traced import Flags
from prunekit.graph.values import position


def taken(tensor: Tensor, axis: int, flags: Flags) -> Tensor:
    """The entries of one axis that stay."""
    return tensor.index_select(axis, torch.from_numpy(np.flatnonzero(flags)).to(tensor.device))


def spread(tensor: Tensor, axis: int, flags: Flags) -> Tensor:
    """Back at their places, with zeros between."""
    axis = position(axis, tensor.dim())
    shape = (*tensor.shape[:axis], flags.size, *tensor.shape[axis + 1 :])
    index = torch.from_numpy(np.flatnonzero(flags)).to(tensor.device)
    return tensor.new_zeros(shape).index_copy(axis, index, tensor)
