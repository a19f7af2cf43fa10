"""The bound against what really happens at the outputs of networks."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import number_of_examples
from prunekit.errors import InputError
from prunekit.obs import error_bound


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
