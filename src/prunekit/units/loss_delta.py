"""Errors of many variants of a network on the same examples, and how they differ from the present error."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.errors import InputError
from prunekit.losses import Loss, squared_error


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The linear error sum |t - o| over the outputs, averaged over the examples.

    Args:
        outputs: (N, ...).
        targets: the same shape, or class numbers (N,), which become one-hot.

    Raises:
        ValueError: if the shapes differ.
    """
    targets = real_targets(outputs, targets)
    return (outputs - targets).abs().flatten(1).sum(1).mean()


ERRORS: dict[str, Loss] = {
    "squared_error": squared_error,
    "cross_entropy": F.cross_entropy,
    "absolute_error": absolute_error,
}
"""The errors that have fast forms here, by name; each is a mean over the examples."""


def error_of(error: Loss | str) -> Loss:
    """The function of an error that is given by name, or the function itself.

    Raises:
        InputError: for an unknown name.
    """
    if not isinstance(error, str):
        return error
    if error not in ERRORS:
        raise InputError(f"there is no error {error!r}; names are: {', '.join(ERRORS)}")
    return ERRORS[error]


def real_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets of the outputs' shape; class numbers become one-hot.

    Raises:
        ValueError: if the shapes differ; nothing is broadcast.
    """
    if not targets.is_floating_point():
        targets = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
    if targets.shape != outputs.shape:
        raise ValueError(f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape")
    return targets.to(outputs.dtype)


class LossDelta(ABC):
    """The error of one chunk of n examples, now and for variants of the network.

    Variants come as (C, K, n): C networks, K outputs, n examples, so that the examples lie side by side.
    All results are **sums** over the examples, in float64; whoever adds up the chunks divides.

    Attributes:
        total: the present error summed over the examples.
    """

    def __init__(self, error: Loss, outputs: Tensor, targets: Tensor):
        """Take the present outputs (n, ...) and their targets."""
        self.error = error
        self.outputs = outputs
        self.targets = targets
        self.total = float(error(outputs, targets)) * len(outputs)

    @abstractmethod
    def changes(self, variants: Tensor, start: int, stop: int) -> Tensor:
        """(C,): error of each variant less the present one, on the examples from `start` to `stop`.

        Args:
            variants: (C, K, stop - start) outputs; overwritten.
            start: the first example of the chunk that the variants are of.
            stop: one past the last.
        """


def loss_delta(error: Loss, outputs: Tensor, targets: Tensor) -> LossDelta:
    """The judge that has the fastest form of this error.

    Raises:
        InputError: if outputs and targets do not go together.
    """
    classes = outputs.dim() == 2 and targets.dim() == 1 and not targets.is_floating_point()
    kind: type[LossDelta] = AnyErrorDelta
    if error is squared_error:
        kind = SquaredErrorDelta
    elif error is absolute_error:
        kind = AbsoluteErrorDelta
    elif error is F.cross_entropy and classes and bool((targets >= 0).all()):
        kind = CrossEntropyDelta
    try:
        return kind(error, outputs, targets)
    except (ValueError, RuntimeError, IndexError) as reason:
        raise InputError(f"the error cannot be taken of these outputs and targets: {reason}") from reason


class SquaredErrorDelta(LossDelta):
    """Squared error, summed over the outputs."""

    def __init__(self, error: Loss, outputs: Tensor, targets: Tensor):
        super().__init__(error, outputs, targets)
        self._now = outputs.flatten(1).T.contiguous()
        self._twice_off = (outputs - real_targets(outputs, targets)).flatten(1).T.mul(2).contiguous()
        self._block = (0, 0, self._now)

    def changes(self, variants: Tensor, start: int, stop: int) -> Tensor:
        """See `LossDelta.changes`.

        With d = o' - o the change is sum d^2 + 2 d (o - t): no difference of two large sums is taken, so that
        small changes come out right in float32 as well.
        """
        difference = variants.sub_(self._now[:, start:stop]).reshape(len(variants), -1)
        if self._block[:2] != (start, stop):  # the same examples come again with other variants
            self._block = (start, stop, self._twice_off[:, start:stop].reshape(-1))
        square = torch.linalg.vector_norm(difference, dim=1).double().square_()
        return square.add_(torch.mv(difference, self._block[2]))


class AbsoluteErrorDelta(LossDelta):
    """Linear error, summed over the outputs."""

    def __init__(self, error: Loss, outputs: Tensor, targets: Tensor):
        super().__init__(error, outputs, targets)
        self._wanted = real_targets(outputs, targets).flatten(1).T.contiguous()
        self._off = (outputs.flatten(1).T - self._wanted).abs_()

    def changes(self, variants: Tensor, start: int, stop: int) -> Tensor:
        """See `LossDelta.changes`."""
        off = variants.sub_(self._wanted[:, start:stop]).abs_().sub_(self._off[:, start:stop])
        return off.reshape(len(variants), -1).sum(1).double()


class CrossEntropyDelta(LossDelta):
    """Cross-entropy of class numbers, from outputs before the softmax."""

    def __init__(self, error: Loss, outputs: Tensor, targets: Tensor):
        super().__init__(error, outputs, targets)
        self._now = F.cross_entropy(outputs, targets, reduction="none")

    def changes(self, variants: Tensor, start: int, stop: int) -> Tensor:
        """See `LossDelta.changes`."""
        at_target = self.targets[start:stop].expand(len(variants), 1, stop - start)
        own = variants.gather(1, at_target).squeeze(1)
        after = torch.logsumexp(variants, 1).sub_(own)
        return after.sub_(self._now[start:stop]).sum(1).double()


class AnyErrorDelta(LossDelta):
    """Any error that is a mean over the examples: it is called once for each variant."""

    def changes(self, variants: Tensor, start: int, stop: int) -> Tensor:
        """See `LossDelta.changes`."""
        targets, outputs = self.targets[start:stop], self.outputs[start:stop]
        before = float(self.error(outputs, targets))
        after = [float(self.error(variant.T.reshape(outputs.shape), targets)) for variant in variants]
        differences = torch.tensor(after, dtype=torch.float64, device=variants.device) - before
        return differences.mul_(stop - start)
