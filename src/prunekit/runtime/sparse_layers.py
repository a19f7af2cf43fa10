"""Linear layers and convolutions whose weights are stored, and multiplied with, without their zeros."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError, said
from prunekit.models.column_conv import Im2col

KERNELS = (torch.float32, torch.float64)
"""The dtypes that PyTorch multiplies sparse rows in on a CPU."""

with warnings.catch_warnings():  # PyTorch says once in a process that compressed rows are new
    warnings.simplefilter("ignore")
    torch.zeros(1, 1).to_sparse_csr()


class SparseLinear(nn.Module):
    """A linear layer that multiplies with compressed sparse rows, for inference.

    A single input vector is multiplied by `addmv`, several as the columns of a matrix by `addmm`: the product
    the other way round, of the inputs with the transposed weights, is slower than the dense one
    (`benchmarks/sparse_runtime.py`). Indices are 32 bits wide, which MKL reads without a copy.

    The weights and biases are buffers, so that no optimizer gets them: gradients pass to the inputs only. In
    training mode it computes the same. Under autocast it computes in its own precision, as there are no other
    kernels, and gives the type that autocast would.

    Args:
        weight: (out_features, in_features), of float32 or float64; its zeros are left out.
        bias: (out_features,), or None.

    Attributes:
        crow_indices: (out_features + 1,) where each row begins among the values, and the last ends.
        col_indices: (values,) the input that each is multiplied with.
        values: the weights that are not zero, row by row.
        bias: as given.

    Raises:
        InputError: for weights of another dtype, or weights and biases that do not fit together.
    """

    crow_indices: Tensor
    col_indices: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        _check_dtype(weight.dtype)
        if weight.dim() != 2:
            raise InputError(f"the weight of a linear layer has two dimensions, not {list(weight.shape)}")
        if bias is not None and (bias.dtype, bias.shape) != (weight.dtype, weight.shape[:1]):
            raise InputError(
                f"a bias for weights {list(weight.shape)} of {weight.dtype} is {[len(weight)]} of that type, "
                f"not {list(bias.shape)} of {bias.dtype}"
            )
        self.out_features, self.in_features = weight.shape
        rows = weight.detach().to_sparse_csr()
        self.register_buffer("crow_indices", rows.crow_indices().int())
        self.register_buffer("col_indices", rows.col_indices().int())
        self.register_buffer("values", rows.values())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:  # named as that of a dense layer
        """(..., out_features) for (..., in_features), contiguous as that of a dense layer."""
        *leading, width = input.shape
        if input.numel() == width > 0:
            return self.times(input.reshape(width)).view(*leading, self.out_features)
        vectors = input.reshape(math.prod(leading), width)
        return self.times(vectors.t()).t().contiguous().view(*leading, self.out_features)

    def times(self, x: Tensor) -> Tensor:
        """The weights times (in_features,) or (in_features, columns), with the bias added to each column."""
        kind = x.device.type
        if self.values.dtype is torch.float32 and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.times(x.to(self.values.dtype)).to(torch.get_autocast_dtype(kind))
        rows, bias = self._rows(), self._buffers["bias"]
        if x.dim() == 1:
            return rows.mv(x) if bias is None else torch.addmv(bias, rows, x)
        if x.shape[1] == 1:
            return self.times(x[:, 0])[:, None]
        return rows.mm(x) if bias is None else torch.addmm(bias[:, None], rows, x)

    @property
    def weight(self) -> Tensor:
        """The weights with their zeros, (out_features, in_features), made anew each time."""
        return self._rows().to_dense()

    @property
    def density(self) -> float:
        """The share of the weights that is not zero."""
        return len(self.values) / max(1, self.out_features * self.in_features)

    def extra_repr(self) -> str:
        """Its sizes."""
        bias = self.bias is not None
        return f"in={self.in_features}, out={self.out_features}, bias={bias}, density={self.density:.3f}"

    def _rows(self) -> Tensor:
        # made each time, in 2 µs: it holds the very buffers, which loading and moving may replace; they are
        # looked up in a tenth of the time that attributes take
        held: dict[str, Any] = self._buffers
        return torch.sparse_csr_tensor(
            held["crow_indices"],
            held["col_indices"],
            held["values"],
            (self.out_features, self.in_features),
            check_invariants=False,
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # the kernels read wherever indices lead, so that all of them are checked before any is taken over
        own = {name: self.get_buffer(name) for name in ("crow_indices", "col_indices", "values")}
        given = {name: state_dict.get(prefix + name, value) for name, value in own.items()}
        try:
            if any(given[name].shape != value.shape for name, value in own.items()):
                raise ValueError("another number of weights is not zero")
            rows, columns, values = (given[name].to(value.dtype) for name, value in own.items())
            size = (self.out_features, self.in_features)
            torch.sparse_csr_tensor(rows, columns, values, size, check_invariants=True)
        except (AttributeError, RuntimeError, ValueError) as error:
            error_msgs.append(f"{prefix or 'SparseLinear'}: these are no rows of this layer: {said(error)}")
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        _check_dtype(fn(self.values[:0]).dtype)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


class SparseConv2d(Im2col):
    """A two-dimensional convolution whose filters are compressed sparse rows (im2col), for inference.

    Args:
        conv: whose settings and values are taken; of one group, of float32 or float64.

    Attributes:
        filters: the linear layer from what a filter reads to the channels.

    Raises:
        InputError: for a convolution in groups, or of another dtype.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        if conv.groups > 1:
            raise InputError(f"a sparse convolution has one group, got groups={conv.groups}")
        super().__init__(conv)
        self.filters = SparseLinear(conv.weight.flatten(1), conv.bias)

    def forward(self, input: Tensor) -> Tensor:
        """(N, out_channels, height, width) for (N, in_channels, height, width), or both without N."""
        if input.dim() == 3:
            return self.forward(input.unsqueeze(0)).squeeze(0)
        patches = self.patches(input)
        columns = patches.permute(1, 4, 5, 0, 2, 3).flatten(3).flatten(0, 2)
        found = self.filters.times(columns)
        count, height, width = patches.shape[0], *patches.shape[2:4]
        return found.view(self.out_channels, count, height, width).transpose(0, 1).contiguous()

    @property
    def weight(self) -> Tensor:
        """The weights with their zeros, (out_channels, in_channels, rows, columns), made anew each time."""
        return self.filters.weight.view(self.out_channels, self.in_channels, *self.kernel_size)

    @property
    def bias(self) -> Tensor | None:
        """(out_channels,), or None."""
        return self.filters.bias

    def extra_repr(self) -> str:
        """Its sizes."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        )


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in KERNELS:
        kinds = " or ".join(str(each).removeprefix("torch.") for each in KERNELS)
        raise InputError(f"sparse layers run in {kinds}, not in {str(dtype).removeprefix('torch.')}")
