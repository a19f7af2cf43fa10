"""What the layers of a chain do to units: reading them, mixing them, passing them on one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.graph.chain import Kind, Stage, UnitGroup

Function = Callable[[Tensor], Tensor]

_NOTHING = (
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
# these may overwrite their input: they are only run on buffers that belong to this package
_IN_PLACE: dict[object, Function] = {
    kind: function
    for kinds, function in (
        ((nn.Sigmoid, "sigmoid"), torch.sigmoid_),
        ((nn.Tanh, "tanh"), torch.tanh_),
        ((nn.ReLU, "relu"), torch.relu_),
    )
    for kind in kinds
}


def _same(x: Tensor) -> Tensor:
    return x


def pointwise(stage: Stage) -> Function | None:
    """A function that does what a stage does and may overwrite its input, if the stage looks at each number
    alone; None if it does not."""
    kind = type(stage.module) if stage.module is not None else getattr(stage.run, "target", stage.run)
    if kind in _NOTHING:
        return _same
    if kind in _IN_PLACE:
        return _IN_PLACE[kind]
    return stage.run if stage.kind is Kind.POINTWISE else None


def leaves_rows(stage: Stage) -> bool:
    """Whether the stage gives back tensors (n, features) as they are."""
    return type(stage.module) is nn.Flatten or pointwise(stage) is _same


def unit_dim(consumer: Stage, x: Tensor) -> int:
    """The dimension of a consumer's input that units lie along: the last one for a linear layer, else 1."""
    return x.dim() - 1 if isinstance(consumer.module, nn.Linear) else 1


def by_unit(x: Tensor, group: UnitGroup, dim: int) -> Tensor:
    """A view with `dim` of a consumer's input split into (units, repeat)."""
    return torch.unflatten(x, dim, (group.units, group.repeat))


def with_gains(x: Tensor, group: UnitGroup, dim: int, gains: Tensor) -> Tensor:
    """A consumer's input, each unit multiplied by its gain; gains: (units,)."""
    gains = gains.to(x.dtype).repeat_interleave(group.repeat)
    return x * gains.view(-1, *[1] * (x.dim() - dim - 1))


def weight_of(consumer: Stage) -> Tensor:
    """A linear layer's weights (outputs, inputs)."""
    assert isinstance(consumer.module, nn.Linear)
    return consumer.module.weight.detach()


def weights_by_unit(consumer: Stage, group: UnitGroup) -> Tensor:
    """The consumer's weights as (units, outputs, repeat, ...), the kernel's sizes at the end."""
    weight = cast(Tensor, getattr(consumer.module, "weight")).detach()  # noqa: B009
    return torch.unflatten(weight, 1, (group.units, group.repeat)).transpose(0, 1)


def contributions(
    consumer: Stage, group: UnitGroup, x: Tensor, units: Tensor, factor: Tensor | float = 1.0
) -> Tensor:
    """What units add to the consumer's pre-activation, each multiplied by a factor.

    Args:
        consumer: a linear layer or a convolution.
        group: the units that it reads.
        x: (n, ...) its input.
        units: (C,) which units.
        factor: one number or (C,).

    Returns:
        (C, n, ...) of the shape of its output.
    """
    module = consumer.module
    if not _is_product(module):
        return _by_running(consumer, group, x, units, factor)
    weights = weights_by_unit(consumer, group)[units]
    if isinstance(factor, Tensor):
        factor = factor.to(weights.dtype).view(-1, *[1] * (weights.dim() - 1))
    weights = weights * factor
    if isinstance(module, nn.Conv2d):
        return _of_channels(module, x[:, units], weights[:, :, 0])
    inputs = by_unit(x, group, x.dim() - 1)[..., units, :].movedim(-2, 0)  # (C, n, ..., repeat)
    rows = torch.bmm(inputs.flatten(1, -2), weights.transpose(1, 2))
    return torch.unflatten(rows, 1, x.shape[:-1])


def _is_product(module: nn.Module | None) -> bool:
    """Whether the layer is a product of matrices that is written out here."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return isinstance(module, nn.Linear)


def _by_running(
    consumer: Stage, group: UnitGroup, x: Tensor, units: Tensor, factor: Tensor | float
) -> Tensor:
    """The same for any layer that is linear but for a bias: it is run on each unit alone, and on nothing."""
    ones = torch.eye(group.units, dtype=x.dtype, device=x.device)[units]
    ones = ones * (factor.to(x.dtype).unsqueeze(1) if isinstance(factor, Tensor) else factor)
    alone = torch.stack([with_gains(x, group, unit_dim(consumer, x), gains) for gains in ones])
    nothing = consumer.run(torch.zeros_like(x[:1]))
    return torch.unflatten(consumer.run(alone.flatten(0, 1)) - nothing, 0, alone.shape[:2])


def _of_channels(module: nn.Conv2d, x: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each of the C channels of x (n, C, h, w) with its own kernels (C, outputs, kh, kw).

    As one product of matrices per channel, with the outputs side by side in memory (channels last): a grouped
    convolution is no faster, and the pooling behind it is several times slower in the other layout.
    """
    if isinstance(module.padding, str):
        sides = cast(list[int], getattr(module, "_reversed_padding_repeated_twice"))  # noqa: B009
    else:
        sides = [side for size in reversed(module.padding) for side in (size, size)]
    if any(sides):
        x = F.pad(x, sides)
    (kh, kw), (step_h, step_w) = module.kernel_size, module.stride
    patches = x.unfold(2, kh, step_h).unfold(3, kw, step_w).transpose(0, 1)  # (C, n, H, W, kh, kw)
    rows = torch.bmm(patches.reshape(x.shape[1], -1, kh * kw), kernels.flatten(2).transpose(1, 2))
    return rows.view(*patches.shape[:4], -1).permute(0, 1, 4, 2, 3)
