"""The random draw in halves: exact counts, shares of the halves, odds, the same draw for a seed."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import number_of_examples
from prunekit.parts.selection import stratified_sample


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def halves(values, available):
    """For each row, the positions of the strong and of the weak half of each sign, by plain sorting."""
    for row in range(len(values)):
        found = []
        for negative in (False, True):
            kind = [
                column
                for column in range(values.shape[1])
                if available[row, column] and (values[row, column] < 0) == negative
            ]
            kind.sort(key=lambda column: -abs(values[row, column]))
            larger = (len(kind) + 1) // 2
            found.append((kind[:larger], kind[larger:]))
        yield row, found


@st.composite
def cases(draw):
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    values = random.normal(size=(rows, columns)).round(draw(st.sampled_from([1, 9])))
    available = random.random((rows, columns)) < draw(st.sampled_from([1.0, 0.6]))
    kept = draw(st.integers(0, int(available.sum())))
    strong = draw(st.sampled_from([0.0, 0.5, 0.7, 0.75, 1.0]) | st.floats(0, 1))
    return torch.tensor(values), torch.tensor(available), kept, strong, seed


@given(cases())
@number_of_examples(150)
def test_counts_are_exact_and_shares_are_met(case):
    values, available, kept, strong, seed = case
    found = stratified_sample(values, available, kept, strong, generator(seed))
    assert int(found.sum()) == kept
    assert not bool((found & ~available).any())
    density = kept / max(int(available.sum()), 1)
    taken = wanted = 0.0
    for row, ((plus, weak_plus), (minus, weak_minus)) in halves(values.numpy(), available.numpy()):
        size = len(plus) + len(weak_plus) + len(minus) + len(weak_minus)
        count = int(found[row].sum())
        assert abs(count - density * size) < 1 + 1e-9
        of_strong = max(min(strong * count, len(plus + minus)), count - len(weak_plus + weak_minus))
        here = int(found[row, plus + minus].sum())
        assert abs(here - of_strong) < 1 + 1e-9
        taken, wanted = taken + here, wanted + of_strong
        share = (len(plus) + len(weak_plus)) / max(size, 1)  # of the positive kind in each half
        for half, rest, total in ((plus, minus, here), (weak_plus, weak_minus, count - here)):
            positive = max(min(share * total, len(half)), total - len(rest))
            assert abs(int(found[row, half].sum()) - positive) < 1 + 1e-9
    assert abs(taken - wanted) < 1 + 1e-9


@given(cases())
@number_of_examples(30)
def test_the_seed_decides(case):
    values, available, kept, strong, seed = case
    one, other = (stratified_sample(values, available, kept, strong, generator(seed)) for _ in range(2))
    assert torch.equal(one, other)


def test_the_published_numbers():
    values = torch.cat([torch.linspace(1, 0.01, 80), -torch.linspace(1, 0.01, 40)]).unsqueeze(0)
    found = stratified_sample(values, torch.ones_like(values, dtype=torch.bool), 24, 0.75, generator())
    counts = [
        int(found[0, part].sum()) for part in (slice(0, 40), slice(40, 80), slice(80, 100), slice(100, 120))
    ]
    assert counts == [12, 4, 6, 2]  # S = 0.2: three quarters of 16, and of 8


def test_strong_halves_alone_until_they_are_used_up():
    values = torch.linspace(1, 0.01, 100).view(1, -1)
    available = torch.ones_like(values, dtype=torch.bool)
    for kept, of_strong in ((30, 30), (50, 50), (70, 50), (100, 50)):
        found = stratified_sample(values, available, kept, 1.0, generator(kept))
        assert (int(found[0, :50].sum()), int(found[0, 50:].sum())) == (of_strong, kept - of_strong)
    found = stratified_sample(values, available, 70, 0.0, generator())
    assert int(found[0, :50].sum()) == 20


def test_within_a_half_all_have_the_same_odds():
    values = torch.linspace(1, -1, 20).repeat(50, 1)
    times = torch.zeros(20)
    for seed in range(200):
        times += stratified_sample(
            values, torch.ones_like(values, dtype=torch.bool), 250, 0.75, generator(seed)
        ).sum(0)
    share = times / (50 * 200)  # a quarter of 20 are kept: 0.375 of each strong half, 0.125 of each weak one
    expected = torch.tensor([0.375] * 5 + [0.125] * 10 + [0.375] * 5)
    assert torch.allclose(share, expected, atol=0.02)


def test_small_shares_are_met_over_the_rows():
    values = torch.linspace(1, 0.01, 30).repeat(400, 1)
    found = stratified_sample(values, torch.ones_like(values, dtype=torch.bool), 400, 0.75, generator())
    assert abs(int(found[:, :15].sum()) - 300) <= 1  # one of each row: three rows of four a strong one
    assert bool((found.sum(1) == 1).all())
