"""The refit against NumPy's least squares on the design matrix itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from repair_nets import context_of, convnet, inputs, make, mend, mlp
from torch import nn

from prunekit.graph.rows import from_rows, patches, rows_of
from prunekit.masks import Masks
from prunekit.parts.repair import FoldMean, LeastSquares, NoRepair


def fitted(design, targets, *, bias=True):
    """NumPy's solution: (weights of the columns, bias)."""
    design = design.numpy()
    if bias:
        design = np.column_stack([design, np.ones(len(design))])
    solution = np.linalg.lstsq(design, targets.numpy(), rcond=None)[0].T
    return (solution[:, :-1], solution[:, -1]) if bias else (solution, None)


def matches(found, expected):
    return np.allclose(found.numpy(), expected, rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_linear():
    net, x = mlp(), inputs(150, 7)
    hidden = net[:2](x)
    targets = net[2](hidden)
    mend(net, LeastSquares(ridge=0), x, {"0": [1, 4, 5]})
    rest = [0, 2, 3, 6, 7, 8]
    weight, bias = fitted(hidden[:, rest], targets)
    assert matches(net[2].weight[:, rest], weight)
    assert matches(net[2].bias, bias)
    assert bool((net[2].weight[:, [1, 4, 5]] == 0).all())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1])
@torch.no_grad()
def test_convolution(padding, bias):
    net, x = convnet(padding, bias=bias), inputs(70, 2, 8, 8)
    maps = net[:2](x)
    rows = F.unfold(maps, (3, 2), padding=padding, stride=(2, 1)).transpose(1, 2).flatten(0, 1)
    targets = net[2](maps).movedim(1, -1).flatten(0, 2)
    mend(net, LeastSquares(ridge=0), x, {"0": [1, 4]})
    rest = [channel * 6 + place for channel in (0, 2, 3, 5) for place in range(6)]
    weight, expected = fitted(rows[:, rest], targets, bias=bias)
    assert matches(net[2].weight.flatten(1)[:, rest], weight)
    assert (net[2].bias is None) if not bias else matches(net[2].bias, expected)
    assert bool((net[2].weight[:, [1, 4]] == 0).all())


@torch.no_grad()
def test_a_ridge_is_a_penalty_on_the_change():
    net, x = mlp(), inputs(150, 7)
    hidden, old, bias = net[:2](x), net[2].weight.clone(), net[2].bias.clone()
    apart = hidden - hidden.mean(0)
    rest, gone = [0, 2, 3, 6, 7, 8], [1, 4, 5]
    mend(net, LeastSquares(ridge=0.3), x, {"0": gone})
    # the same as rows of data that ask for no change
    penalty = torch.diag((0.3 * 150 * hidden[:, rest].var(0, correction=0)).sqrt())
    design = torch.cat([apart[:, rest], penalty])
    targets = torch.cat([apart[:, gone] @ old[:, gone].T, torch.zeros(6, 5)])
    change, _ = fitted(design, targets, bias=False)
    assert matches(net[2].weight[:, rest] - old[:, rest], change)
    assert torch.allclose(net[2](net[:2](x)).mean(0), F.linear(hidden, old, bias).mean(0))


@torch.no_grad()
def test_masks_of_single_weights_are_respected():
    net, x = mlp(), inputs(150, 7)
    repair = LeastSquares(ridge=0)
    generator = torch.Generator().manual_seed(5)
    single = torch.rand(5, 9, generator=generator) < 0.7
    net[2].weight.mul_(single)
    hidden = net[:2](x)
    targets = net[2](hidden)
    told = context_of(net, repair, x, {"0": [1, 4]})
    mask = told.masks["2.weight"] & single
    repair(replace(told, masks=Masks({**told.masks, "2.weight": mask})))
    for row in range(5):
        columns = mask[row].nonzero().flatten().tolist()
        weight, bias = fitted(hidden[:, columns], targets[:, [row]])
        assert matches(net[2].weight[row, columns], weight[0])
        assert matches(net[2].bias[row], bias[0])
    assert bool((net[2].weight[~mask] == 0).all())


