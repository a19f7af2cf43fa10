"""Small networks and data that the tests of the core share."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from prunekit.recipe import Recipe

State = dict[str, Tensor]


def mlp(*sizes: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers `0`, `2`, `4`, ... with ReLU between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


class Residual(nn.Module):
    """A branch of linear layers around which 6 units go, for 10 inputs and 3 classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.inner, self.two, self.last = (
            nn.Linear(10, 6), nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        logits: Tensor = self.last(x + self.two(self.inner(x).relu()))
        return logits


def convnet(seed: int = 0, channels: int = 8) -> nn.Sequential:
    """Two convolutions with batch normalisation and a linear layer, for 4 x 6 x 6 inputs and 3 classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 3),
    )


class Tied(nn.Module):
    """An embedding whose weight is the output layer's as well, and a layer between."""

    def __init__(self, words: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.middle = nn.Linear(width, width)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(torch.relu(self.middle(self.embed(tokens).mean(1))))


def blobs(
    count: int = 96, inputs: int = 10, classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Gaussian classes that a small network can tell apart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, inputs, generator=generator)
    return (centres[targets] + 0.5 * torch.randn(count, inputs, generator=generator)).to(dtype), targets


def images(count: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs for `convnet`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 4, 6, 6, generator=generator), torch.randint(3, (count,), generator=generator)


def recipe(**settings: object) -> Recipe:
    """A recipe of plain values as YAML would give them; half of the weights in one step by default."""
    return Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}, **settings})


def copied(model: nn.Module) -> State:
    """The values of the model's state now."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: State, other: State) -> bool:
    """Whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def zeros(model: nn.Module, name: str) -> int:
    """The number of zeros of a parameter."""
    return int((model.get_parameter(name) == 0).sum())
