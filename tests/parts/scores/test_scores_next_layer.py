"""N2PS and ThiNet against loops over what the layers that read units are given, on any network."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from group_nets import NETWORKS, coupled_of, given_to, groups, small
from prunekit.errors import InputError, ModelError
from prunekit.graph import Coupled, traced, unit_masks
from prunekit.masks import Masks
from prunekit.methods import thinet
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Unit
from prunekit.parts.repair.unit_repairs import best_scales
from prunekit.parts.scores import N2PS, ThiNet
from prunekit.parts.scores.unit_scores import greedy_order
from prunekit.pruning import prune
from prunekit.statistics import StatContext, collect
from prunekit.statistics.moments import contribution_products
from prunekit.task import Task
from unit_nets import made as chain_made
from unit_recipes import conv_net, data, net, units


def scores_of(score, model, examples, off=(), *, inputs=False):
    elements = Unit(inputs=inputs).elements(model, example_inputs=examples[0][:2])
    kept = dict(elements.all_kept())
    for name, unit in off:
        kept[name][unit] = False
    batches = zip(*(each.split(10) for each in examples), strict=True)
    found = collect(
        StatContext(model, [], kept=kept, coupled=elements.coupled),
        batches,
        score.needs,
        task=Task(F.cross_entropy),
    )
    with torch.no_grad():
        return score(StepContext({}, found, model, coupled=elements.coupled, kept=Masks(kept)))


def contributions(model, inputs, layer, units):
    """(rows, outputs, units): what each unit adds to the layer's outputs, by running it on one at a time."""
    place = [name for name, _ in model.named_children()].index(layer)
    with torch.no_grad():
        x, module = model[:place](inputs), model[place]
        found = []
        for unit in range(units):
            alone = torch.zeros_like(x)
            own = slice(unit * x.shape[1] // units, (unit + 1) * x.shape[1] // units)
            alone[:, own] = x[:, own]
            y = module(alone) - module(torch.zeros_like(x))
            found.append(y.movedim(1, -1).flatten(0, -2))
    return torch.stack(found, -1)


@pytest.mark.parametrize(("name", "reader"), [("0", "3"), ("3", "6"), ("6", "8")])
def test_thinet_takes_what_adds_least_to_the_lost_output(name, reader):
    model, examples = conv_net(), data(1, 8, 8)
    places = scores_of(ThiNet(), model, examples)[name]
    pieces = contributions(model, examples[0], reader, len(places))
    gone: list[int] = []
    while len(gone) < len(places):
        left = [unit for unit in range(len(places)) if unit not in gone]
        lost = {unit: float(pieces[..., [*gone, unit]].sum(-1).square().sum()) for unit in left}
        assert int(places[min(lost, key=lost.get)]) == len(gone)
        gone.append(min(lost, key=lost.get))


def test_thinet_leaves_out_what_is_off():
    places = scores_of(ThiNet(), conv_net(), data(1, 8, 8), off=[("3", 2)])["3"]
    assert sorted(places.tolist()) == [-1, 0, 1, 2, 3]
    assert places[2] == -1


def test_the_best_scales_are_the_least_squares_on_contributions():
    model, (inputs, _) = conv_net(), data(1, 8, 8)
    pieces = contributions(model, inputs, "3", 4).flatten(0, 1)
    kept = torch.tensor([True, False, True, True])
    found = best_scales(pieces.T @ pieces, kept)
    expected = np.linalg.lstsq(pieces[:, kept].numpy(), pieces.sum(1).numpy(), rcond=None)[0]
    assert np.allclose(found[kept].numpy(), expected)
    assert found[1] == 1


def test_a_silent_unit_keeps_its_factor():
    products = torch.diag(torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64))
    assert best_scales(products, torch.tensor([True, True, False])).tolist() == [1, 1, 1]
    assert best_scales(products, torch.tensor([False, False, False])).tolist() == [1, 1, 1]


def test_products_of_contributions_from_moments():
    torch.manual_seed(0)
    weight, x = torch.randn(3, 8, dtype=torch.float64), torch.randn(20, 8, dtype=torch.float64)
    unit_of = torch.arange(4).repeat_interleave(2)
    found = contribution_products(weight[None], (x.T @ x / 20)[None], unit_of[None], 4)
    for i, j in itertools.product(range(4), range(4)):
        a, b = (weight[:, 2 * k : 2 * k + 2] @ x[:, 2 * k : 2 * k + 2].T for k in (i, j))
        assert float(found[i, j]) == pytest.approx(float((a * b).sum() / 20))


def test_ties_go_by_position():
    assert greedy_order(torch.eye(4), torch.ones(4, dtype=torch.bool)).tolist() == [0, 1, 2, 3]


