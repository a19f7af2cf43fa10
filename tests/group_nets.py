"""Networks with coupled groups that the tests of recipes share, small, and how their parts hang together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from prunekit.batches import Inputs, arguments
from prunekit.graph import Coupled, Group, traced, unit_masks
from prunekit.losses import Loss
from prunekit.models import ResNet
from prunekit.recipe import Recipe
from zoo import made

NETWORKS = ["resnet-20", "halves", "unet", "mobilenet-v2", "densenet", "resnext"]
NETWORKS += ["hf-bert", "hf-llama", "hf-gpt2"]
"""Networks of which `small` has a small form: with streams, concatenations, groups and heads."""


def groups(
    score: object = "magnitude", sparsity: float = 0.5, granularity: object = (), **settings: object
) -> Recipe:
    """A recipe over coupled groups, half of each in one step by default."""
    chosen = {"name": "unit", **dict(granularity)}  # type: ignore[call-overload]
    schedule = {"name": "one_shot", "sparsity": sparsity}
    return Recipe.parse(
        {"granularity": chosen, "score": score, "schedule": schedule, "allocation": "per_layer", **settings}
    )


def small_resnet(seed: int = 0, depth: int = 8) -> nn.Module:
    """ResNet-8 of 4, 8 and 16 channels for 3 x 8 x 8 images, with batch norms that do something."""
    torch.manual_seed(seed)
    model = ResNet((3, 8, 8), 5, depth=depth, width=4)
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


def small(name: str) -> tuple[nn.Module, Tensor]:
    """A network of `NETWORKS` in float64, and what it is run on."""
    if name == "resnet-20":
        return small_resnet(depth=20).double(), images(3)[0].double()
    if name == "halves":
        return Halves().double().eval(), torch.randn(6, 6, dtype=torch.float64)
    model, inputs = made(name)
    return model.double(), inputs["input_ids"] if isinstance(inputs, dict) else inputs.double()


def coupled_of(name: str, chosen: Collection[str] = ()) -> tuple[Coupled, Tensor]:
    """The groups of such a network that a layer reads, or those chosen, with what it is run on."""
    model, inputs = small(name)
    found = traced(model, inputs, residual=name != "hf-gpt2")  # whose embedding reads its stream, too
    read = [group.name for group in found.plan.prunable if any(m.role == "consumer" for m in group.members)]
    return Coupled(model, found, tuple(chosen or read), inputs), inputs


@contextmanager
def given_to(model: nn.Module, layers: Collection[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What these layers are given while the network runs, by their names, one tensor for each call."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def keep(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name].append(args[0].detach())

    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(keep, name)) for name in layers]
    yield found
    for hook in hooks:
        hook.remove()


def all_groups(model: nn.Module, inputs: Inputs, *, residual: bool = True) -> Coupled:
    """All groups of a network that can lose units, traced on these inputs."""
    found = traced(model, inputs, residual=residual)
    return Coupled(model, found, tuple(group.name for group in found.plan.prunable), inputs)


def naive_changes(
    coupled: Coupled, inputs: Inputs, targets: Tensor, error: Loss, units: int | None = None
) -> dict[str, Tensor]:
    """Set all that goes with a unit to zero, run the whole network, put it back; the first units, or all."""
    args, kwargs = arguments(inputs)
    found = {}
    with torch.no_grad():
        now = error(coupled.model(*args, **kwargs), targets)
        for group in coupled.groups:
            changes = []
            for unit in range(group.units)[:units]:
                flags = torch.arange(group.units) != unit
                masks = unit_masks(coupled.model, coupled.traced.plan, {group.name: flags})
                before = {name: coupled.model.get_parameter(name).clone() for name in masks}
                masks.apply(coupled.model)
                changes.append(error(coupled.model(*args, **kwargs), targets) - now)
                for name, value in before.items():
                    coupled.model.get_parameter(name).copy_(value)
            found[group.name] = torch.stack(changes).double()
    return found


def gained(coupled: Coupled, group: Group, gains: Tensor, rows: Sequence[str] = ()) -> dict[str, Tensor]:
    """The parameters with what reads a unit multiplied by its gain.

    Args:
        coupled: the network and its groups.
        group: one of them.
        gains: (units,).
        rows: the layers that make the units, where no weights read them: of these the rows and biases.
    """
    found = {}
    for member in group.members:
        layer = member.tensor.rpartition(".")[0]
        if member.role == "consumer" or (layer in rows and member.dim == 0):
            weight = coupled.model.get_parameter(member.tensor).detach()
            factors: list[Tensor] = [torch.ones((), dtype=weight.dtype)] * weight.shape[member.dim]
            for unit, entries in enumerate(member.indices):
                for entry in entries:
                    factors[entry] = gains[unit]
            shape = [-1 if dim == member.dim else 1 for dim in range(weight.dim())]
            found[member.tensor] = weight * torch.stack(factors).view(shape)
    return found
