"""Hard-concrete gates against samples drawn by NumPy and scipy's integrals."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats

from prunekit import hard_concrete

LOCATIONS = [-6.0, -2.5, -1.0, 0.0, 0.7, 3.0]


def drawn(location: float, uniform: np.ndarray) -> np.ndarray:
    """The definition, by NumPy."""
    s = 1 / (1 + np.exp(-(np.log(uniform / (1 - uniform)) + location) / (2 / 3)))
    return np.minimum(1, np.maximum(0, s * 1.2 - 0.1))


def as_noise(uniform: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.log(uniform / (1 - uniform)) / (2 / 3))


def test_the_noise_of_every_entry_is_logistic_and_that_of_two_is_independent() -> None:
    """By scipy's tests over 4,000 draws, of entries beside each other, far apart and in another block."""
    like = torch.zeros(2, hard_concrete.BLOCK // 2 + 5)
    places = [0, 1, 2, 1000, hard_concrete.BLOCK - 1, hard_concrete.BLOCK, hard_concrete.BLOCK + 9]
    torch.manual_seed(0)
    drawn = np.array([hard_concrete.noise(like).view(-1)[places].tolist() for _ in range(4000)])
    for each in drawn.T:
        assert stats.kstest(each, stats.logistic(scale=1.5).cdf).pvalue > 1e-3
        above, below = drawn[each > 0].mean(0), drawn[each <= 0].mean(0)
        assert sorted(np.abs(above - below))[-2] < 0.4  # 4.5 deviations; an entry's own differs by over 4
    assert np.abs(np.corrcoef(drawn.T) - np.eye(len(places))).max() < 0.07


@pytest.mark.parametrize("location", LOCATIONS)
def test_gates_of_pooled_noise_have_the_mean_of_their_integral(location: float) -> None:
    """Of one gate, over every place in the pool, and how often it is 0: closer than any samples come."""
    pool = hard_concrete._pool(torch.float64, torch.device("cpu"))[: hard_concrete.POOL]
    gates = hard_concrete.sample(torch.tensor(location, dtype=torch.float64), pool)
    edges = [1 / (1 + np.exp(location - (2 / 3) * np.log(q / (1 - q)))) for q in (1 / 12, 11 / 12)]
    mean = integrate.quad(lambda u: float(drawn(location, np.array(u))), 1e-12, 1 - 1e-12, points=edges)[0]
    assert float(gates.mean()) == pytest.approx(mean, abs=1e-6)
    assert float((gates == 0).double().mean()) == pytest.approx(edges[0], abs=2e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (hard_concrete.BLOCK + 1,), (2 * hard_concrete.BLOCK,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_seed_gives_the_same_noise_of_the_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(hard_concrete.noise(torch.zeros(shape, dtype=dtype)))
    assert (found[0].shape, found[0].dtype) == (shape, dtype)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("location", LOCATIONS)
def test_samples_are_those_of_the_definition(location: float) -> None:
    uniform = np.random.default_rng(0).uniform(size=1000)
    found = hard_concrete.sample(torch.tensor(location, dtype=torch.float64), as_noise(uniform))
    np.testing.assert_allclose(found.numpy(), drawn(location, uniform), atol=1e-12)


@pytest.mark.parametrize("location", LOCATIONS)
def test_the_probability_of_an_open_gate_is_the_share_of_samples(location: float) -> None:
    gates = drawn(location, np.random.default_rng(1).uniform(size=400_000))
    found = hard_concrete.open_probability(torch.tensor(location, dtype=torch.float64))
    assert float(found) == pytest.approx((gates > 0).mean(), abs=0.003)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_and_their_gradients_are_those_of_autograd(dtype: torch.dtype) -> None:
    """The formula as it is written; several samples of a gate add up."""
    generator = torch.Generator().manual_seed(0)
    location = 2 * torch.randn(300, generator=generator, dtype=dtype)
    noise = torch.logit(torch.rand(4, 300, generator=generator, dtype=dtype), 1e-6) / (2 / 3)
    pulls = torch.randn(4, 300, generator=generator, dtype=dtype)

    def by_autograd(location: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(noise + location / (2 / 3)) * (1.1 + 0.1) - 0.1).clamp(0, 1)

    found = []
    for sampled in (hard_concrete.sample, by_autograd):
        each = location.clone().requires_grad_()
        gates = sampled(each, noise)
        (gates * pulls).sum().backward()
        found.append((gates.detach(), each.grad))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    assert 0.1 < float((found[0][0] == 0).double().mean()) < 0.9


@pytest.mark.parametrize("location", LOCATIONS)
def test_the_gradient_of_the_mean_is_that_of_its_integral(location: float) -> None:
    """The mean of the gradients of samples is the derivative of the mean gate, by scipy."""

    def mean(at: float) -> float:
        edges = [1 / (1 + np.exp(at - (2 / 3) * np.log(q / (1 - q)))) for q in (1 / 12, 11 / 12)]
        return integrate.quad(lambda u: float(drawn(at, np.array(u))), 1e-12, 1 - 1e-12, points=edges)[0]

    at = torch.tensor(location, dtype=torch.float64, requires_grad=True)
    hard_concrete.sample(at, as_noise((np.arange(200_000) + 0.5) / 200_000)).mean().backward()
    assert at.grad is not None
    assert float(at.grad) == pytest.approx((mean(location + 1e-3) - mean(location - 1e-3)) / 2e-3, abs=2e-4)


@pytest.mark.parametrize("probability", [1e-6, 0.01, 0.5, 0.999])
def test_the_location_of_a_probability_is_the_inverse(probability: float) -> None:
    """By a search for the root: also far below the 5 % that the authors' clamp allows."""
    wanted = optimize.brentq(
        lambda a: float(hard_concrete.open_probability(torch.tensor(a, dtype=torch.float64))) - probability,
        -40,
        40,
        xtol=1e-13,
    )
    found = hard_concrete.location_of(torch.tensor(probability, dtype=torch.float64))
    assert float(found) == pytest.approx(wanted, abs=1e-6)


def test_a_final_gate_is_closed_and_open_at_the_stated_locations() -> None:
    found = hard_concrete.final_gate(torch.tensor([-2.41, -2.39, 0.0, 2.39, 2.41]))
    assert [float(each) for each in found[[0, 4]]] == [0, 1]
    assert 0 < found[1] < 0.01
    assert found[2] == pytest.approx(0.5)
    assert 0.99 < found[3] < 1


@pytest.mark.parametrize("location", LOCATIONS)
def test_gradients_of_probabilities_and_final_gates(location: float) -> None:
    at = torch.tensor(location, dtype=torch.float64, requires_grad=True)
    for function in (hard_concrete.open_probability, hard_concrete.final_gate):
        assert torch.autograd.gradcheck(function, (at,))
