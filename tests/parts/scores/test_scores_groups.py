"""Scores of units of coupled groups, against chains' own code, and against hooks and loops by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from group_nets import Attention, Halves, groups, images, small_resnet
from prunekit.errors import InputError, ModelError
from prunekit.graph import Coupled
from prunekit.parts.context import StepContext
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from prunekit.statistics import StatContext, collect
from prunekit.task import Task

ON_BOTH = [
    "magnitude",
    "gradient",
    "random",
    "norm_scale",
    "outgoing_norm",
    {"name": "outgoing_norm", "order": 2},
    "geometric_median",
    {"name": "activation", "what": "nonzeros"},
    {"name": "activation", "what": "mean"},
    {"name": "activation", "what": "variance"},
    {"name": "activation", "what": "irreplaceable"},
    "feature_taylor",
    {"name": "feature_taylor", "macs": 100.0, "normalize": False},
    "oracle",
    {"name": "oracle", "error": "cross_entropy"},
    {"name": "unit_taylor", "order": 1},
    {"name": "unit_taylor", "error": "absolute_error"},
    {"name": "skeletonization", "batch_size": 7},
]


def scores_of(model, recipe, data):
    """What the recipe's score gives, before anything is chosen."""
    session = Session(model, recipe, data=data)
    elements, kept = session.plan.elements, session.kept
    subject = StatContext(model, elements.parameters, kept=kept, coupled=elements.coupled)
    found = collect(subject, iter([data]), recipe.score.needs, task=Task(cross_entropy))
    weights = {name: model.get_parameter(name).detach() for name in elements.parameters}
    context = StepContext(weights, found, model, kept=kept, coupled=elements.coupled)
    return recipe.granularity.gather(recipe.score(context), elements)


