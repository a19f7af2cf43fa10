"""Scores of filters, against autograd, explicit contributions and loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.methods import network_slimming
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Unit
from prunekit.parts.scores import FeatureTaylor, GeometricMedian, NormScale
from prunekit.pruning import prune
from prunekit.statistics import StatContext, UnitMacs, collect
from prunekit.task import Task
from unit_recipes import conv_net, data, net


def scores_of(score, model, examples, off=()):
    elements = Unit().elements(model, example_inputs=examples[0][:2])
    kept = dict(elements.all_kept())
    for name, unit in off:
        kept[name][unit] = False
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in kept}
    batches = zip(*(each.split(10) for each in examples), strict=True)
    found = collect(
        StatContext(model, list(weights), kept=kept, coupled=elements.coupled),
        batches,
        score.needs,
        task=Task(F.cross_entropy),
    )
    with torch.no_grad():
        return score(StepContext(weights, found, coupled=elements.coupled, kept=Masks(kept)))


def read_by(model, inputs, layer):
    """What the layer is given, as a leaf that a gradient can be taken by, and the network's outputs."""
    place = [name for name, _ in model.named_children()].index(layer)
    x = model[:place](inputs).detach().requires_grad_()
    return x, model[place:](x)


@pytest.mark.parametrize(
    ("model", "shape", "readers"),
    [(net(6, 7, 5, 4), (6,), {"0": "2", "2": "4"}), (conv_net(), (1, 8, 8), {"0": "2", "3": "6", "6": "8"})],
)
def test_feature_taylor(model, shape, readers):
    """What reads the feature map, be it a pool: behind it there would be fewer positions."""
    inputs, targets = data(*shape)
    found = scores_of(FeatureTaylor(normalize=False), model, (inputs, targets))
    for name, reader in readers.items():
        units = len(model.get_parameter(f"{name}.weight"))
        expected = torch.zeros(units, dtype=torch.float64)
        for x, t in zip(inputs.split(1), targets.split(1), strict=True):
            values, logits = read_by(model, x, reader)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, t), values)
            product = (values * gradient).detach().view(units, -1)  # also behind a flatten: channels first
            expected += product.mean(1).abs()
        assert torch.allclose(found[name], expected / len(inputs), rtol=1e-9)


def test_feature_taylor_with_its_norm_and_its_price():
    model, examples = conv_net(), data(1, 8, 8)
    raw = scores_of(FeatureTaylor(normalize=False), model, examples)
    priced = scores_of(FeatureTaylor(macs=10.0), model, examples)
    # by hand: 36 positions of the first layer, 9 of the second and once each linear weight
    macs = {
        "0": (36 * 4 * 9 + 9 * 5 * 4 * 9) / 4,
        "3": (9 * 5 * 4 * 9 + 45 * 6) / 5,
        "6": (45 * 6 + 6 * 4) / 6,
    }
    for name, value in raw.items():
        assert torch.allclose(priced[name], value / value.norm() - 10.0 * macs[name] / 1e6)
    subject = StatContext(model, (), coupled=Unit().elements(model, example_inputs=examples[0][:2]).coupled)
    (found,) = collect(subject, [examples], [UnitMacs()], task=Task(F.cross_entropy)).values()
    assert {name: float(each[0]) for name, each in found.items()} == macs


def test_feature_taylor_before_the_pool_by_hand():
    """The mean over 36 positions, not over the 9 behind the pool."""
    torch.manual_seed(5)
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 2, 2), nn.Flatten(), nn.Linear(8, 3)
        ).double()
        inputs, targets = torch.randn(20, 1, 8, 8, dtype=torch.float64), torch.randint(3, (20,))
        before = torch.zeros(4, dtype=torch.float64)
        for x, t in zip(inputs.split(1), targets.split(1), strict=True):
            z = model[:1](x).relu().detach().requires_grad_()
            (gradient,) = torch.autograd.grad(F.cross_entropy(model[2:](z), t), z)
            before += (z * gradient).detach().mean((0, 2, 3)).abs()
        raw = scores_of(FeatureTaylor(normalize=False), model, (inputs, targets))["0"]
        found = scores_of(FeatureTaylor(), model, (inputs, targets))["0"]
        assert torch.allclose(found, before / before.norm(), rtol=1e-9)
        assert torch.allclose(raw, before / len(inputs), rtol=1e-9)


def test_units_that_are_off_have_the_least_taylor_score():
    found = scores_of(FeatureTaylor(), conv_net(), data(1, 8, 8), off=[("3", 2)])
    assert found["3"][2] == 0
    assert bool((found["3"][[0, 1, 3, 4]] > 0).all())


def test_geometric_median():
    model = conv_net()
    found = scores_of(GeometricMedian(), model, data(1, 8, 8), off=[("3", 1)])
    rows = model[3].weight.detach().flatten(1).numpy()
    left = [0, 2, 3, 4]
    for i in left:
        assert float(found["3"][i]) == pytest.approx(sum(np.linalg.norm(rows[i] - rows[j]) for j in left))


def test_the_scale_of_the_norm_behind_a_unit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2))
    model.double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
    found = scores_of(NormScale(), model, (torch.randn(4, 1, 8, 8).double(), torch.tensor([0, 1, 0, 1])))
    assert found["0"].tolist() == [0.5, 2.0, 1.0]
    pruned = prune(model, network_slimming(sparsity=1 / 3, epochs=0), data(1, 8, 8, classes=2))
    assert pruned.kept["0"].tolist() == [False, True, True]
    with pytest.raises(InputError, match="units of '0' have no batch norm"):
        prune(conv_net(), network_slimming(epochs=0), data(1, 8, 8))
