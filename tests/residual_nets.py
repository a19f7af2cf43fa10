"""Small residual networks, and one that skips blocks by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit import Masks
from prunekit.graph import captured_blocks
from prunekit.models import ResNet


class Plain(nn.Module):
    """Two convolutions and a linear layer, without a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class Residual(nn.Module):
    """x + an MLP of x."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class InplaceBlock(nn.Module):
    """As torchvision writes it, everything in place; or with the activation first, on the shortcut, too."""

    def __init__(self, width: int, preactivated: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.preactivated = preactivated

    def forward(self, x: Tensor) -> Tensor:
        if self.preactivated:
            x = self.relu(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x
        return out if self.preactivated else self.relu(out)


class Inplace(nn.Module):
    """Three such blocks."""

    def __init__(self, width: int = 6, preactivated: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(InplaceBlock(width, preactivated) for _ in range(3)))
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Skipping(nn.Module):
    """A `ResNet` whose forward is written out, with a gain on what each block adds.

    Attributes:
        model: the network.
        gains: by the block's name; 1 for those that are left out.
    """

    def __init__(self, model: ResNet, gains: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.gains = model, gains

    def forward(self, x: Tensor) -> Tensor:
        net = self.model
        x = F.relu(net.bn1(net.conv1(x)))
        for stage in (1, 2, 3):
            for number, block in enumerate(net.get_submodule(f"stage{stage}")):
                gain = self.gains.get(f"stage{stage}.{number}", torch.ones(()))
                added = 0.0
                if bool(gain != 0):
                    added = gain * block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
                x = F.relu(block.shortcut(x) + added)
        return net.fc(x.mean((2, 3)))


def skipping(model: ResNet, names: list[str]) -> Skipping:
    """The network without some of its blocks."""
    return Skipping(model, {name: torch.zeros(()) for name in names})


def names(model: nn.Module, inputs, **settings) -> list[str]:
    return [block.name for block in captured_blocks(model, inputs, **settings)[1]]


def without(model: nn.Module, inputs, *removed: str, whole: bool = False) -> Masks:
    """Masks that remove all parameters of these blocks, which are listed by the graph."""
    blocks = {block.name: block for block in captured_blocks(model, inputs, whole=whole)[1]}
    own = dict(model.named_parameters())
    tensors = [name for block in removed for name in blocks[block].tensors if name in own]
    return Masks({name: torch.zeros_like(own[name], dtype=torch.bool) for name in tensors})
