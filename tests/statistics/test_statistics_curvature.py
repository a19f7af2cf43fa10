"""Curvature against Jacobians of one example and output at a time, and against finite differences."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.batches import TensorBatches
from prunekit.errors import DataError, InputError, ModelError
from prunekit.losses import squared_error
from prunekit.statistics import GaussNewton, GaussNewtonDiagonal, StatContext, collect
from prunekit.task import Task
from small_nets import blobs, convnet, copied, images, mlp, same

LOSSES = {"cross_entropy": F.cross_entropy, "squared_error": squared_error}


def gather(model, data, names, need, loss=F.cross_entropy):
    batches = TensorBatches(*data).sample(10_000, 37, seed=0)
    return collect(StatContext(model, names), batches, [need], task=Task(loss))[need]


def by_hand(model, data, names, loss):
    """The whole matrix, J' L J with L written down: that of the softmax, or twice the identity."""
    model.eval()
    weights = [model.get_parameter(name) for name in names]
    total = 0
    for example in data[0]:
        outputs = model(example[None])[0]
        rows = []
        for output in outputs:
            slopes = torch.autograd.grad(output, weights, retain_graph=True)
            rows.append(torch.cat([slope.flatten() for slope in slopes]))
        jacobian, p = torch.stack(rows), outputs.detach().softmax(0)
        middle = torch.diag(p) - p.outer(p) if loss == "cross_entropy" else 2 * torch.eye(len(p)).double()
        total = total + jacobian.T @ middle @ jacobian
    return total / len(data[0])


class Conv1D(nn.Module):
    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


class Sequence(nn.Module):
    """Linear layers at three positions, one of them used twice; the activation works in place."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 4), Conv1D(4, 4), nn.Linear(12, 3)

    def forward(self, x):
        x = F.relu_(self.one(x))
        return self.out(self.two(torch.tanh(self.one(x))).flatten(1))


def networks():
    torch.manual_seed(0)
    grouped = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=4, padding=1), nn.Tanh(), nn.Conv2d(8, 2, 2, dilation=2),
        nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip
    return [
        (mlp(5, 4, 3), ["0.weight", "2.weight"], blobs(19, 5)),
        (convnet(channels=4), ["0.weight", "3.weight", "7.weight"], images(9)),
        (grouped, ["0.weight", "2.weight", "4.weight"], images(9)),
        (Sequence(), ["one.weight", "two.weight", "out.weight"], (torch.randn(9, 3, 4), blobs(9)[1])),
    ]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("model", "names", "data"), networks(), ids=["mlp", "convnet", "grouped", "sequence"]
)
def test_it_is_the_product_of_jacobians(model, names, data, loss):
    model, data = model.double(), (data[0].double(), data[1])
    before = copied(model)
    expected = by_hand(model, data, names, loss).detach()
    diagonal = gather(model, data, names, GaussNewtonDiagonal(), LOSSES[loss])
    found = torch.cat([diagonal[name].flatten() for name in names])
    assert torch.allclose(found, expected.diagonal(), rtol=1e-9, atol=1e-12)
    biases = [name.replace("weight", "bias") for name in names]
    both = [name for pair in zip(names, biases, strict=True) for name in pair if name in before]
    whole = gather(model, data, names, GaussNewton(), LOSSES[loss])
    assert list(whole) == both
    matrix = torch.cat(list(whole.values()))
    assert torch.allclose(matrix, by_hand(model, data, both, loss).detach(), rtol=1e-9, atol=1e-12)
    assert torch.equal(matrix, matrix.T)
    assert same(before, copied(model))


@pytest.mark.parametrize("loss", LOSSES)
def test_for_a_linear_network_it_is_the_hessian_of_finite_differences(loss):
    model, data = mlp(4, 3, dtype=torch.float64), blobs(31, 4, dtype=torch.float64)
    found = gather(model, data, ["0.weight"], GaussNewtonDiagonal(), LOSSES[loss])["0.weight"]
    weight, step = model[0].weight, 1e-4
    with torch.no_grad():
        middle = LOSSES[loss](model(data[0]), data[1])
        for place in [(0, 0), (1, 3), (2, 2)]:
            sides = []
            for sign in (1, -1):
                weight[place] += sign * step
                sides.append(LOSSES[loss](model(data[0]), data[1]))
                weight[place] -= sign * step
            second = (sides[0] - 2 * middle + sides[1]) / step**2
            assert float(found[place]) == pytest.approx(float(second), rel=1e-5)


def test_a_loss_without_curvature():
    found = gather(mlp(4, 3), blobs(20, 4), ["0.weight"], GaussNewtonDiagonal(), lambda o, t: o.mean())
    assert float(found["0.weight"].abs().max()) == 0


def test_frozen_weights_count_as_well_and_half_precision_works():
    model, data = mlp(5, 4, 3), blobs(20, 5)
    expected = gather(model, data, ["0.weight"], GaussNewtonDiagonal())["0.weight"]
    model.requires_grad_(False)
    assert torch.allclose(
        gather(model, data, ["0.weight"], GaussNewtonDiagonal())["0.weight"], expected, rtol=1e-5
    )
    half = gather(model.bfloat16(), (data[0].bfloat16(), data[1]), ["0.weight"], GaussNewtonDiagonal())
    assert torch.allclose(half["0.weight"], expected, rtol=0.2, atol=0.01 * float(expected.max()))


@pytest.mark.parametrize("need", [GaussNewton(), GaussNewtonDiagonal()], ids=str)
def test_bad_input(need):
    x, targets = blobs(20, 4)
    x[2, 1] = float("nan")
    with pytest.raises(DataError, match="finite"):
        gather(mlp(4, 5, 3), (x, targets), ["0.weight"], need)
    with pytest.raises(InputError, match="1,200 outputs"):
        gather(mlp(2, 1200), (torch.randn(3, 2), torch.zeros(3, dtype=torch.long)), ["0.weight"], need)
    with pytest.raises(ModelError, match="ConvTranspose1d"):
        gather(nn.Sequential(nn.ConvTranspose1d(2, 2, 3)), (x, targets), ["0.weight"], need)


def test_a_layer_that_never_ran():
    model = mlp(4, 3)
    model.spare = nn.Linear(2, 2)
    model.forward = lambda x: model[0](x)
    with pytest.raises(DataError, match="'spare' never ran"):
        gather(model, blobs(9, 4), ["0.weight", "spare.weight"], GaussNewtonDiagonal())


def test_the_whole_matrix_has_a_limit():
    with pytest.raises(InputError, match="10,000 weights"):
        gather(mlp(100, 100), blobs(9, 100), ["0.weight"], GaussNewton())
