"""The ways of the maxout experiment leave what they say."""

from types import SimpleNamespace

import pytest
import torch

import maxout
from maxout import MaxoutVGG, rounds, weights_left
from prunekit.models import create


def network(kind):
    """A network and six images."""
    torch.manual_seed(0)
    shape = (1, 28, 28) if kind == "lenet5" else (3, 32, 32)
    model = create("maxout_lenet5", shape, 10, seed=0) if kind == "lenet5" else MaxoutVGG()
    train = SimpleNamespace(inputs=torch.randn(6, *shape), targets=torch.randint(10, (6,)))
    return model, train


class Pair(tuple):
    """A pair of tensors that also has the names of a split."""

    inputs = property(lambda self: self[0])
    targets = property(lambda self: self[1])


def after_each_round(kind, way, steps, monkeypatch):
    monkeypatch.setitem(maxout.RETRAIN, "training", {"epochs": 0})
    model, train = network(kind)
    data = SimpleNamespace(train=Pair((train.inputs, train.targets)))
    return [weights_left(after) for after in rounds(model, data, way, steps, seed=0)], model


@pytest.mark.parametrize(("kind", "whole", "fc1"), [("lenet5", 60_888, 53_248), ("vgg", 296_920, 262_144)])
def test_pieces_of_the_heaviest_layer_and_weights_alone_leave_as_many(kind, whole, fc1, monkeypatch):
    model, _ = network(kind)
    assert weights_left(model) == whole
    assert model.fc1.layer.weight.numel() == fc1
    steps = [whole - fc1 // 4, whole - fc1 // 2, whole - 3 * fc1 // 4, 4_000, 2_000]
    pieces, model = after_each_round(kind, "fc1, then weights", steps, monkeypatch)
    assert pieces == steps
    assert model.fc1.pieces == 1
    assert after_each_round(kind, "weights", steps, monkeypatch)[0] == steps


def test_pieces_of_all_layers_and_nothing_at_all(monkeypatch):
    left, model = after_each_round("lenet5", "all layers, then weights", [0, 0, 0, 4_000], monkeypatch)
    # conv1 5 filters, conv2 13 of 5 channels, fc1 64 neurons, each of one piece; fc2
    assert left[2:] == [125 + 13 * 5 * 25 + 64 * 13 * 16 + 640, 4_000]
    assert [layer.pieces for layer in (model.conv1, model.conv2, model.fc1)] == [1, 1, 1]
    assert after_each_round("lenet5", "unpruned", [0, 0], monkeypatch)[0] == [60_888, 60_888]
