"""SparseGPT against a loop that inverts the rest of the Hessian anew, and ADMM against the best support."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.masks import lowest
from prunekit.obs import (
    admm_support,
    choose_count,
    choose_mask,
    choose_pattern,
    damped,
    left_to_right,
    refit,
)


def layer(rows=4, columns=12, seed=0, damp=0.01, dead=()):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(50, columns, generator=generator, dtype=torch.float64) @ mixing
    x[:, list(dead)] = 0
    weights = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return damped(x.T @ x / 50, damp)[0], weights


def naive(matrix, weights, choose, together):
    """Column by column: the best change of all columns behind for each weight that is cut off."""
    h, w = matrix.numpy(), weights.clone().numpy()
    mask = np.zeros(w.shape, dtype=bool)
    for j in range(w.shape[1]):
        if j % together == 0:
            own = slice(j, min(j + together, w.shape[1]))
            # 1 / U_jj^2 is what is left of column j's own second moment given the columns behind it
            left = [1 / np.linalg.inv(h[c:, c:])[0, 0] for c in range(own.start, own.stop)]
            mask[:, own] = choose(torch.from_numpy(w[:, own] ** 2 * np.array(left)), j).numpy()
        behind = np.linalg.inv(h[j:, j:])
        lost = w[:, j] * ~mask[:, j]
        w[:, j:] -= np.outer(lost / behind[0, 0], behind[0])
        w[:, j] *= mask[:, j]
    return w, mask


@pytest.mark.parametrize("block", [3, 4, 12, 128])
def test_the_pass_against_fresh_inverses(block):
    matrix, weights = layer()
    # masks are chosen by the weights as they are when their block begins: as many as one block here
    found, mask = left_to_right(matrix, weights, choose_count(weights == 9, 20, 12), block=12)
    expected = choose_mask(mask)
    again, _ = left_to_right(matrix, weights, expected, block=block)
    by_hand, same = naive(matrix, weights, expected, 12)
    assert np.allclose(again.numpy(), by_hand)
    assert np.allclose(found.numpy(), by_hand)
    assert np.array_equal(mask.numpy(), same)
    assert int((~mask).sum()) == 20


def test_masks_are_chosen_block_by_block_with_the_weights_as_they_are():
    matrix, weights = layer()
    nothing = torch.zeros_like(weights, dtype=torch.bool)
    found, mask = left_to_right(matrix, weights, choose_count(nothing, 24, 4), block=4)
    by_hand, expected = naive(matrix, weights, choose_count(nothing, 24, 4), 4)
    assert np.array_equal(mask.numpy(), expected)
    assert np.allclose(found.numpy(), by_hand)
    assert [int((~part).sum()) for part in mask.split(4, 1)] == [8, 8, 8]


def test_two_of_four():
    matrix, weights = layer(columns=16)
    nothing = torch.zeros_like(weights, dtype=torch.bool)
    found, mask = left_to_right(matrix, weights, choose_pattern(nothing, 2), block=8, together=4)
    by_hand, expected = naive(matrix, weights, choose_pattern(nothing, 2), 4)
    assert bool((mask.view(4, 4, 4).sum(2) == 2).all())
    assert np.array_equal(mask.numpy(), expected)
    assert np.allclose(found.numpy(), by_hand)


def test_dead_inputs_go_first_and_change_nothing():
    matrix, weights = layer(dead=(1, 5))
    nothing = torch.zeros_like(weights, dtype=torch.bool)
    found, mask = left_to_right(matrix, weights, choose_count(nothing, 8, 12), block=12)
    assert sorted(set((~mask).nonzero()[:, 1].tolist())) == [1, 5]
    assert torch.allclose(found[:, [0, 2, 3, 4]], weights[:, [0, 2, 3, 4]])


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 20),
    share=st.floats(0, 1),
    already=st.floats(0, 1),
    block=st.integers(1, 8),
    seed=st.integers(0, 50),
)
def test_exact_counts_and_nothing_comes_back(rows, columns, share, already, block, seed):
    matrix, weights = layer(rows, columns, seed)
    generator = torch.Generator().manual_seed(seed)
    gone = torch.rand(rows, columns, generator=generator) < already * share
    count = max(int(gone.sum()), round(share * gone.numel()))
    found, mask = left_to_right(matrix, weights * ~gone, choose_count(gone, count, block), block=block)
    assert int((~mask).sum()) == count
    assert not bool((mask & gone).any())
    assert bool((found[~mask] == 0).all())


def error(matrix, change):
    return float(((change @ matrix) * change).sum()) / 2


def refitted(matrix, weights, mask):
    return error(matrix, weights - refit(matrix, weights, mask) * mask)


@pytest.mark.parametrize("seed", range(5))
def test_the_search_is_near_the_best_support(seed):
    matrix, weights = layer(1, 10, seed)

    def keep(importance):
        return ~lowest(importance, 5)

    found = admm_support(matrix, weights, keep)
    every = []
    for places in itertools.combinations(range(10), 5):
        mask = torch.zeros_like(weights, dtype=torch.bool)
        mask[0, list(places)] = True
        every.append(refitted(matrix, weights, mask))
    assert int(found.sum()) == 5
    by_size = refitted(matrix, weights, keep(weights.abs()))
    assert refitted(matrix, weights, found) <= by_size + 1e-12
    assert sorted(every).index(min(every, key=lambda e: abs(e - refitted(matrix, weights, found)))) < 20


@pytest.mark.parametrize(("seed", "removed"), [(0, 100), (1, 160), (2, 120)])
def test_the_search_is_the_alternation_of_its_paper(seed, removed):
    """A loop with the authors' rule for ρ, whose count of changes has entering and leaving weights."""
    matrix, weights = layer(10, 20, seed)
    H, given = matrix.numpy(), weights.numpy()
    scale = np.sqrt(np.diag(H))
    H, given = H / np.outer(scale, scale), given * scale
    D, V, rho = given.copy(), np.zeros_like(given), 0.1
    before = np.ones(given.shape, dtype=bool)
    growths = []
    for iteration in range(1, 301):
        W = np.linalg.solve(H + rho * np.eye(20), (given @ H - V + rho * D).T).T
        D = W + V / rho
        support = np.ones(given.size, dtype=bool)
        support[np.argsort(abs(D), axis=None, kind="stable")[:removed]] = False
        support = support.reshape(D.shape)
        D = D * support
        V = V + rho * (W - D)
        if iteration % 3 == 0:
            entered, left = (support & ~before).sum(), (before & ~support).sum()
            share = (entered + left) / support.sum()
            if share == 0:
                break
            growths.append(1.3 if share > 0.1 else 1.2 if share > 0.005 else 1.1)
            rho *= growths[-1]
            before = support
    assert len(set(growths)) > 1
    found = admm_support(matrix, weights, lambda importance: ~lowest(importance, removed))
    assert np.array_equal(found.numpy(), support)


def test_the_search_beats_size_on_a_layer():
    matrix, weights = layer(20, 40, 3)

    def keep(importance):
        return ~lowest(importance, 560)

    scaled = keep(weights.abs() * matrix.diagonal().sqrt())
    found = admm_support(matrix, weights, keep)
    assert refitted(matrix, weights, found) < 0.9 * refitted(matrix, weights, scaled)
