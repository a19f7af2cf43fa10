"""Shared values in a training: what is trained is one number for all weights that share it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.parts.quantize.base import FewValues, HeldTensor, rounded_to_half


class SharedValues(FewValues):
    """Weights that share values, trained as Deep Compression does.

    The values of a weight tensor become a parameter of the optimizer, in the weight's group: momentum,
    moments and weight decay are those of the shared values. The gradient of a value is the sum of the
    gradients of the weights that share it; after each step they take it. Zeros share no value and stay zero,
    and so the number of values never grows.

    Args:
        model: the network, whose weights have few values already.
        names: of the weights.
        half: whether the values are rounded to half precision in the end.
    """

    def __init__(self, model: nn.Module, names: list[str], *, half: bool) -> None:
        super().__init__("shared values", [_Shared(model.get_parameter(name)) for name in names], half=half)


class _Shared(HeldTensor):
    """One weight tensor with its values, which are trained."""

    def __init__(self, weight: nn.Parameter) -> None:
        flat = weight.detach().flatten()
        places = flat.nonzero().flatten()
        values, codes = torch.unique(flat[places], return_inverse=True)
        order = codes.argsort(stable=True)
        # members lie together: their sums are the same at every run, on every device
        self._places, self._counts = places[order], torch.bincount(codes, minlength=len(values))
        self.values = nn.Parameter(values)
        super().__init__(weight, self.values)
        self._written = self.values._version

    def remove(self) -> None:
        """Take the values out of the optimizer; the weights have them, also those that its end has made."""
        super().remove()
        if self.values._version != self._written:
            self._write()

    @torch.no_grad()
    def settle(self, half: bool) -> None:
        """What the first of the members is, which an average over the training may have set, for all."""
        if len(self.values):
            firsts = self._counts.cumsum(0) - self._counts
            values = self.weight.detach().flatten()[self._places[firsts]]
            self.values.copy_(rounded_to_half(values) if half else values)
            self._write()

    @torch.no_grad()
    def _before(self, *_: Any) -> None:
        gradient = self.weight.grad
        if gradient is None:
            self.values.grad = None
            return
        if self.values.numel():
            members = gradient.flatten()[self._places]
            self.values.grad = torch.segment_reduce(members, "sum", lengths=self._counts, unsafe=True)
        self.weight.grad = None  # the optimizer does not move it

    @torch.no_grad()
    def _after(self, *_: Any) -> None:
        self._write()

    @torch.no_grad()
    def _write(self) -> None:
        flat: Tensor = self.weight.new_zeros(self.weight.numel())
        flat[self._places] = self.values.detach().repeat_interleave(self._counts)
        self.weight.copy_(flat.view(self.weight.shape))
        self._written = self.values._version
