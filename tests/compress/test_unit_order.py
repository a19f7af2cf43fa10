"""Another order of the units: the same function, fewer bytes."""

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.compress import encode_levels, order_units, regroup
from prunekit.errors import InputError


def sparse(rng, shape, rows=1.0):
    return np.where(rng.random(shape) < 0.1 * rows, rng.integers(1, 8, shape), 0)


def test_the_network_computes_the_same():
    torch.manual_seed(0)
    first, second, third = nn.Conv2d(2, 6, 3), nn.Linear(6 * 4, 7), nn.Linear(7, 3)
    for layer in (first, second, third):
        layer.weight.data *= torch.rand_like(layer.weight) < 0.3
    network = nn.Sequential(first, nn.ReLU(), nn.Flatten(), second, nn.ReLU(), third)
    inputs = torch.randn(5, 2, 4, 4)
    before = network(inputs)
    orders = []
    for made, read in ((first, second), (second, third)):
        order = order_units(made.weight.detach().numpy(), read.weight.detach().numpy())
        orders.append(order.tolist())
        made.weight.data, made.bias.data = made.weight.data[order], made.bias.data[order]
        read.weight.data = torch.from_numpy(regroup(read.weight.detach().numpy(), order))
        counts = np.count_nonzero(made.weight.detach().numpy().reshape(len(order), -1), axis=1)
        assert (np.diff(counts) <= 0).all()
    assert any(order != sorted(order) for order in orders)
    torch.testing.assert_close(network(inputs), before)


def test_units_with_as_many_weights_are_ordered_by_how_often_they_are_read():
    made = np.array([[1, 0], [0, 2], [1, 1], [0, 0]])
    read = np.array([[0, 0, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0, 0, 0]])
    assert order_units(made, read).tolist() == [2, 1, 0, 3]
    assert regroup(read, np.array([2, 1, 0, 3])).tolist() == [
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 1, 0, 0],
    ]


def test_it_takes_fewer_bytes():
    rng = np.random.default_rng(0)
    first, second = sparse(rng, (200, 100), 2 * rng.random((200, 1))), sparse(rng, (50, 200))
    order = order_units(first, second)
    after = len(encode_levels([first[order], regroup(second, order)]))
    # the numbers of weights, of about 5 bits, shrink to about 2 for each of 200 units
    assert after < len(encode_levels([first, second])) - 200 * 2 / 8


def test_layers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="does not read 3 units"):
        order_units(np.ones((3, 2)), np.ones((2, 4)))
    for order in ([0, 0, 1], [0, 1, 7], [-1, 0, 1]):
        with pytest.raises(InputError, match="order of 3 units holds each number below that once"):
            regroup(np.ones((2, 6)), np.array(order))
    with pytest.raises(InputError, match="does not read 0 units"):
        regroup(np.ones((2, 4)), np.array([], int))
