"""What every export does first and last: what cannot be exported, and outputs compared with PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, examples_in, feed
from prunekit.errors import InputError, ModelError, explaining, shown
from prunekit.files import file_to_write, replacing
from prunekit.graph.copies import copy_of, with_plain_weights
from prunekit.graph.proof_run import tensors_in
from prunekit.graph.reference_run import VerificationError
from prunekit.parts.regularize.gates import has_gates
from prunekit.runtime import SparseConv2d, SparseLinear
from prunekit.targets import check_shaped, check_whole, unwrap

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

    Weights that are computed from others, as by a weight norm, are there as they are computed.

    Raises:
        ModelError: naming what is in the way: layers that run sparse, gates, weights without values.
    """
    model = unwrap(model)
    check_whole(model)
    check_shaped(model)
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | SparseConv2d):
            raise ModelError(
                f"{shown(name)} runs sparse, by kernels of this package that other programs lack: export the "
                "network from before sparsify_for_cpu"
            )
    if has_gates(model):
        raise ModelError("the network has gates: let the training with them end, or remove() their handle")
    copy = with_plain_weights(copy_of(model).cpu().eval())
    return copy.float() if as_float else copy


def example_of(example_inputs: Inputs | None) -> Inputs:
    """Two or more examples, real numbers in float32; a single one is repeated.

    Raises:
        InputError: if there are none, or no tensor (N, ...) is among them.
    """
    inputs: Inputs | None = example_inputs
    if isinstance(inputs, Mapping):
        inputs = dict(inputs)  # also of a tokenizer's class
    elif isinstance(inputs, list):
        inputs = tuple(inputs)
    tensors = [each for each in pytree.tree_leaves(inputs) if isinstance(each, Tensor)]
    if (
        not isinstance(inputs, Tensor | tuple | dict)
        or not any(each.dim() for each in tensors)
        or not all(each.numel() for each in tensors)
    ):
        raise InputError(
            "example_inputs: give a tensor (N, ...) with at least one example of the network's inputs, a "
            "tuple of arguments, or a dict of named ones"
        )

    def prepared(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return tensor.float() if tensor.is_floating_point() else tensor

    inputs = pytree.tree_map_only(Tensor, prepared, inputs)
    assert inputs is not None
    return inputs if examples_in(inputs) > 1 else with_examples(inputs, 2)


def with_examples(inputs: Inputs, count: int) -> Inputs:
    """As many examples, the first ones again where there are too few; what has no axis of them stays."""
    there = examples_in(inputs)

    def resized(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(count) % there] if has_examples(tensor, there) else tensor

    resized_inputs: Inputs = pytree.tree_map_only(Tensor, resized, inputs)
    return resized_inputs


def has_examples(tensor: Any, count: int) -> bool:
    """Whether the first axis of a value is that of so many examples."""
    return isinstance(tensor, Tensor) and tensor.dim() > 0 and len(tensor) == count


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a network gives, however nested.

    Raises:
        ModelError: if it fails on the inputs, or gives none.
    """
    with explaining(ModelError, lambda: "the model fails on the example inputs"), torch.no_grad():
        outputs = feed(model, inputs)
    tensors = tensors_in(outputs, real=False)
    if not tensors:
        raise ModelError(
            f"the model gives a {type(outputs).__name__}; networks are exported that give tensors"
        )
    return tensors


def compared(outputs: Sequence[Tensor], reference: Sequence[Tensor], what: str) -> float:
    """The largest absolute difference of outputs.

    Raises:
        VerificationError: if they differ by more than `TOLERANCE`, in number, in shape, or in whole numbers.
    """
    shapes = [[list(each.shape) for each in those] for those in (outputs, reference)]
    if shapes[0] != shapes[1]:
        raise VerificationError(f"{what} gives {_listed(shapes[0])}, PyTorch {_listed(shapes[1])}")
    return max(_difference(*pair, what) for pair in zip(outputs, reference, strict=True))


def _difference(found: Tensor, wanted: Tensor, what: str) -> float:
    if not wanted.is_floating_point():
        if not torch.equal(found.to(wanted.dtype), wanted):
            raise VerificationError(f"{what} gives other whole numbers than PyTorch")
        return 0.0
    equal = found == wanted  # infinities, too, whose difference is no number
    both = torch.stack([found.double(), wanted.double()]).masked_fill(equal, 0.0)
    difference = float((both[0] - both[1]).abs().max()) if wanted.numel() else 0.0
    finite = wanted[wanted.isfinite()]
    bound = TOLERANCE * max(1.0, float(finite.abs().max()) if finite.numel() else 0.0)
    if not difference <= bound:  # also where it is no number
        raise VerificationError(
            f"{what} differs from PyTorch by {difference:.1e}, and {bound:.1e} is allowed"
        )
    return difference


def _listed(shapes: Sequence[Any]) -> str:
    return str(shapes[0]) if len(shapes) == 1 else str(list(shapes))


@contextmanager
def written(path: str | Path) -> Iterator[tuple[Path, Path]]:
    """The path, and a temporary one that takes its place only if the block ends well.

    Raises:
        InputError: if it is no path, or that of a folder.
    """
    path = file_to_write(path)
    with replacing(path) as temporary:
        yield path, temporary
