"""Weight sharing against brute force, scipy's Lloyd iterations and hand-made cases."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans2

from prunekit.compress import Quantized, choose_rates, on_grid, optimal_kmeans, published_kmeans
from prunekit.errors import InputError

numbers = st.integers(-40, 40).map(lambda number: number / 8)


def least_error(values, importance, levels):
    """Of all ways to cut the sorted values into at most so many runs."""
    order = np.argsort(values)
    values, importance = np.asarray(values)[order], np.asarray(importance)[order]

    def cost(first, last):
        run, weight = values[first:last], importance[first:last]
        if weight.sum() == 0:
            return 0.0
        return float((weight * (run - (weight * run).sum() / weight.sum()) ** 2).sum())

    best = np.inf
    for count in range(min(levels, len(values))):
        for cuts in combinations(range(1, len(values)), count):
            edges = [0, *cuts, len(values)]
            best = min(best, sum(cost(*pair) for pair in pairwise(edges)))
    return best


@given(st.lists(numbers.filter(bool), min_size=1, max_size=9), st.integers(1, 4), st.data())
@settings(deadline=None, max_examples=150)
def test_the_optimal_codebook_has_the_least_error(values, levels, data):
    importance = data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))
    values, importance = np.array(values), np.array(importance, float)
    found = optimal_kmeans(values, levels, importance)
    assert found.error(values, importance) == pytest.approx(least_error(values, importance, levels), abs=1e-5)


@given(st.lists(numbers, max_size=30), st.integers(1, 6), st.sampled_from([published_kmeans, optimal_kmeans]))
@settings(deadline=None, max_examples=150)
def test_zeros_stay_zeros_and_belong_to_no_centroid(values, levels, way):
    weights = np.array(values, np.float32)
    found = way(weights, levels)
    assert not found.codes[weights == 0].any()
    assert np.array_equal(found.values() == 0, found.codes == 0)
    assert len(found.centroids) <= min(levels, len(set(values) - {0}))
    assert set(np.unique(found.values())) - {0} == set(found.centroids)  # no centroid without members
    padded = np.concatenate([weights, np.zeros(50, np.float32)])
    assert np.array_equal(way(padded, levels).centroids, found.centroids)


def test_the_published_start_is_linear_and_the_iterations_are_lloyds():
    values = np.random.default_rng(0).normal(size=400)
    start = np.linspace(values.min(), values.max(), 5)
    theirs, _ = kmeans2(values[:, None], start[:, None], iter=500, minit="matrix")
    ours = published_kmeans(values, 5, iterations=500)
    assert ours.centroids == pytest.approx(np.sort(theirs[:, 0]), abs=1e-6)


def test_linear_centroids_without_members_are_left_out_and_the_optimum_uses_all():
    values = np.array([1.0, 1.1, 1.2, 9.0, 9.1, 9.2])
    assert len(published_kmeans(values, 4).centroids) < 4
    assert len(optimal_kmeans(values, 4).centroids) == 4
    assert optimal_kmeans(values, 4).error(values) < published_kmeans(values, 4).error(values)


@pytest.mark.parametrize("way", [published_kmeans, optimal_kmeans])
def test_weights_whose_mean_is_zero_become_zeros_and_are_no_other_centroids(way):
    weights = np.array([-100.0, -10.0, 10.0, 0.0])
    found = way(weights, 2)
    assert found.centroids.tolist() == [-100]
    assert found.codes.tolist() == [-1, 0, 0, 0]
    assert found.error(weights) == least_error(weights[:3], np.ones(3), 2) == 200


def test_codes_count_from_zero_outwards():
    found = optimal_kmeans(np.array([[-2, -0.5, 0], [1, 3, -0.5]]), 4)
    assert found.codes.tolist() == [[-2, -1, 0], [1, 2, -1]]
    assert found.centroids.tolist() == [-2, -0.5, 1, 3]
    assert found.values().tolist() == [[-2, -0.5, 0], [1, 3, -0.5]]


def test_empty_layers_zeros_and_one_level():
    for way in (published_kmeans, optimal_kmeans):
        assert way(np.zeros((0, 3)), 4).codes.shape == (0, 3)
        assert way(np.zeros((2, 3)), 4).centroids.size == 0
        assert way(np.array([1.0, 2.0, 0.0, 3.0]), 1).values().tolist() == [2, 2, 0, 2]
        assert way(np.full(3, -1.5), 4).values().tolist() == [-1.5] * 3


def test_more_distinct_weights_than_the_solver_takes(monkeypatch):
    values = np.random.default_rng(1).normal(size=5_000)
    exact = optimal_kmeans(values, 16).error(values)
    monkeypatch.setattr("prunekit.compress.codebook.MAX_DISTINCT", 1_000)
    assert exact <= optimal_kmeans(values, 16).error(values) <= 1.01 * exact


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_scale_of_weights_and_importance_does_not_matter(scale):
    values = np.random.default_rng(2).normal(size=300)
    codes = optimal_kmeans(values, 8).codes
    assert np.array_equal(optimal_kmeans(values * scale, 8).codes, codes)
    assert np.array_equal(optimal_kmeans(values, 8, np.full(300, scale)).codes, codes)


def test_importance_whose_sum_no_number_holds():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert optimal_kmeans(values, 2, np.full(5, 1e308)).centroids.tolist() == [2, 4.5]
    assert optimal_kmeans(values, 2, np.full(5, 5e-324)).centroids.tolist() == [2, 4.5]


@pytest.mark.parametrize("way", [published_kmeans, optimal_kmeans, on_grid])
def test_parameters_tensors_of_half_precision_and_single_numbers(way):
    values = [[1.5, -2.0], [0.0, 3.0]]
    expected = way(np.array(values), 2)
    for weights in (torch.nn.Parameter(torch.tensor(values)), torch.tensor(values).bfloat16()):
        found = way(weights, 2)
        assert np.array_equal(found.codes, expected.codes)
        assert np.array_equal(found.centroids, expected.centroids)
    single = way(np.float32(3), 2)
    assert isinstance(single.codes, np.ndarray)
    assert (single.codes.shape, int(single.codes)) == ((), 1)


@given(st.lists(numbers, max_size=20), st.sampled_from([0.125, 0.5, 3.0]))
def test_a_grid_rounds_to_multiples_of_its_step(values, step):
    weights = np.array(values)
    found = on_grid(weights, step)
    assert found.values() == pytest.approx(np.rint(weights / step) * step)
    assert np.array_equal(np.sign(found.codes), np.sign(found.values()))


def test_rates_are_shared_out_as_well_as_any_choice_of_the_same_bytes():
    options = [[(1, 9.0), (2, 4.0), (4, 1.0)], [(2, 30.0), (3, 20.0), (6, 2.0)], [(1, 1.0), (5, 0.5)]]
    for budget in range(4, 16):
        chosen = choose_rates(options, budget)
        picked = [layer[number] for layer, number in zip(options, chosen, strict=True)]
        spent = sum(rate for rate, _ in picked)
        assert spent <= budget
        assert sum(lost for _, lost in picked) == min(
            sum(lost for _, lost in choice)
            for choice in product(*options)
            if sum(rate for rate, _ in choice) <= spent
        )
    assert choose_rates(options, 15) == [2, 2, 1]


def test_what_there_is_room_for_behind_a_step_that_is_too_dear_is_taken():
    options = [[(0, 60.0), (5, 0.0)], [(0, 100.0), (10, 0.0)], [(0, 1.0), (5, 0.0)]]
    assert choose_rates(options, 10) == [1, 0, 1]  # for the same bytes [0, 1, 0] would lose less: 61, not 100
    assert choose_rates(options, 20) == [1, 1, 1]


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="finite"):
        optimal_kmeans(np.array([1.0, np.nan]), 2)
    for way in (published_kmeans, optimal_kmeans, on_grid):
        for weights in ([1.0, np.inf], [1e39, 1.0], [1j], ["a"], [True]):
            with pytest.raises(InputError, match="real numbers, finite in float32"):
                way(np.array(weights), 2)
    for levels in (0, 4_097, 2.5, "a", None):
        for way in (published_kmeans, optimal_kmeans):
            with pytest.raises(InputError, match=r"levels = .* at least 1 and at most 4,096"):
                way(np.ones(3), levels)
    with pytest.raises(InputError, match="iterations = -1"):
        published_kmeans(np.ones(3), 2, iterations=-1)
    with pytest.raises(InputError, match=r"shape \(3,\)"):
        optimal_kmeans(np.ones(3), 2, np.ones(2))
    with pytest.raises(InputError, match="cheapest options add up to 3"):
        choose_rates([[(3, 1.0)]], 2)
    for options, budget in (
        ([[(1, np.nan)]], 2),
        ([[(np.nan, 1)]], 2),
        ([[(1, np.inf), (2, 5)]], 2),
        ([[(1, 5), (2, 1)]], np.nan),
    ):
        with pytest.raises(InputError, match=r"finite|not nan"):
            choose_rates(options, budget)
    for step in (0, -1, np.nan, np.inf, "a", None):
        with pytest.raises(InputError, match="positive"):
            on_grid(np.ones(3), step)
    for weights, step in (([2e-50], 1e-50), ([3e38], 2e38), ([1.0, 1 + 1e-9], 1e-9), ([2.0], 1e-320)):
        with pytest.raises(InputError, match="levels that float32 does not hold, or does not tell apart"):
            on_grid(np.array(weights), step)
    assert isinstance(on_grid(np.ones(3), 1), Quantized)
