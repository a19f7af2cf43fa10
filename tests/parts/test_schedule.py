import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.parts.schedule import (
    AllocationDecides,
    Cubic,
    Explicit,
    FixedCount,
    Geometric,
    Linear,
    OneShot,
    Schedule,
    check_increasing,
)

SPARSITY = st.floats(0.01, 0.995)
STEPS = st.integers(1, 60)


@given(SPARSITY, STEPS, st.sampled_from(["linear", "geometric", "cubic"]))
def test_strictly_increasing_up_to_exactly_what_was_asked(sparsity, steps, name):
    found = Schedule.build({"name": name, "sparsity": sparsity, "steps": steps}).sparsities()
    assert len(found) == steps
    assert found[-1] == sparsity
    assert all(0 < value < 1 for value in found)
    assert list(found) == sorted(set(found))
    check_increasing(found)


def test_linear_is_equal_parts_of_the_original():
    assert np.allclose(Linear(sparsity=0.9, steps=10).sparsities(), np.arange(1, 11) * 0.09)


@given(st.floats(0.01, 0.9), st.integers(1, 20))
def test_geometric_removes_the_same_share_of_what_is_left(rate, steps):
    found = Geometric(rate=rate, steps=steps).sparsities()
    kept = [1.0]
    for _ in range(steps):
        kept.append(kept[-1] - rate * kept[-1])
    assert np.allclose(found, 1 - np.array(kept[1:]), atol=1e-12)


def test_geometric_of_the_paper():
    # 20 % of what is left, ten times: 10.7 % are kept
    assert Geometric(rate=0.2, steps=10).sparsities()[-1] == pytest.approx(1 - 0.8**10)


@given(SPARSITY, STEPS, st.floats(0, 0.9))
def test_cubic_follows_zhu_and_gupta(sparsity, steps, initial):
    assume(initial < sparsity)
    found = np.array(Cubic(sparsity=sparsity, steps=steps, initial=initial).sparsities())
    t = np.arange(1, steps + 1) / steps
    assert np.allclose(found, sparsity + (initial - sparsity) * (1 - t) ** 3)


def test_explicit_and_one_shot_are_what_they_say():
    assert Explicit(values=(0.1, 0.5)).sparsities() == (0.1, 0.5)
    assert OneShot(sparsity=0.3).sparsities() == (0.3,)
    assert AllocationDecides(steps=3).sparsities() == (None, None, None)


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        (40, r"40 is no sparsity: it is a fraction of the original count, in \[0, 1\): write 0.4 for 40 %"),
        (1.0, r"1 is no sparsity"),
        (-0.1, r"-0.1 is no sparsity"),
        (float("nan"), "finite number"),
        ("much", "valid number"),
    ],
)
def test_what_is_no_fraction_is_refused(sparsity, message):
    with pytest.raises(InputError, match=f"one_shot: sparsity.*{message}"):
        OneShot(sparsity=sparsity)


@pytest.mark.parametrize("values", [(0.5, 0.5), (0.5, 0.4), (0.0,)])
def test_standing_still_is_refused(values):
    message = (
        "strictly increasing above 0" if all(values) else "begins with sparsity 0, which removes nothing"
    )
    with pytest.raises(InputError, match=message):
        check_increasing(values)


@pytest.mark.parametrize("settings", [{}, {"rate": 0.2, "sparsity": 0.5}])
def test_geometric_needs_exactly_one_aim(settings):
    with pytest.raises(InputError, match=r"geometric: give either 'rate'.*or 'sparsity'"):
        Geometric(steps=2, **settings)


@pytest.mark.parametrize("steps", [0, -1, 1.5])
def test_steps_are_whole_and_positive(steps):
    with pytest.raises(InputError, match=f"linear: steps = {steps}"):
        Linear(sparsity=0.5, steps=steps)


def test_an_empty_list_is_refused():
    with pytest.raises(InputError, match="explicit: values"):
        Explicit(values=())


@given(SPARSITY, st.integers(1, 500), st.integers(1, 3000))
def test_counts_remove_the_same_number_every_time_and_the_rest_at_the_end(sparsity, every, total):
    last = round(sparsity * total)
    assume(last > 0)
    levels = FixedCount(every=every, sparsity=sparsity).levels(total)
    removed = [round(level * total) for level in levels]
    assert removed == [*range(every, last, every), last]
    assert levels[-1] == sparsity
    assert FixedCount(every=every, sparsity=sparsity).sparsities() == (sparsity,)


def test_the_levels_of_other_schedules_do_not_depend_on_the_network():
    for schedule in (Linear(sparsity=0.9, steps=3), AllocationDecides(steps=2), OneShot(sparsity=0.5)):
        assert schedule.levels(10) == schedule.levels(10**6) == schedule.sparsities()


@pytest.mark.parametrize("every", [0, -3, 1.5])
def test_counts_of_nothing(every):
    with pytest.raises(InputError, match="every = "):
        FixedCount(every=every, sparsity=0.5)


@pytest.mark.parametrize("steps", [100_001, 2**63 - 1, 2**80])
def test_at_most_100_000_steps(steps):
    for settings in (
        {"name": "linear", "sparsity": 0.5},
        {"name": "geometric", "sparsity": 0.5},
        {"name": "cubic", "sparsity": 0.5},
        {"name": "allocation_decides"},
    ):
        with pytest.raises(InputError, match=f"steps = {steps}: .*less than or equal to 100000"):
            Schedule.build({**settings, "steps": steps})


def test_counts_that_would_be_too_many_steps():
    counts = Schedule.build({"name": "fixed_count", "every": 3, "sparsity": 0.5})
    assert len(counts.levels(600_000)) == 100_000
    with pytest.raises(
        InputError, match="would take 100,001 steps, at most 100,000 are allowed: remove 4 or more"
    ):
        counts.levels(600_004)
