"""Which layers of a network run sparse, that it computes the same, and what is refused or left dense.

Tests do not depend on time: the seconds of dense and sparse layers are given.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from prunekit.errors import InputError, ModelError
from prunekit.graph import VerificationError
from prunekit.parts.regularize import L0, VIB
from prunekit.runtime import SparseConv2d, SparseLinear, sparsify, sparsify_for_cpu
from prunekit.runtime.sparsify import Times, Turns


def given_times(monkeypatch, ratios, whole=0.5):
    """Let sparse layers take these shares of the dense time, one half where nothing is said."""

    def in_turns(dense, sparse, call, names=()):
        turns = {name: Turns(1e-6, 1e-6 * (ratio := ratios.get(name, 0.5)), ratio) for name in names}
        return Times(Turns(4e-6, 4e-6 * whole, whole), turns)

    monkeypatch.setattr(sparsify, "in_turns", in_turns)


class Net(nn.Module):
    """A convolution, a shared layer, and one that the example does not reach."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(4 * 8 * 8, 16)
        self.again = nn.Linear(16, 16)
        self.same = self.again
        self.fc2 = nn.Linear(16, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.fc1(torch.relu(self.norm(self.conv(x))).flatten(1))
        return self.fc2(self.same(self.again(input=x)))


class Once(Net):
    """The same, which calls the shared layer once."""

    def __init__(self, net):
        super().__init__()
        self.load_state_dict(net.state_dict())

    def forward(self, x):
        x = self.fc1(torch.relu(self.norm(self.conv(x))).flatten(1))
        return self.fc2(self.again(x))


X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def pruned(density=0.3):
    torch.manual_seed(0)
    net = Net()
    net.train()
    net.norm.eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                generator = torch.Generator().manual_seed(len(name))
                parameter.mul_(torch.rand(parameter.shape, generator=generator) < density)
    return net


def evaluated(net, x=X):
    net = copy.deepcopy(net).eval()
    with torch.no_grad():
        return net(x)


def test_layers_that_are_faster_become_sparse_in_place_and_the_network_computes_the_same(monkeypatch):
    given_times(monkeypatch, {"conv": 0.9, "fc2": 0.91, "fc1": 0.1})
    net = pruned()
    weight, modes = (
        net.fc1.weight.detach().clone(),
        {name: each.training for name, each in net.named_modules()},
    )
    expected = evaluated(net)
    result = sparsify_for_cpu(net, X)
    assert result.model is net
    assert result.chosen == ("conv", "fc1", "again")
    assert isinstance(net.conv, SparseConv2d)
    assert isinstance(net.fc1, SparseLinear)
    assert net.same is net.again
    assert type(net.fc2) is type(net.unused) is nn.Linear
    assert torch.equal(net.fc1.weight, weight)
    assert {name: net.get_submodule(name).training for name in modes} == modes
    assert not any("forward" in vars(each) for each in net.modules())
    torch.testing.assert_close(evaluated(net), expected)
    torch.testing.assert_close(evaluated(net, X[:1]), expected[:1])
    reasons = {layer.name: (layer.chosen, layer.reason) for layer in result.layers}
    assert reasons["unused"] == (False, "not called")
    assert reasons["fc2"] == (False, "")
    assert result.layers[1].density == pytest.approx(float(weight.count_nonzero()) / weight.numel())
    assert result.deviation.accepted
    assert result.batch == 3


def test_the_table_has_a_line_for_each_layer_and_one_for_the_network(monkeypatch):
    given_times(monkeypatch, {"fc2": 1.5})
    result = sparsify_for_cpu(pruned(), X)
    head, *lines = str(result).splitlines()
    assert head.split() == ["layer", "density", "dense", "µs", "sparse", "µs", "chosen"]
    rows = {line.split()[0]: line.split()[2:] for line in lines}
    assert rows["fc1"] == ["1.0", "0.5", "sparse"]
    assert rows["fc2"] == ["1.0", "1.5", "dense"]
    assert rows["unused"] == ["-", "-", "not", "called"]
    assert rows["network"] == ["2.0"]
    assert [layer["name"] for layer in result.to_dict()["layers"]] == [layer.name for layer in result.layers]


def test_all_stay_dense_where_the_network_as_a_whole_is_not_faster(monkeypatch):
    given_times(monkeypatch, {}, whole=1.01)
    net = pruned()
    before = dict(net.named_modules())
    result = sparsify_for_cpu(net, X)
    assert not result.chosen
    assert dict(net.named_modules()) == before
    assert {layer.reason for layer in result.layers} == {"network not faster", "not called"}


def test_real_times_are_positive_and_some_choice_is_made():
    net = pruned(0.1)
    expected = evaluated(net)
    result = sparsify_for_cpu(net, X)
    timed = [layer for layer in result.layers if layer.reason != "not called"]
    assert [layer.name for layer in timed] == ["conv", "fc1", "again", "fc2"]
    assert all(layer.dense > 0 and layer.sparse > 0 for layer in timed)
    torch.testing.assert_close(evaluated(net), expected)
    for layer in result.layers:
        assert (type(net.get_submodule(layer.name)) in (SparseLinear, SparseConv2d)) == layer.chosen


def test_every_call_of_a_layer_counts_by_the_clock(monkeypatch):
    """By a clock that goes one second on at each look: a call of a layer is one second."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(sparsify, "process_time", lambda: next(ticks))
    monkeypatch.setattr(sparsify.torch, "get_num_threads", lambda: 1)
    net = pruned().eval()
    found = sparsify.in_turns(net, Once(net).eval(), lambda model: model(X), ("fc1", "again"))
    assert found.layers == {"fc1": Turns(1, 1, 1), "again": Turns(2, 1, 0.5)}
    assert found.whole == Turns(7, 5, 5 / 7)  # three or two calls, two looks each, and the one at the end
    assert sparsify.in_turns(net, net, lambda model: model(X)).whole == Turns(1, 1, 1)


def test_a_network_that_is_one_layer_becomes_another_module(monkeypatch):
    given_times(monkeypatch, {})
    layer = nn.Linear(6, 2)
    layer.weight.data[0] = 0
    result = sparsify_for_cpu(torch.nn.Sequential(layer)[0], torch.ones(1, 6))
    assert isinstance(result.model, SparseLinear)
    torch.testing.assert_close(result.model(torch.ones(1, 6)), layer(torch.ones(1, 6)).detach())


def test_inputs_by_name_and_precision_double(monkeypatch):
    given_times(monkeypatch, {})
    net = pruned().double()
    expected = evaluated(net, X.double())
    sparsify_for_cpu(net, {"x": X.double()})
    assert net.fc1.values.dtype == torch.float64
    torch.testing.assert_close(evaluated(net, X.double()), expected)


def test_inference_mode_leaves_buffers_that_training_can_use(monkeypatch):
    given_times(monkeypatch, {})
    net = pruned()
    with torch.inference_mode():
        sparsify_for_cpu(net, X)
    x = X.clone().requires_grad_()
    net(x).sum().backward()
    assert x.grad is not None


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, words):
        return self.head(self.hidden(self.embedding(words)))


def with_zeros(net):
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter[0] = 0
    return net


def test_layers_that_cannot_be_sparse_stay_dense_and_say_why(monkeypatch):
    given_times(monkeypatch, {})
    tied = with_zeros(Tied())
    result = sparsify_for_cpu(tied, torch.arange(7)[None])
    assert {layer.name: layer.reason for layer in result.layers} == {"hidden": "", "head": "tied"}
    assert tied.head.weight is tied.embedding.weight

    net = with_zeros(nn.Sequential(nn.Conv2d(2, 2, 1, groups=2), nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)))
    nn.init.ones_(net[2].weight)
    net[1].register_forward_hook(lambda *_: None)
    result = sparsify_for_cpu(net, torch.ones(1, 2, 3, 3))
    assert [layer.reason for layer in result.layers] == ["2 groups", "hooks", "no zeros"]
    assert not result.chosen

    own = with_zeros(nn.Sequential(nn.Linear(4, 4)))
    own[0].forward = forward = lambda x: x + 1
    assert sparsify_for_cpu(own, torch.ones(1, 4)).layers[0].reason == "hooks"
    assert own[0].forward is forward

    half = with_zeros(nn.Sequential(nn.Linear(4, 4))).bfloat16()
    assert sparsify_for_cpu(half, torch.ones(1, 4).bfloat16()).layers[0].reason == "bfloat16"


def test_fused_layers_of_torch_that_read_weights_themselves_stay_as_they_are(monkeypatch):
    given_times(monkeypatch, {})
    net = with_zeros(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(x)
        result = sparsify_for_cpu(net, x)
        torch.testing.assert_close(net(x), expected)
    assert {layer.reason for layer in result.layers} == {"not called"}


REFUSED = {
    "no zeros": (lambda: nn.Linear(3, 3), "no linear layer or two-dimensional convolution holds zeros"),
    "no layers": (lambda: nn.Sequential(nn.ReLU()), "no linear layer or two-dimensional convolution holds"),
    "parametrized": (
        lambda: nn.Sequential(with_zeros(nn.Linear(3, 3)), parametrizations.weight_norm(nn.Linear(3, 3))),
        "'1' is parametrized: let the training with gates end",
    ),
    "masked by torch": (
        lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(3, 3), "weight", 0.5)),
        "0.weight_orig is part of a parametrization, so its zeros are not zeros of the weight: remove the "
        r"parametrization first \(torch\.nn\.utils\.prune\.remove\)$",
    ),
    "without values": (lambda: nn.Linear(3, 3, device="meta"), "weight is on the meta device"),
    "not a number": (
        lambda: nn.Sequential(with_zeros(nn.Linear(3, 3)), nn.Linear(3, 3)).requires_grad_(False),
        "1.weight holds NaN",
    ),
    "another input": (lambda: with_zeros(nn.Linear(4, 3)), "the network cannot be run on example_inputs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_said_in_one_line_and_nothing_is_changed(case, monkeypatch):
    given_times(monkeypatch, {})
    build, said = REFUSED[case]
    net = build()
    if case == "not a number":
        net[1].weight[0, 0] = float("nan")
    before = dict(net.named_modules())
    with pytest.raises(ModelError, match=said) as error:
        sparsify_for_cpu(net, torch.ones(2, 3))
    assert "\n" not in str(error.value)
    assert dict(net.named_modules()) == before
    assert (
        not any(each._forward_hooks or each._forward_pre_hooks for each in net.modules()) or "torch" in case
    )


@pytest.mark.parametrize("gates", [L0, VIB])
def test_networks_with_gates_on_are_refused_until_the_gates_have_come_off(gates, monkeypatch):
    given_times(monkeypatch, {})
    net = with_zeros(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)))
    (handle,) = gates(density=0.5).attach(net, torch.optim.SGD(net.parameters(), 0.1), None, torch.ones(2, 3))
    with pytest.raises(ModelError, match="is parametrized: let the training with gates end"):
        sparsify_for_cpu(net, torch.ones(2, 3))
    handle.remove()
    assert sparsify_for_cpu(net, torch.ones(2, 3)).chosen


def test_networks_that_are_not_wholly_on_the_cpu_are_refused():
    net = with_zeros(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    net[1].running_mean = net[1].running_mean.to("meta")
    with pytest.raises(ModelError, match=r"1.running_mean is on the meta device and has no values"):
        sparsify_for_cpu(net, torch.ones(1, 3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_networks_on_a_gpu_are_refused():
    with pytest.raises(ModelError, match="weight is on cuda:0"):
        sparsify_for_cpu(with_zeros(nn.Linear(3, 3)).cuda(), torch.ones(1, 3))


def test_examples_without_a_batch_are_refused():
    with pytest.raises(InputError, match="example_inputs need a batch"):
        sparsify_for_cpu(pruned(), torch.ones(0, 1, 8, 8))
    with pytest.raises(InputError, match="must be a tensor"):
        sparsify_for_cpu(pruned(), {"x": 3})


def test_a_layer_that_computes_something_else_is_found_and_the_network_stays_as_it_was(monkeypatch):
    given_times(monkeypatch, {})
    make = sparsify._sparse

    def wrong(layer):
        sparse = make(layer)
        if isinstance(sparse, SparseLinear) and sparse.in_features == 16:
            sparse.values[0] *= 1.01
        return sparse

    monkeypatch.setattr(sparsify, "_sparse", wrong)
    net = pruned()
    before, expected = dict(net.named_modules()), evaluated(net)
    with pytest.raises(VerificationError, match=r"a sparse layer computes something else: .* of again"):
        sparsify_for_cpu(net, X)
    assert dict(net.named_modules()) == before
    assert torch.equal(evaluated(net), expected)
    assert not any("forward" in vars(each) for each in net.modules())


class Peeking(nn.Module):
    """One that reads a layer's own weights, in a way that a sparse layer has not."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x) * len(list(self.fc.parameters()))


def test_a_network_that_looks_into_its_layers_is_found_and_stays_as_it_was(monkeypatch):
    given_times(monkeypatch, {})
    net = with_zeros(Peeking())
    with pytest.raises(VerificationError, match="the sparse network computes something else"):
        sparsify_for_cpu(net, torch.ones(2, 3))
    assert type(net.fc) is nn.Linear
