"""The locally connected layer and the correlations of its connections, each position by itself."""

import numpy as np
import torch
from torch import nn

import correlation_lenet5
from correlation_lenet5 import CHOICES, LocalLeNet, LocallyConnected, recipe, train_structure
from prunekit import prune
from prunekit.statistics import ConnectionCorrelation, StatContext, collect


def layer_and_images():
    torch.manual_seed(0)
    return LocallyConnected(channels=2, side=4, maps=3, kernel=2), torch.randn(30, 2, 4, 4)


def kernels(weight):
    """(positions, maps, channels, kernel, kernel)."""
    return weight.detach().reshape(9, 3, 2, 2, 2)


def seen_at(images, place):
    """(N, channels, kernel, kernel): what one of the nine positions reads."""
    row, column = divmod(place, 3)
    return images[:, :, row : row + 2, column : column + 2]


@torch.no_grad()
def test_every_position_has_a_kernel_of_its_own():
    layer, images = layer_and_images()
    found = layer(images)
    for place in range(9):
        for number in range(3):
            kernel, bias = kernels(layer.layer.weight)[place, number], layer.layer.bias[3 * place + number]
            expected = torch.relu((seen_at(images, place) * kernel).sum((1, 2, 3)) + bias)
            assert torch.allclose(found[:, number, place // 3, place % 3], expected, atol=1e-5)


@torch.no_grad()
def test_a_weight_has_the_correlation_of_its_one_connection_with_its_sign():
    layer, images = layer_and_images()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(27, 2))
    statistic = ConnectionCorrelation()
    batches = [(images, torch.zeros(len(images), 2))]
    name = "0.layer.weight"
    found = collect(StatContext(model, [name]), batches, [statistic])
    values = kernels(found[statistic][name]).numpy()
    outputs = layer(images)
    for place, number, channel, row, column in np.ndindex(values.shape):
        ends = seen_at(images, place)[:, channel, row, column], outputs[:, number, place // 3, place % 3]
        expected = np.corrcoef(*(end.double().numpy() for end in ends))[0, 1]
        assert abs(values[place, number, channel, row, column] - expected) < 1e-5
    assert values.min() < 0 < values.max()


def test_every_layer_loses_its_share_and_the_structure_stays(monkeypatch):
    monkeypatch.setitem(correlation_lenet5.STEP, "epochs", 0)
    monkeypatch.setitem(correlation_lenet5.DENSE, "epochs", -4)  # one epoch with the five of the steps
    torch.manual_seed(0)
    data = torch.randn(40, 1, 28, 28), torch.randint(10, (40,))
    model = LocalLeNet()
    pruned = prune(model, recipe(CHOICES["correlation"], 0.75), data)
    assert len(pruned.masks) == correlation_lenet5.LAYERS
    assert {name: int(mask.sum()) for name, mask in pruned.masks.items()} == {
        "conv1.weight": 62,  # of 250, half a weight rounded to even
        "conv2.weight": 2_000,
        "local3.layer.weight": 13_824,
        "fc4.weight": 5_760,
        "fc5.weight": 300,
    }
    train_structure(model, pruned.masks, data, seed=0)
    for name, mask in pruned.masks.items():
        assert not bool(model.get_parameter(name)[~mask].any())
