"""GraSP and SynFlow against forward over reverse on all data at once, differences, and sums over paths."""

import copy
import math

import pytest
import torch
from torch import nn

from prunekit import Recipe, prune
from prunekit.batches import TensorBatches
from prunekit.errors import DataError, InputError, ModelError
from prunekit.parts.schedule import OneShot
from prunekit.parts.scores import OBD, OBS, FeatureTaylor, GraSP, SynFlow
from prunekit.statistics import StatContext, collect
from prunekit.task import Task
from small_nets import Tied, blobs, mlp
from three_nets import NETWORKS, assert_same, convolutions, names_of, perceptron, scored


@NETWORKS
def test_grasp_is_the_hessian_by_the_gradient(network):
    """Forward over reverse on all data at once, where the package goes back twice, batch by batch."""
    model, (inputs, targets) = network()
    found = scored(GraSP(temperature=20), model, (inputs, targets))
    model.eval()
    names = names_of(model)

    def loss(*weights):
        outputs = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (inputs,))
        return nn.functional.cross_entropy(outputs / 20, targets)

    weights = tuple(model.get_parameter(name).detach() for name in names)
    gradient = torch.func.grad(loss, argnums=tuple(range(len(names))))
    _, product = torch.func.jvp(gradient, weights, gradient(*weights))
    assert_same(found, {name: w * hg for name, w, hg in zip(names, weights, product, strict=True)})


def test_grasp_removes_what_raises_the_gradient_flow():
    """-2 w (H g) is the change of g'g to first order, here by differences."""
    model, data = perceptron()
    found = scored(GraSP(temperature=1), model, data)

    def flow():
        value = nn.functional.cross_entropy(model(data[0]), data[1])
        weights = [model.get_parameter(name) for name in names_of(model)]
        return float(sum(each.square().sum() for each in torch.autograd.grad(value, weights)))

    step = 1e-4
    for name, place in (("0.weight", (2, 3)), ("2.weight", (1, 1)), ("4.weight", (0, 4))):
        with torch.no_grad():
            weight = model.get_parameter(name)
            original = weight[place].item()
            weight[place] = original * (1 - step)
        lowered = flow()
        with torch.no_grad():
            weight[place] = original * (1 + step)
        raised = flow()
        with torch.no_grad():
            weight[place] = original
        slope = (lowered - raised) / (2 * step)  # by the share of the weight that is taken away
        assert slope == pytest.approx(-2 * float(found[name][place]), rel=1e-5)


def test_grasp_knows_frozen_weights_and_leaves_them_frozen():
    model, data = perceptron()
    expected = scored(GraSP(), model, data)
    model[0].weight.requires_grad_(False)
    assert_same(scored(GraSP(), model, data), expected)
    assert not model[0].weight.requires_grad
    assert model[2].weight.grad is None


