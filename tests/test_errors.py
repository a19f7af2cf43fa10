"""What is said of names that there are not, worked out by hand."""

import pytest

from prunekit.errors import instead

NAMES = ["snip", "l0_units", "l0_weights", "layer_l0", "magnitude", "RigL"]


@pytest.mark.parametrize(
    ("written", "guess"),
    [
        ("magnitud", "did you mean 'magnitude'? "),
        ("SNIP", "did you mean 'snip'? "),
        ("rigl", "did you mean 'RigL'? "),
        ("l0-units", "did you mean 'l0_units'? "),
        ("l0", "did you mean 'l0_units', 'l0_weights' or 'layer_l0'? "),
        ("units", "did you mean 'l0_units'? "),
        ("something else", ""),
        ("", ""),
        ("magnitude" * 10_000, ""),
        (3, ""),
    ],
)
def test_the_nearest_names_come_before_all_of_them(written, guess):
    assert instead(written, NAMES) == f"; {guess}names are: {', '.join(NAMES)}"


def test_many_names_are_left_to_the_command_that_lists_them():
    assert instead("snipe", NAMES, listed_by="prunekit x") == (
        "; did you mean 'snip'? `prunekit x` lists all 6"
    )


def test_where_there_is_nothing():
    assert instead("a", [], "allowed keys") == "; allowed keys are: none"
