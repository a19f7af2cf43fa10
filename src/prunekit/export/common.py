"""What every export does first and last: what cannot be exported, and outputs compared with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from prunekit.errors import InputError, ModelError, shown
from prunekit.files import replacing
from prunekit.graph.reference_run import VerificationError
from prunekit.graph.surgery import copy_of
from prunekit.runtime import SparseConv2d, SparseLinear
from prunekit.targets import unwrap

TOLERANCE = 1e-5
"""The largest difference from PyTorch's outputs that is accepted, a share of the largest output or of 1."""


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where.
        deviation: the largest difference from PyTorch's outputs, absolute; None where nothing was run.
        batches: the batch sizes at which outputs were compared; empty where nothing was run.
    """

    path: Path
    deviation: float | None
    batches: tuple[int, ...]


def exportable(model: nn.Module, *, as_float: bool = True) -> nn.Module:
    """A copy of a network, in evaluation mode and on the CPU, without wrappers; in float32 unless told not.

    Raises:
        ModelError: naming what is in the way: layers that run sparse, gates and other parametrizations.
    """
    model = unwrap(model)
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | SparseConv2d):
            raise ModelError(
                f"{shown(name)} runs sparse, by kernels of this package that other programs lack: export the "
                "network from before sparsify_for_cpu"
            )
        if is_parametrized(module):
            raise ModelError(
                f"{shown(name) if name else 'the model'} is parametrized: let the training with gates end, "
                "or call torch.nn.utils.parametrize.remove_parametrizations"
            )
    copy = copy_of(model).cpu().eval()
    return copy.float() if as_float else copy


def example_of(example_inputs: Tensor | None) -> Tensor:
    """Two or more examples in float32; a single one is repeated.

    Raises:
        InputError: if there are none, or they are no tensor (N, ...).
    """
    if not isinstance(example_inputs, Tensor) or example_inputs.dim() < 1 or not example_inputs.numel():
        raise InputError(
            "example_inputs: give a tensor (N, ...) with at least one example of the network's inputs"
        )
    inputs = example_inputs.detach().cpu()
    if inputs.is_floating_point():
        inputs = inputs.float()
    return inputs if len(inputs) > 1 else torch.cat([inputs, inputs])


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs of a network, which are to be one tensor (N, ...).

    Raises:
        ModelError: if it fails on the inputs, or gives something else.
    """
    try:
        with torch.no_grad():
            outputs = model(inputs)
    except Exception as error:  # the user's code
        raise ModelError(f"the model fails on the example inputs: {type(error).__name__}: {error}") from error
    if not isinstance(outputs, Tensor):
        raise ModelError(
            f"the model gives a {type(outputs).__name__}; networks are exported that give one tensor"
        )
    return outputs


def compared(outputs: Tensor, reference: Tensor, what: str) -> float:
    """The largest absolute difference of outputs of the same shape.

    Raises:
        VerificationError: if they differ by more than `TOLERANCE`, or in shape.
    """
    if outputs.shape != reference.shape:
        raise VerificationError(f"{what} gives {list(outputs.shape)}, PyTorch {list(reference.shape)}")
    difference = float((outputs.double() - reference.double()).abs().max())
    bound = TOLERANCE * max(1.0, float(reference.abs().max()))
    if not difference <= bound:  # also where it is no number
        raise VerificationError(
            f"{what} differs from PyTorch by {difference:.1e}, and {bound:.1e} is allowed"
        )
    return difference


@contextmanager
def written(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """The path, and a temporary one that takes its place only if the block ends well.

    Raises:
        InputError: if the path is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    with replacing(path) as temporary:
        yield path, temporary
