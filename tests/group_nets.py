"""Networks with coupled groups that the tests of recipes share, small, and how their parts hang together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.models import resnet
from prunekit.recipe import Recipe


def groups(
    score: object = "magnitude", sparsity: float = 0.5, shape: object = (), **settings: object
) -> Recipe:
    """A recipe over coupled groups, half of each in one step by default."""
    chosen = {"name": "group", **dict(shape)}  # type: ignore[call-overload]
    schedule = {"name": "one_shot", "sparsity": sparsity}
    return Recipe.parse(
        {"shape": chosen, "score": score, "schedule": schedule, "allocation": "per_layer", **settings}
    )


def small_resnet(seed: int = 0) -> nn.Module:
    """ResNet-8 of 4, 8 and 16 channels for 3 x 8 x 8 images, with batch norms that do something."""
    torch.manual_seed(seed)
    model = resnet((3, 8, 8), 5, depth=8, width=4)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model.eval()


def images(count: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """3 x 8 x 8 images of 5 classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 5


class Halves(nn.Module):
    """A layer whose two halves go to layers of their own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.both = nn.Linear(6, 8)
        self.left = nn.Linear(4, 3)
        self.right = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.both(x)).chunk(2, -1)
        return self.left(left) + self.right(right)


class Attention(nn.Module):
    """A block of a transformer over 5 tokens of width 12 with 3 heads, then the mean over tokens."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.norm = nn.LayerNorm(12)
        self.query, self.key, self.value = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.out = nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = (
            layer(y).unflatten(-1, (3, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x.mean(1))
