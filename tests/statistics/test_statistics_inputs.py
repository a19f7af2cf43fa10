"""Moments of inputs against NumPy on rows that are cut out of padded arrays by plain loops."""

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.batches import TensorBatches
from prunekit.errors import DataError, ModelError
from prunekit.graph.rows import from_rows, patches, rows_of
from prunekit.statistics import InputSquares, LayerHessian, LayerInputMean, MeanGradient, StatContext, collect
from prunekit.task import Task
from small_nets import Tied, blobs, convnet, images, mlp
from unfolding import design

ALL = (
    LayerHessian(centred=False),
    LayerHessian(centred=True),
    LayerInputMean(),
    InputSquares(),
    InputSquares(True),
)


def gather(model, x, needs=ALL, names=("0.weight",), batch_size=7, targets=None):
    targets = torch.zeros(len(x), dtype=torch.long) if targets is None else targets
    batches = TensorBatches(x, targets).sample(10_000, batch_size, seed=0)
    return collect(StatContext(model, list(names)), batches, needs, task=Task(nn.functional.cross_entropy))


def check(found, rows, name="0.weight", rtol=1e-5):
    """All statistics against those of (groups, rows, columns)."""
    mean = rows.mean(1)
    second = np.einsum("grc,grd->gcd", rows, rows) / rows.shape[1]
    about = second - mean[:, :, None] * mean[:, None, :]
    scale = np.abs(second).max()
    expected = (second, about, mean, np.einsum("gcc->gc", second), np.einsum("gcc->gc", about))
    for statistic, value in zip(ALL, expected, strict=True):
        assert found[statistic][name].dtype == torch.float64
        assert np.allclose(found[statistic][name].numpy(), value, rtol=rtol, atol=rtol * scale), statistic


def convolutions():
    return list(_convolutions())


def _convolutions():
    yield nn.Conv2d(3, 4, 3)
    yield nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    yield nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    yield nn.Conv2d(4, 8, 3, padding=1, groups=4)
    for mode in ("reflect", "circular", "replicate"):
        yield nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode=mode)
    yield nn.Conv2d(2, 3, (2, 4), padding="same", padding_mode="reflect")
    yield nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(1, 2))
    yield nn.Conv1d(4, 4, 5, stride=2, padding=3, groups=2)
    yield nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular", dilation=2)
    yield nn.Conv3d(2, 4, (2, 3, 2), padding=1, stride=(1, 2, 1), groups=2)


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # it says that it copies: one side is longer
@pytest.mark.parametrize("layer", convolutions(), ids=str)
def test_convolutions(layer):
    x = torch.randn(9, layer.in_channels, *[7, 6, 5][: len(layer.kernel_size)]) + 1
    found = gather(nn.Sequential(layer), x, batch_size=4)
    check(found, design(layer, x))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("layer", convolutions(), ids=str)
@torch.no_grad()
def test_rows_of_weights_times_patches_are_the_outputs(layer):
    layer.double()
    x = torch.randn(3, layer.in_channels, *[7, 6, 5][: len(layer.kernel_size)], dtype=torch.float64)
    rows = rows_of(layer.weight, layer)
    outputs = (patches(layer, x) @ rows.mT).movedim(0, 1).flatten(1)  # (rows of examples, all outputs)
    expected = layer(x).movedim(1, -1).flatten(0, -2)
    assert torch.allclose(outputs, expected - (0 if layer.bias is None else layer.bias))
    assert torch.equal(from_rows(rows, layer), layer.weight)