@torch.no_grad()
def test_thinet_disturbs_the_next_layer_less_than_leaving_the_scales():
    model, (inputs, targets) = conv_net(), data(1, 8, 8)
    before = model[:4](inputs)
    recipe = thinet(sparsity=0.5, epochs=0)
    errors = []
    for repair in ("channel_scale", "none"):
        pruned = prune(
            conv_net(),
            type(recipe).parse({**recipe.to_dict(), "repair": repair, "targets": ["0"]}),
            (inputs, targets),
        )
        assert int(pruned.kept["0"].sum()) == 2
        errors.append(float((pruned.model[:4](inputs) - before).square().mean()))
    assert errors[0] < errors[1]


# ---- N2PS ----

OFF = [(), (("0", 2),)]


@pytest.mark.parametrize("off", OFF)
def test_n2ps(off):
    model, examples = net(6, 7, 5, 4), data(6)
    found = scores_of(N2PS(), model, examples, off)
    activity = model[:2](examples[0]).detach().numpy()
    activity[:, [unit for _, unit in off]] = 0
    weight = model[2].weight.detach().numpy()
    raw = np.array([np.abs(activity[:, [i]] * weight[:, i]).sum(1).mean() for i in range(7)])
    left = [i for i in range(7) if ("0", i) not in off]
    assert np.allclose(found["0"].numpy()[left], (raw / raw[left].mean())[left], rtol=1e-9)
    assert found["2"].mean() == pytest.approx(1)


def test_n2ps_with_layers_left_out():
    model, examples = net(6, 7, 5, 4), data(6)
    everything = scores_of(N2PS(), model, examples)
    pruned = prune(net(6, 7, 5, 4), units("n2ps", sparsity=0.4, ignore=["0"]), examples)
    lowest = np.argsort(everything["2"].numpy())[:2]
    assert sorted(lowest) == (~pruned.kept["2"]).nonzero().flatten().tolist()


def relative(values):
    """Divided by the mean of their layer, as the score is."""
    return np.asarray(values) / np.mean(values)


def test_significance_by_loops():
    model, inputs, targets = chain_made("2 hidden")
    found = scores_of(N2PS(), model, (inputs, targets), inputs=True)
    read = {
        "input": (inputs, model[0]),
        "0": (model[:2](inputs), model[2]),
        "2": (model[:4](inputs), model[4]),
    }
    for name, (values, layer) in read.items():
        w = layer.weight.numpy()
        expected = [
            np.mean([sum(abs(v * w[j, i]) for j in range(len(w))) for v in values[:, i].numpy()])
            for i in range(values.shape[1])
        ]
        np.testing.assert_allclose(found[name], relative(expected), rtol=1e-12)


def test_significance_of_filters():
    model, inputs, targets = chain_made("conv")
    found = scores_of(N2PS(), model, (inputs, targets))
    w, a = model[3].weight.abs().numpy(), model[:3](inputs).abs().numpy()
    np.testing.assert_allclose(found["0"], relative(a.mean((0, 2, 3)) * w.sum((0, 2, 3))), rtol=1e-12)
    w, a = model[7].weight.abs().numpy(), model[:7](inputs).abs().numpy().mean(0)
    np.testing.assert_allclose(found["3"], relative((a * w.sum(0)).reshape(5, 4).sum(1)), rtol=1e-12)


def test_units_that_are_off_have_no_significance_and_give_none():
    model, inputs, targets = chain_made("2 hidden")
    kept = {"2": torch.tensor([True, False, True, True, False, True, True])}
    weight = model[2].weight.clone()
    unit_masks(model, traced(model, inputs).plan, kept).apply(model)
    off = [("2", 1), ("2", 4)]
    found = scores_of(N2PS(), model, (inputs, targets), off)
    assert (found["2"] == 0).tolist() == (~kept["2"]).tolist()
    assert float(found["2"][kept["2"]].mean()) == pytest.approx(1)
    w, a = weight[kept["2"]].abs(), model[:2](inputs).abs()
    np.testing.assert_allclose(found["0"], relative((a.mean(0) * w.sum(0)).numpy()))


# ---- any network, by running each layer that reads units on one of them at a time ----


def scores_of_groups(score, coupled, inputs):
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in coupled.groups}
    context = StatContext(coupled.model, [], kept=kept, coupled=coupled)
    found = collect(context, [(inputs, torch.zeros(len(inputs)))], score.needs, task=Task(lambda *_: None))
    with torch.no_grad():
        return score(StepContext({}, found, coupled.model, coupled=coupled, kept=Masks(kept)))


def channel_last(layer, x):
    return x.movedim(1, -1) if isinstance(layer, nn.modules.conv._ConvNd) else x


