"""Gradients of the loss by the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.statistics.collect import Collector, StatContext, Statistic, sum_over_processes


@dataclass(frozen=True)
class MeanGradient(Statistic):
    """dL/dw of the mean loss L over all examples, one tensor of the weight's shape per parameter."""

    @property
    def additive(self) -> bool:
        """A process without examples adds nothing."""
        return True

    def start(self, subject: StatContext) -> Collector:
        """A collector that sums gradients; `.grad` of the parameters is not touched."""
        return _GradientSum({name: subject.model.get_parameter(name) for name in subject.names})


class _GradientSum(Collector):
    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        self._weights = weights
        # frozen weights are scored as well: autograd follows them for the length of the pass
        self._frozen = [weight for weight in weights.values() if not weight.requires_grad]
        for weight in self._frozen:
            weight.requires_grad_(True)
        # sums over many examples leave the range of half precision
        self._sums = {
            name: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for name, weight in weights.items()
        }
        self._examples = torch.zeros((), dtype=torch.float64)

    def batch(self, batch: Batch, loss: Tensor) -> None:
        examples = len(batch[0])
        gradients = torch.autograd.grad(
            loss, list(self._weights.values()), retain_graph=True, materialize_grads=True
        )
        for total, gradient in zip(self._sums.values(), gradients, strict=True):
            total.add_(gradient, alpha=examples)
        self._examples += examples

    def finish(self) -> dict[str, Tensor]:
        device = next(iter(self._sums.values())).device
        examples = self._examples.to(device)
        sum_over_processes([*self._sums.values(), examples])
        return {name: total / examples.to(total.dtype) for name, total in self._sums.items()}

    def close(self) -> None:
        for weight in self._frozen:
            weight.requires_grad_(False)
