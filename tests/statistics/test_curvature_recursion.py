"""The published recursion of OBD against loops over single numbers, and where it is exact."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import InputError
from prunekit.losses import squared_error
from prunekit.methods import iterative_obd, obd
from prunekit.pruning import prune
from prunekit.statistics import GaussNewtonDiagonal, RecursiveDiagonal, StatContext, collect
from prunekit.task import Task
from three_nets import residual

LOSSES = {"cross_entropy": F.cross_entropy, "squared_error": squared_error}
ON_BOTH = pytest.mark.parametrize("loss", LOSSES)


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)), (4,)


def convolutions():
    """Strides, padding, groups, a batch norm, maxima and means in windows that overlap and pass the edge."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.Sigmoid(),
        nn.AvgPool2d(2, 1, padding=1),
        nn.Conv2d(4, 3, 3, stride=2, padding=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 3),
    )
    nn.init.uniform_(model[1].weight, 0.5, 2)
    nn.init.uniform_(model[1].running_mean, -0.5, 0.5)
    nn.init.uniform_(model[1].running_var, 0.5, 2)
    return model, (2, 8, 8)


def functions():
    """As a forward has it, with a mean that leaves out the edge and one that goes past it."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 2), nn.Linear(8, 3)

        def forward(self, x):
            x = F.avg_pool2d(torch.tanh(self.one(x)), 3, 2, padding=1, count_include_pad=False)
            x = F.avg_pool2d(F.relu(self.two(x)), 2, ceil_mode=True, divisor_override=3)
            return self.head(x.view(x.size(0), -1))

    torch.manual_seed(0)
    model = Net()
    steps = [
        model.one,
        nn.Tanh(),
        nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
        model.two,
        nn.ReLU(),
    ]
    steps += [nn.AvgPool2d(2, ceil_mode=True, divisor_override=3), nn.Flatten(), model.head]
    return model, (2, 9, 9), steps


def made(network, examples=3):
    model, shape, *steps = network()
    model.double().eval()
    data = torch.randn(examples, *shape, dtype=torch.float64), torch.arange(examples) % 3
    return model, data, steps[0] if steps else list(model)


def gather(need, model, data, loss="cross_entropy", size=2):
    names = [name for name, value in model.named_parameters() if value.dim() > 1]
    batches = zip(*(each.split(size) for each in data), strict=True)
    return collect(StatContext(model, names), batches, [need], task=Task(LOSSES[loss]))[need]


def cells(place, kernel, stride, padding, size):
    """(number within the kernel, position) along one axis, padding left out."""
    return [
        (k, place * stride - padding + k) for k in range(kernel) if 0 <= place * stride - padding + k < size
    ]


def pairs(value):
    return value if isinstance(value, tuple) else (value, value)


def linear_back(layer, x, curved, sums):
    back = torch.zeros_like(x)
    for i in range(len(curved)):
        for j in range(len(x)):
            sums[i, j] += curved[i] * x[j] ** 2
            back[j] += layer.weight[i, j] ** 2 * curved[i]
    return back


def convolution_back(layer, x, curved, sums):
    back = torch.zeros_like(x)
    (k, _), (s, _), (p, _) = layer.kernel_size, layer.stride, layer.padding
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    for o in range(curved.shape[0]):
        for y in range(curved.shape[1]):
            for z in range(curved.shape[2]):
                for i in range(inputs):
                    channel = o // outputs * inputs + i
                    for a, row in cells(y, k, s, p, x.shape[1]):
                        for b, column in cells(z, k, s, p, x.shape[2]):
                            sums[o, i, a, b] += curved[o, y, z] * x[channel, row, column] ** 2
                            back[channel, row, column] += layer.weight[o, i, a, b] ** 2 * curved[o, y, z]
    return back


def window(pool, y, z, height, width):
    """The cells of a pool's output, and what each counts for in a mean."""
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        (rows, columns) = pairs(pool.output_size)
        high = range(y * height // rows, math.ceil((y + 1) * height / rows))
        wide = range(z * width // columns, math.ceil((z + 1) * width / columns))
        return [(a, b) for a in high for b in wide], 1 / (len(high) * len(wide))
    k, s, p = pool.kernel_size, pool.stride, pool.padding
    found = [(a, b) for _, a in cells(y, k, s, p, height) for _, b in cells(z, k, s, p, width)]
    if getattr(pool, "divisor_override", None):
        return found, 1 / pool.divisor_override
    if getattr(pool, "count_include_pad", True):
        return found, 1 / k**2
    return found, 1 / len(found)


def pool_back(pool, x, curved):
    back = torch.zeros_like(x)
    for c in range(curved.shape[0]):
        for y in range(curved.shape[1]):
            for z in range(curved.shape[2]):
                found, share = window(pool, y, z, *x.shape[1:])
                if isinstance(pool, nn.MaxPool2d):
                    found, share = [max(found, key=lambda cell: float(x[c][cell]))], 1.0
                for cell in found:
                    back[c][cell] += share**2 * curved[c, y, z]
    return back


SLOPES = {
    nn.Tanh: lambda a: 1 - torch.tanh(a) ** 2,
    nn.Sigmoid: lambda a: torch.exp(-a) / (1 + torch.exp(-a)) ** 2,
    nn.ReLU: lambda a: (a > 0).double(),
}


@torch.no_grad()
def by_loops(steps, data, loss):
    """LeCun, Denker and Solla's recursion without f'', one example and one number at a time."""
    sums = {step: torch.zeros_like(step.weight) for step in steps if isinstance(step, nn.Linear | nn.Conv2d)}
    for x in data[0]:
        given = []
        for step in steps:
            given.append(x)
            x = step(x[None])[0]
        p = x.exp() / x.exp().sum()
        curved = p * (1 - p) if loss == "cross_entropy" else torch.full_like(x, 2.0)
        for step, x in reversed(list(zip(steps, given, strict=True))):
            if isinstance(step, nn.Linear):
                curved = linear_back(step, x, curved, sums[step])
            elif isinstance(step, nn.Conv2d):
                curved = convolution_back(step, x, curved, sums[step])
            elif isinstance(step, nn.BatchNorm2d):
                scale = step.weight / (step.running_var + step.eps).sqrt()
                curved = curved * scale[:, None, None] ** 2
            elif isinstance(step, nn.Flatten):
                curved = curved.reshape(x.shape)
            elif type(step) in SLOPES:
                curved = curved * SLOPES[type(step)](x) ** 2
            else:
                curved = pool_back(step, x, curved)
    return [each / len(data[0]) for each in sums.values()]


@ON_BOTH
@pytest.mark.parametrize("network", [perceptron, convolutions, functions])
def test_the_recursion_is_that_of_loops(network, loss):
    model, data, steps = made(network)
    found = gather(RecursiveDiagonal(), model, data, loss)
    for value, expected in zip(found.values(), by_loops(steps, data, loss), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-16)


def one_hidden_layer():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,)


def test_both_forms_agree_with_one_hidden_layer_and_linear_outputs():
    model, data, _ = made(one_hidden_layer, 7)
    exact, published = (
        gather(need, model, data, "squared_error") for need in (GaussNewtonDiagonal(), RecursiveDiagonal())
    )
    for name, value in exact.items():
        torch.testing.assert_close(published[name], value, rtol=1e-12, atol=0)


def test_with_a_softmax_they_differ_by_products_of_classes_in_the_first_layer():
    model, data, _ = made(one_hidden_layer, 7)
    exact, published = (gather(need, model, data) for need in (GaussNewtonDiagonal(), RecursiveDiagonal()))
    torch.testing.assert_close(published["2.weight"], exact["2.weight"], rtol=1e-12, atol=0)
    with torch.no_grad():
        slope, p, w = 1 - model[:2](data[0]) ** 2, model(data[0]).softmax(1), model[2].weight.detach()
    crossed = torch.zeros_like(exact["0.weight"])
    for n, x in enumerate(data[0]):
        for k in range(3):
            for other in {0, 1, 2} - {k}:
                factor = -p[n, k] * p[n, other] * w[k] * w[other] * slope[n] ** 2 / len(data[0])
                crossed += factor[:, None] * x**2
    torch.testing.assert_close(published["0.weight"] + crossed, exact["0.weight"], rtol=1e-10, atol=1e-16)
    assert float(crossed.abs().max()) > 0.1 * float(exact["0.weight"].max())


def test_weights_that_are_shared_by_positions_differ_by_products_of_positions():
    """Where a filter meets one position only, there are none."""
    torch.manual_seed(2)
    for size, same in ((3, True), (4, False)):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * (size - 2) ** 2, 3)).double()
        data = torch.randn(5, 1, size, size, dtype=torch.float64), torch.arange(5) % 3
        exact, published = (
            gather(need, model, data, "squared_error")
            for need in (GaussNewtonDiagonal(), RecursiveDiagonal())
        )
        assert torch.allclose(exact["0.weight"], published["0.weight"], rtol=1e-10) == same
        assert torch.allclose(exact["2.weight"], published["2.weight"], rtol=1e-10)


