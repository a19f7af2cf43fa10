"""Gates fitted to a layer, against the best of all supports and against the constraint."""

from itertools import combinations

import numpy as np
import pytest
import torch

from prunekit import hard_concrete
from prunekit.masks import lowest
from prunekit.obs.layer_gates import fitted_gates


def row(seed: int, size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """The second moments of correlated inputs, and one row of weights."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(200, size)) @ random.normal(size=(size, size))
    return torch.from_numpy(inputs.T @ inputs / 200), torch.from_numpy(random.normal(size=(1, size)))


def lost(matrix: np.ndarray, w: np.ndarray, kept: list[int]) -> float:
    """What a refit on a support leaves of the row's error, as a share of its energy."""
    best = np.linalg.solve(matrix[np.ix_(kept, kept)], matrix[kept] @ w)
    error = -w.copy()
    error[kept] += best
    return float(error @ matrix @ error / (w @ matrix @ w))


@pytest.mark.parametrize(("kept", "share"), [(2, 0.3), (4, 0.7)])
def test_supports_are_near_to_the_best_of_all(kept: int, share: float) -> None:
    """By brute force over all supports, on 12 rows; largest weights in units of their inputs beside it.

    The share is what may be left of the distance between these two.
    """
    found, best, large = [], [], []
    for seed in range(12):
        matrix, weights = row(seed)
        none = torch.zeros_like(weights, dtype=torch.bool)
        locations = fitted_gates(
            matrix, weights, none, kept / 8, generator=torch.Generator().manual_seed(seed)
        )
        support = (~lowest(locations, 8 - kept))[0].nonzero().flatten().tolist()
        H, w = matrix.numpy(), weights.numpy()[0]
        found.append(lost(H, w, support))
        best.append(min(lost(H, w, list(each)) for each in combinations(range(8), kept)))
        size = abs(w) * np.sqrt(np.diag(H))
        large.append(lost(H, w, sorted(np.argsort(size)[-kept:].tolist())))
    assert np.mean(best) <= np.mean(found) < np.mean(large)
    assert np.mean(found) - np.mean(best) < share * (np.mean(large) - np.mean(best))


@pytest.mark.parametrize("density", [0.5, 0.2])
def test_the_expected_number_of_open_gates_is_what_was_asked(density: float) -> None:
    random = np.random.default_rng(0)
    inputs = random.normal(size=(2000, 30)) @ random.normal(size=(30, 60))
    matrix = torch.from_numpy(inputs.T @ inputs / 2000 + 0.5 * np.eye(60))
    weights = torch.from_numpy(random.normal(size=(20, 60)))
    none = torch.zeros_like(weights, dtype=torch.bool)
    locations = fitted_gates(matrix, weights, none, density, generator=torch.Generator().manual_seed(0))
    assert float(hard_concrete.open_probability(locations).mean()) == pytest.approx(density, abs=0.03)


def test_dead_inputs_and_layers_without_outputs_do_no_harm() -> None:
    matrix, weights = row(0)
    matrix[3] = matrix[:, 3] = 0
    none, generator = torch.zeros_like(weights, dtype=torch.bool), torch.Generator().manual_seed(0)
    locations = fitted_gates(matrix, weights, none, 0.5, iterations=50, generator=generator)
    assert bool(torch.isfinite(locations).all())
    found = fitted_gates(matrix, torch.zeros_like(weights), none, 0.5, iterations=5, generator=generator)
    assert bool(torch.isfinite(found).all())


def test_the_same_generator_gives_the_same_gates() -> None:
    matrix, weights = row(1)
    none = torch.zeros_like(weights, dtype=torch.bool)
    one, other = (
        fitted_gates(matrix, weights, none, 0.5, iterations=30, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(one, other)
