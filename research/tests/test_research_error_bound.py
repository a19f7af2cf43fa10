"""The bound against what happens at the outputs, and each figure against loops over hybrid networks."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from error_bound import error_bound, layer_errors
from examples import number_of_examples
from prunekit.errors import InputError, ModelError
from prunekit.pruning import prune
from small_nets import convnet, copied, mlp, recipe, same


def conv_chain():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3),
    ).double()  # fmt: skip


NETS = {
    "mlp": (lambda: mlp(6, 9, 7, 3, dtype=torch.float64), (6,)),
    "convolutions": (conv_chain, (2, 12, 12)),
}


def both(net, sparsity=0.5):
    make, shape = NETS[net]
    dense, pruned = make(), make()
    prune(pruned, recipe(schedule={"name": "one_shot", "sparsity": sparsity}))
    return dense, pruned, torch.randn(50, *shape, dtype=torch.float64)


@torch.no_grad()
def distance(one, other):
    return float((one - other).flatten(1).square().sum(1).mean().sqrt())


@pytest.mark.parametrize("net", NETS)
@torch.no_grad()
def test_every_figure_by_hand(net):
    dense, pruned, x = both(net)
    before = copied(dense), copied(pruned)
    found = layer_errors(dense, pruned, x, batch_size=7)
    names = [name for name, module in dense.named_children() if hasattr(module, "weight")]
    assert [each.layer for each in found.layers] == names
    outputs = []
    for count in range(len(names) + 1):  # the first `count` layers are dense
        hybrid = copy.deepcopy(pruned)
        for name in names[:count]:
            hybrid.get_submodule(name).load_state_dict(dense.get_submodule(name).state_dict())
        outputs.append(hybrid(x))
    for number, each in enumerate(found.layers):
        inputs = dense[: int(each.layer)](x)
        one, other = dense[int(each.layer)](inputs), pruned[int(each.layer)](inputs)
        assert each.error == pytest.approx(distance(one, other) ** 2 / 2, rel=1e-9)
        assert each.measured == pytest.approx(distance(outputs[number], outputs[number + 1]), rel=1e-9)
    assert found.measured == pytest.approx(distance(dense(x), pruned(x)), rel=1e-9)
    last = found.layers[-1]
    assert last.bound == pytest.approx((2 * last.error) ** 0.5)
    assert found.bound == pytest.approx(sum(each.bound for each in found.layers))
    assert same(before[0], copied(dense))
    assert same(before[1], copied(pruned))


@given(net=st.sampled_from(sorted(NETS)), sparsity=st.floats(0.05, 0.9), scale=st.floats(0.1, 30))
def test_the_bound_holds(net, sparsity, scale):
    dense, pruned, x = both(net, sparsity)
    found = layer_errors(dense, pruned, x * scale)
    for each in found.layers:
        assert each.measured <= each.bound * (1 + 1e-9)
    assert found.measured <= sum(each.measured for each in found.layers) * (1 + 1e-9)
    assert found.measured <= found.bound * (1 + 1e-9)


def test_the_same_network_has_no_error():
    dense, _, x = both("mlp")
    found = layer_errors(dense, copy.deepcopy(dense), x)
    assert found.measured == found.bound == 0


def test_networks_that_cannot_be_compared():
    dense, pruned, x = both("mlp")
    with pytest.raises(InputError, match="their layers differ"):
        layer_errors(dense, mlp(6, 3, dtype=torch.float64), x)
    with pytest.raises(InputError, match=r"'0' has weights \(9, 6\) .* before it is shrunk"):
        layer_errors(dense, mlp(6, 8, 7, 3, dtype=torch.float64), x)
    with pytest.raises(InputError, match="no examples"):
        layer_errors(dense, pruned, x[:0])
    net = convnet()
    net[3] = nn.Conv2d(8, 8, 3)
    with pytest.raises(ModelError, match="'1' is a batch norm"):
        layer_errors(net, net, torch.randn(2, 4, 6, 6))
    mirror = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ModelError, match="'reflect' repeats inputs"):
        layer_errors(mirror, mirror, torch.randn(2, 1, 5, 5))


@number_of_examples(60)
@given(
    st.lists(st.integers(1, 8), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([nn.ReLU, nn.Tanh]),
    st.integers(0, 2**32 - 1),
)
def test_the_measured_error_never_exceeds_the_bound(widths, sparsity, activation, seed):
    torch.manual_seed(seed)
    layers = []
    for wide, next_wide in itertools.pairwise(widths):
        layers += [nn.Linear(wide, next_wide), activation()]
    old = nn.Sequential(*layers[:-1]).double()
    new = copy.deepcopy(old)
    x = inputs = torch.randn(40, widths[0], dtype=torch.float64)
    errors, norms = [], []
    with torch.no_grad():
        for before, after in zip(old, new, strict=True):
            if isinstance(after, nn.Linear):
                after.weight.mul_(torch.rand_like(after.weight) >= sparsity)
                after.bias.add_(torch.randn_like(after.bias) * sparsity / 10)
                errors.append(float((after(x) - before(x)).square().sum(1).mean() / 2))
                norms.append(float(torch.linalg.matrix_norm(after.weight)))
            x = before(x)
        measured = float((new(inputs) - old(inputs)).square().sum(1).mean().sqrt())
    bound = error_bound(errors, norms)
    assert bound.shape == (len(widths) - 1,)
    assert measured <= float(bound.sum()) * (1 + 1e-12)


def test_each_layer_is_stretched_by_those_behind_it():
    assert error_bound([2.0, 0.5, 8.0], [100.0, 3.0, 5.0]).tolist() == [30.0, 5.0, 4.0]
    assert error_bound([0.5], [7.0]).tolist() == [1.0]
    assert error_bound([], []).tolist() == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="one norm for each layer error is needed, got 1 for 2"):
        error_bound([1.0, 2.0], [1.0])
    with pytest.raises(InputError, match="layer errors must be >= 0"):
        error_bound([-1.0], [1.0])
    with pytest.raises(InputError, match="norms must be >= 0"):
        error_bound([1.0], [float("nan")])
