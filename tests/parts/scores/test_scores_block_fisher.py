"""The block Fisher score against the recursion of WoodFisher, and against its diagonal."""

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import DataError
from prunekit.parts.scores import BlockFisher
from three_nets import NETWORKS, perceptron, scored


@NETWORKS
def test_block_fisher_against_the_recursion_of_woodfisher(network):
    """One example after the other by Sherman and Morrison, where the package inverts sums."""
    model, (inputs, targets) = network()
    inputs, targets = inputs[:12], targets[:12]
    block, damp = 6, 1e-3
    found = scored(BlockFisher(block=block, damp=damp), model, (inputs, targets))
    model.eval()
    gradients = {name: [] for name in found}
    for example, target in zip(inputs, targets, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(example[None]), target[None]).backward()
        for name, rows in gradients.items():
            rows.append(model.get_parameter(name).grad.flatten().numpy().copy())
    for name, rows in gradients.items():
        G, w = np.stack(rows), model.get_parameter(name).detach().flatten().numpy()
        ridge = damp * (G**2).mean(0).sum() / len(w)
        expected = np.empty(len(w))
        for first in range(0, len(w), block):
            part = slice(first, min(first + block, len(w)))
            inverse = np.eye(part.stop - first) / ridge
            for g in G[:, part]:
                v = inverse @ g
                inverse -= np.outer(v, v) / (len(G) + g @ v)
            expected[part] = w[part] ** 2 / (2 * np.diag(inverse))
        np.testing.assert_allclose(found[name].flatten().numpy(), expected, rtol=1e-7)


def test_block_fisher_of_one_weight_is_the_diagonal():
    model, data = perceptron()
    found = scored(BlockFisher(block=1, damp=1e-12), model, data)
    weight = model[0].weight
    squares = torch.zeros_like(weight)
    for example, target in zip(*data, strict=True):
        value = nn.functional.cross_entropy(model(example[None]), target[None])
        squares += torch.autograd.grad(value, weight)[0].square() / len(data[0])
    expected = weight.detach().square() * squares / 2
    torch.testing.assert_close(found["0.weight"], expected, rtol=1e-6, atol=1e-15)


def test_a_matrix_that_so_little_damping_leaves_singular_is_named():
    """Three examples have gradients in three directions, of fifty weights."""
    model, (inputs, targets) = perceptron()
    with pytest.raises(DataError, match=r"Fisher matrix of \d.weight is singular with damp = 1e-300: give a"):
        scored(BlockFisher(damp=1e-300), model, (inputs[:3], targets[:3]))


def test_a_block_is_at_most_all_of_a_tensor():
    """So many numbers of so large a block would fill no memory there is."""
    model, data = perceptron()
    whole = scored(BlockFisher(block=max(each.numel() for each in model.parameters())), model, data)
    for name, each in scored(BlockFisher(block=10**9), model, data).items():
        torch.testing.assert_close(each, whole[name])
