"""Skeletonization, norms of weights and gain sweeps against loops and numpy."""

import pytest
import torch

from prunekit.errors import InputError
from prunekit.graph import chain_of
from prunekit.losses import squared_error
from prunekit.units import (
    absolute_error,
    gain_sweep,
    relevance,
)
from unit_nets import ERRORS, error_at, made


def batches(inputs, targets, size=10):
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def test_relevance_is_the_running_average_of_central_differences():
    model, inputs, targets = made("2 hidden")
    found = relevance(chain_of(model), batches(inputs, targets))
    h = 1e-5
    for name, values in found.items():
        for unit in range(len(values)):
            running = None
            for x, t in batches(inputs, targets):
                below, above = (
                    error_at(model, x, t, absolute_error, name, unit, gain) for gain in (1 - h, 1 + h)
                )
                rho = -(above - below) / (2 * h)
                running = rho if running is None else 0.8 * running + 0.2 * rho
            assert float(values[unit]) == pytest.approx(running, rel=1e-5, abs=1e-7)


def test_relevance_goes_on_from_an_earlier_call():
    model, inputs, targets = made("1 hidden")
    chain = chain_of(model)
    first, *rest = batches(inputs, targets)
    whole = relevance(chain, [first, *rest], decay=0.5)
    parts = relevance(chain, rest, decay=0.5, start=relevance(chain, [first]))
    torch.testing.assert_close(parts["0"], whole["0"], rtol=0, atol=0)


def test_relevance_of_what_cannot_be_accepted():
    model, inputs, targets = made("1 hidden")
    with pytest.raises(InputError, match="no batches"):
        relevance(chain_of(model), [])
    with pytest.raises(InputError, match="decay"):
        relevance(chain_of(model), batches(inputs, targets), decay=1.0)
    with pytest.raises(InputError, match="no relevance for the group '0'"):
        relevance(chain_of(model), batches(inputs, targets), start={})


@pytest.mark.parametrize("error", ["squared", "xent"])
@pytest.mark.parametrize("net", ["1 hidden", "2 hidden", "conv"])
def test_gain_sweeps_by_running_the_network_at_each_gain(net, error):
    model, inputs, targets = made(net)
    chain = chain_of(model)
    units = [(chain.groups[-1].name, 3), (chain.groups[0].name, 1), (chain.groups[-1].name, 0)]
    gains = torch.tensor([0.0, 0.5, 1.0, 3.0, 10.0])
    found = gain_sweep(chain, inputs, targets, ERRORS[error], units, gains=gains, budget_bytes=50_000)
    for row, (name, unit) in enumerate(units):
        for column, gain in enumerate(gains.tolist()):
            expected = error_at(model, inputs, targets, ERRORS[error], name, unit, gain)
            assert float(found[row, column]) == pytest.approx(expected, rel=1e-10)


def test_the_grid_of_a_gain_sweep_and_what_it_refuses():
    model, inputs, targets = made("1 hidden")
    chain = chain_of(model)
    assert gain_sweep(chain, inputs, targets, squared_error, [("0", 1)]).shape == (1, 101)
    assert gain_sweep(chain, inputs, targets, squared_error, []).shape == (0, 101)
    with pytest.raises(InputError, match="there is no 8"):
        gain_sweep(chain, inputs, targets, squared_error, [("0", 8)])
    kept = {"0": torch.tensor([False, *[True] * 7])}
    with pytest.raises(InputError, match="off already"):
        gain_sweep(chain, inputs, targets, squared_error, [("0", 0)], kept=kept)
