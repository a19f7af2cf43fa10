"""Scores by the size of inputs, of a transformer whose layers are measured behind those that are pruned."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from prunekit import Recipe, methods, prune
from prunekit.models.char_transformer import CharTransformer

TOKENS = torch.randint(0, 10, (40, 8), generator=torch.Generator().manual_seed(0))
TARGETS = TOKENS.roll(-1, 1)
Keep = Callable[[str, np.ndarray, np.ndarray], np.ndarray]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = CharTransformer((8,), 10, width=16, heads=2, layers=2).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def loop(model: nn.Module, keep: Keep) -> dict[str, np.ndarray]:
    """One linear layer after the other: its inputs in the network as it is by then, then its mask."""
    model, masks = copy.deepcopy(model), {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            seen: list[torch.Tensor] = []
            handle = layer.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
            model(TOKENS)
            handle.remove()
            norms = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).norm(dim=0).numpy()
            masks[f"{name}.weight"] = keep(name, layer.weight.abs().numpy(), norms)
            layer.weight.mul_(torch.from_numpy(masks[f"{name}.weight"]))
    return masks


def all_but_least(scores: np.ndarray, count: int) -> np.ndarray:
    mask = np.ones(scores.size, dtype=bool)
    mask[np.argsort(scores, axis=None, kind="stable")[:count]] = False
    return mask.reshape(scores.shape)


def by_wanda(name: str, sizes: np.ndarray, norms: np.ndarray) -> np.ndarray:
    return np.stack([all_but_least(row * norms, row.size // 2) for row in sizes])


def by_ria(name: str, sizes: np.ndarray, norms: np.ndarray) -> np.ndarray:
    shares = sizes / sizes.sum(0, keepdims=True) + sizes / sizes.sum(1, keepdims=True)
    return all_but_least(shares * np.sqrt(norms), sizes.size // 2)


def forward(recipe: Recipe) -> Recipe:
    return Recipe.parse({**recipe.to_dict(), "order": "forward"})


def masks_of(model: nn.Module, recipe: Recipe) -> dict[str, np.ndarray]:
    masks = prune(copy.deepcopy(model), recipe, (TOKENS, TARGETS)).masks
    return {name: mask.numpy() for name, mask in masks.items()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    assert found.keys() == expected.keys()
    return all(np.array_equal(found[name], mask) for name, mask in expected.items())


@pytest.mark.parametrize(("method", "keep"), [(methods.wanda, by_wanda), (methods.ria, by_ria)])
def test_with_the_order_forward_each_layer_is_measured_behind_the_pruned_ones(model, method, keep):
    expected = loop(model, keep)
    assert len(expected) > 8
    assert same(masks_of(model, forward(method(0.5))), expected)
    assert not same(masks_of(model, method(0.5)), expected)


def test_owl_has_its_numbers_from_the_dense_network_and_then_goes_through_the_layers(model):
    dense = prune(copy.deepcopy(model), methods.owl_wanda(0.5), (TOKENS, TARGETS))
    removed = {name: int((~mask).sum()) for name, mask in dense.masks.items()}
    assert len({count / dense.masks[name].numel() for name, count in removed.items()}) > 2

    def keep(name: str, sizes: np.ndarray, norms: np.ndarray) -> np.ndarray:
        return all_but_least(sizes * norms, removed[f"{name}.weight"])

    expected = loop(model, keep)
    assert same(masks_of(model, forward(dense.recipe)), expected)
    assert not same({name: mask.numpy() for name, mask in dense.masks.items()}, expected)
