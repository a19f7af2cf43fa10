"""A convolution fitted to outputs by least squares, in closed form from the Gram matrix of its patches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.rows import output_rows, patches
from prunekit.obs.least_squares import damped, factor

DAMP = 1e-4
"""Relative to the mean variance of the inputs: above the rounding of Gram matrices in single precision."""
ROUNDS = 10
_PATCH_BYTES = 2**26
"""So much memory patches may take at once."""


@torch.no_grad()
def fit_convolution(
    layer: nn.Conv2d,
    x: Tensor,
    y: Tensor,
    *,
    rows: Tensor | None = None,
    damp: float = DAMP,
    rectified: bool = False,
    rounds: int = ROUNDS,
) -> None:
    """Give a convolution the weights and biases that minimise ||y - layer(x)||^2, in closed form.

    Where a ReLU follows the layer and `y` are its outputs, only positive outputs have to be met; where y = 0
    the layer may give anything below. That is a convex problem, of which each round is one of least squares:
    a target y = 0 is replaced with the layer's present output where that is below zero. No round makes the
    sum over y > 0 of (y - layer(x))^2, and over y = 0 of max(0, layer(x))^2, larger.

    Args:
        layer: without groups, with a bias; changed in place.
        x: (n, channels, height, width) its inputs.
        y: (n, outputs, ...) what it is to give, outputs as many as the rows that are fitted.
        rows: numbers of the output channels that are fitted; the others stay as they are. All by default.
        damp: relative to the mean of the diagonal of the Gram matrix.
        rectified: whether a ReLU follows.
        rounds: after the first, where a ReLU follows.

    Raises:
        InputError: for a layer in groups or without a bias, or outputs of another shape.
        DataError: where the inputs are not finite, or the problem is singular in spite of damping.
    """
    if layer.groups != 1 or layer.bias is None:
        raise InputError("only convolutions without groups and with a bias are fitted")
    rows = torch.arange(layer.out_channels, device=x.device) if rows is None else rows
    expected = (len(x), len(rows), *layer(x[:1]).shape[2:])
    if tuple(y.shape) != expected:
        raise InputError(f"the layer is to give outputs of the shape {expected}, not {tuple(y.shape)}")
    size = layer.weight[0].numel()
    gram, total, count = x.new_zeros((size, size), dtype=torch.float64), x.new_zeros(size).double(), 0
    # sums of products in single precision hold no spread that is small beside the mean: near it they do
    first, given = next(_parts(layer, x, y))
    near, near_wanted = first.mean(0), given.mean(0)
    for part, _ in _parts(layer, x, y):
        part = part - near
        gram += (part.T @ part).double()
        total += part.sum(0, dtype=torch.float64)
        count += len(part)
    mean = total / count
    matrix, live = damped(gram / count - mean.outer(mean), damp, of="patches")
    lower = factor(matrix[live][:, live], of="patches")
    weight = layer.weight.new_zeros((len(rows), size), dtype=torch.float64)
    bias = weight.new_zeros(len(rows))
    for number in range(1 + rounds if rectified else 1):
        cross, sums = torch.zeros_like(weight), torch.zeros_like(bias)
        for part, wanted in _parts(layer, x, y):
            part = part - near
            if number:
                given = torch.addmm(bias.to(part.dtype), part, weight.T.to(part.dtype))
                wanted = torch.where(wanted > 0, wanted, given.clamp(max=0))
            wanted = wanted - near_wanted
            cross += (wanted.T @ part).double()
            sums += wanted.sum(0, dtype=torch.float64)
        wanted_mean = sums / count
        right = (cross / count - wanted_mean.outer(mean))[:, live]
        weight[:, live] = torch.cholesky_solve(right.T, lower).T
        bias = wanted_mean + near_wanted - weight @ mean
    bias -= weight @ near.double()
    layer.weight[rows] = weight.view(-1, *layer.weight.shape[1:]).to(layer.weight.dtype)
    layer.bias[rows] = bias.to(layer.bias.dtype)


def _parts(layer: nn.Conv2d, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The patches (positions, columns) of some examples, and the outputs (positions, rows) that they give."""
    positions = y[0, 0].numel()
    each = max(1, _PATCH_BYTES // (positions * layer.weight[0].numel() * max(4, x.element_size())))
    for some, wanted in zip(x.split(each), y.split(each), strict=True):  # type: ignore[no-untyped-call]
        if x.element_size() < 4:  # the Gram matrix is beyond half precision
            some, wanted = some.float(), wanted.float()
        found = patches(layer, some)[0]
        yield found, output_rows(layer, wanted)[0].reshape(len(found), -1)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """||wanted - found||^2 relative to the variance of what is wanted, each channel about its own mean.

    0 for a perfect fit, 1 for one that is no better than the mean of each channel.
    """
    wanted = wanted.double()
    spread = (wanted - wanted.mean((0, 2, 3), keepdim=True)).square().sum()
    missed = (wanted - found).square().sum()
    return float(missed / spread) if float(spread) else float(missed > 0)
