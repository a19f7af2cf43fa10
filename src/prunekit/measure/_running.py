"""Running a model only to look at it: nothing about it is different afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.modes import keeping_modes

ExampleInputs = Tensor | tuple[Tensor, ...]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module has the training flag that it had, mixed ones too."""
    with keeping_modes(model):
        model.eval()
        yield


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def arguments(example_inputs: ExampleInputs, device: torch.device) -> tuple[Tensor, ...]:
    """The positional arguments of one forward pass, on `device`.

    Raises:
        InputError: if they are not tensors, or the first has no batch dimension or an empty one.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise InputError("example_inputs must be a tensor or a tuple of tensors")
    if inputs[0].dim() == 0 or len(inputs[0]) == 0:
        raise InputError(f"example_inputs need a batch of at least 1, got the shape {tuple(inputs[0].shape)}")
    return tuple(tensor.to(device) for tensor in inputs)
