"""One run of a network whose units can be switched off and weighted, and the error of its variants.

A run is of any network (`graph_runner`), and faster on a chain (`chain_runner`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit.errors import InputError, instead
from prunekit.graph import Coupled
from prunekit.graph.chain import Chain
from prunekit.losses import LOSSES, Loss, absolute_error, cross_entropy, real_targets, squared_error


def error_of(error: Loss | str) -> Loss:
    """The function of an error that is given by name, or the function itself.

    Raises:
        InputError: for an unknown name.
    """
    if not isinstance(error, str):
        return error
    if error not in LOSSES:
        raise InputError(f"there is no error {error!r}{instead(error, LOSSES)}")
    return LOSSES[error]


def _wanted(outputs: Tensor, targets: Tensor) -> Tensor:
    return real_targets(outputs, targets).to(outputs.dtype)


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

    @property
    def diagonal(self) -> Tensor | None:
        """(K, n): the second derivative of each example's error by each output; None if it is not known."""
        return None

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
    elif error in (cross_entropy, F.cross_entropy) and classes and bool((targets >= 0).all()):
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
        self._twice_off = (outputs - _wanted(outputs, targets)).flatten(1).T.mul(2).contiguous()
        self._block = (0, 0, self._now)

    @property
    def diagonal(self) -> Tensor:
        """See `LossDelta.diagonal`: the whole Hessian."""
        return torch.full_like(self._now, 2.0)

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
        self._wanted = _wanted(outputs, targets).flatten(1).T.contiguous()
        self._off = (outputs.flatten(1).T - self._wanted).abs_()

    @property
    def diagonal(self) -> Tensor:
        """See `LossDelta.diagonal`: the whole Hessian."""
        return torch.zeros_like(self._off)

    def changes(self, variants: Tensor, start: int, stop: int) -> Tensor:
        """See `LossDelta.changes`."""
        off = variants.sub_(self._wanted[:, start:stop]).abs_().sub_(self._off[:, start:stop])
        return off.reshape(len(variants), -1).sum(1).double()


class CrossEntropyDelta(LossDelta):
    """Cross-entropy of class numbers, from outputs before the softmax."""

    def __init__(self, error: Loss, outputs: Tensor, targets: Tensor):
        super().__init__(error, outputs, targets)
        self._now = F.cross_entropy(outputs, targets, reduction="none")

    @property
    def probabilities(self) -> Tensor:
        """(K, n): those of the classes. The softmax's Hessian is diag(p) - p p^T."""
        return torch.softmax(self.outputs.T, 0)

    @property
    def diagonal(self) -> Tensor:
        """See `LossDelta.diagonal`: p (1 - p)."""
        p = self.probabilities
        return p * (1 - p)

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


BUDGET_BYTES = 256 * 2**20
"""Default for the memory that one call may use for activations."""

# a chunk of examples: large enough for efficient products of matrices, small enough for the shared cache
_CHUNK_BYTES = 32 * 2**20

Structure = Chain | Coupled
"""Units of a network: those of a chain of layers, or coupled groups of any network."""


