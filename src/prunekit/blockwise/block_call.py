"""How a block of a network is called, and what it gives: a stream of activations, alone or with more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.errors import ModelError

WIDE = torch.float32
"""What values of half precision are computed in; they are written back as they were."""


@dataclass(frozen=True)
class BlockCall:
    """How a block is called, but for its first argument: the stream of activations.

    It is the same for all sequences of a length.

    Attributes:
        name: of the first argument where it is given by name.
        args: the others by position.
        kwargs: the others by name.
    """

    name: str | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def is_like(self, other: BlockCall) -> bool:
        """Whether both have the same values."""
        (mine, form), (theirs, form_there) = (
            pytree.tree_flatten((each.name, each.args, dict(each.kwargs))) for each in (self, other)
        )
        return form == form_there and all(
            torch.equal(one, two)
            for one, two in zip(mine, theirs, strict=True)
            if isinstance(one, Tensor) and isinstance(two, Tensor)
        )

    def run(self, block: nn.Module, stream: Tensor) -> Any:
        """What the block gives, also in another precision than that of the text."""
        args, kwargs = self.args, self.kwargs
        if stream.dtype != WIDE:
            args, kwargs = pytree.tree_map(
                lambda each: each.to(stream.dtype) if _is_floating(each) else each, (args, dict(kwargs))
            )
        if self.name is not None:
            return block(*args, **{self.name: stream}, **kwargs)
        return block(stream, *args, **kwargs)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class BlockOnStream(nn.Module):
    """A block as a network of one argument: activations (1, length, width) in, the same out.

    Its parameters have the names that they have in the whole network.

    Args:
        block: with values.
        block_call: how it is called.
        block_name: in the whole network.
    """

    def __init__(self, block: nn.Module, block_call: BlockCall, block_name: str) -> None:
        super().__init__()
        self.block_call, self.block_name = block_call, block_name
        *path, last = block_name.split(".")
        owner: nn.Module = self
        for part in path:
            owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.add_module(last, block)

    @property
    def wrapped(self) -> nn.Module:
        """The block."""
        return self.get_submodule(self.block_name)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream behind the block."""
        return stream_of(self.block_call.run(self.wrapped, stream))


def stream_of(output: Any) -> Tensor:
    """The activations among what a block gives: the first of several.

    Raises:
        ModelError: if it gives something else.
    """
    stream = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(stream, Tensor):
        raise ModelError(f"a block gives {type(stream).__name__}, where activations are needed")
    return stream


def with_stream(output: Any, stream: Tensor) -> Any:
    """What a block gives, with other activations."""
    if isinstance(output, Tensor):
        return stream
    several = (stream, *output[1:])
    return output._make(several) if hasattr(output, "_make") else type(output)(several)
