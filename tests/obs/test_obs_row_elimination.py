"""The blocked elimination against OBS that inverts the Hessian anew after every removal."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layers_at_hand import layer, moments, naive_obs

from examples import number_of_examples
from prunekit.errors import DataError, InputError
from prunekit.masks import lowest
from prunekit.obs import RowElimination, damped, eliminate, output_variance, refit, removal_scores

EXACT = {"dtype": torch.float64}


def same_as_naive(found, matrix, weights, kept=None, first=(), without=(), allowed=None):
    for row in range(len(weights)):
        on = torch.ones(len(matrix), dtype=torch.bool) if kept is None else kept[row].clone()
        on[[*first, *without]] = False
        order, losses, _ = naive_obs(matrix, weights[row], on, allowed)
        begun = [column for column in first if kept is None or kept[row, column]]
        count = len(begun) + len(order)
        assert found.order[row, :count].tolist() == begun + order
        assert found.order[row, count:].eq(-1).all()
        expected = torch.tensor([0.0] * len(begun) + losses, dtype=torch.float64)
        torch.testing.assert_close(found.losses[row, :count], expected, rtol=1e-9, atol=1e-12)
        assert found.losses[row, count:].isinf().all()


@pytest.mark.parametrize("panel", [1, 5, 24, 64])
@pytest.mark.parametrize("damp", [0.0, 1e-2])
def test_the_same_order_and_losses_as_inverting_anew_after_every_removal(damp, panel):
    x, weights = layer()
    matrix, _ = damped(moments(x), damp)
    found = eliminate(matrix, weights, panel=panel, **EXACT)
    same_as_naive(found, matrix, weights)
    assert not found.kept.any()


def test_rows_in_lots_that_fit_a_small_memory_give_the_same():
    x, weights = layer(rows=7)
    matrix, _ = damped(moments(x), 1e-2)
    whole, parts = (eliminate(matrix, weights, budget_bytes=size, **EXACT) for size in (2**28, 20_000))
    assert parts.order.equal(whole.order)
    assert parts.losses.equal(whole.losses)


def test_weights_that_are_gone_take_no_part():
    x, weights = layer(rows=9, dead=(4, 17))
    matrix, _ = damped(moments(x), 1e-3)
    kept = torch.rand((9, 24), generator=torch.Generator().manual_seed(1)) < torch.arange(9)[:, None] / 8
    found = eliminate(matrix, weights, kept, panel=6, **EXACT)
    same_as_naive(found, matrix, weights, kept, first=(4, 17))
    assert found.order.shape[1] == int(kept.sum(1).max())
    one = eliminate(matrix, weights, kept[5:6].expand(9, 24), panel=6, **EXACT)
    same_as_naive(one, matrix, weights, kept[5:6].expand(9, 24), first=(4, 17))


def test_the_first_removals_alone():
    x, weights = layer(dead=(3,))
    matrix, _ = damped(moments(x), 1e-3)
    whole = eliminate(matrix, weights, panel=4, **EXACT)
    kept = torch.ones_like(weights, dtype=torch.bool)
    kept[0, 3] = False  # one row has no dead input left to begin with
    for stop in (0, 1, 7):
        some = eliminate(matrix, weights, stop=stop, panel=4, **EXACT)
        assert some.order.equal(whole.order[:, :stop])
        assert some.kept.equal(whole.after(stop))
        ragged = eliminate(matrix, weights, kept, stop=stop, panel=4, **EXACT)
        assert ragged.order[1:].equal(some.order[1:])
        assert ragged.order[0].equal(whole.order[0, 1 : stop + 1])
    counts = torch.arange(5)
    assert (~whole.after(counts)).sum(1).equal(counts)


@pytest.mark.parametrize("dead", [(), (0, 1, 2, 12, 13)])
@pytest.mark.parametrize(("pattern", "spacing"), [((2, 4), 1), ((1, 3), 1), ((2, 4), 3), ((3, 8), 1)])
def test_a_pattern_holds_exactly_and_is_the_naive_course_under_the_same_rule(pattern, spacing, dead):
    n, m = pattern
    x, weights = layer(dead=dead)
    matrix, _ = damped(moments(x), 1e-2)
    found = eliminate(matrix, weights, pattern=pattern, spacing=spacing, panel=5, **EXACT)
    groups = torch.arange(24).view(-1, m, spacing).transpose(1, 2).reshape(-1, m)
    assert found.kept[:, groups].sum(2).eq(n).all()
    # of the inputs of a group that are dead the first ones go, at no loss, as far as the pattern allows
    gone = [q for each in groups.tolist() for q in [q for q in each if q in dead][: m - n]]
    group = {q: number for number, each in enumerate(groups.tolist()) for q in each}
    stay = [q for q in dead if q not in gone]

    def allowed(column, left):
        return sum(group[q] == group[column] for q in [*left, *stay]) > n

    same_as_naive(found, matrix, weights, first=sorted(gone), without=dead, allowed=allowed)


def test_a_pattern_can_start_from_a_mask():
    x, weights = layer()
    matrix, _ = damped(moments(x), 1e-2)
    kept = torch.ones_like(weights, dtype=torch.bool)
    kept[:, :3], kept[1, 8:11] = False, False
    found = eliminate(matrix, weights, kept, pattern=(2, 4), panel=5, **EXACT)
    left = found.kept.view(5, 6, 4).sum(2)
    assert left[:, 0].eq(1).all()
    assert left[1, 2] == 1
    assert left.sum() == 5 * 12 - 5 - 1
    assert (found.kept & ~kept).sum() == 0


def test_each_predicted_loss_is_the_measured_change_of_the_error():
    x, weights = layer(rows=3)
    matrix, _ = damped(moments(x), 0.0)
    found = eliminate(matrix, weights, **EXACT)
    before = torch.zeros(3, dtype=torch.float64)
    for count in range(1, 25):
        moved = refit(matrix, weights, found.after(count)) - weights
        error = (x @ moved.T).square().mean(0) / 2
        torch.testing.assert_close(error - before, found.losses[:, count - 1], rtol=1e-8, atol=1e-10)
        before = error


def test_float32_goes_the_same_way_but_for_near_ties():
    x, weights = layer(inputs=256, rows=24, samples=2000, spread=0.5)
    matrix, _ = damped(moments(x), 1e-2)
    single, double = (eliminate(matrix, weights, dtype=each) for each in (torch.float32, torch.float64))
    assert (single.order == double.order).double().mean() >= 0.999
    torch.testing.assert_close(single.losses.sum(1), double.losses.sum(1), rtol=1e-4, atol=0)


def test_rows_that_lose_their_footing_in_float32_are_done_in_float64():
    x, weights = layer(samples=12, spread=0.0)
    matrix, _ = damped(moments(x), 1e-9)
    single, double = (eliminate(matrix, weights, dtype=each) for each in (torch.float32, torch.float64))
    assert single.order.equal(double.order)
    assert single.losses.equal(double.losses)


@pytest.mark.parametrize("panel", [3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_costs_go_by_column(dtype, panel):
    found = eliminate(torch.eye(12), torch.ones(2, 12), dtype=dtype, panel=panel)
    assert found.order.tolist() == [list(range(12))] * 2
    weights = torch.tensor([[2.0, 1, 0, 1, 2, 0, 1, 2]])
    found = eliminate(torch.eye(8), weights, dtype=dtype, panel=panel)
    assert found.order.tolist() == [[2, 5, 1, 3, 6, 0, 4, 7]]
    assert found.losses.tolist() == [[0, 0, 0.5, 0.5, 0.5, 2, 2, 2]]


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_the_scale_of_inputs_and_weights_does_not_matter(scale):
    x, weights = layer()
    matrix, _ = damped(moments(x), 1e-2)
    plain = eliminate(matrix, weights)
    scaled = eliminate(matrix * scale**2, weights * scale)
    assert scaled.order.equal(plain.order)
    torch.testing.assert_close(scaled.losses / scale**4, plain.losses, rtol=1e-5, atol=1e-12)


@number_of_examples(40)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 13), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_kept_weight_goes_once_and_the_losses_add_up(rows, inputs, panel, masked, seed):
    x, weights = layer(inputs=inputs, rows=rows, samples=30, seed=seed)
    drawn = torch.Generator().manual_seed(seed)
    kept = torch.rand((rows, inputs), generator=drawn) < 0.7 if masked else None
    matrix, _ = damped(moments(x), 1e-3)
    found = eliminate(matrix, weights, kept, panel=panel, **EXACT)
    on = torch.ones(rows, inputs, dtype=torch.bool) if kept is None else kept
    for row in range(rows):
        gone = found.order[row][found.order[row] >= 0]
        assert sorted(gone.tolist()) == on[row].nonzero().flatten().tolist()
        w = (weights[row] * on[row]).numpy()
        total = found.losses[row, : len(gone)].sum()
        assert total == pytest.approx(w @ matrix.numpy() @ w / 2, rel=1e-9)
    assert (found.losses >= 0).all()
    assert found.after(0).equal(on)


def test_layers_without_weights_and_with_nothing_live():
    assert eliminate(torch.eye(3), torch.ones(0, 3)).order.shape == (0, 0)
    found = eliminate(torch.zeros(3, 3), torch.ones(2, 3))
    assert found.order.tolist() == [[0, 1, 2]] * 2
    assert found.losses.eq(0).all()
    none = eliminate(torch.eye(3), torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))
    assert none.order.shape == (2, 0)


def test_nothing_that_was_given_is_changed():
    x, weights = layer()
    matrix, _ = damped(moments(x), 1e-2)
    kept = torch.ones_like(weights, dtype=torch.bool)
    copies = matrix.clone(), weights.clone(), kept.clone()
    eliminate(matrix, weights, kept, **EXACT)
    assert all(a.equal(b) for a, b in zip((matrix, weights, kept), copies, strict=True))


def test_what_does_not_fit_is_refused():
    matrix, weights = torch.eye(8), torch.ones(2, 8)
    with pytest.raises(InputError, match=r"weights must be \(rows, 8\)"):
        eliminate(matrix, torch.ones(8))
    with pytest.raises(InputError, match="mask of booleans"):
        eliminate(matrix, weights, weights)
    with pytest.raises(InputError, match="stop must be >= 0"):
        eliminate(matrix, weights, stop=-1)
    with pytest.raises(InputError, match="dtype must be float32 or float64"):
        eliminate(matrix, weights, dtype=torch.float16)
    with pytest.raises(InputError, match="panel >= 1"):
        eliminate(matrix, weights, panel=0)
    with pytest.raises(InputError, match="8 columns do not divide into groups of 3 that lie 1 apart"):
        eliminate(matrix, weights, pattern=(1, 3))
    with pytest.raises(InputError, match="a pattern n:m needs 1 <= n < m"):
        eliminate(matrix, weights, pattern=(4, 4))
    with pytest.raises(DataError, match="weights to be removed are not finite"):
        eliminate(matrix, weights * np.nan)
    with pytest.raises(DataError, match="singular"):
        eliminate(torch.ones(8, 8), weights)
    with pytest.raises(DataError, match="not finite"):
        eliminate(matrix * np.nan, weights)


def test_a_score_is_the_running_maximum_of_the_losses():
    order = torch.tensor([[2, 0, 1], [1, 2, -1]])
    inf = float("inf")
    losses = torch.tensor([[3.0, 1.0, 4.0], [0.5, 2.0, inf]], dtype=torch.float64)
    kept = torch.tensor([[False, False, False], [True, False, False]])
    scores = removal_scores(RowElimination(order, losses, kept))
    torch.testing.assert_close(scores, torch.tensor([[3.0, 4, 3], [inf, 0.5, 2]], dtype=torch.float64))
    assert scores[0, 0] > scores[0, 2]
    half = removal_scores(RowElimination(order, losses, kept), variance=2.0)
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
