"""Small networks with data, and the naive ways to look at their units, that the tests here share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.graph import Chain, chain_of
from prunekit.losses import absolute_error, squared_error


def mlp(
    sizes: list[int], act: type[nn.Module] = nn.Sigmoid, last: Callable[[], nn.Module] | None = None
) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1], *([last()] if last else []))


def lenet(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Convolution -> convolution -> flatten -> linear, as LeNet-5, for images 12 x 12."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        act(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 8),
        act(),
        nn.Linear(8, 4),
    )


def odd() -> nn.Module:
    """Everything that the fast forms do not know, or that has a trap in it."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same", padding_mode="circular"),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 3, dilation=2),
        nn.Identity(),
        nn.Conv2d(5, 6, (3, 2), stride=(2, 1), padding="valid", bias=False),
        nn.SELU(),
        nn.AvgPool2d(3, 2),
        nn.Flatten(),
        nn.Linear(18, 7, bias=False),
        nn.BatchNorm1d(7),
        nn.Tanh(),
        nn.Dropout(),
        nn.Linear(7, 6),
        nn.Linear(6, 4),
        nn.LogSoftmax(1),
    )


class Functions(nn.Module):
    """Activations as functions, and linear layers on (N, steps, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 5)
        self.b = nn.Linear(5, 7)
        self.c = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(torch.tanh(self.a(x))), inplace=True)
        return torch.sigmoid(self.c(x))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1 hidden": (lambda: mlp([9, 8, 4], last=nn.Sigmoid), (9,)),
    "2 hidden": (lambda: mlp([9, 8, 7, 4], nn.Tanh), (9,)),
    "5 hidden": (lambda: mlp([9, 8, 7, 8, 6, 7, 4], last=nn.Sigmoid), (9,)),
    "softmax": (lambda: mlp([9, 8, 7, 4], nn.GELU, last=lambda: nn.Softmax(1)), (9,)),
    "no activation": (lambda: mlp([9, 8, 7, 4], nn.Identity), (9,)),
    "functions": (Functions, (6,)),
    "conv": (lenet, (1, 12, 12)),
    "odd": (odd, (1, 12, 12)),
}
ERRORS = {
    "squared": squared_error,
    "xent": F.cross_entropy,
    "linear": absolute_error,
    "other": lambda o, t: F.cross_entropy(o, t, label_smoothing=0.1),
}


def made(name: str, examples: int = 30, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """(network in evaluation mode, inputs, class numbers), in float64; the weights are large."""
    torch.manual_seed(seed)
    build, shape = NETS[name]
    net = build().double()
    with torch.no_grad():
        for each in net.parameters():
            each.mul_(2.5)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    net.eval().requires_grad_(False)
    return net, torch.randn(examples, *shape, dtype=torch.float64), torch.randint(0, 4, (examples,))


_read: WeakKeyDictionary[nn.Module, Chain] = WeakKeyDictionary()


def read(net: nn.Module) -> Chain:
    """The network with its inputs, traced once: these loops ask for it thousands of times."""
    if net not in _read:
        _read[net] = chain_of(net, inputs=True)
    return _read[net]


def naive_changes(
    net: nn.Module, inputs: Tensor, targets: Tensor, error: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Set a unit's outgoing weights to zero, run the whole network, put them back."""
    changes = {}
    with torch.no_grad():
        before = float(error(net(inputs), targets))
        for group in read(net).groups:
            weight = net.get_parameter(f"{group.consumer}.weight")
            found = []
            for unit in range(group.units):
                saved = weight.clone()
                weight[:, unit * group.repeat : (unit + 1) * group.repeat] = 0
                found.append(float(error(net(inputs), targets)) - before)
                weight.copy_(saved)
            changes[group.name] = torch.tensor(found, dtype=torch.float64)
    return changes


def error_at(
    net: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    error: Callable[[Tensor, Tensor], Tensor],
    name: str,
    unit: int,
    gain: float,
) -> float:
    """The error with a unit's outgoing weights multiplied by a gain: the same as multiplying the unit."""
    group = read(net).group(name)
    weight = net.get_parameter(f"{group.consumer}.weight")
    with torch.no_grad():
        saved = weight.clone()
        weight[:, unit * group.repeat : (unit + 1) * group.repeat] *= gain
        found = float(error(net(inputs), targets))
        weight.copy_(saved)
    return found
