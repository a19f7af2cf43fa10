"""What is recorded is what `torch.export` gives and what the network computes, or it is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.modules import module as hooks

from prunekit.batches import arguments
from prunekit.graph.capture import canonical, captured
from prunekit.graph.captured_graph import GraphModel
from prunekit.graph.record import NotRecordedError, recorded
from prunekit.graph.result_shapes import shapes
from prunekit.modes import keeping_modes


class Everything(nn.Module):
    """Constants, in-place operators, views, several outputs, a region without gradients, a tied weight."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.into, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
        self.out.weight = self.into.weight
        self.scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # neither parameter nor buffer

    def forward(self, x, shift=0.5):
        x = self.norm(self.conv(x))
        x += shift
        left, right = x.chunk(2, 1)
        x = torch.cat([right, left], 1)
        x[:, :2].mul_(2)
        x = x.relu_().mean((2, 3)) * self.scale
        with torch.no_grad():
            held = self.into(x).sigmoid()
        order = torch.arange(5, -1, -1, device=x.device)
        x = self.out(x)[:, order] * held + torch.tensor([1.0, 0, 0, 0, 0, 1])
        return {"x": x, "parts": (x.max(), shift)}


def taken(model, *args, mode="eval", **kwargs):
    with keeping_modes(model):
        for module in model.modules():
            module.training = mode == "train"
        return recorded(model, args, kwargs, canonical(model))


def as_graphs(model, inputs):
    graphs = captured(model, inputs)
    copied = copy.deepcopy(model)
    return GraphModel(copied, graphs)


@pytest.mark.parametrize("training", [False, True])
def test_a_recording_computes_what_the_network_computes(training):
    torch.manual_seed(0)
    model, inputs = Everything(), torch.randn(4, 3, 5, 5)
    graph = as_graphs(model, (inputs,))
    for each in (model, graph):
        for module in each.modules():
            module.training = training
    expected, found = model(inputs), graph(inputs)
    torch.testing.assert_close(found["x"], expected["x"])
    torch.testing.assert_close(found["parts"][0], expected["parts"][0])
    assert found["parts"][1] == 0.5
    for outputs in (expected, found):
        outputs["x"].square().sum().backward()
    for (name, one), (_, other) in zip(model.named_parameters(), graph.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    for name, one in model.named_buffers():
        torch.testing.assert_close(graph.get_buffer(name), one, msg=name)


def test_types_that_are_chosen_automatically_are_written_out():
    torch.manual_seed(0)
    model, inputs = Automatic().float(), torch.randn(2, 4, dtype=torch.float32)
    found = as_graphs(model, inputs)(inputs)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, model(inputs))


def test_a_recording_has_the_operators_of_an_export():
    model, inputs = Everything(), torch.randn(2, 3, 5, 5)
    for one, other in zip(captured(model, inputs), captured(model, inputs, record=False), strict=True):

        def calls(graph):
            names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
            return [
                name
                for name in names
                # where gradients are off, an export calls a graph, and a recording detaches what it gives;
                # constants that are made on the way are copied first
                if not any(
                    word in name for word in ("detach", "lift", "getitem", "grad", "linear", "sigmoid")
                )
            ]

        assert calls(one) == calls(other)
        assert set(one.tensors.values()) == set(other.tensors.values())


def test_nodes_know_their_modules():
    graph = taken(Everything(), torch.randn(2, 3, 5, 5))
    places = {
        node.name: [name for name, _ in node.meta["nn_module_stack"].values()]
        for node in graph.graph.nodes
        if node.op == "call_function"
    }
    assert places["conv2d"] == ["", "conv"]
    assert places["batch_norm"] == ["", "norm"]
    assert places["relu_"] == [""]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_network_and_the_random_numbers_are_left_as_they_were(mode):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    taken(model, torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)), mode=mode)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 4), None


class Automatic(Base):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(x).relu()


class Branches(Base):
    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else -self.layer(x)


class Lists(Base):
    def forward(self, x):
        return self.layer(x) * len(x.tolist())


class Masked(Base):
    def forward(self, x):
        return self.layer(x)[x > 0]


class Remembers(Base):
    def forward(self, x):
        before, self.seen = self.seen, self.layer(x)
        return self.seen if before is None else self.seen + before


class Counts(Base):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) * self.calls


class Writes(Base):
    def forward(self, x):
        return torch.add(x, 1, out=torch.empty(2, 4)) + self.layer(x)


class Reshapes(Base):
    def forward(self, x):
        return self.layer(x).t_()


class Objects(Base):
    def forward(self, x):
        return self.layer(x), object()


