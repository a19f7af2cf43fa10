"""Blocks without the units that they lost, and the configuration of a network of such blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.blockwise.block_call import BlockOnStream
from prunekit.blockwise.block_network import BlockNetwork, without_values
from prunekit.errors import ModelError
from prunekit.files import read_json, to_json, write_text
from prunekit.graph import restore_sizes, shrink, size_attributes
from prunekit.graph.configured import built_anew, from_settings, settings_of, with_changes
from prunekit.graph.fitted_settings import setting_changes

ROUNDING = 1e-5
"""The share of its norm by which a stream may differ where the same is computed in another order."""


@dataclass(frozen=True)
class SmallerForm:
    """What all blocks of a network look like without their units.

    Attributes:
        shapes: of a block's parameters and saved buffers, by their names in it.
        changes: the settings of the network's configuration that become others.
    """

    shapes: Mapping[str, Sequence[int]]
    changes: Sequence[tuple[Sequence[str], int]]

    def check(self, block: nn.Module) -> None:
        """ModelError if a block has other sizes than the first that was pruned."""
        for name, shape in _shapes(block).items():
            if list(shape) != list(self.shapes.get(name, ())):
                raise ModelError(
                    f"{name} has the shape {list(shape)}, but {list(self.shapes.get(name, ()))} in the block "
                    "that was pruned first: a configuration says one width for all"
                )


def take_out(block: BlockOnStream, kept: Mapping[str, Tensor], stream: Tensor) -> None:
    """Take units out of a block in place, proven on a sequence.

    Args:
        block: with zeros for what goes.
        kept: by group (units,) flags.
        stream: (1, length, width) of a sequence.

    Raises:
        ModelError: if the code of the block cannot do without them.
    """
    result = shrink(block, stream, dict(kept), training=False)
    if result.form != "modules":
        raise ModelError(
            f"the code of {type(block.wrapped).__name__} cannot do without these units: {result.reason}"
        )
    for name, reason in result.stayed.items():
        raise ModelError(f"{name.removeprefix(f'{block.block_name}.')} cannot lose these units: {reason}")


def smaller_form(network: BlockNetwork, number: int, block: BlockOnStream, stream: Tensor) -> SmallerForm:
    """The form of a network whose blocks are all like one that lost units.

    Args:
        network: the others of its blocks are whole.
        number: of the block.
        block: without its units.
        stream: (1, length, width) of a sequence, on which a block of the configuration that is found must
            give what this one gives.

    Raises:
        ModelError: if no configuration gives such blocks.
    """
    model, shapes = network.model, _shapes(block.wrapped)
    settings = settings_of(model)
    smaller = None if settings is None else built_anew(model, settings)
    if settings is None or smaller is None:  # a network of no package, which its user builds
        return SmallerForm(shapes, [])
    for each in smaller.get_submodule(network.name).children():
        restore_sizes(each, shapes, size_attributes(block.wrapped))
    changes = setting_changes(smaller)
    if isinstance(changes, str):
        raise ModelError(f"from_pretrained could not load the smaller network: {changes}")
    with without_values():  # but its buffers have some
        whole = from_settings(model, with_changes(settings, changes))
    other = whole.get_submodule(f"{network.name}.{number}")
    other.load_state_dict(block.wrapped.state_dict(), assign=True)
    with torch.no_grad():
        here, there = block(stream), BlockOnStream(other.eval(), block.block_call, block.block_name)(stream)
    if here.shape != there.shape or float((here - there).norm()) > ROUNDING * float(here.norm()):
        raise ModelError(
            f"a block of {type(model).__name__} with the settings "
            f"{', '.join('.'.join(path) + f' = {value}' for path, value in changes)} computes something else"
        )
    return SmallerForm(shapes, [(list(path), value) for path, value in changes])


def write_settings(source: Path, target: Path, changes: Sequence[tuple[Sequence[str], int]]) -> None:
    """Write a configuration in JSON with some settings that are others."""
    write_text(target, to_json(with_changes(read_json(source), changes)))


def _shapes(block: nn.Module) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in block.state_dict().items()}