class Conv1D(nn.Module):
    """As in transformers: a linear layer whose weight is (inputs, outputs)."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Linear(5, 3, bias=False), Conv1D(3, 5)], ids=str)
def test_linear_layers_on_any_number_of_dimensions(layer):
    x = torch.randn(11, 4, 2, 5) * 3 - 2
    check(
        gather(nn.Sequential(layer), x, targets=torch.zeros(11, 4, 2, 3)),
        x.double().numpy().reshape(1, -1, 5),
    )


@torch.no_grad()
def test_rows_of_linear_layers():
    for layer in (nn.Linear(5, 3), Conv1D(3, 5)):
        x, rows = torch.randn(4, 5), rows_of(layer.weight, layer)
        assert rows.shape == (1, 3, 5)
        assert torch.allclose((patches(layer, x) @ rows.mT)[0], layer(x) - layer.bias, atol=1e-6)
        assert torch.equal(from_rows(rows, layer), layer.weight)


def test_without_a_word_they_are_centred_where_there_is_a_bias():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=False))
    found = gather(model, torch.randn(30, 4) + 2, (*ALL, LayerHessian()), ("0.weight", "1.weight"))
    plain, centred, *_ = ALL
    assert torch.equal(found[LayerHessian()]["0.weight"], found[centred]["0.weight"])
    assert torch.equal(found[LayerHessian()]["1.weight"], found[plain]["1.weight"])


def test_wide_layers_whose_products_are_taken_by_halves():
    x = torch.randn(700, 601)
    x[:, 100] = 0
    check(gather(nn.Sequential(nn.Linear(601, 2)), x, batch_size=100), x.double().numpy()[None])


@pytest.mark.parametrize("batch_size", [1, 5, 64, 1000])
def test_the_batch_size_does_not_matter(batch_size):
    x = torch.randn(130, 6).cumsum(0)  # batches with very different means
    check(gather(nn.Sequential(nn.Linear(6, 2)), x, batch_size=batch_size), x.double().numpy()[None])


def test_large_means_cost_no_digits():
    x = torch.randn(400, 3, dtype=torch.float64).float() * torch.tensor([1.0, 1e-2, 1]) + torch.tensor(
        [0, 100, 5e3]
    )
    found = gather(nn.Sequential(nn.Linear(3, 2)), x, batch_size=50)
    exact = np.cov(x.double().numpy().T, bias=True)
    assert np.allclose(found[LayerHessian(True)]["0.weight"][0].numpy(), exact, rtol=1e-5, atol=1e-8)
    assert np.allclose(found[InputSquares(True)]["0.weight"][0].numpy(), np.diag(exact), rtol=1e-5)


def test_dead_and_constant_inputs_are_exactly_zero():
    x = torch.randn(90, 4)
    x[:, 1], x[:, 3] = 0, 0.1
    found = gather(nn.Sequential(nn.Linear(4, 2)), x)
    for statistic in (LayerHessian(True), InputSquares(True)):
        value = found[statistic]["0.weight"][0]
        assert bool((value[1] == 0).all())
        assert bool((value[3] == 0).all())
    assert float(found[LayerHessian(False)]["0.weight"][0, 1].abs().max()) == 0
    assert float(found[LayerInputMean()]["0.weight"][0, 3]) == float(torch.tensor(0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    x = (torch.randn(60, 4) * 300).to(dtype)  # the sums of squares are beyond the range of float16
    found = gather(nn.Sequential(nn.Linear(4, 2)).to(dtype), x)
    check(found, x.double().numpy()[None], rtol=1e-12 if dtype == torch.float64 else 1e-5)


def test_the_inputs_are_those_inside_the_network_in_evaluation_mode():
    model = convnet().train()
    x = images(20)[0]
    names = ["0.weight", "3.weight", "7.weight"]
    found = gather(model, x, names=names)
    assert model[1].training
    model.eval()
    with torch.no_grad():
        check(found, design(model[3], model[:3](x)), "3.weight")
        check(found, model[:7](x).double().numpy()[None], "7.weight")


class Twice(nn.Module):
    """Calls a layer twice, once by keyword, and changes what it read in place."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        x = x.clone()
        y = self.layer(x)
        x.mul_(100)
        return self.layer(input=y)


def test_a_layer_that_is_called_twice():
    model, x = Twice(), torch.randn(20, 3)
    found = gather(model, x, names=["layer.weight"])
    with torch.no_grad():
        rows = torch.cat([x, model.layer(x)]).double().numpy()[None]
    check(found, rows, "layer.weight")


def test_one_pass_without_gradients_serves_all_and_no_hook_is_left():
    model, passes = mlp(4, 5, 3), []
    model.register_forward_hook(lambda module, args, output: passes.append(output.requires_grad))
    names = ["0.weight", "2.weight"]
    gather(model, torch.randn(21, 4), names=names)
    assert passes == [False] * 3
    x, targets = blobs(21, 4)
    both = gather(model, x, (*ALL, MeanGradient()), names, targets=targets)
    assert passes == [False] * 3 + [True] * 3
    check(both, x.double().numpy()[None])
    assert not model[0]._forward_pre_hooks


def test_a_layer_that_never_ran_is_named():
    model = mlp(4, 5, 3)
    model.spare = nn.Linear(2, 2)
    model.forward = lambda x: model[2](model[1](model[0](x)))
    with pytest.raises(DataError, match="'spare' never ran"):
        gather(model, torch.randn(9, 4), names=["0.weight", "spare.weight"])
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("needs", ALL, ids=str)
def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer(bad, needs):
    x = torch.randn(20, 4)
    x[3, 2] = bad
    if needs == LayerInputMean() and bad == 1e30:
        pytest.skip("it is finite")
    with pytest.raises(DataError, match="inputs of the layer '0' are not finite"):
        gather(mlp(4, 5, 3), x, [needs], ["0.weight", "2.weight"])


def test_layers_without_rows_are_named():
    with pytest.raises(ModelError, match=r"0\.weight is a parameter of '0', a ConvTranspose2d"):
        gather(nn.Sequential(nn.ConvTranspose2d(2, 2, 3)), torch.randn(2, 2, 5, 5))
    with pytest.raises(ModelError, match=r"embed\.weight is a parameter of 'embed', a Embedding"):
        gather(Tied(), torch.zeros(4, 2, dtype=torch.long), names=["embed.weight"])
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    with pytest.raises(ModelError, match=r"0\.weight is the weight of 2 layers"):
        gather(model, torch.randn(4, 3))