@pytest.fixture(scope="module")
def chain():
    """A chain with batch norms, pooling, a flatten and a hidden layer, in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(5, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 7),
        nn.BatchNorm1d(7),
        nn.Tanh(),
        nn.Linear(7, 5),
    ).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model.eval()


@pytest.mark.parametrize("score", ON_BOTH, ids=str)
def test_a_chain_is_scored_as_any_other_network_is(chain, score, monkeypatch):
    inputs, targets = images(20)
    data = (inputs.double(), targets)
    recipe = Recipe.parse(
        {"score": score, "granularity": "unit", "schedule": {"name": "one_shot", "sparsity": 0.5}}
    )
    by_unit = scores_of(copy.deepcopy(chain), recipe, data)
    monkeypatch.setattr(Coupled, "chain", None)
    by_group = scores_of(copy.deepcopy(chain), recipe, data)
    assert set(by_group) == set(by_unit) == {"0", "4", "9"}
    for name, expected in by_unit.items():
        assert torch.allclose(by_group[name].double(), expected.double(), rtol=1e-9, atol=1e-12)


class Recorded:
    """What modules give in a run of the network, kept with its graph."""

    def __init__(self, model, names, inputs):
        self.seen = {}
        handles = [model.get_submodule(name).register_forward_hook(self._keep(name)) for name in names]
        self.outputs = model(inputs)
        for handle in handles:
            handle.remove()

    def _keep(self, name):
        def hook(module, args, output):
            output.retain_grad()
            self.seen[name] = output

        return hook


READ = {  # by group, the activations whose outputs are what its readers take
    "conv1": ["act1", "stage1.0.act2"],
    "stage1.0.conv1": ["stage1.0.act1"],
    "stage2.0.conv2": ["stage2.0.act2"],
    "stage3.0.conv1": ["stage3.0.act1"],
}
BY_HAND = {
    "nonzeros": lambda z: (z != 0).double().mean((0, 2, 3)),
    "mean": lambda z: z.double().mean((0, 2, 3)),
    "variance": lambda z: z.double().var((0, 2, 3), correction=0),
    "irreplaceable": lambda z: stand_ins(z.double().movedim(1, 0).flatten(1)),
}


def stand_ins(rows):
    r = torch.corrcoef(rows).nan_to_num(0.0).fill_diagonal_(0.0)
    return (1 - r.abs().amax(1).square()).masked_fill(rows.var(1) == 0, 0.0)


@pytest.mark.parametrize("what", BY_HAND)
def test_behaviour_in_a_residual_network_is_that_seen_by_hooks(what):
    model, data = small_resnet(), images(16)
    recipe = groups({"name": "activation", "what": what}, granularity={"residual": True})
    found = scores_of(model, recipe, data)
    recorded = Recorded(model, [name for names in READ.values() for name in names], data[0])
    for group, names in READ.items():
        expected = torch.stack([BY_HAND[what](recorded.seen[name].detach()) for name in names]).mean(0)
        assert torch.allclose(found[group], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_change_of_features_is_that_of_gradients_one_example_at_a_time(frozen):
    model, (inputs, targets) = small_resnet().double(), images(9)
    inputs = inputs.double()
    model.requires_grad_(not frozen)
    recipe = groups({"name": "feature_taylor", "normalize": False}, granularity={"residual": True})
    found = scores_of(model, recipe, (inputs, targets))
    assert all(parameter.requires_grad != frozen for parameter in model.parameters())
    model.requires_grad_(True)
    for group, names in READ.items():
        total = 0
        for example in range(len(inputs)):
            recorded = Recorded(model, names, inputs[example : example + 1])
            cross_entropy(recorded.outputs, targets[example : example + 1]).backward()
            total += sum(
                (recorded.seen[name] * recorded.seen[name].grad)[0].mean((1, 2)).abs() for name in names
            ) / len(names)
        assert torch.allclose(found[group], total.detach() / len(inputs), rtol=1e-9)


def test_heads_are_watched_where_the_projection_reads_them():
    model, inputs, targets = Attention().double(), torch.randn(7, 5, 12).double(), torch.arange(7) % 4
    found = scores_of(model, groups({"name": "activation", "what": "mean"}), (inputs, targets))
    seen = {}
    model.out.register_forward_pre_hook(lambda module, args: seen.update(out=args[0]))
    model.query.register_forward_hook(lambda module, args, output: seen.update(query=output))
    model.key.register_forward_hook(lambda module, args, output: seen.update(key=output))
    model(inputs)
    assert torch.allclose(found["query (heads)"], seen["out"].unflatten(-1, (3, 4)).mean((0, 1, 3)))
    assert torch.allclose(found["value"], seen["out"].unflatten(-1, (3, 4)).mean((0, 1, 2)))
    both = torch.stack([seen[name].unflatten(-1, (3, 4)).mean((0, 1, 2)) for name in ("query", "key")])
    assert torch.allclose(found["query (head width)"], both.mean(0))


def test_a_layer_that_is_called_twice_is_watched_at_each_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.again, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            return self.out(self.act(self.again(self.act(self.into(x)))))

    torch.manual_seed(0)
    model, data = Twice(), (torch.randn(20, 6), torch.arange(20) % 3)
    found = scores_of(model, groups("activation"), data)
    first = torch.relu(model.into(data[0]))
    assert torch.allclose(found["into"], (first != 0).double().mean(0))
    assert torch.allclose(found["again"], (torch.relu(model.again(first)) != 0).double().mean(0))


def test_units_of_two_halves_are_watched_where_each_is_read():
    model, inputs = Halves(), torch.randn(30, 6)
    found = scores_of(model, groups("activation"), (inputs, torch.arange(30) % 3))
    assert torch.allclose(found["both"], (torch.relu(model.both(inputs)) != 0).double().mean(0))


class TestRefusals:
    def test_one_module_for_all_of_attention(self):
        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
                self.head = nn.Linear(12, 4)

            def forward(self, x):
                return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))

        torch.manual_seed(0)
        data = (torch.randn(4, 5, 12), torch.arange(4))
        with pytest.raises(ModelError, match=r"outputs of the units of 'attention.* cannot be watched"):
            prune(Whole(), groups("activation"), data)
        assert prune(Whole(), groups("magnitude", 0.34), data).kept.kept < 3 + 4 + 4

    def test_no_batch_norm(self):
        with pytest.raises(InputError, match="'both' have no batch norm with a scale"):
            prune(Halves(), groups("norm_scale"), example_inputs=torch.rand(2, 6))

    def test_nothing_reads_queries(self):
        with pytest.raises(InputError, match=r"reads the units of 'query \(head width\)'"):
            prune(Attention(), groups("outgoing_norm"), example_inputs=torch.rand(2, 5, 12))
