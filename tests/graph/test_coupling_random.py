"""Random networks of sums, concatenations, splits, groups, reshapes and products: each is proven."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import number_of_examples
from prunekit.graph import prune_groups, traced

SIZE = 4  # of the images
STEPS = ("conv", "grouped", "add", "concat", "halves", "uneven", "shuffle", "product", "norm", "flip", "gate")


class Drawn(nn.Module):
    """Branches of a list; each step reads some of them by number and appends one."""

    def __init__(self, steps: list[tuple[str, int, int, int]]) -> None:
        super().__init__()
        self.steps: list[tuple[str, int, int, str]] = []
        self.layers = nn.ModuleDict()
        widths = [6]
        self.layers["stem"] = nn.Conv2d(3, 6, 3, padding=1)
        for number, (kind, a, b, width) in enumerate(steps):
            a, b = a % len(widths), b % len(widths)
            kind, layers, made = self._step(kind, widths[a], widths[b], width)
            name = f"{kind}{number}"
            for part, layer in layers.items():
                self.layers[name + part] = layer
            self.steps.append((kind, a, b, name))
            widths.append(made)
        self.last = nn.Linear(sum(widths[-2:]), 4)

    def _step(self, kind: str, a: int, b: int, width: int) -> tuple[str, dict[str, nn.Module], int]:
        if kind == "conv":
            return kind, {"": nn.Conv2d(a, width, 3, padding=1)}, width
        if kind == "grouped":
            groups = 2 if a % 2 == 0 else 1
            return kind, {"": nn.Conv2d(a, 2 * width, 1, groups=groups)}, 2 * width
        if kind == "add":
            return kind, {"": nn.Conv2d(a, b, 1)}, b
        if kind == "concat":
            return (kind, {}, a + b) if a + b <= 24 else ("conv", {"": nn.Conv2d(a, 4, 1)}, 4)
        if kind == "halves" and a % 2 == 0:
            return kind, {}, a // 2
        if kind == "uneven" and a > 2:
            return kind, {"": nn.Conv2d(a - 2, 2, 1)}, 2
        if kind == "shuffle" and a % 2 == 0:
            return kind, {}, a
        if kind == "product":
            return kind, {"left": nn.Conv2d(a, width, 1), "right": nn.Conv2d(b, width, 1)}, width
        if kind == "gate":
            return kind, {"": nn.Conv2d(a, a, 1)}, a
        if kind == "flip":
            return kind, {}, a
        return "norm", {"": nn.BatchNorm2d(a)}, a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [self.layers["stem"](x)]
        for kind, a, b, name in self.steps:
            values.append(self._run(kind, values[a], values[b], name))
        return self.last(torch.cat([value.mean((2, 3)) for value in values[-2:]], 1))

    def _run(self, kind: str, a: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
        n, c, h, w = a.shape
        layers = self.layers
        if kind in ("conv", "grouped"):
            return torch.relu(layers[name](a))
        if kind == "norm":
            return torch.tanh(layers[name](a))
        if kind == "add":
            return torch.relu(layers[name](a) + b)
        if kind == "concat":
            return torch.cat([a, b], 1)
        if kind == "halves":
            left, right = a.chunk(2, 1)
            return left + right.tanh()
        if kind == "uneven":
            left, right = a.split([2, c - 2], 1)
            return left * layers[name](right)
        if kind == "shuffle":
            return a.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if kind == "flip":
            return a.flip(1)
        if kind == "gate":
            return a * torch.sigmoid(layers[name](a.mean((2, 3), keepdim=True)))
        left = layers[name + "left"](a).flatten(2)
        right = layers[name + "right"](b).flatten(2)
        shares = torch.softmax(left.transpose(1, 2) @ right, -1)
        return (left @ shares).view(n, -1, h, w)


drawn_steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 30), st.integers(0, 30), st.integers(2, 6)),
    min_size=1,
    max_size=6,
)


@number_of_examples(30)
@given(drawn_steps, st.booleans(), st.integers(0, 2**31 - 1))
def test_random_networks(steps: list[Any], residual: bool, seed: int) -> None:
    torch.manual_seed(seed)
    model = Drawn(steps).eval()
    inputs = torch.randn(2, 3, SIZE, SIZE)
    plan = traced(model, inputs, residual=residual).plan
    if not plan.prunable:
        assert plan.frozen
        return
    before = sum(parameter.numel() for parameter in model.parameters())
    result = prune_groups(model, inputs, 0.5, residual=residual)
    assert result.deviation.accepted
    assert result.parameters_before == before
    if any(group.after < group.before for group in result.groups):
        assert result.parameters_after < before
    assert torch.isfinite(result.model(inputs)).all()
