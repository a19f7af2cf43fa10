"""The removal of what is zero leaves what the network computes as it was, whatever its units put out."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prunekit import Recipe, prune
from prunekit.errors import InputError
from prunekit.parts.context import Score, Scores, StepContext
from small_nets import Residual, blobs, copied, mlp, same

DECIDES = {"name": "allocation_decides"}
UNITS = {"granularity": "unit", "allocation": "zeros", "schedule": DECIDES}
Net = Callable[[], nn.Module]


def silenced(net: nn.Module, layer: str, *units: int, bias: float = 0.7) -> nn.Module:
    """Nothing makes these units; their biases are what they are or another."""
    module = net.get_submodule(layer)
    with torch.no_grad():
        for unit in units:
            module.weight[unit] = 0.0
            module.bias[unit] = bias
    return net


def convnet(padding: int = 0) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=padding), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.5, 0.5)
        net[1].running_var.uniform_(0.5, 1.5)
        net[1].bias.uniform_(0.2, 0.5)
    return net


def scaled_off(padding: int = 0) -> nn.Module:
    """Filters that are there, but that their norm multiplies by zero: what is left is the norm's bias."""
    net = convnet(padding)
    with torch.no_grad():
        net[1].weight[1:3] = 0.0
    return net


def with_activation(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), kind(), nn.Linear(8, 3))


def without_bias() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))


def unread_in_a_statistic() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        net[3].weight[:, [2, 5]] = 0.0
    return net


CASES: dict[str, tuple[Net, int]] = {
    "relu": (lambda: silenced(mlp(10, 8, 3), "0", 1, 4), 2),
    "relu, negative": (lambda: silenced(mlp(10, 8, 3), "0", 1, 4, bias=-0.7), 2),
    "sigmoid of zero": (lambda: silenced(with_activation(nn.Sigmoid), "0", 1, 4, bias=0.0), 2),
    "tanh": (lambda: silenced(with_activation(nn.Tanh), "0", 1), 1),
    "filters behind a norm": (lambda: silenced(convnet(), "0", 0, 2, 5), 3),
    "norms of no scale": (scaled_off, 2),
    "a residual branch": (lambda: silenced(Residual(), "inner", 3, 7), 2),
    # nobody can take these constants, so the units stay
    "zero padding": (lambda: silenced(convnet(padding=1), "0", 0, 2), 0),
    "norms of no scale, zero padding": (lambda: scaled_off(padding=1), 0),
    "a layer norm over what nothing reads": (unread_in_a_statistic, 0),
    "a reader without a bias": (lambda: silenced(without_bias(), "0", 1, 4), 0),
    # ... but zeros
    "zeros for a reader without a bias": (lambda: silenced(without_bias(), "0", 1, 4, bias=-0.7), 2),
}


@pytest.mark.parametrize("score", ["magnitude", "random"])
@pytest.mark.parametrize(("make", "gone"), CASES.values(), ids=CASES.keys())
def test_outputs_stay_as_they_were(make: Net, gone: int, score: str) -> None:
    net = make().double().eval()
    first = next(net.parameters())
    shape = (9, 10) if first.dim() == 2 else (9, 2, 8, 8)
    inputs = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    wanted = net(inputs).detach()
    before = copied(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not gone else "error")
        pruned = prune(net, Recipe.parse({**UNITS, "score": score}), example_inputs=inputs[:2])
    assert pruned.kept.total - pruned.kept.kept == gone
    net.eval()
    torch.testing.assert_close(net(inputs), wanted, rtol=1e-10, atol=1e-12)
    if not gone:
        assert same(before, copied(net))
        return
    small = pruned.shrink(inputs[:2]).model.eval()
    torch.testing.assert_close(small(inputs), wanted, rtol=1e-10, atol=1e-12)
    assert sum(p.numel() for p in small.parameters()) < sum(value.numel() for value in before.values())


def test_layers_that_the_recipe_leaves_out_are_not_touched() -> None:
    net = silenced(silenced(mlp(10, 8, 6, 3), "0", 1), "2", 2, 3)
    before = copied(net)
    inputs, _ = blobs(16)
    wanted = net(inputs).detach()
    pruned = prune(net, Recipe.parse({**UNITS, "ignore": ["2"]}), example_inputs=inputs[:2])
    assert (pruned.kept.kept, pruned.kept.total) == (7, 8)
    torch.testing.assert_close(net(inputs), wanted)
    for name in ("4.weight", "4.bias"):  # what reads the units of layer 2
        assert torch.equal(net.get_parameter(name), before[name])
    assert torch.equal(net[2].bias[2:4], before["2.bias"][2:4])


def test_of_a_layer_of_zeros_one_unit_stays_unless_nothing_reads_it_and_the_floor_is_zero() -> None:
    net = silenced(mlp(10, 4, 3), "0", 0, 1, 2, 3, bias=0.0)
    inputs, _ = blobs(16)
    wanted = net(inputs).detach()
    for floor, read, left in ((0.001, True, 1), (0.0, True, 1), (0.001, False, 1), (0.0, False, 0)):
        each = copy.deepcopy(net)
        if not read:
            with torch.no_grad():
                each[2].weight.zero_()
        chosen = Recipe.parse({**UNITS, "allocation": {"name": "zeros", "floor": floor}})
        assert prune(each, chosen, example_inputs=inputs[:2]).kept.kept == left
        torch.testing.assert_close(each(inputs), wanted)


class Failing(Score):
    """Raises, when constants are folded already."""

    name = "failing_score"

    def __call__(self, context: StepContext) -> Scores:
        raise RuntimeError("no score")


def test_a_network_is_put_back_where_a_step_fails() -> None:
    net = silenced(mlp(10, 8, 3), "0", 1)
    before = copied(net)
    chosen = Recipe.parse(UNITS).model_copy(update={"score": Failing()})
    with pytest.raises(RuntimeError, match="no score"):
        prune(net, chosen, example_inputs=blobs(2)[0])
    assert same(before, copied(net))


@pytest.mark.parametrize("by", [{}, {"granularity": "unit"}], ids=["weights", "units"])
def test_a_penalty_that_brings_no_zeros_is_named(by: dict[str, str]) -> None:
    training = {"iterations": 30, "regularize": [{"name": "l1", "strength": 0.01}]}
    chosen = Recipe.parse({"warm_up": training, "allocation": "zeros", "schedule": DECIDES, **by})
    with pytest.warns(UserWarning, match="so nothing is removed. The regularizers 'l0' and 'group_lasso'"):
        assert prune(mlp(10, 8, 3), chosen, blobs(64)).kept.sparsity == 0


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.last = nn.Linear(10, 6), nn.Linear(6, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.last(x)
        return logits


def test_a_block_goes_of_which_all_is_zero_its_biases_too() -> None:
    net = Deep()
    with torch.no_grad():
        for parameter in net.blocks[0].parameters():
            parameter.zero_()
        for layer in (0, 2):  # this one adds a constant
            net.blocks[2][layer].weight.zero_()
    inputs, _ = blobs(16)
    wanted = net(inputs).detach()
    pruned = prune(net, Recipe.parse({**UNITS, "granularity": "block"}), example_inputs=inputs[:2])
    assert pruned.kept["blocks"].tolist() == [False, True, True]
    assert torch.equal(net(inputs), wanted)


def test_pieces_are_refused() -> None:
    with pytest.raises(InputError, match="the allocation 'zeros' works on"):
        Recipe.parse({"granularity": "maxout_piece", "allocation": "zeros", "schedule": DECIDES})
