"""A part of the settings with bad numbers: every setting once at least, and every number."""

import math
from pathlib import Path

import bad_numbers
import harness
import pytest

STRIDE = 31
"""No divisor of the number of values, so that all of them come up, and each setting with one or two."""


def test_settings_with_bad_numbers(tmp_path: Path) -> None:
    assert math.gcd(STRIDE, len(bad_numbers.VALUES)) == 1
    assert len(bad_numbers.VALUES) >= STRIDE
    found = harness.run(
        lambda number: bad_numbers.case(number * STRIDE),
        range(bad_numbers.COUNT // STRIDE),
        folder=tmp_path,
        fork=False,
    )
    slow = [each for each in found.failures if each[1].startswith("took ") and each[1].endswith(" s")]
    assert [each for each in found.failures if each not in slow] == []  # a busy machine is slow
    assert found.counts["refused"] > found.counts["accepted"] > 20


@pytest.mark.parametrize("value", [2**63 - 1, 2**80, 10**5000], ids=["2^63 - 1", "2^80", "10^5000"])
def test_absurd_numbers_are_refused_at_once(value: int) -> None:
    counts = {"steps", "rounds", "cycles", "every", "step", "calibration", "retrain_every"}
    places = [place for place in bad_numbers.PLACES if place.key in counts | {"epochs", "iterations"}]
    assert len(places) > 80
    for place in places:
        with pytest.raises(bad_numbers.InputError, match=place.key):
            place.recipe(value)