class Runner(ABC):
    """Runs a network on chunks of examples, in evaluation mode; the network is not changed.

    Attributes:
        sizes: the number of units of each group, by name, front to back.
        names: the groups that will be asked for, front to back.
        bytes_per_example: what a run needs for one example.
        budget_bytes: memory for activations.
    """

    bytes_per_example: int

    def __init__(self, structure: Structure, groups: Sequence[str] | None, budget_bytes: int):
        """Take the units, and the names of the groups that will be asked for, if not all."""
        self.sizes: Mapping[str, int] = {group.name: group.units for group in structure.groups}
        wanted = self.sizes if groups is None else {structure.group(name).name for name in groups}
        self.names = tuple(name for name in self.sizes if name in wanted)
        self.budget_bytes = budget_bytes

    @abstractmethod
    def run(self, inputs: Any, targets: Tensor, error: Loss, kept: Mapping[str, Tensor]) -> Run:
        """The network on a chunk of examples.

        Args:
            inputs: n examples.
            targets: (n, ...).
            error: the mean over the examples.
            kept: by group (units,) booleans, False for units that are off; True where there are none.
        """

    @abstractmethod
    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode for as long as the network is run."""

    def chunks(self, examples: int) -> Iterator[slice]:
        """Slices of the examples whose runs fit the budget, of equal sizes but for the last."""
        at_once = max(1, min(self.budget_bytes // 2, _CHUNK_BYTES) // self.bytes_per_example)
        parts = -(-examples // at_once)
        at_once = -(-examples // parts)  # even parts
        for start in range(0, examples, at_once):
            yield slice(start, min(start + at_once, examples))

    def runs(self, inputs: Any, targets: Tensor, error: Loss, kept: Mapping[str, Tensor]) -> Iterator[Run]:
        """The network on one chunk of the examples after the other; see `run`."""
        for chunk in self.chunks(len(targets)):
            yield self.run(taken(inputs, chunk), targets[chunk], error, kept)


class Run(ABC):
    """The network with the units that are left, on n examples, and what becomes of it without one of them.

    Attributes:
        outputs: (n, ...) the network's outputs.
        targets: (n, ...).
        error: the mean over the examples.
        kept: by group (units,) booleans, the caller's to change together with `remove`.
        names: the groups that will be asked for.
        judged: told of how many units more it is known what they are worth.
    """

    outputs: Tensor
    judged: Callable[[int], None]

    def __init__(self, runner: Runner, targets: Tensor, error: Loss, kept: Mapping[str, Tensor]):
        """Take what is known before the network runs."""
        self.targets, self.error, self.kept = targets, error, kept
        self.names, self.sizes, self.budget_bytes = runner.names, runner.sizes, runner.budget_bytes
        self._judge: LossDelta | None = None
        self.judged = lambda units: None

    @property
    def judge(self) -> LossDelta:
        """The errors of variants of the present outputs."""
        if self._judge is None or self._judge.outputs is not self.outputs:
            self._judge = loss_delta(self.error, self.outputs, self.targets)
        return self._judge

    @abstractmethod
    def weighted(self, name: str, units: Tensor, strength: Tensor | None = None) -> Tensor:
        """(C,) float64: the change of the error, summed over the examples, for each of the units (C,).

        Args:
            name: of their group.
            units: (C,) which.
            strength: (C,) the unit has the gain 1 - strength; by default it is off.
        """

    @abstractmethod
    def derivatives(self, names: Sequence[str], *, second: bool) -> dict[str, tuple[Tensor, Tensor | None]]:
        """By group (units,) float64: dE/dgain and, if `second`, d2E/dgain2, summed over the examples."""

    @abstractmethod
    def remove(self, name: str, unit: int) -> None:
        """Bring the run up to date after a unit was switched off in `kept`."""

    def changes(self, name: str, part: slice = slice(None)) -> Tensor:
        """(units,) float64: the change of the error, summed over the examples, without each unit that is
        still kept; NaN for the others.

        Args:
            name: of their group.
            part: which of the units that are kept are judged; the change is 0 for the rest of them.
        """
        units = torch.arange(self.sizes[name], device=self.outputs.device)
        found = torch.full((len(units),), torch.nan, dtype=torch.float64, device=units.device)
        if name in self.kept:
            units = units[self.kept[name].to(units.device)]
        found[units] = 0.0
        units = units[part]
        if len(units):
            found[units] = self.weighted(name, units)
        self.judged(self.sizes[name])
        return found


def taken(inputs: Any, examples: slice) -> Any:
    """Some of the examples: those of each tensor among a network's inputs."""
    return pytree.tree_map(lambda each: each[examples] if isinstance(each, Tensor) else each, inputs)
