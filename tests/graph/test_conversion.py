"""A graph that is converted to another type or device gives what the network's own code gives there."""

import copy
import pickle

import pytest
import torch
from constructions import Made
from torch import nn

from prunekit.graph import prune_groups
from prunekit.saving import load_pretrained, save_pretrained

INPUTS = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).float()


def types_and_devices(self, x):
    """Zeros of the input's type and device, and a softmax that is always in single precision."""
    hidden = torch.relu(self.first(x)).view(-1, self.width())
    hidden = hidden + torch.zeros(hidden.shape, device=x.device, dtype=x.dtype)
    return self.last(hidden.softmax(0, dtype=torch.float32).to(x.dtype))


class Network(Made):
    """One whose code holds the number of its units, so that it loses them as a graph only."""

    def __init__(self, width=8):
        layers = {"first": nn.Linear(16, width), "last": nn.Linear(width, 3)}
        super().__init__(types_and_devices, **layers)

    def width(self):
        return 8


class Narrow(Network):
    """The same, written for half of the units."""

    def width(self):
        return 4


@pytest.fixture
def shrunk():
    torch.manual_seed(0)
    result = prune_groups(Network().float(), INPUTS, 0.5)
    assert result.form == "graph"
    own = Narrow(4).float()
    own.load_state_dict(result.model.state_dict())
    return result.model, own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_its_types_become_the_networks(shrunk, dtype):
    graph, own = (each.to(dtype) for each in shrunk)
    outputs = graph(INPUTS.to(dtype))
    assert outputs.dtype == dtype
    assert torch.equal(outputs, own(INPUTS.to(dtype)))


def test_and_back_again(shrunk):
    graph, own = shrunk
    graph.double().float()
    assert torch.equal(graph(INPUTS), own(INPUTS))


def test_its_devices_become_the_networks(shrunk):
    graph, _ = shrunk
    assert graph.to("meta")(INPUTS.to("meta")).device.type == "meta"


@pytest.mark.parametrize("handed", ["file", "pickle", "copy"])
def test_it_knows_its_types_after_it_was_handed_on(shrunk, tmp_path, handed):
    graph, own = shrunk
    if handed == "file":
        save_pretrained(graph, tmp_path / "graph")
        graph = load_pretrained(tmp_path / "graph")
    elif handed == "pickle":
        graph = pickle.loads(pickle.dumps(graph))
    else:
        graph = copy.deepcopy(graph)
    assert torch.equal(graph.bfloat16()(INPUTS.bfloat16()), own.bfloat16()(INPUTS.bfloat16()))


def test_what_is_saved_after_it_was_converted_is_of_the_new_type(shrunk, tmp_path):
    graph, own = (each.bfloat16() for each in shrunk)
    save_pretrained(graph, tmp_path / "graph")
    loaded = load_pretrained(tmp_path / "graph")
    assert torch.equal(loaded(INPUTS.bfloat16()), own(INPUTS.bfloat16()))
    assert torch.equal(loaded.float()(INPUTS), own.float()(INPUTS))
