"""Masked tensors without their zeros: one bit per weight for the mask, and the values that are kept."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunekit.errors import DataError


def pack(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(bits, values): the mask as uint8 of ceil(n / 8) bytes, and the kept values in row-major order."""
    bits = np.packbits(mask.cpu().numpy().reshape(-1))
    return torch.from_numpy(bits), weight.detach().cpu()[mask.cpu()].clone()


def unpack_mask(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean mask of that shape.

    Raises:
        DataError: if the bits are of another length.
    """
    size = int(torch.Size(shape).numel())
    if bits.dtype != torch.uint8 or bits.numel() != -(-size // 8):
        raise DataError(f"a mask of shape {tuple(shape)} needs {-(-size // 8)} bytes, found {bits.numel()}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool)).view(shape)


def unpack(bits: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The dense tensor: values where the mask is True, zero elsewhere. The inverse of `pack`."""
    mask = unpack_mask(bits, shape)
    if int(mask.sum()) != values.numel():
        raise DataError(f"the mask keeps {int(mask.sum())} weights, but {values.numel()} values are stored")
    weight = torch.zeros(shape, dtype=values.dtype)
    weight[mask] = values
    return weight
