"""Example inputs for a network that was named on a command line."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from prunekit.cli.networks import Network, Sizes
from prunekit.data import Dataset
from prunekit.errors import InputError, ModelError
from prunekit.graph import GraphModel
from prunekit.trial import check_takes

InputShape = Annotated[
    str | None, typer.Option(help="Shape of one example, such as 3,32,32, without a dataset.")
]
Outputs = Annotated[
    int, typer.Option(min=1, help="Number of outputs, without a dataset, of a model that takes it.")
]
TRACED = 2
"""Examples that a network is traced with: of one, its axis could be taken for any other of one entry."""

Tokens = Annotated[
    int | None, typer.Option(min=1, help="Inputs are whole numbers below this one, such as tokens of a text.")
]


def sizes_of(input_shape: str | None, outputs: int) -> Sizes | None:
    """What stands in for a dataset's sizes.

    Raises:
        InputError: if the shape is none.
    """
    return None if input_shape is None else Sizes(_shape(input_shape), outputs)


def example_shape(network: Network, data: Dataset | None, sizes: Sizes | None) -> tuple[int, ...]:
    """The shape of one example.

    Raises:
        InputError: if nothing tells it.
    """
    for known in (data, sizes, network.architecture):
        if known is not None:
            return known.input_shape
    if isinstance(network.model, GraphModel) and (found := network.model.input_shapes[0]) is not None:
        return found[1:]
    raise InputError("the shape of an example is not known: add --data or --input-shape")


def examples(
    network: Network, name: str, data: Dataset | None, sizes: Sizes | None, *, batch: int, tokens: int | None
) -> Tensor:
    """(batch, ...) the first examples of the dataset's test part, or drawn numbers of the known shape.

    Args:
        network: which must take them.
        name: what the person calls it.
        data: the dataset, if there is one.
        sizes: what stands in for it.
        batch: how many.
        tokens: above all whole numbers that are drawn; None for real numbers.

    Raises:
        InputError: if the shape is not known, or the dataset has fewer examples.
        ModelError: if the network fails on them.
    """
    inputs = _examples(network, data, sizes, batch, tokens)
    try:
        check_takes(network.model, name, inputs)
    except ModelError as error:
        if inputs.is_floating_point() and any(isinstance(m, nn.Embedding) for m in network.model.modules()):
            raise ModelError(f"{error}; if it takes whole numbers, such as tokens, add --tokens") from error
        raise
    return inputs


def batch_of(network: Network, asked: int | None, default: int) -> int:
    """How many examples a pass has; an exported graph takes only as many as it was exported with."""
    if asked is None and isinstance(network.model, GraphModel) and network.model.input_shapes[0]:
        return network.model.input_shapes[0][0]
    return asked or default


def _examples(
    network: Network, data: Dataset | None, sizes: Sizes | None, batch: int, tokens: int | None
) -> Tensor:
    if data is not None:
        if len(data.test.inputs) < batch:
            raise InputError(f"--batch {batch}: the dataset has {len(data.test.inputs)} test examples")
        return data.test.inputs[:batch]
    shape = (batch, *example_shape(network, data, sizes))
    generator = torch.Generator().manual_seed(0)
    if tokens is not None:
        return torch.randint(tokens, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input-shape {text!r}: write whole numbers joined by commas, such as 3,32,32")
    return shape
