"""All values of a network, to be put back where something fails."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Snapshot:
    """A copy of the parameters and buffers of a network; those that are in no state dict, too.

    Args:
        model: the network.
        parameters: whether the parameters are copied, or buffers alone.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = True) -> None:
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self._copies: dict[int, Tensor] = {}
        for module in model.modules():
            tables = (module._parameters, module._buffers) if parameters else (module._buffers,)
            for table in tables:
                for name, value in table.items():
                    if value is not None:
                        self._places.append((table, name, value))  # type: ignore[arg-type]
                        if id(value) not in self._copies:
                            self._copies[id(value)] = value.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back: the same tensors, with the same bits."""
        for table, name, value in self._places:
            if not _is_expanded(value):
                value.detach().copy_(self._copies[id(value)])
            if table.get(name) is not value:
                table[name] = value


def _is_expanded(value: Tensor) -> bool:
    """Elements that share memory: torch itself lets nobody write to them."""
    return any(not stride and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
