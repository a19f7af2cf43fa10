"""Scores that make one order of all rows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers_at_hand import layer, moments

from examples import number_of_examples
from prunekit.errors import InputError
from prunekit.masks import lowest
from prunekit.obs import Elimination, damped, eliminate, output_variance, removal_scores


def test_a_score_is_the_running_maximum_of_the_losses():
    order = torch.tensor([[2, 0, 1], [1, 2, -1]])
    inf = float("inf")
    losses = torch.tensor([[3.0, 1.0, 4.0], [0.5, 2.0, inf]], dtype=torch.float64)
    kept = torch.tensor([[False, False, False], [True, False, False]])
    scores = removal_scores(Elimination(order, losses, kept))
    torch.testing.assert_close(scores, torch.tensor([[3.0, 4, 3], [inf, 0.5, 2]], dtype=torch.float64))
    assert scores[0, 0] > scores[0, 2]
    half = removal_scores(Elimination(order, losses, kept), variance=2.0)
    torch.testing.assert_close(half, scores / 2)


def test_what_was_gone_before_and_what_stays():
    weights = torch.tensor([[1.0, 2, 3, 4]])
    kept = torch.tensor([[True, False, True, True]])
    scores = removal_scores(eliminate(torch.eye(4), weights, kept, stop=2))
    assert scores.tolist() == [[0.5, -1.0, 4.5, float("inf")]]


@number_of_examples(40)
@given(st.integers(1, 6), st.integers(1, 15), st.integers(0, 2**32 - 1), st.integers(0, 90))
def test_any_number_of_the_lowest_scores_is_a_beginning_of_every_rows_order(rows, inputs, seed, count):
    x, weights = layer(inputs=inputs, rows=rows, samples=20, seed=seed)
    weights = weights.round()  # zeros and ties
    found = eliminate(damped(moments(x), 1e-2)[0], weights)
    scores = removal_scores(found, variance=3.0)
    going = lowest(scores, min(count, scores.numel()))
    assert (~going).equal(found.after(going.sum(1)))


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_variance_that_is_none_is_refused(variance):
    found = eliminate(torch.eye(2), torch.ones(1, 2))
    with pytest.raises(InputError, match="output variance must be positive and finite"):
        removal_scores(found, variance)


def test_the_output_variance_is_that_of_the_outputs():
    x, weights = layer()
    x = x - x.mean(0)
    expected = (x @ weights.T).var(0, correction=0).sum()
    assert output_variance(moments(x), weights.float()) == pytest.approx(float(expected), rel=1e-5)
