"""Depthwise convolution in double precision: all channels at once, entry by entry of the kernel.

On the processor PyTorch has none for doubles, and convolves each channel by a call of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

Sizes = tuple[int, ...]


def depthwise(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    """The convolution of each channel with a kernel of its own; None where it is another convolution.

    Args:
        input: (examples, channels, sides...) doubles on the processor.
        weight: (channels, 1, sides of the kernel...).
        bias: (channels,).
        stride: as of `torch.conv2d`, likewise what follows.
    """
    given = [each for each in (input, weight, bias) if each is not None]
    sides = weight.dim() - 2
    if not 1 < groups == len(weight) or input.dim() != weight.dim() or isinstance(padding, str):
        return None
    if input.shape[1] != groups or any(not _is_plain(each) for each in given):
        return None
    steps, around, apart = (_each_side(value, sides) for value in (stride, padding, dilation))
    if any(size < 1 for size in _sides_after(input, weight, steps, around, apart)):
        return None
    found: Tensor = _Depthwise.apply(input, weight, steps, around, apart)  # type: ignore[no-untyped-call]
    return found if bias is None else found + bias.view(-1, *[1] * sides)


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is a tensor of doubles on the processor that no transformation of `torch.func` is at."""
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not transformed
    return plain and tensor.dtype == torch.float64 and tensor.device.type == "cpu"


def _each_side(value: int | Sequence[int], sides: int) -> Sizes:
    every = (value,) if isinstance(value, int) else tuple(value)
    return every * sides if len(every) == 1 else every


def _sides_after(input: Tensor, weight: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes) -> Sizes:
    """How large what comes out is."""
    every = zip(input.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return tuple(
        (size + 2 * pad - apart * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, apart in every
    )


class _Depthwise(torch.autograd.Function):
    """Sums over the entries of the kernel, with the channels last, which lie together then."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, stride: Sizes, padding: Sizes, dilation: Sizes
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.how = stride, padding, dilation
        sides = _sides_after(input, weight, stride, padding, dilation)
        wide, found = _padded(input, padding), input.new_zeros(len(input), *sides, input.shape[1])
        for kernel, place in _entries(weight, sides, stride, dilation):
            found.addcmul_(wide[place], kernel)
        return found.movedim(-1, 1).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        input, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.how
        last, wide = gradient.movedim(1, -1).contiguous(), _padded(input, padding)
        of_input, of_kernel = torch.zeros_like(wide), list[Tensor]()
        for kernel, place in _entries(weight, tuple(last.shape[1:-1]), stride, dilation):
            of_input[place].addcmul_(last, kernel)
            of_kernel.append((last * wide[place]).flatten(0, -2).sum(0))
        of_weight = torch.stack(of_kernel, 1).view(weight.shape)
        of_input = of_input[_within(input, padding)].movedim(-1, 1).contiguous()
        return of_input, of_weight, None, None, None


def _padded(input: Tensor, padding: Sizes) -> Tensor:
    """(examples, sides..., channels) with zeros around the sides."""
    sides = (size + 2 * pad for size, pad in zip(input.shape[2:], padding, strict=True))
    wide = input.new_zeros(len(input), *sides, input.shape[1])
    wide[_within(input, padding)] = input.movedim(1, -1)
    return wide


def _within(input: Tensor, padding: Sizes) -> tuple[slice, ...]:
    """Where in what is padded the input is."""
    sides = (slice(pad, pad + size) for size, pad in zip(input.shape[2:], padding, strict=True))
    return (slice(None), *sides)


def _entries(
    weight: Tensor, sides: Sizes, stride: Sizes, dilation: Sizes
) -> Iterator[tuple[Tensor, tuple[slice, ...]]]:
    """Each entry of the kernel (channels,), and what it is multiplied with."""
    kernels = weight.flatten(1).t().contiguous()
    every = product(*map(range, weight.shape[2:]))
    for kernel, at in zip(kernels, every, strict=True):
        starts = [place * apart for place, apart in zip(at, dilation, strict=True)]
        ends = [
            start + step * (size - 1) + 1 for start, step, size in zip(starts, stride, sides, strict=True)
        ]
        yield kernel, (slice(None), *map(slice, starts, ends, stride))
