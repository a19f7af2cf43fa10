"""Random chains: their description, drawn by Hypothesis, and networks built from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
F_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
F_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
F_ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
SIDE = {1: 11, 2: 7, 3: 5}

ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "relu": (nn.ReLU, F.relu),
    "in place": (lambda: nn.ReLU(inplace=True), lambda x: F.relu(x, inplace=True)),
    "sigmoid": (nn.Sigmoid, torch.sigmoid),
    "tanh": (nn.Tanh, lambda x: x.tanh()),
    "gelu": (nn.GELU, F.gelu),
    "leaky": (lambda: nn.LeakyReLU(0.2), lambda x: F.leaky_relu(x, 0.2)),
    "silu": (nn.SiLU, F.silu),
    "elu": (nn.ELU, F.elu),
    "softplus": (nn.Softplus, F.softplus),
    "hardswish": (nn.Hardswish, F.hardswish),
    "prelu": (nn.PReLU, lambda x: 0.5 * x + 1),
    "none": (nn.Identity, lambda x: x),
}
FLATTEN: list[Callable[[Tensor], Tensor]] = [
    lambda x: torch.flatten(x, 1),
    lambda x: x.flatten(1),
    lambda x: x.flatten(start_dim=1),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], -1),
    lambda x: x.reshape((x.size()[0], -1)),
]


@dataclass(frozen=True)
class LayerPlan:
    """One layer and what follows it."""

    units: int
    kernel: int
    stride: int
    padding: int
    bias: bool
    norm: str
    activation: str
    pool: str
    dropout: bool


@dataclass(frozen=True)
class ChainPlan:
    """A whole chain; `dims` is 0 for a multilayer perceptron."""

    dims: int
    convs: tuple[LayerPlan, ...]
    linears: tuple[LayerPlan, ...]
    functional: bool
    flatten: int
    last: str
    seed: int


_LAYERS = st.builds(
    LayerPlan,
    units=st.integers(1, 6),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
    norm=st.sampled_from(["", "", "before", "after"]),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    pool=st.sampled_from(["", "", "max", "avg", "adaptive"]),
    dropout=st.booleans(),
)


@st.composite
def chain_plans(draw: st.DrawFn) -> ChainPlan:
    dims = draw(st.sampled_from([0, 0, 1, 2, 2, 3]))
    return ChainPlan(
        dims=dims,
        convs=tuple(draw(st.lists(_LAYERS, min_size=1, max_size=3))) if dims else (),
        linears=tuple(draw(st.lists(_LAYERS, min_size=0 if dims else 1, max_size=3))),
        functional=draw(st.booleans()),
        flatten=draw(st.integers(0, len(FLATTEN) - 1)),
        last=draw(st.sampled_from(["", "", "softmax", "log_softmax"])),
        seed=draw(st.integers(0, 2**16)),
    )


class Steps(nn.Module):
    """Modules and functions in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Any] = []

    def add(self, step: Any, name: str = "") -> None:
        if isinstance(step, nn.Module):
            name = name or f"op{len(self.steps)}"
            self.add_module(name, step)
            self.steps.append(name)
        else:
            self.steps.append(step)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = getattr(self, step)(x) if isinstance(step, str) else step(x)
        return x


@dataclass
class Built:
    """A network, an input, and for each hidden layer the name of the layer that reads its units."""

    model: Steps
    inputs: Tensor
    units: dict[str, int]
    reader: dict[str, str]


