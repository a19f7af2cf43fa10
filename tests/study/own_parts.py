"""A user's own score and model, as `own_parts:...` in a study."""

import time

import torch
from torch import nn

from prunekit.parts.scores import Score


class Fussy(Score):
    """Refuses the second step."""

    name = "fussy"

    def __call__(self, context):
        if any(bool((weight == 0).any()) for weight in context.weights.values()):
            raise RuntimeError("I do not like\nzeros")
        return {name: weight.abs() for name, weight in context.weights.items()}


class Sleepy(Score):
    """Hangs at the second step."""

    name = "sleepy"

    def __call__(self, context):
        while any(bool((weight == 0).any()) for weight in context.weights.values()):
            time.sleep(1000)
        return {name: weight.abs() for name, weight in context.weights.items()}


class Linear(nn.Sequential):
    """Takes nothing from the data."""

    def __init__(self, inputs: int = 4, value: float = 0.1):
        super().__init__(nn.Linear(inputs, 3))
        with torch.no_grad():
            self[0].weight.fill_(value)


def linear(inputs: int = 4) -> nn.Module:
    return Linear(inputs)


def not_a_number() -> nn.Module:
    return Linear(value=float("nan"))


class Around(nn.Module):
    """A shortcut around a layer: no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.outer(x + self.inner(x).relu())


def around() -> nn.Module:
    return Around()


class Deep(nn.Module):
    """Two shortcuts around branches of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 4)) for width in (3, 5, 6, 7)
        )
        self.outer = nn.Linear(4, 3)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return self.outer(x)


class Seven(nn.Linear):
    """A network of seven classes."""

    def __init__(self) -> None:
        super().__init__(4, 7)


class Strip(nn.Sequential):
    """A convolution along the four measurements of a flower."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 6, 4, padding=2), nn.Flatten(), nn.Linear(30, 3)
        )
