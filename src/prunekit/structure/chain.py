"""A network as a chain of layers, and the units that its layers hand to each other.

Everything else in this package asks a network only for its groups of units. An analysis of arbitrary graphs
can therefore take the place of this one by giving groups of the same kind.
"""

from __future__ import annotations

from torch import nn

from prunekit.errors import ModelError
from prunekit.structure.linking import link
from prunekit.structure.operations import is_leaf
from prunekit.structure.parts import INPUT, Chain, Stage, UnitGroup
from prunekit.structure.path import only_layer, path_of
from prunekit.structure.tracing import trace
from prunekit.targets import unwrap

__all__ = ["INPUT", "Chain", "Stage", "UnitGroup", "chain_of", "is_chain"]


def chain_of(model: nn.Module, *, inputs: bool = False) -> Chain:
    """Read a network as a chain, as it computes in evaluation mode.

    The network is traced symbolically: it is not run, its hooks are not called and it is left as it was.
    Linear layers are taken to read (N, features), or (N, ..., features) where no batch norm follows.

    Args:
        model: linear, convolution, batch norm, pooling, flatten, activation and dropout layers in a row, as
            modules or as functions in `forward`; wrappers of `torch.compile` and DDP are looked through.
        inputs: whether the network's input features are a group too.

    Raises:
        ModelError: naming the first layer that is no link of a chain, such as one that feeds a residual sum,
            or the line of `forward` that cannot be traced.
    """
    model = unwrap(model)
    operations = only_layer(model) if is_leaf(model) else path_of(trace(model), model)
    return link(operations, inputs=inputs)


def is_chain(model: nn.Module) -> bool:
    """Whether a network can be read as a chain of layers."""
    try:
        chain_of(model)
    except ModelError:
        return False
    return True
