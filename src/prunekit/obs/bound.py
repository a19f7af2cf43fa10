"""What errors in the layers can do to the output at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit.errors import InputError


def error_bound(layer_errors: Sequence[float] | Tensor, norms: Sequence[float] | Tensor) -> Tensor:
    """What each layer's error adds to the output's error at most; the bound is the sum.

    Dong, Chen and Pan (2017, arXiv 1705.07565, theorem 3.2). Layer k alone, its weights changed and its
    inputs those of the old network, is off by sqrt(2 E_k) in the root of the mean squared distance. The
    layers behind it stretch that by at most the Frobenius norm of their **new** weights each; activations
    that move no two numbers apart (ReLU, tanh, max pooling without overlap) do not stretch it. So

        sqrt(mean over samples of ||new outputs - old outputs||^2) <= sum_k sqrt(2 E_k) prod_{l > k} ||W_l||.

    Args:
        layer_errors: front to back, E_k = (1/2) mean over samples of the squared change of the layer's
            pre-activation, summed over its outputs: what the losses of an `Elimination` add up to.
        norms: front to back, the norm of each layer's new weights: Frobenius as in the paper; any other that
            is no less than the spectral norm of the linear map does as well.

    Returns:
        (layers,) float64.

    Raises:
        InputError: if there are not as many norms as errors, or one of them is negative or NaN.
    """
    errors = torch.as_tensor(layer_errors, dtype=torch.float64)
    sizes = torch.as_tensor(norms, dtype=torch.float64)
    if errors.dim() != 1 or errors.shape != sizes.shape:
        raise InputError(f"one norm for each layer error is needed, got {sizes.numel()} for {errors.numel()}")
    for name, each in (("layer errors", errors), ("norms", sizes)):
        if not bool((each >= 0).all()):
            raise InputError(f"{name} must be >= 0, got {each.tolist()}")
    through = torch.cat([sizes[1:], sizes.new_ones(min(1, len(sizes)))])
    return (2 * errors).sqrt() * through.flip(0).cumprod(0).flip(0)
