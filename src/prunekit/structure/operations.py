"""Operations that a chain can hold, and what they do to its units."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from prunekit.structure.chain import Stage


class Kind(Enum):
    """The ways in which an operation treats units.

    LAYER mixes all units into new ones; NORM has numbers of its own for each unit; POOL works on
    the positions of each unit; FLATTEN lays positions beside units; POINTWISE sees each number alone; SIDE
    mixes units and may only stand before the first layer or after the last one.
    """

    LAYER = auto()
    NORM = auto()
    POOL = auto()
    FLATTEN = auto()
    POINTWISE = auto()
    SIDE = auto()


@dataclass(frozen=True)
class Operation:
    """One operation of a chain.

    Attributes:
        kind: what it does to units.
        stage: the operation itself.
        note: for SIDE, why it cannot stand between layers; for FLATTEN, the number written into `forward`.
    """

    kind: Kind
    stage: Stage
    note: str = ""


Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

POOL_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
)  # fmt: skip

POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Hardswish, nn.Tanh, nn.Hardtanh, nn.Tanhshrink, nn.Softsign,
    nn.Softshrink, nn.Hardshrink, nn.Threshold, nn.Identity,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip

SIDE_MODULES: dict[type[nn.Module], str] = {
    nn.Softmax: "mixes units",
    nn.LogSoftmax: "mixes units",
    nn.LayerNorm: "has statistics that mix units, so that a unit that is off still counts",
    nn.GroupNorm: "has statistics that mix units, so that a unit that is off still counts",
    nn.LocalResponseNorm: "has statistics that mix units, so that a unit that is off still counts",
    nn.Unflatten: "lays units out in a new shape",
}


def _functions(names: str, *places: Any) -> frozenset[Any]:
    return frozenset(
        getattr(place, name) for name in names.split() for place in places if hasattr(place, name)
    )


_POOL_NAMES = "max_pool{0}d avg_pool{0}d adaptive_max_pool{0}d adaptive_avg_pool{0}d"
POOL_FUNCTIONS = frozenset[Any]().union(
    *(_functions(_POOL_NAMES.format(dims), torch, F) for dims in (1, 2, 3))
)
_SAME_METHODS = (
    "relu relu_ sigmoid sigmoid_ tanh tanh_ abs square exp sin cos neg clamp clamp_ clip contiguous clone"
)
POINTWISE_METHODS = frozenset(_SAME_METHODS.split())
POINTWISE_FUNCTIONS = _functions(
    _SAME_METHODS
    + " relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish softplus logsigmoid"
    " hardsigmoid hardswish hardtanh hardtanh_ tanhshrink softsign softshrink hardshrink threshold",
    torch,
    F,
)
ARITHMETIC = frozenset[Any]((operator.add, operator.sub, operator.mul, torch.add, torch.sub, torch.mul)) | {
    operator.neg
}
DIVISIONS = frozenset[Any]((operator.truediv, torch.div))  # the number must stand below
POOL_NAMES = frozenset(name for dims in (1, 2, 3) for name in _POOL_NAMES.format(dims).split())
_OPERATORS = (
    "relu sigmoid tanh abs square exp sin cos neg clamp clip contiguous clone detach alias"
    " relu6 leaky_relu elu selu celu gelu silu mish softplus log_sigmoid hardsigmoid hardswish hardtanh"
    " softshrink hardshrink threshold add sub rsub mul div pow"
)
POINTWISE_NAMES = frozenset(_OPERATORS.split())
"""The same operators by the names that a captured graph gives them."""
DROPOUT_FUNCTIONS = _functions("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", F)
SOFTMAX_FUNCTIONS = _functions("softmax log_softmax", torch, F)

_FORWARDS: tuple[tuple[type[nn.Module], Callable[..., Any]], ...] = tuple(
    (kind, kind.forward) for kind in (*LAYERS, *NORMS)
)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one operation: a layer or a batch norm, subclasses included."""
    return isinstance(module, LAYERS + NORMS)


def own_forward(module: nn.Module) -> bool:
    """Whether a layer or batch norm computes something else than PyTorch's."""
    return not any(
        isinstance(module, kind) and type(module).forward is forward for kind, forward in _FORWARDS
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
