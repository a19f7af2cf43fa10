"""Growing: published problems, the outputs' minimum, what stays, what is reproducible."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cascade_problems import curves, parity, two_spirals

from prunekit.growing import CascadeRow, CascadeSettings, grow, smallest_units

BRIEF = {"candidate_epochs": 40}


def test_xor_needs_one_unit():
    x, y = parity(2)
    history = grow(CascadeSettings(target_error=1e-6), x, y, seed=0).history
    assert [row.units for row in history] == [0, 1]
    assert history[0].train_error == pytest.approx(0.5)  # outputs alone give 1/2 everywhere
    assert history[1].train_accuracy == 1


@pytest.mark.parametrize(("bits", "most"), [(3, 2), (4, 4), (5, 5)])
def test_parity_needs_few_units(bits: int, most: int):
    x, y = parity(bits)
    history = grow(CascadeSettings(target_error=1e-2), x, y, seed=1).history
    assert 1 <= history[-1].units <= most
    assert history[-1].train_error <= 1e-2


def test_two_spirals_need_about_as_many_units_as_published():
    # published: 12 to 19 units, 15.2 on average
    x, y = two_spirals()
    settings = CascadeSettings(loss="cross_entropy", target_error=0.01, max_units=25, candidate_epochs=100)
    history = grow(settings, x, y, seed=1).history
    assert history[-1].train_accuracy == 1
    assert 8 <= history[-1].units <= 19


@pytest.mark.parametrize("activation", ["logistic", "tanh", "gaussian"])
def test_a_regression_is_learned(activation: str):
    x, y = curves()
    settings = CascadeSettings(max_units=6, activation=activation, **BRIEF)
    history = grow(settings, x, y, validation=curves(200, seed=1), seed=0).history
    assert history[-1].train_error < 0.3 * history[0].train_error
    assert history[-1].validation_error is not None
    assert history[-1].train_accuracy is None
    assert history[-1].validation_accuracy is None


def test_outputs_alone_reach_the_least_squares_minimum():
    x, y = curves()
    settings = CascadeSettings(max_units=0, output_epochs=500, output_improvement=1e-12)
    with_bias = np.concatenate([x.numpy(), np.ones((len(x), 1))], 1)
    solution = np.linalg.lstsq(with_bias, y.numpy(), rcond=None)[0]
    least = ((with_bias @ solution - y.numpy()) ** 2).sum(1).mean()
    assert grow(settings, x, y, seed=0).history[0].train_error == pytest.approx(least, rel=1e-9)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_error_never_rises(loss: str, dtype: torch.dtype):
    x, y = two_spirals()
    history = grow(CascadeSettings(max_units=4, loss=loss, **BRIEF), x.to(dtype), y, seed=2).history
    errors = [row.train_error for row in history]
    assert len(errors) == 5
    for before, after in pairwise(errors):
        assert after <= before * (1 + 1e-5)


def test_installed_units_stay_bit_for_bit():
    x, y = two_spirals()
    short = grow(CascadeSettings(max_units=2, **BRIEF), x, y, seed=0)
    long = grow(CascadeSettings(max_units=4, **BRIEF), x, y, seed=0)
    assert long.history[:3] == short.history
    state = long.network.state_dict()
    for name, value in short.network.state_dict().items():
        if name.startswith("units."):
            assert torch.equal(value, state[name])
    trainable = {name for name, p in long.network.named_parameters() if p.requires_grad}
    assert trainable == {"output.weight", "output.bias"}


def test_equal_seeds_give_equal_networks_and_others_do_not():
    x, y = curves()
    settings = CascadeSettings(max_units=2, **BRIEF)
    first, again, other = (grow(settings, x, y, seed=seed) for seed in (5, 5, 6))
    assert first.history == again.history
    assert first.history != other.history
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])


def test_the_global_generator_and_the_examples_are_not_touched():
    x, y = curves()
    x_before, y_before, state = x.clone(), y.clone(), torch.get_rng_state()
    grow(CascadeSettings(max_units=2), x, y, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)


def test_growing_works_where_gradients_are_off():
    x, y = curves()
    expected = grow(CascadeSettings(max_units=2), x, y, seed=0).history
    with torch.no_grad():
        assert grow(CascadeSettings(max_units=2), x, y, seed=0).history == expected


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_the_history_is_what_the_network_does(loss: str):
    x, y = parity(4)
    grown = grow(CascadeSettings(max_units=2, loss=loss), x, y, validation=(x[:5], y[:5]), seed=0)
    out = grown.network(x).detach()
    errors = (
        F.cross_entropy(out, y, reduction="none")
        if loss == "cross_entropy"
        else (out - torch.eye(2, dtype=x.dtype)[y]).square().sum(1)
    )
    right = (out.argmax(1) == y).double()
    row = grown.history[-1]
    assert row.train_error == pytest.approx(float(errors.mean()), rel=1e-9)
    assert row.validation_error == pytest.approx(float(errors[:5].mean()), rel=1e-9)
    assert row.train_accuracy == float(right.mean())
    assert row.validation_accuracy == float(right[:5].mean())


def test_each_row_is_reported_as_it_comes():
    x, y = curves()
    seen: list[CascadeRow] = []
    grown = grow(CascadeSettings(max_units=3), x, y, seed=0, report=seen.append)
    assert tuple(seen) == grown.history
    assert [row.units for row in seen] == [0, 1, 2, 3] == list(range(len(grown.network.units) + 1))
    assert [row.correlation is None for row in seen] == [True, False, False, False]
    assert [row.validation_error for row in seen] == [None] * 4
    assert [row.seconds for row in seen] == sorted(row.seconds for row in seen)


def test_growing_ends_where_nothing_is_left_to_learn():
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    history = grow(CascadeSettings(max_units=5), x, torch.zeros(10, 2), seed=0).history
    assert [row.units for row in history] == [0]
    assert history[0].train_error == 0


def test_images_are_flattened_and_missing_classes_can_be_announced():
    x = torch.randn(12, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    grown = grow(CascadeSettings(max_units=1), x, torch.arange(12) % 3, seed=0, outputs=5)
    assert grown.network(x).shape == (12, 5)


def test_smallest_units():
    def row(units: int, train: float, validation: float | None) -> CascadeRow:
        return CascadeRow(units, train, validation, None, None, None, 0.0)

    history = [row(0, 1.0, 0.9), row(1, 0.5, 0.4), row(2, 0.2, 0.6), row(3, 0.1, 0.3)]
    assert smallest_units(history, 0.5) == 1
    assert smallest_units(history, 0.49) == 2
    assert smallest_units(history, 0.05) is None
    assert smallest_units(reversed(history), 0.35, of="validation") == 3
    assert smallest_units([], 1.0) is None


@pytest.mark.parametrize("optimizer", ["rprop", "adam"])
@pytest.mark.parametrize("exponent", [-40, 40])
def test_the_scale_of_the_targets_does_not_matter(exponent: int, optimizer: str):
    x, y = curves()
    settings = CascadeSettings(max_units=2, candidate_optimizer=optimizer, **BRIEF)
    expected = grow(settings, x, y, seed=0).history
    found = grow(settings, x, y * 2.0**exponent, seed=0).history
    for one, other in zip(found, expected, strict=True):
        assert one.train_error * 4.0**-exponent == pytest.approx(other.train_error, rel=1e-5)
