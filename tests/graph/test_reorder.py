"""Units in another order: the same function, most weights first."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prunekit import Recipe, prune
from prunekit.errors import InputError
from prunekit.graph import reorder, reorder_units, zero_dead
from prunekit.masks import Masks
from prunekit.models import create
from prunekit.packing import pack
from residual_nets import Residual


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 7, 3),
        nn.BatchNorm2d(7),
        nn.ReLU(),
        nn.Conv2d(7, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(80, 3),
    )


def residual() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), Residual(8, 5), Residual(8, 4), nn.Linear(8, 3))


NETWORKS = {
    "perceptron": (
        lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3)),
        (4, 6),
    ),
    "convolutions": (convnet, (4, 2, 8, 8)),
    "residual": (residual, (4, 6)),
    "LeNet-5": (lambda: create("lenet5", (1, 16, 16), 10, seed=0), (2, 1, 16, 16)),
}


def sparse(model: nn.Module, density: float = 0.3) -> Masks:
    """Masks of single weights, at random, applied."""
    draw = torch.Generator().manual_seed(1)
    masks = Masks(
        {
            name: torch.rand(each.shape, generator=draw) < density
            for name, each in model.named_parameters()
            if each.dim() > 1
        }
    )
    masks.apply(model)
    return masks


def counts(weight: Tensor) -> list[int]:
    return (weight != 0).flatten(1).sum(1).tolist()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_rows_lose_weights_from_first_to_last(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    masks = sparse(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.weight.data.uniform_(0.5, 2)
    before, inputs = copy.deepcopy(model), torch.randn(shape)
    ordered = reorder_units(model, inputs[:2], masks=masks)
    torch.testing.assert_close(model(inputs), before(inputs), rtol=1e-4, atol=1e-5)
    changed = False
    for key, mask in ordered.items():
        weight = model.get_parameter(key)
        assert torch.equal(weight != 0, mask)
        assert sorted(weight.flatten().tolist()) == sorted(before.get_parameter(key).flatten().tolist())
        changed |= not torch.equal(weight, before.get_parameter(key))
    assert changed
    if name != "residual":
        first = next(each for each in model.modules() if hasattr(each, "weight"))
        assert counts(first.weight) == sorted(counts(first.weight), reverse=True)


def test_a_network_in_order_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    before = copy.deepcopy(model)
    reorder_units(model, torch.randn(2, 4))
    assert all(
        torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True)
    )


def test_heads_of_attention_stay_where_they_are_or_the_function_stays() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0).eval()
    masks = sparse(model)
    before, inputs = copy.deepcopy(model), torch.randn(2, 5, 8)
    reorder_units(model, inputs, masks=masks)
    torch.testing.assert_close(model(inputs), before(inputs), rtol=1e-4, atol=1e-5)


def test_a_file_in_order_takes_fewer_bytes(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 5))
    masks = sparse(model, 0.1)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).copy_(mask.float())
    before = pack(model, tmp_path / "before", masks=masks).stat().st_size
    ordered = reorder_units(model, torch.randn(2, 60), masks=masks)
    assert pack(model, tmp_path / "after", masks=ordered).stat().st_size < before


class TwoHeads(nn.Module):
    """A second head that is only there for those who ask."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.wide = nn.Linear(6, 8), nn.Linear(8, 12)
        self.head, self.second = nn.Linear(12, 3), nn.Linear(8, 2)

    def forward(self, x: Tensor, *, second: bool = False) -> Tensor:
        x = torch.relu(self.body(x))
        return self.second(x) if second else self.head(torch.relu(self.wide(x)))


@pytest.mark.parametrize("change", [reorder_units, zero_dead])
def test_what_the_example_does_not_ask_for_stays_the_same(change) -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    masks = sparse(model, 0.2)
    with torch.no_grad():
        model.head.weight[:, 5] = 0.0
        model.wide.weight[:, :4] = 0.0  # the second head alone reads these units
        masks = Masks({name: mask & (model.get_parameter(name) != 0) for name, mask in masks.items()})
    before, inputs = copy.deepcopy(model), torch.randn(40, 6)
    change(model, inputs[:2], masks=masks)
    for second in (False, True):
        found, right = model(inputs, second=second), before(inputs, second=second)
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    assert not torch.equal(model.wide.weight, before.wide.weight)


def test_an_order_that_is_broken_off_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3))
    masks = sparse(model)
    before = copy.deepcopy(model.state_dict())
    proofs = []

    def twice(*args, **more):
        proofs.append(args)
        if len(proofs) == 2:
            raise KeyboardInterrupt
        return same_function(*args, **more)

    same_function = reorder.same_function
    monkeypatch.setattr(reorder, "same_function", twice)
    with pytest.raises(KeyboardInterrupt):
        reorder_units(model, torch.randn(2, 6), masks=masks)
    assert len(proofs) == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_pattern_of_neighbouring_inputs_is_not_parted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    chosen = {
        "granularity": {"name": "n:m", "n": 2, "m": 4},
        "schedule": {"name": "one_shot", "sparsity": 0.5},
    }
    pruned = prune(model, Recipe.parse(chosen))
    with pytest.raises(InputError, match="2 of every 4 neighbouring inputs"):
        pruned.reorder(torch.randn(2, 16))
    assert ((model[2].weight != 0).view(8, 4, 4).sum(2) == 2).all()
