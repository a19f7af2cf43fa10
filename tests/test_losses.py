import numpy as np
import pytest
import torch

from prunekit.losses import LOSSES, default_loss, squared_error
from small_nets import blobs


def test_squared_error_sums_over_outputs_and_averages_over_examples():
    outputs, targets = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    expected = np.mean([sum((o - t) ** 2) for o, t in zip(outputs.numpy(), targets.numpy(), strict=True)])
    assert float(squared_error(outputs, targets)) == pytest.approx(expected)


def test_squared_error_of_networks_with_one_number_for_an_example():
    outputs, targets = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 1.0])
    assert float(squared_error(outputs, targets)) == pytest.approx((1 + 0 + 9) / 3)


def test_class_numbers_become_one_hot():
    outputs, targets = torch.rand(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    assert torch.equal(squared_error(outputs, targets), squared_error(outputs, torch.eye(3)[targets]))


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"outputs \(4, 1\) and targets \(4,\) differ in shape"):
        squared_error(torch.zeros(4, 1), torch.zeros(4))


def test_defaults_follow_the_targets():
    assert default_loss(blobs()[1]) == "cross_entropy"
    assert default_loss(torch.zeros(3)) == "squared_error"
    outputs = torch.randn(5, 4, dtype=torch.float64)
    shifted = outputs.numpy() - outputs.numpy().max(1, keepdims=True)
    expected = np.mean(np.log(np.exp(shifted).sum(1)) - shifted[range(5), [0, 1, 2, 3, 0]])
    assert float(LOSSES["cross_entropy"](outputs, torch.tensor([0, 1, 2, 3, 0]))) == pytest.approx(expected)
