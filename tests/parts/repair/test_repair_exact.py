"""Where units are constant, equal or opposite, the repaired network computes what it did, to rounding."""

import pytest
import torch
from repair_nets import convnet, inputs, make, mend, mlp
from torch import nn

from prunekit.parts.repair import FoldMean, LeastSquares, NoRepair, SietsmaDow

FOLD, DOW, FIT = FoldMean(), SietsmaDow(), LeastSquares(ridge=0)
CASES = {
    "constant": (None, 1.0, (FOLD, DOW, FIT)),
    "equal": (2, 1.0, (DOW, FIT)),
    "opposite": (2, -1.0, (DOW, FIT)),
}
EXACT = [(case, repair) for case, (_, _, repairs) in CASES.items() for repair in repairs]


def check(net, x, case, repair, layer, unit=1):
    like, sign, _ = CASES[case]
    make(net, layer, unit, like, sign)
    fresh = inputs(11, *x.shape[1:]).flip(0) * 2  # it is a law of the units, not of the data
    with torch.no_grad():
        expected, elsewhere = net(x), net(fresh)
        told = mend(net, repair, x, {layer: [unit]})
        assert torch.allclose(net(x), expected, rtol=0, atol=1e-10)
        assert torch.allclose(net(fresh), elsewhere, rtol=0, atol=1e-10)
    consumer = told.coupled.chain.group(layer).consumer
    repeat = told.coupled.chain.group(layer).repeat
    columns = net.get_submodule(consumer).weight[:, unit * repeat : (unit + 1) * repeat]
    assert bool((columns == 0).all())


@pytest.mark.parametrize(("case", "repair"), EXACT)
@pytest.mark.parametrize("layer", ["0", "2"])
def test_linear(case, repair, layer):
    check(mlp(), inputs(150, 7), case, repair, layer)


@pytest.mark.parametrize(("case", "repair"), EXACT)
def test_linear_over_steps(case, repair):
    check(mlp(), inputs(60, 4, 7), case, repair, "2")


@pytest.mark.parametrize(("case", "repair"), EXACT)
def test_convolution_without_padding(case, repair):
    check(convnet(), inputs(30, 2, 8, 8), case, repair, "0")


def test_equal_filters_are_exact_with_padding():
    check(convnet(padding=1), inputs(30, 2, 8, 8), "equal", DOW, "0")


@pytest.mark.parametrize(("case", "repair"), EXACT)
def test_filters_behind_a_flatten(case, repair):
    net = convnet()
    net[3] = nn.Sigmoid()
    check(net, inputs(100, 2, 8, 8), case, repair, "2")


def test_three_kinds_in_two_layers_at_once():
    net, x = mlp((7, 12, 9, 3)), inputs(150, 7)
    for layer in ("0", "2"):
        make(net, layer, 1, 0)
        make(net, layer, 3, 0)
        make(net, layer, 4, 2, -1.0)
        make(net, layer, 6, None)
    with torch.no_grad():
        expected = net(x)
        mend(net, DOW, x, {"0": [1, 3, 4, 6], "2": [1, 3, 4, 6]})
        assert torch.allclose(net(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_without_repair_they_are_missed(case):
    net, x = mlp(), inputs(150, 7)
    like, sign, _ = CASES[case]
    make(net, "0", 1, like, sign)
    with torch.no_grad():
        expected = net(x)
        mend(net, NoRepair(), x, {"0": [1]})
        assert float((net(x) - expected).abs().max()) > 1e-3