def build(plan: ChainPlan, dtype: torch.dtype) -> Built:
    torch.manual_seed(plan.seed)
    shape = (2, *[SIDE[plan.dims]] * plan.dims) if plan.dims else (5,)
    inputs = torch.randn(3, *shape)
    model = Steps()
    layers: list[tuple[str, int]] = []
    x = inputs
    for number, layer in enumerate(plan.convs):
        x = _add_conv(model, f"conv{number}", layer, plan, x)
        layers.append((f"conv{number}", layer.units))
    if plan.dims:
        model.add(FLATTEN[plan.flatten] if plan.functional else nn.Flatten())
        x = x.flatten(1)
    for number, layer in enumerate(plan.linears):
        model.add(nn.Linear(x.shape[1], layer.units, bias=layer.bias), f"linear{number}")
        _add_rest(model, layer, plan, 0)
        layers.append((f"linear{number}", layer.units))
        x = torch.zeros(1, layer.units)
    model.add(nn.Linear(x.shape[1], 3), "last")
    if plan.last:
        model.add(_Last(plan.last) if plan.functional else _last(plan.last))
    _disturb(model)
    names = [name for name, _ in layers] + ["last"]
    reader = dict(pairwise(names))
    return Built(model.to(dtype).eval(), inputs.to(dtype), dict(layers), reader)


def _add_conv(model: Steps, name: str, layer: LayerPlan, plan: ChainPlan, x: Tensor) -> Tensor:
    kernel = min(layer.kernel, x.shape[2] + 2 * layer.padding)
    conv = CONV[plan.dims](x.shape[1], layer.units, kernel, layer.stride, layer.padding, bias=layer.bias)
    model.add(conv, name)
    _add_rest(model, layer, plan, plan.dims)
    with torch.no_grad():
        x = conv(x)
    if layer.pool == "adaptive":
        model.add(_Adaptive(plan.dims) if plan.functional else ADAPTIVE[plan.dims](2))
        return ADAPTIVE[plan.dims](2)(x)
    if layer.pool and x.shape[2] >= 2:
        functions, modules = (F_MAX, MAX) if layer.pool == "max" else (F_AVG, AVG)
        model.add(_Pool(functions[plan.dims]) if plan.functional else modules[plan.dims](2))
        return MAX[plan.dims](2)(x)
    return x


def _add_rest(model: Steps, layer: LayerPlan, plan: ChainPlan, dims: int) -> None:
    module, function = ACTIVATIONS[layer.activation]
    if layer.norm == "before":
        model.add(NORM[dims](layer.units))
    model.add(function if plan.functional else module())
    if layer.norm == "after":
        model.add(NORM[dims](layer.units))
    if layer.dropout:
        model.add(_Dropout(model) if plan.functional else nn.Dropout(0.5))


class _Dropout:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=self.model.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Dropout:
        return _Dropout(memo[id(self.model)])  # the copy's own mode


@dataclass
class _Pool:
    function: Any

    def __call__(self, x: Tensor) -> Tensor:
        return self.function(x, 2)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pool:
        return self


@dataclass
class _Adaptive:
    dims: int

    def __call__(self, x: Tensor) -> Tensor:
        return F_ADAPTIVE[self.dims](x, 2)


@dataclass
class _Last:
    name: str

    def __call__(self, x: Tensor) -> Tensor:
        return getattr(F, self.name)(x, dim=1)


def _last(name: str) -> nn.Module:
    return nn.Softmax(dim=1) if name == "softmax" else nn.LogSoftmax(dim=-1)


@torch.no_grad()
def _disturb(model: nn.Module) -> None:
    """Batch norms as after training, not the identity."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            module.weight.normal_()
            module.bias.normal_()
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]


def switched_off(built: Built, kept: dict[str, Tensor], x: Tensor) -> Tensor:
    """The network's output with units off: what their reader is given is set to zero by hand."""
    handles = []
    for name, flags in kept.items():

        def off(module: nn.Module, given: tuple[Tensor], flags: Tensor = flags) -> tuple[Tensor]:
            (values,) = given
            gains = flags.to(values.dtype)
            parts = values.reshape(values.shape[0], len(flags), -1) * gains[None, :, None]
            return (parts.reshape(values.shape),)

        handles.append(getattr(built.model, built.reader[name]).register_forward_pre_hook(off))
    with torch.no_grad():
        output = built.model(x)
    for handle in handles:
        handle.remove()
    return output