REFUSED = {
    Branches: "item",
    Lists: "tolist",
    Masked: "depends on values",
    Writes: "writes to what it is given",
    Reshapes: "changes a shape in place",
    Objects: "an output is a object",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_a_graph_might_not_show_is_not_recorded(kind):
    model = kind()
    with pytest.raises(NotRecordedError, match=REFUSED[kind]):
        taken(model, torch.randn(2, 4))
    assert model.seen is None
    assert not hooks._global_forward_hooks


@pytest.mark.parametrize("kind", [Remembers, Counts])
@pytest.mark.parametrize("way", ["recorded", "exported"])
def test_a_graph_says_where_a_call_changes_what_the_next_one_gives(kind, way):
    model, inputs = kind(), torch.randn(2, 4)
    graphs = (taken(model, inputs),) if way == "recorded" else captured(model, inputs)
    for graph in graphs:
        assert graph.by_calls == (f"the forward of {kind.__name__} changes what its next call gives",)
        assert (graph.uses is None) == (way == "exported")
    assert model.seen is None
    assert "calls" not in vars(model)
    assert captured(nn.Linear(4, 4), inputs)[0].by_calls == ()


class Behind(Base):
    def __init__(self):
        super().__init__()
        self.view = self.layer.weight.detach()[:2]

    def forward(self, x):
        return x @ self.layer.weight.data + x[:, :1] * self.view.sum()


def test_a_parameter_is_known_by_its_data_and_not_read_behind_its_back():
    model = Behind()
    with pytest.raises(NotRecordedError, match="behind its back"):
        taken(model, torch.randn(2, 4))
    model.view = torch.zeros(2, 4)
    graph = taken(model, torch.randn(2, 4))
    (read,) = [node for node in graph.graph.nodes if graph.tensors.get(node.name) == "layer.weight"]
    assert [str(user.target) for user in read.users] == ["aten.detach.default"]


def test_arguments_that_are_no_tensors_are_inputs():
    args, kwargs = arguments({"x": torch.randn(2, 3, 5, 5), "shift": 2.0})
    graph = taken(Everything(), *args, **kwargs)
    assert [kind for kind, _ in graph.inputs].count("user") == 2
    assert [kind for kind, _ in graph.inputs].count("constant") == len(graph.constants) == 2


A = torch.ops.aten
CALLS = {
    "linear": (A.linear.default, (3, 5, 4), (2, 4), (2,)),
    "linear without a bias": (A.linear.default, (3, 4), (2, 4)),
    "conv1d": (A.conv1d.default, (2, 3, 11), (4, 3, 3), None, [2], [1], [2]),
    "conv2d": (A.conv2d.default, (2, 4, 9, 8), (6, 2, 3, 2), (6,), [2, 1], [1, 0], [1, 3], 2),
    "conv2d by default": (A.conv2d.default, (2, 3, 9, 8), (6, 3, 3, 2)),
    "conv2d of one image": (A.conv2d.default, (3, 9, 8), (6, 3, 3, 2)),
    "conv2d with one number": (A.conv2d.default, (2, 3, 9, 8), (6, 3, 3, 2), None, [2]),
    "conv3d": (A.conv3d.default, (1, 2, 5, 6, 7), (3, 2, 2, 2, 2), (3,), [1, 2, 3]),
    "max_pool1d": (A.max_pool1d.default, (2, 3, 11), [3], [2], [1]),
    "max_pool2d": (A.max_pool2d.default, (2, 3, 11, 9), [2, 3]),
    "max_pool2d with one number": (A.max_pool2d.default, (2, 3, 11, 9), [2]),
    "max_pool2d of one image": (A.max_pool2d.default, (3, 11, 9), [2, 3], [1, 2]),
    "max_pool2d rounded up": (A.max_pool2d.default, (2, 3, 11, 9), [2, 2], [2, 2], [0, 0], [1, 1], True),
    "max_pool3d": (A.max_pool3d.default, (1, 3, 5, 6, 7), [2, 2, 2], [1, 2, 2], [1, 1, 1], [2, 1, 1]),
}


def without_data(call):
    func, *args = call
    return func, [torch.empty(each, device="meta") if isinstance(each, tuple) else each for each in args]


@pytest.mark.parametrize("dim", [0, 1, -1, 2])
def test_the_shape_of_tensors_in_a_row_is_what_pytorch_gives(dim):
    whole = torch.empty(2, 4, 4, device="meta")
    tensors = [whole, whole[:, :1].expand(2, 4, 4), whole.transpose(0, 1)[:2].transpose(1, 2)[:, :4]]
    tensors = [each for each in tensors if each.shape == whole.shape]
    assert len(tensors) > 1
    found, expected = shapes(A.cat.default, [tensors, dim], {}), torch.cat(tensors, dim)
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())


@pytest.mark.parametrize("name", CALLS)
def test_shapes_are_those_that_pytorch_gives(name):
    func, args = without_data(CALLS[name])
    found, expected = shapes(func, args, {}), func(*args)
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())


@pytest.mark.parametrize(
    "call",
    [
        (A.linear.default, (3, 5), (2, 4)),
        (A.conv2d.default, (2, 3, 9, 8), (6, 4, 3, 2)),
        (A.conv2d.default, (2, 3, 2, 8), (6, 3, 3, 2)),
        (A.max_pool2d.default, (2, 3, 1, 9), [2, 2]),
    ],
)
def test_what_does_not_fit_is_refused_by_pytorch(call):
    func, args = without_data(call)
    with pytest.raises(RuntimeError):
        shapes(func, args, {})
