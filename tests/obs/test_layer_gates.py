"""Gates fitted to a layer, against the best of all supports, the constraint and samples of the gates."""

from itertools import combinations

import numpy as np
import pytest
import torch

from prunekit.masks import lowest
from prunekit.obs.layer_gates import _open_probability, fitted_gates


def row(seed: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """The second moments of correlated inputs, and one row of weights."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(200, size)) @ random.normal(size=(size, size))
    return torch.from_numpy(inputs.T @ inputs / 200), torch.from_numpy(random.normal(size=(1, size)))


def wide_layer() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(2000, 30)) @ random.normal(size=(30, 60))
    matrix = torch.from_numpy(inputs.T @ inputs / 2000 + 0.5 * np.eye(60))
    return matrix, torch.from_numpy(random.normal(size=(20, 60)))


def lost(matrix: np.ndarray, w: np.ndarray, kept: list[int]) -> float:
    """What a refit on a support leaves of the row's error, as a share of its energy."""
    best = np.linalg.solve(matrix[np.ix_(kept, kept)], matrix[kept] @ w)
    error = -w.copy()
    error[kept] += best
    return float(error @ matrix @ error / (w @ matrix @ w))


@pytest.mark.parametrize(("kept", "share"), [(2, 0.3), (4, 0.5)])
def test_supports_are_near_to_the_best_of_all(kept: int, share: float) -> None:
    """By brute force over all supports, on 12 rows; largest weights in units of their inputs beside it.

    The share is what may be left of the distance between these two.
    """
    found, best, large = [], [], []
    for seed in range(12):
        matrix, weights = row(seed)
        none = torch.zeros_like(weights, dtype=torch.bool)
        sizes = fitted_gates(matrix, weights, none, kept / 8)[1]
        support = (~lowest(sizes, 8 - kept))[0].nonzero().flatten().tolist()
        H, w = matrix.numpy(), weights.numpy()[0]
        found.append(lost(H, w, support))
        best.append(min(lost(H, w, list(each)) for each in combinations(range(8), kept)))
        size = abs(w) * np.sqrt(np.diag(H))
        large.append(lost(H, w, sorted(np.argsort(size)[-kept:].tolist())))
    assert np.mean(best) <= np.mean(found) < np.mean(large)
    assert np.mean(found) - np.mean(best) < share * (np.mean(large) - np.mean(best))


@pytest.mark.parametrize("density", [0.5, 0.1, 0.02, 0.01])
def test_so_many_gates_are_open_as_was_asked_and_hardly_one_is_undecided(density: float) -> None:
    matrix, weights = wide_layer()
    none = torch.zeros_like(weights, dtype=torch.bool)
    probability, _ = fitted_gates(matrix, weights, none, density)
    assert float(probability.mean()) == pytest.approx(density, rel=1e-4)
    assert float((probability > 0.5).float().mean()) == pytest.approx(density, abs=2 / weights.numel())


def test_the_weights_are_the_best_of_the_expected_error_by_samples_of_the_gates() -> None:
    """Drawn gates: no other scale of the weights, and no other gates of as many, do better."""
    matrix, weights = wide_layer()
    none = torch.zeros_like(weights, dtype=torch.bool)
    scale = matrix.diagonal().sqrt()
    probability, sizes = fitted_gates(matrix, weights, none, 0.3, iterations=1000)
    unit, given = (matrix / scale.outer(scale)).numpy(), (weights * scale).numpy()
    p = probability.double().numpy()
    size = np.sqrt((given**2).mean())
    # the signs of the mean weights are those of the least squares on what is open
    signs = np.zeros_like(given)
    for number in range(len(given)):
        on = np.flatnonzero(p[number] > 0.5)
        signs[number, on] = np.sign(np.linalg.solve(unit[np.ix_(on, on)], unit[on] @ given[number]))
    mean = signs * sizes.double().numpy() * size
    values = np.divide(mean, p, out=np.zeros_like(mean), where=p > 0)
    random = np.random.default_rng(1)
    draws = random.random((400, *p.shape))

    def error(values: np.ndarray, p: np.ndarray) -> float:
        gap = values * (draws < p) - given
        return float(((gap @ unit) * gap).sum((1, 2)).mean())

    least = error(values, p)
    for factor in (0.9, 1.1):
        assert least < error(values * factor, p)
    others = random.permuted(p, axis=1)
    assert least < error(np.where(p > 0, values, given), others)


def test_probabilities_are_the_least_of_what_they_cost() -> None:
    """sum u^2 / p under sum p = t and p <= 1, against scipy."""
    from scipy.optimize import LinearConstraint, minimize

    size = np.array([3.0, 1.0, 0.5, 0.2, 0.1, 0.05])
    for total in (1.0, 2.5, 4.0):
        best = minimize(
            lambda p: (size**2 / p).sum(),
            np.full(6, total / 6),
            bounds=[(1e-6, 1)] * 6,
            constraints=[LinearConstraint(np.ones((1, 6)), total, total)],
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 1000},
        )
        found = _open_probability(torch.from_numpy(size), total)
        np.testing.assert_allclose(found.numpy(), best.x, atol=2e-3)
        assert float(found.sum()) == pytest.approx(total)


def test_dead_inputs_and_layers_without_outputs_do_no_harm() -> None:
    matrix, weights = row(0)
    matrix[3] = matrix[:, 3] = 0
    none = torch.zeros_like(weights, dtype=torch.bool)
    probability, sizes = fitted_gates(matrix, weights, none, 0.5)
    assert bool(torch.isfinite(sizes).all())
    assert float(probability[0, 3]) == 0
    assert float(probability.sum()) == pytest.approx(4, rel=1e-4)
    found = fitted_gates(matrix, torch.zeros_like(weights), none, 0.5, iterations=5)[1]
    assert bool(torch.isfinite(found).all())


def test_what_is_gone_stays_closed() -> None:
    matrix, weights = row(1)
    gone = torch.zeros_like(weights, dtype=torch.bool)
    gone[0, :3] = True
    probability, sizes = fitted_gates(matrix, weights, gone, 0.25)
    assert not bool(probability[gone].any() | sizes[gone].any())
    assert float(probability.sum()) == pytest.approx(2, rel=1e-4)
