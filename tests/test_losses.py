import numpy as np
import pytest
import torch

from prunekit.losses import LOSSES, absolute_error, default_loss, squared_error
from prunekit.units.runner import AnyErrorDelta, loss_delta
from small_nets import blobs


def test_squared_error_sums_over_outputs_and_averages_over_examples():
    outputs, targets = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    expected = np.mean([sum((o - t) ** 2) for o, t in zip(outputs.numpy(), targets.numpy(), strict=True)])
    assert float(squared_error(outputs, targets)) == pytest.approx(expected)


def test_squared_error_of_networks_with_one_number_for_an_example():
    outputs, targets = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 2.0, 1.0])
    assert float(squared_error(outputs, targets)) == pytest.approx((1 + 0 + 9) / 3)


def test_absolute_error_by_hand():
    outputs = torch.tensor([[1.0, 3.0], [0.0, -1.0]])
    assert absolute_error(outputs, torch.tensor([[0.0, 1.0], [0.0, 1.0]])) == (1 + 2 + 0 + 2) / 2
    assert absolute_error(outputs, torch.tensor([0, 1])) == (0 + 3 + 0 + 2) / 2
    with pytest.raises(ValueError, match="differ in shape"):
        absolute_error(outputs, torch.zeros(2, 1))


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


@pytest.mark.parametrize("name", LOSSES)
def test_every_error_by_name_has_a_fast_form_for_units(name):
    outputs, targets = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0])
    judge = loss_delta(LOSSES[name], outputs, targets)
    assert not isinstance(judge, AnyErrorDelta)
    variants = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = [6 * (LOSSES[name](each.T, targets) - LOSSES[name](outputs, targets)) for each in variants]
    torch.testing.assert_close(judge.changes(variants.clone(), 0, 6), torch.stack(expected))
