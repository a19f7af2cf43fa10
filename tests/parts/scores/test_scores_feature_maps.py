"""First-order Taylor and Grad-CAM by feature maps, against hooks in float64 on three networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import InputError
from prunekit.models import LeNet5, ResNet, VGGSmall
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Unit
from prunekit.parts.scores import FeatureTaylor, GradCAM
from prunekit.pruning import prune
from prunekit.statistics import StatContext, collect
from prunekit.task import Task
from three_nets import residual as shortcut
from unit_recipes import units

TIGHT = {"rtol": 1e-10, "atol": 0}


def perceptron():
    return nn.Sequential(nn.Linear(10, 7), nn.Tanh(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4)), (10,)


def convolutions():
    """Maxima that overlap, and means with padding, behind batch norms."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.AvgPool2d(2, padding=1),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(20, 8),
        nn.ReLU(),
        nn.Linear(8, 4),
    ), (3, 8, 8)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.within, self.behind = nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.behind(x + self.two(self.within(self.norm(self.one(x)))))


def residual():
    """The mean over all positions at its end is a function."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.first, self.pool = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)
            self.block, self.last = Block(4), nn.Conv2d(4, 6, 2)
            self.act, self.head = nn.ReLU(), nn.Linear(6, 4)

        def forward(self, x):
            x = self.block(self.pool(self.first(self.stem(x))))
            return self.head(self.act(self.last(x)).mean((2, 3)))

    return Net(), (3, 8, 8)


NETWORKS = {  # with the modules that give the feature maps of each group, by the group's name
    perceptron: {"0": ["1"], "2": ["3"]},
    convolutions: {"0": ["2"], "4": ["6"], "10": ["11"]},
    # what the stem's layer gives is pooled, and is then part of the sum
    residual: {"stem": ["first", "block.behind"], "block.one": ["block.within"], "last": ["act"]},
}
ON_ALL = pytest.mark.parametrize("network", NETWORKS)


def made(network):
    torch.manual_seed(0)
    model, shape = network()
    model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model, (torch.randn(11, *shape, dtype=torch.float64), torch.arange(11) % 4)


def scores_of(score, model, data, size=4, kept=None, **asked):
    coupled = Unit(**asked).elements(model, example_inputs=data[0][:2]).coupled
    batches = zip(*(each.split(size) for each in data), strict=True)
    subject = StatContext(model, (), coupled=coupled, kept=kept or {})
    found = collect(subject, batches, score.needs, task=Task(F.cross_entropy))
    return score(StepContext({}, found, coupled=coupled))


def by_hooks(network, model, data, differentiated, numbers):
    """One example at a time: of each map the numbers made of it and its derivatives, then the means."""
    maps, seen = NETWORKS[network], {}

    def keep(name):
        def hook(module, args, output):
            output.retain_grad()
            seen[name] = output

        return hook

    names = [name for each in maps.values() for name in each]
    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    sums = dict.fromkeys(maps, 0.0)
    for x, t in zip(*data, strict=True):
        differentiated(model(x[None])[0], t).backward()
        for group, own in maps.items():
            for name in own:
                each = numbers(seen[name].detach()[0], seen[name].grad[0])
                each = each.reshape(len(each), -1).mean(1).abs()
                sums[group] = sums[group] + each / len(own) / len(data[0])
    for hook in hooks:
        hook.remove()
    return sums


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert bool((value > 0).any())
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-14)


@ON_ALL
@pytest.mark.parametrize("size", [4, 11])
def test_taylor_takes_its_mean_over_positions_before_the_pool(network, size):
    model, data = made(network)
    found = scores_of(FeatureTaylor(normalize=False), model, data, size, residual=True)
    expected = by_hooks(network, model, data, lambda o, t: -o.log_softmax(0)[t], lambda z, d: z * d)
    assert_equal(found, expected)


@ON_ALL
@pytest.mark.parametrize("size", [4, 11])
def test_grad_cam_is_the_mean_derivative_of_the_logit_of_the_class(network, size):
    model, data = made(network)
    found = scores_of(GradCAM(), model, data, size, residual=True)
    expected = by_hooks(network, model, data, lambda o, t: o[t], lambda z, d: d)
    assert_equal(found, expected)
    over = scores_of(GradCAM(normalize=True), model, data, size, residual=True)
    assert_equal(over, {name: value / value.square().sum().sqrt() for name, value in expected.items()})


def test_grad_cam_of_a_linear_network_is_its_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)).double()
    data = torch.randn(8, 5, dtype=torch.float64), torch.tensor([0, 0, 2, 1, 2, 2, 0, 2])
    found = scores_of(GradCAM(), model, data)
    assert torch.allclose(found["0"], model[1].weight.detach()[data[1]].abs().mean(0), rtol=1e-12)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (torch.randn(11, 4), "targets are real values: give class numbers"),
        (torch.full((11,), 7), "class number 7 of example 0 is none of the network's 4 outputs"),
        (torch.full((11,), -100), "class number -100 of example 0 is none"),
        (torch.zeros(11, 2, dtype=torch.int64), r"outputs \(11, 4\) and targets \(11, 2\) differ in shape"),
    ],
    ids=["regression", "class", "left out", "positions"],
)
def test_grad_cam_is_for_one_class_of_each_example(targets, said):
    model, (inputs, _) = made(perceptron)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(InputError, match=said) as raised:
        prune(
            model, units("grad_cam"), (inputs, targets.double() if targets.is_floating_point() else targets)
        )
    assert "\n" not in str(raised.value)
    assert all(map(torch.equal, before, model.parameters()))


class Functions(nn.Module):
    """The same network of convolutions, where activations and pooling are functions."""

    def __init__(self, model):
        super().__init__()
        for name in ("0", "1", "4", "5", "10", "12"):
            self.add_module(f"layer{name}", model[int(name)])

    def forward(self, x):
        x = F.max_pool2d(torch.relu_(self.layer1(self.layer0(x))), 3, 2, padding=1)
        x = F.avg_pool2d(torch.tanh(self.layer5(self.layer4(x))), 2, padding=1)
        return self.layer12(F.relu(self.layer10(F.dropout(x, training=self.training).view(len(x), -1))))


@pytest.mark.parametrize("score", [FeatureTaylor(normalize=False), GradCAM()], ids=str)
def test_activations_and_pools_that_are_functions(score):
    model, data = made(convolutions)
    expected = scores_of(score, model, data)
    found = scores_of(score, Functions(model).eval(), data)
    assert_equal(found, {f"layer{name}": value for name, value in expected.items()})


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (LeNet5((1, 28, 28), 4), (1, 28, 28)),
        (VGGSmall((3, 16, 16), 4, widths=[[4, 5], [6, 7], [8, 9]]), (3, 16, 16)),
        (ResNet((3, 8, 8), 4, depth=20, width=4), (3, 8, 8)),
    ],
    ids=["lenet5", "vgg", "resnet20"],
)
def test_over_the_norm_of_a_layer_it_is_the_same_behind_the_pool(model, shape):
    """In the networks of the named studies: a pool hands back as much as it was given."""
    torch.manual_seed(1)
    model = model.double().eval()
    data = torch.randn(9, *shape, dtype=torch.float64), torch.arange(9) % 4
    found = scores_of(FeatureTaylor(), model, data)
    coupled = Unit().elements(model, example_inputs=data[0][:2]).coupled
    read = {group.name: group.consumers[0].tensor.removesuffix(".weight") for group in coupled.groups}
    seen = {}

    def keep(name):
        def hook(module, args):
            args[0].retain_grad()
            seen[name] = args[0]

        return hook

    for name, layer in read.items():
        model.get_submodule(layer).register_forward_pre_hook(keep(name))
    F.cross_entropy(model(data[0]), data[1], reduction="sum").backward()
    for name, value in found.items():
        products = (seen[name] * seen[name].grad).detach()
        each = products.reshape(9, len(value), -1).sum(2).abs().mean(0)
        torch.testing.assert_close(value, each / each.norm(), **TIGHT)


@pytest.mark.parametrize("score", [FeatureTaylor(normalize=False), GradCAM()], ids=str)
def test_a_shortcut_counts_for_the_other_units_when_one_is_off(score):
    """A network without the unit is scored the same, whether or not it is said that the unit is off."""
    model, data = shortcut()
    model.eval()
    with torch.no_grad():
        for name in ("stem.weight", "norm.weight", "norm.bias", "two.weight", "two.bias"):
            model.get_parameter(name)[1] = 0
    expected = scores_of(score, model, data, 12, residual=True)
    kept = {"stem": torch.tensor([True, False, True, True])}
    found = scores_of(score, model, data, 12, kept=kept, residual=True)
    assert found["stem"][1] == 0
    torch.testing.assert_close(found["stem"][kept["stem"]], expected["stem"][kept["stem"]], **TIGHT)


@ON_ALL
@pytest.mark.parametrize("score", [FeatureTaylor(normalize=False), GradCAM()], ids=str)
def test_units_that_are_off_count_as_nothing(network, score):
    model, data = made(network)
    group = next(iter(NETWORKS[network]))
    kept = torch.tensor([False, *[True] * (len(model.get_parameter(f"{group}.weight")) - 1)])
    found = scores_of(score, model, data, kept={group: kept}, residual=True)
    assert found[group][0] == 0
    assert bool((found[group][1:] > 0).any())