class TestRefusals:
    @pytest.mark.parametrize("method", [obd, iterative_obd])
    def test_what_is_no_chain(self, method):
        model, data = residual()
        before = [parameter.clone() for parameter in model.parameters()]
        said = r"goes back along a chain of layers: layer '\w+' is no link of a chain: .*; use form='exact'$"
        with pytest.raises(InputError, match=said) as raised:
            prune(model, method(form="published"), data)
        assert "\n" not in str(raised.value)
        assert all(map(torch.equal, before, model.parameters()))

    def test_units_that_are_mixed_behind_the_last_layer(self):
        model, data, _ = made(perceptron)
        model.append(nn.LogSoftmax(1))
        with pytest.raises(InputError, match="'5' behind the last layer mixes units; use form='exact'"):
            gather(RecursiveDiagonal(), model, data)

    def test_another_form(self):
        with pytest.raises(InputError, match="'exact' or 'published'"):
            obd(form="diagonal")


def test_obd_removes_by_the_form_that_it_is_told():
    model, data, steps = made(perceptron, 6)
    weights = [step.weight.detach().clone() for step in steps if isinstance(step, nn.Linear)]
    saliency = torch.cat(
        [(h * w**2).flatten() for h, w in zip(by_loops(steps, data, "cross_entropy"), weights, strict=True)]
    )
    masks = prune(model, obd(0.5, form="published"), data).masks
    kept = torch.cat([masks[name].flatten() for name in masks])
    assert torch.equal(kept, saliency >= saliency.sort().values[len(saliency) // 2])
