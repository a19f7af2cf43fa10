"""Inputs made up for a network of which no example is given: two of the shape that its first layer reads.

The network is recorded on tensors without data, so that an attempt takes milliseconds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn

from prunekit.errors import ModelError, brief
from prunekit.graph.capture import canonical, place_of
from prunekit.graph.captured import Captured
from prunekit.graph.record import MisfitError, NotRecordedError, recorded
from prunekit.modes import evaluating

BATCH = 2
"""How many examples are made up."""

_SIDES = (28, 32, 224, 16, 64, 8, 4, 96, 128, 2, 1, 299, 512, 1024)
_LONGEST = {1: 2**18, 2: 2**11, 3: 2**8}
"""The longest side that is tried, by the number of sides."""
_OF_VALUES = ("meta tensors", "tensor subclasses")
"""What PyTorch says where the values of a tensor without data are asked for."""
_WIDE = 64
"""So many lengths are all tried."""


def made_up_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """Arguments that a network takes in evaluation mode, all zeros, in the type of its first parameter.

    Tried are the shapes that its layers read, in the order in which it has them: (2, features) for linear
    layers, (2, channels, sides...) for others. The sides are common ones, and then those with which the first
    linear layer behind a flatten gets as many numbers as it reads.

    Raises:
        ModelError: where it takes none of them.
    """
    attempts = _Attempts(model)
    with evaluating(model), torch.enable_grad():
        shapes = list(dict.fromkeys(_first_shapes(model)))
        for features, sides in shapes:
            if attempts.fits(features, sides):
                return attempts.inputs
        for features in attempts.misfits:
            if attempts.fits_oblong(features):
                return attempts.inputs
    tried = ", ".join(map(str, attempts.tried[:4])) + (", ..." if len(attempts.tried) > 4 else "")
    raise ModelError(
        f"no inputs that the model takes could be made up, tried are {tried}: give example_inputs "
        f"(the first: {attempts.why})"
    )


def _first_shapes(model: nn.Module) -> Iterator[tuple[tuple[int, ...], int]]:
    """What each layer reads of an example: features or channels, and the number of sides behind them."""
    sides = 0
    for module in model.modules():
        name = type(module).__name__
        if isinstance(module, nn.Linear):
            yield (module.in_features,), 0
        elif isinstance(module, nn.modules.conv._ConvNd):
            sides = len(module.kernel_size)
            yield (module.in_channels,), sides
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield (module.num_features,), {"BatchNorm1d": 0, "BatchNorm3d": 3}.get(name, 2)
        elif isinstance(module, nn.LayerNorm):
            yield module.normalized_shape, 0
        elif "Pool" in name and name[-2:] in ("1d", "2d", "3d"):
            sides = int(name[-2])
            yield from (((1,), sides), ((3,), sides))
    yield from (((1,), sides or 2), ((3,), sides or 2))


class _Attempts:
    """Attempts to record a network.

    Attributes:
        tried: the shapes of the inputs so far.
        why: what the first attempt failed with, with the line of the user's code.
        misfits: the channels with which a linear layer was given another number of features than it reads.
    """

    def __init__(self, model: nn.Module) -> None:
        self.tried: list[tuple[int, ...]] = []
        self.why = ""
        self.misfits: list[tuple[int, ...]] = []
        self._model = model
        self._names = canonical(model)
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        taken = inspect.signature(model.forward).parameters.values()
        self._count = max(1, sum(each.kind in plain and each.default is each.empty for each in taken))
        self._like = next(model.parameters())
        self._misfit = self._ran = False  # whether a linear layer, or any operator, was met

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Zeros of the shape that was tried last, one tensor for each input."""
        shape, like = self.tried[-1], self._like
        return tuple(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(self._count))

    def fits(self, features: tuple[int, ...], sides: int) -> bool:
        """Whether the network takes so many features, or channels of images with equal sides."""

        def attempt(side: int) -> int | None:
            return self._attempt((BATCH, *features, *[side] * sides))

        if not sides:
            return attempt(0) == 0
        self._misfit = self._ran = False
        fits = self._reached(attempt, _LONGEST[sides])
        if self._misfit and sides == 2:
            self.misfits.append(features)
        return fits

    def fits_oblong(self, channels: tuple[int, ...]) -> bool:
        """Whether the network takes images of some other form."""
        return any(
            self._reached(lambda wide, high=high: self._attempt((BATCH, *channels, high, wide)), _LONGEST[2])  # type: ignore[misc]
            for high in range(1, _WIDE)
        )

    def _reached(self, attempt: Callable[[int], int | None], longest: int) -> bool:
        """Whether an attempt with some length succeeds: one of the common ones, or one found by bisection."""
        low, high = 0, longest + 1
        for length in (*_SIDES, *(2**power for power in range(11, longest.bit_length()))):
            if length > _SIDES[-1] and not self._ran:
                return False  # it fails at once, whatever the length
            if low < length < high:
                found = attempt(length)
                if found == 0:
                    return True
                if found is not None:
                    low, high = (length, high) if found < 0 else (low, length)
        while high - low > _WIDE:
            middle = (low + high) // 2
            found = attempt(middle)
            if found == 0:
                return True
            low, high = (middle, high) if found is not None and found < 0 else (low, middle)
        return any(attempt(length) == 0 for length in range(low + 1, high))

    def _attempt(self, shape: tuple[int, ...]) -> int | None:
        """0 if the network takes it, below if it is too small, above if it is too large; else None."""
        self.tried.append(shape)
        args = (torch.empty(shape, dtype=self._like.dtype, device=self._like.device),) * self._count
        try:
            found = recorded(self._model, args, {}, self._names)
        except MisfitError as error:
            self._misfit = self._ran = True
            self._failed(error)
            return error.given - error.read
        except NotRecordedError as error:
            if error.__cause__ is None or any(text in str(error) for text in _OF_VALUES):
                return 0  # it came to what no recording can hold, so that the shape is all right
            self._ran |= error.operators > 0
            self._failed(error.__cause__)
            return None
        rows = _rows(found)
        if len(shape) > 2 and rows not in (0, BATCH):  # a view has all numbers but the first written into it
            return rows - BATCH
        return 0

    def _failed(self, error: BaseException) -> None:
        self.why = self.why or f"{brief(str(error), 200)}{place_of(error)}"


def _rows(graph: Captured) -> int:
    """How many rows the first tensor that comes out has; 0 for a single number."""
    outputs = list(graph.graph.nodes)[-1].args[0]
    values = [node.meta["val"] for node in outputs if isinstance(node, fx.Node)]
    return int(values[0].shape[0]) if values and values[0].dim() else 0
