"""The arguments of a graph's operators as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from prunekit.errors import ModelError
from prunekit.saving.dtypes import DTYPES

_KINDS: dict[str, tuple[type, frozenset[str]]] = {
    "dtype": (torch.dtype, frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES)),
    "layout": (torch.layout, frozenset({"strided"})),
    "memory_format": (
        torch.memory_format,
        frozenset({"contiguous_format", "preserve_format", "channels_last", "channels_last_3d"}),
    ),
}
"""What is written by its name in torch: its class, and the names that are allowed."""


def value_to_json(value: Any, places: Mapping[fx.Node, int]) -> Any:
    """A value with the places of nodes; what JSON has not is a mapping of one entry.

    Raises:
        ModelError: for a value of another kind.
    """
    if isinstance(value, fx.Node):
        return {"node": places[value]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [value_to_json(item, places) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [value_to_json(item, places) for item in value]}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return {"slice": [value_to_json(part, places) for part in parts]}
    if isinstance(value, torch.device):
        return {"device": value.type}
    for name, (kind, allowed) in _KINDS.items():
        if isinstance(value, kind) and str(value).removeprefix("torch.") in allowed:
            return {name: str(value).removeprefix("torch.")}
    raise ModelError(f"the network cannot be saved as a graph: it holds a {type(value).__name__}")


def value_from_json(saved: Any, nodes: Sequence[fx.Node]) -> Any:
    """The inverse. What was on any device is on the CPU, where weights are loaded to.

    Raises:
        ValueError: for what is no value.
    """
    if saved is None or isinstance(saved, bool | int | float | str):
        return saved
    if isinstance(saved, list):
        return [value_from_json(item, nodes) for item in saved]
    if isinstance(saved, dict) and len(saved) == 1:
        ((kind, inside),) = saved.items()
        if kind == "node" and type(inside) is int and 0 <= inside < len(nodes):
            return nodes[inside]
        if kind == "tuple" and isinstance(inside, list):
            return tuple(value_from_json(item, nodes) for item in inside)
        if kind == "slice" and isinstance(inside, list) and len(inside) == 3:
            return slice(*(value_from_json(item, nodes) for item in inside))
        if kind == "float" and inside in ("inf", "-inf", "nan"):
            return float(inside)
        if kind == "device":
            return torch.device("cpu")
        if kind in _KINDS and inside in _KINDS[kind][1]:
            return getattr(torch, inside)
    raise ValueError(f"{str(saved)[:60]!r} is no value of a graph")
