"""Networks of three layers that are no chain, with the reason that both ways to read a chain give."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Three layers; subclasses say how they are connected."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.wide = nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.ones(4))


class Residual(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.c(x + self.b(x))


class Concatenated(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.wide(torch.cat([x, torch.relu(self.b(x))], dim=1))


class TwoInputs(Net):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(self.a(x) + self.b(y))


class TwoOutputs(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.a(x)
        return self.b(x), self.c(x)


class Shared(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(torch.relu(self.a(x))))


class Scaled(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.scale)


class SoftmaxInside(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.softmax(self.a(x), dim=1))


class AlwaysDrops(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x)))


class Flipped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).flip(1))


class Reshaped(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(x.size(0), 2, 2).flatten(1))


class FunctionalLayer(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.a(x), self.b.weight)


class Dictionary(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.a(x)}


REFUSED = {
    Residual: "its output feeds the sum 'add' together with 'b'",
    Concatenated: "its output feeds the concatenation 'cat' together with 'b'",
    TwoOutputs: "its output is used twice, by 'b' and 'c'",
    Shared: "it is used twice",
    Scaled: "its output feeds the product 'mul' together with the parameter or buffer 'scale'",
    SoftmaxInside: "its output feeds 'softmax()', which mixes units",
    AlwaysDrops: "its output feeds 'dropout()', which drops units in evaluation, too",
    Flipped: "its output feeds 'flip()', which is none of the operations that a chain can hold",
    Reshaped: "its output feeds 'view()', which lays units out in a new shape",
    FunctionalLayer: "its output feeds 'linear()' together with the parameter or buffer 'b.weight'",
    Dictionary: "the model returns something other than one tensor",
}
"""What each is refused for: `a` is the last layer before what a chain cannot hold."""