def alone(layer, x, member, unit):
    """What a layer is given, without anything but one unit."""
    index, channels = list(member.indices[unit]), channel_last(layer, x)
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if getattr(layer, "groups", 1) > 1 and not transposed:
        index = [i + g * layer.in_channels // layer.groups for g in range(layer.groups) for i in index]
    only = torch.zeros_like(channels)
    only[..., index] = channels[..., index]
    return only.movedim(-1, 1) if channels.shape != x.shape or channels is not x else only


@torch.no_grad()
def contributions_to_all(coupled, group, inputs):
    """For each layer that reads the units (rows, outputs, units): what each adds to the outputs."""
    members = [member for member in group.members if member.role == "consumer"]
    names = [member.tensor.removesuffix(".weight") for member in members]
    with given_to(coupled.model, names) as seen:
        coupled.model(inputs)
    found = []
    for name, member in zip(names, members, strict=True):
        layer, (x,) = coupled.model.get_submodule(name), seen[name]
        nothing = layer(torch.zeros_like(x))
        pieces = [layer(alone(layer, x, member, unit)) - nothing for unit in range(group.units)]
        found.append(torch.stack([channel_last(layer, each).flatten(0, -2) for each in pieces], -1))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_thinet_on_any_network(name):
    coupled, inputs = coupled_of(name)
    found = scores_of_groups(ThiNet(), coupled, inputs)
    assert list(found) == list(coupled.names)
    for group in coupled.groups:
        pieces = contributions_to_all(coupled, group, inputs)
        products = sum(torch.einsum("roi,roj->ij", each, each) / len(each) for each in pieces)
        gone: list[int] = []
        while len(gone) < group.units:
            left = [unit for unit in range(group.units) if unit not in gone]
            lost = {unit: float(products[[*gone, unit]][:, [*gone, unit]].sum()) for unit in left}
            took = int((found[group.name] == len(gone)).nonzero())
            assert lost[took] <= min(lost.values()) + 1e-9 * float(products.diagonal().sum())
            gone.append(took)


@pytest.mark.parametrize("name", NETWORKS)
def test_n2ps_on_any_network(name):
    coupled, inputs = coupled_of(name)
    found = scores_of_groups(N2PS(), coupled, inputs)
    for group in coupled.groups:
        members = [member for member in group.members if member.role == "consumer"]
        names = [member.tensor.removesuffix(".weight") for member in members]
        expected = torch.zeros(group.units, dtype=torch.float64)
        with given_to(coupled.model, names) as seen, torch.no_grad():
            coupled.model(inputs)
        for layer_name, member in zip(names, members, strict=True):
            layer, (x,) = coupled.model.get_submodule(layer_name), seen[layer_name]
            x = channel_last(layer, x).abs().flatten(0, -2).mean(0)
            weight = layer.weight.detach().abs().movedim(member.dim, 0).flatten(1)
            for unit, index in enumerate(member.indices):
                for i in index:
                    grouped = getattr(layer, "groups", 1) > 1
                    for g, rows in enumerate(weight[i].chunk(layer.groups) if grouped else [weight[i]]):
                        expected[unit] += x[i + g * len(weight)] * rows.sum()
        assert torch.allclose(found[group.name], expected / expected.mean(), rtol=1e-9)


class Skip(nn.Module):
    """Two layers read the inputs, one of them beside the other's units."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.skip, self.last = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x))) + self.skip(x)


def test_n2ps_of_input_features_that_two_layers_read():
    model, inputs = Skip().double(), torch.randn(20, 6, dtype=torch.float64)
    found = traced(model, inputs[:2], inputs=True)
    scores = scores_of_groups(N2PS(), Coupled(model, found, ("input", "first"), inputs[:2]), inputs)
    outgoing = torch.cat([model.first.weight, model.skip.weight]).abs().sum(0)
    np.testing.assert_allclose(scores["input"], relative((inputs.abs().mean(0) * outgoing).detach().numpy()))


@pytest.mark.parametrize("score", [N2PS(), ThiNet()])
def test_units_that_no_layer_reads_are_named(score):
    model, inputs = small("hf-bert")
    with pytest.raises(InputError, match=r"the units of 'bert\.encoder\.layer\.0.*query \(head width\)'"):
        groups(score.name, granularity={"kinds": ["head width"]}).plan(model, inputs)


@pytest.mark.parametrize("score", [N2PS(), ThiNet()])
def test_a_layer_that_is_not_in_rows_is_named_before_anything_is_run(score):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Linear(6, 8)
            self.mix = nn.Parameter(torch.randn(8, 3))

        def forward(self, x):
            return torch.relu(self.into(x)) @ self.mix

    with pytest.raises(ModelError, match="mix is a parameter of '', a Product"):
        groups(score.name).plan(Product(), torch.rand(2, 6))