@pytest.mark.parametrize(("half", "close"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_grasp_of_a_network_in_half_precision_is_that_in_double(half, close):
    """Derivatives by the square of the temperature, 40,000, leave the range of float16: all were zero."""
    model = mlp(10, 12, 3).to(half)
    inputs, targets = blobs(64, 10, 3)
    data = (inputs.to(half), targets)
    wanted = scored(GraSP(), copy.deepcopy(model).double(), (data[0].double(), targets))
    for name, each in scored(GraSP(), model, data).items():
        assert float((each - wanted[name]).norm()) < close * float(wanted[name].norm())


@pytest.mark.parametrize("score", [GraSP(), SynFlow()])
def test_weights_that_are_not_differentiated_score_nothing(score):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(4, 6, 3)

        def forward(self, x):
            with torch.no_grad():
                return self.inner(x)

    inputs, targets = blobs(8, 4, 3)
    assert all(not bool(each.any()) for each in scored(score, Cut(), (inputs, targets)).values())


@pytest.mark.parametrize("score", [GraSP(), SynFlow(), OBD(), OBS(), FeatureTaylor()])
@pytest.mark.parametrize("several", [lambda x: {"out": x}, lambda x: (x, x)])
def test_a_network_of_several_outputs_is_refused_in_one_line(score, several):
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp(4, 6, 3)

        def forward(self, x):
            return several(self.inner(x))

    def own(outputs, targets):
        first = outputs["out"] if isinstance(outputs, dict) else outputs[0]
        return nn.functional.cross_entropy(first, targets)

    granularity = "unit" if isinstance(score, FeatureTaylor) else "weight"
    recipe = Recipe(score=score, granularity=granularity, schedule=OneShot(sparsity=0.5))
    with pytest.raises(InputError, match=r"the network gives a (dict|tuple), where one tensor is needed"):
        prune(Several(), recipe, blobs(8, 4, 3), loss=own)


def test_synflow_of_a_network_that_cannot_be_run_in_double_says_so():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.float())

    with pytest.raises(ModelError, match=r"synaptic flow .* in torch.float64 the network fails with Runtime"):
        scored(SynFlow(), Casts(), blobs(8, 4, 3))


def test_grasp_of_a_loss_without_curvature_is_zero():
    model = nn.Sequential(nn.Linear(3, 1))
    data = (torch.randn(8, 3), torch.randn(8, 1))
    batches = TensorBatches(*data).sample(8, 4, seed=0)
    found = collect(
        StatContext(model, ["0.weight"]), batches, GraSP().needs, task=Task(lambda y, t: y.mean())
    )
    assert not found[GraSP().needs[0]]["0.weight"].any()


def test_grasp_goes_twice_through_attention():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    data = (torch.randn(6, 5, 8), torch.randint(5, (6, 8)))  # 5 classes at each of 8 positions
    found = scored(GraSP(), model, data)
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert bool(found["self_attn.in_proj_weight"].any())


def test_synflow_is_the_sum_over_all_paths():
    model, data = perceptron()
    for bias in (model[0].bias, model[2].bias, model[4].bias):
        bias.data.zero_()
    w1, w2, w3 = (model[k].weight.detach().abs() for k in (0, 2, 4))
    through = {
        "0.weight": ((w3 @ w2).sum(0).unsqueeze(1) * w1),
        "2.weight": w3.sum(0).unsqueeze(1) * w2 * w1.sum(1),
        "4.weight": w3 * (w2 @ w1).sum(1),
    }
    assert_same(scored(SynFlow(), model, data), through)


@NETWORKS
def test_synflow_is_the_derivative_of_the_network_without_signs(network):
    model, data = network()
    found = scored(SynFlow(), model, data)
    positive = copy.deepcopy(model).eval()
    for value in positive.state_dict().values():
        if value.is_floating_point():
            value.abs_()
    positive(torch.ones(1, *data[0].shape[1:], dtype=torch.float64)).sum().backward()
    expected = {name: value.grad * value.detach() for name, value in positive.named_parameters()}
    assert_same(found, {name: expected[name] for name in found})


def test_synflow_leaves_the_network_as_it_is_and_reads_no_words():
    model, data = convolutions()
    before = copy.deepcopy(model.state_dict())
    scored(SynFlow(), model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="whole numbers"):
        scored(SynFlow(), Tied(), (torch.randint(11, (4, 5)), torch.randint(11, (4,))))


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.RMSNorm(6), nn.Softmax(1), nn.BatchNorm1d(6)]
)
def test_synflow_is_refused_where_the_flow_is_no_sum_over_paths(norm):
    """A norm of what comes in takes away what a larger weight brings; one by running statistics does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 3))
    data = (torch.randn(8, 4), torch.randint(3, (8,)))
    if isinstance(norm, nn.BatchNorm1d):
        assert all(bool((score >= 0).all()) for score in scored(SynFlow(), model, data).values())
        return
    with pytest.raises(InputError, match=r"synaptic flow falls where '0\.weight' grows"):
        scored(SynFlow(), model, data)


@pytest.mark.parametrize("pack", [tuple, lambda pair: dict(zip(("b", "a"), reversed(pair), strict=True))])
def test_synflow_of_several_inputs_feeds_ones_to_each(pack):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 6, bias=False), nn.Linear(3, 6, bias=False)
            self.head = nn.Linear(6, 2, bias=False)

        def forward(self, a, b):
            return self.head(torch.relu(self.left(a) + self.right(b)))

    torch.manual_seed(0)
    model, targets = Sum().double(), torch.randint(2, (8,))
    a, b = torch.randn(8, 4).double(), torch.randn(8, 3).double()
    left, right, head = (each.weight.detach().abs() for each in (model.left, model.right, model.head))
    through = {
        "left.weight": head.sum(0)[:, None] * left,
        "right.weight": head.sum(0)[:, None] * right,
        "head.weight": head * (left.sum(1) + right.sum(1)),
    }
    assert_same(scored(SynFlow(), model, (pack((a, b)), targets)), through)
    with pytest.raises(InputError, match="whole numbers or flags"):
        scored(SynFlow(), model, (pack((a, b > 0)), targets))


def test_iterated_synflow_keeps_a_path_where_one_step_cuts_the_network_through():
    """The paper's point: 99.5 % of a deep network of uneven layers."""
    data = (torch.randn(8, 40), torch.randint(2, (8,)))

    def alive(steps):
        model = mlp(40, 100, 10, 100, 2)
        schedule = {"name": "geometric", "sparsity": 0.99, "steps": steps}
        recipe = Recipe(score="synflow", allocation={"name": "global", "floor": 0}, schedule=schedule)
        masks = prune(model, recipe, data).masks
        return min(int(mask.sum()) for mask in masks.values())

    assert alive(1) == 0
    assert alive(50) > 0


def test_flows_that_are_not_finite_are_refused_by_name():
    model, data = perceptron()
    with torch.no_grad():
        model[2].weight.fill_(math.inf)
    with pytest.raises(DataError, match=r"synaptic flow by '.*' is not finite"):
        scored(SynFlow(), model, data)
