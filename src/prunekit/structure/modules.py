"""Modules, as operations of a chain."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from prunekit.structure.operations import (
    LAYERS,
    NORMS,
    POINTWISE_MODULES,
    POOL_MODULES,
    SIDE_MODULES,
    Kind,
    own_forward,
)


def module_operation(module: nn.Module) -> tuple[Kind, str] | str:
    """What a module does to units, with a note as in `Operation`; or why a chain cannot hold it."""
    if is_parametrized(module):
        return "it is parametrized, so its weight is no parameter of its own"
    if isinstance(module, LAYERS + NORMS):
        return _with_weights(module)
    if isinstance(module, POOL_MODULES):
        return "it returns indices, too" if getattr(module, "return_indices", False) else (Kind.POOL, "")
    if isinstance(module, POINTWISE_MODULES):
        return Kind.POINTWISE, ""
    if isinstance(module, nn.PReLU):
        if module.num_parameters == 1:
            return Kind.POINTWISE, ""
        return "its slopes differ between units, which is not followed: use one slope"
    if isinstance(module, nn.Flatten):
        if (module.start_dim, module.end_dim) != (1, -1):
            return "it does not flatten all but the first dimension"
        return Kind.FLATTEN, ""
    for kind, note in SIDE_MODULES.items():
        if isinstance(module, kind):
            return Kind.SIDE, note
    return "a chain holds linear, convolution, batch norm, pooling, flatten, activation and dropout layers"


def _with_weights(module: nn.Module) -> tuple[Kind, str] | str:
    if own_forward(module):
        return "its class computes something of its own in forward"
    missing = [short for short in ("weight", "bias") if short not in module._parameters]
    if missing:
        return f"its {missing[0]} is no plain parameter, as after weight_norm or torch.nn.utils.prune"
    return (Kind.LAYER if isinstance(module, LAYERS) else Kind.NORM), ""


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """For each parameter that shares its numbers with another, by full name, the other's full name."""
    names: dict[Any, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # two parameters may also be made on the same memory; where there is none (meta), all are at 0
        place: Any = (parameter.data_ptr(), parameter.shape) if parameter.numel() else 0
        if not place or not place[0]:
            place = id(parameter)
        names.setdefault(place, []).append(name)
    return {
        name: next(other for other in same if other != name)
        for same in names.values()
        if len(same) > 1
        for name in same
    }