@pytest.mark.parametrize("repair", [LeastSquares(), LeastSquares(ridge=0), LeastSquares(ridge=1.0)])
@pytest.mark.parametrize("kind", ["mlp", "conv", "padded", "no bias"])
@torch.no_grad()
def test_the_layer_error_never_grows(kind, repair):
    def build():
        if kind == "mlp":
            return mlp((7, 9, 5, 3), nn.ReLU)
        return convnet(padding=int(kind == "padded"), bias=kind != "no bias")

    x = inputs(60, 7) if kind == "mlp" else inputs(60, 2, 8, 8)
    others = [NoRepair()] if kind == "no bias" else [FoldMean(), NoRepair()]
    for removed in ([0], [1, 2], [0, 2, 3, 5], list(range(6))):
        errors = []
        for each in (repair, *others):
            net = build()
            before = net[:3](x)
            mend(net, each, x, {"0": removed})
            errors.append(float((net[:3](x) - before).square().mean()))
        assert all(errors[0] <= other * (1 + 1e-9) for other in errors[1:])


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
@torch.no_grad()
def test_singular_moments_still_fit(ridge):
    """Equal, dead and more units than examples: NumPy's residual is reached, and nothing is NaN."""
    net, x = mlp((7, 40, 5), nn.ReLU), inputs(25, 7)
    make(net, "0", 3, 2)
    net[0].weight[6], net[0].bias[6] = 0, -1.0
    before = net(x)
    mend(net, LeastSquares(ridge=ridge), x, {"0": [2, *range(20, 28)]})
    assert float((net(x) - before).abs().max()) < (1e-9 if ridge == 0 else 1e-3)
    assert bool(torch.isfinite(net[2].weight).all())
    assert float(net[2].weight.abs().max()) < 10


@torch.no_grad()
def test_units_that_are_off_stay_off():
    net, x = mlp(), inputs(150, 7)
    told = mend(net, FoldMean(), x, {"0": [1]})
    again = context_of(net, LeastSquares(), x, {"0": [1, 4]})
    LeastSquares()(replace(again, kept=told.kept_after))
    assert bool((net[2].weight[:, [1, 4]] == 0).all())


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # it says that it copies: one side is longer
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize("padding", ["same", "valid", (2, 1)])
@torch.no_grad()
def test_patches_times_weights_are_the_convolution(mode, padding):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, (2, 3), padding=padding, dilation=(1, 2), padding_mode=mode).double()
    x = inputs(5, 3, 9, 8)
    expected = layer(x).movedim(1, -1).flatten(0, 2)
    assert torch.allclose(patches(layer, x)[0] @ layer.weight.flatten(1).T + layer.bias, expected)


@pytest.mark.parametrize(("kind", "dims"), [(nn.Conv1d, 1), (nn.Conv3d, 3)])
@torch.no_grad()
def test_patches_in_one_and_three_dimensions(kind, dims):
    torch.manual_seed(0)
    layer = kind(3, 4, 3, stride=2, padding=1).double()
    x = inputs(5, 3, *[7] * dims)
    expected = layer(x).movedim(1, -1).flatten(0, dims)
    assert torch.allclose(patches(layer, x)[0] @ layer.weight.flatten(1).T + layer.bias, expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (nn.ConvTranspose1d, {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
        (
            nn.ConvTranspose2d,
            {"kernel_size": (2, 3), "stride": (3, 1), "padding": (0, 2), "dilation": (2, 1)},
        ),
        (nn.ConvTranspose3d, {"kernel_size": 2, "stride": 2}),
    ],
)
@torch.no_grad()
def test_patches_of_a_transposed_convolution(kind, settings, groups):
    torch.manual_seed(0)
    layer = kind(4, 6, groups=groups, **settings).double()
    x = inputs(5, 4, *[4] * (layer.weight.dim() - 2))
    rows = rows_of(layer.weight, layer)
    assert torch.equal(from_rows(rows, layer), layer.weight)
    found = patches(layer, x) @ rows.mT
    expected = layer(x).movedim(1, -1).flatten(0, -2) - layer.bias
    assert torch.allclose(found.movedim(0, 1).flatten(1), expected)
