"""What the tests of recipes over units share: recipes, and naive networks whose units can be switched off."""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

import torch
from torch import Tensor, nn

from prunekit.pruning import Session
from prunekit.recipe import Recipe

Removal = tuple[str, int]

ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh)


def units(score: object = "magnitude", steps: int = 1, sparsity: float = 0.5, **settings: object) -> Recipe:
    """A recipe over units, half of them in one step by default."""
    schedule = {"name": "linear", "sparsity": sparsity, "steps": steps}
    return Recipe.parse({"granularity": "unit", "score": score, "schedule": schedule, **settings})


def net(*sizes: int, seed: int = 0, scale: float = 2.5) -> nn.Sequential:
    """Linear layers `0`, `2`, ... with logistic sigmoids between and behind, in float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.Sigmoid()]
    return _louder(nn.Sequential(*layers), scale)


def conv_net(seed: int = 0, scale: float = 2.5) -> nn.Sequential:
    """Two convolutions and a hidden layer, for 1 x 8 x 8 images and 4 classes, in float64."""
    torch.manual_seed(seed)
    return _louder(
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(45, 6),
            nn.ReLU(),
            nn.Linear(6, 4),
        ),
        scale,
    )


def _louder(model: nn.Sequential, scale: float) -> nn.Sequential:
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def data(*shape: int, count: int = 24, classes: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random inputs and class numbers."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(classes, (count,), generator=generator)


@torch.no_grad()
def outputs(model: nn.Sequential, inputs: Tensor, off: Collection[Removal]) -> Tensor:
    """The network with units off: their output is set to zero behind the activation."""
    x, producer = inputs, ""
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.Linear | nn.Conv2d):
            producer = name
        if isinstance(module, ACTIVATIONS):
            for layer, unit in off:
                if layer == producer:
                    x[:, unit] = 0
    return x


def naive_order(
    model: nn.Sequential,
    examples: tuple[Tensor, Tensor],
    error: Callable[[Tensor, Tensor], Tensor],
    count: int,
    floor: int = 1,
) -> list[Removal]:
    """The order in which units go if every one that is left is switched off and the lowest error wins."""
    inputs, targets = examples
    layers = [
        (name, module.weight.shape[0])
        for name, module in model.named_children()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ][:-1]
    off: list[Removal] = []
    for _ in range(count):
        tried = {}
        for layer, size in layers:
            left = [unit for unit in range(size) if (layer, unit) not in off]
            if len(left) > floor:
                for unit in left:
                    now = [*off, (layer, unit)]
                    tried[layer, unit] = float(error(outputs(model, inputs, now), targets))
        off.append(min(tried, key=lambda removal: tried[removal]))
    return off


def walked(session: Session) -> list[Removal]:
    """Run a session and list the units in the order in which they went."""
    order: list[Removal] = []
    before = session.kept
    for _ in session.run():
        for name, kept in session.kept.items():
            order += [(name, unit) for unit in (before[name] & ~kept).nonzero().flatten().tolist()]
        before = session.kept
    return order


def parts_of(model: nn.Sequential, layer: str, unit: int) -> list[Tensor]:
    """A unit's row, its bias and the columns that read it, found by hand in a chain of layers."""
    layers = [(n, m) for n, m in model.named_children() if isinstance(m, nn.Linear | nn.Conv2d)]
    place = [name for name, _ in layers].index(layer)
    (_, own), (_, reader) = layers[place], layers[place + 1]
    repeat = reader.weight.shape[1] // own.weight.shape[0]
    return [
        own.weight[unit].detach(),
        own.bias[unit].detach(),
        reader.weight[:, unit * repeat : (unit + 1) * repeat].detach(),
    ]
