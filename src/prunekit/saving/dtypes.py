"""The dtypes of the tensors that a saved network may hold, and that its graphs may make."""

from __future__ import annotations

import torch

DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip
"""PyTorch computes with all of them everywhere, which it does not with others."""
