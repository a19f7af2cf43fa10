"""Recipes that count units of coupled groups, against networks written out by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples import number_of_examples
from group_nets import Attention, Halves, groups, images, small_resnet
from prunekit.errors import InputError, ModelError
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Unit
from prunekit.parts.scores import Magnitude
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from small_nets import copied, same

FILTERS = {
    "stage1.0.conv1": ("stage1.0", "conv1", "bn1", "conv2"),
    "stage2.0.conv1": ("stage2.0", "conv1", "bn1", "conv2"),
    "stage3.0.conv1": ("stage3.0", "conv1", "bn1", "conv2"),
}

POOLS = {
    "sum": lambda rows: rows.sum(1),
    "mean": lambda rows: rows.mean(1),
    "max": lambda rows: rows.amax(1),
    "l2": lambda rows: rows.norm(dim=1),
}
COMBINED = {
    "sum": lambda parts: torch.stack(parts).sum(0),
    "mean": lambda parts: torch.stack(parts).mean(0),
    "max": lambda parts: torch.stack(parts).amax(0),
    "first": lambda parts: parts[0],
}


class Two(nn.Module):
    """A network of two inputs."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(5, 4), nn.Linear(7, 3)

    def forward(self, x, y):
        return self.out(torch.cat([torch.relu(self.into(x)), y], 1))


@pytest.fixture(scope="module")
def stream():
    """A network, and the one group of it that two layers make."""
    model = small_resnet()
    return model, groups(targets=["stage3.0.conv2"]).plan(model, images(2)[0]).elements


def sums_of_filters(model, name):
    return model.get_submodule(name).weight.detach().double().abs().flatten(1).sum(1)


class TestByHand:
    def test_the_smallest_filters_of_each_layer_go_with_all_that_belongs_to_them(self):
        model = small_resnet()
        norms = {name: sums_of_filters(model, name) for name in FILTERS}
        whole = copy.deepcopy(model)
        chosen = groups(granularity={"kinds": ["filters"]}, targets=list(FILTERS), recalibrate=False)
        pruned = prune(model, chosen, images())
        assert list(pruned.kept) == list(FILTERS)
        for name, (block, conv, norm, reader) in FILTERS.items():
            off = norms[name].argsort()[: len(norms[name]) // 2]
            assert sorted(off.tolist()) == (~pruned.kept[name]).nonzero().flatten().tolist()
            with torch.no_grad():
                parts = whole.get_submodule(block)
                getattr(parts, conv).weight[off] = 0
                getattr(parts, norm).weight[off] = 0
                getattr(parts, norm).bias[off] = 0
                getattr(parts, reader).weight[:, off] = 0
        assert same(copied(model), copied(whole))

    @pytest.mark.parametrize("residual", [False, True])
    def test_the_shrunk_network_computes_what_the_masked_one_does(self, residual):
        model, (inputs, targets) = small_resnet(), images()
        pruned = prune(model, groups(granularity={"residual": residual}), (inputs, targets))
        masked = copy.deepcopy(model)
        result = pruned.shrink(inputs[:3])
        assert pruned.model is model
        assert torch.allclose(model(inputs), masked(inputs), atol=1e-6)
        # of 4, 8, 16 channels half are left; without the residual stream the first sum of 4 stays
        first = 2 if residual else 4
        widths, expected = (first, 4, 8), 3 * first * 9 + 2 * first
        before = first
        for number, width in enumerate(widths):
            inner = (2, 4, 8)[number]
            expected += before * inner * 9 + 2 * inner + inner * width * 9 + 2 * width
            if number:
                expected += before * width + 2 * width
            before = width
        expected += 8 * 5 + 5
        assert result.parameters_after == expected == sum(p.numel() for p in model.parameters())
        with pytest.raises(InputError, match="taken out already"):
            pruned.shrink(inputs[:3])

    def test_heads_and_their_widths(self):
        model, inputs = Attention(), torch.randn(6, 5, 12)
        pruned = prune(model, groups("random", 0.4), example_inputs=inputs[:2], seed=3)
        assert {name: int(kept.sum()) for name, kept in pruned.kept.items()} == {
            "query (heads)": 2,
            "query (head width)": 2,
            "value": 2,
            "up": 12,
        }
        masked = copy.deepcopy(model)(inputs)
        pruned.shrink(inputs[:2])
        left = pruned.model
        assert left is model
        assert "unflatten(-1, (3, -1))" in pruned.shrunk.stayed["query (heads)"]  # one head has no effect
        assert left.value.weight.shape == (6, 12)
        assert left.out.weight.shape == (12, 6)
        assert left.up.weight.shape == (12, 12)
        assert torch.allclose(left(inputs[:2]), masked[:2], atol=1e-6)

    def test_the_graph_takes_the_place_of_a_forward_with_sizes_in_it(self):
        class Viewed(nn.Module):
            def __init__(self):
                super().__init__()
                self.into, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

            def forward(self, x):
                return self.out(torch.relu(self.into(x)).view(-1, 8))

        model, inputs = Viewed(), torch.randn(4, 6)
        pruned = prune(model, groups(), example_inputs=inputs)
        masked = copy.deepcopy(model)(inputs)
        result = pruned.shrink(inputs)
        assert result.form == "graph"
        assert "shapes cannot be multiplied" in result.reason
        assert pruned.model is not model
        assert torch.allclose(pruned.model(inputs), masked, atol=1e-6)
        assert sum(p.numel() for p in pruned.model.parameters()) == 4 * 6 + 4 + 3 * 4 + 3


class TestHowMembersCombine:
    @pytest.mark.parametrize("pool", POOLS)
    @pytest.mark.parametrize("combine", COMBINED)
    def test_over_the_layers_that_make_a_stream(self, stream, pool, combine):
        model, elements = stream
        makers = ["stage3.0.conv2.weight", "stage3.0.shortcut.0.weight"]
        rows = [model.get_parameter(name).detach().double().abs().flatten(1) for name in makers]
        expected = COMBINED[combine]([POOLS[pool](each) for each in rows])
        scores = Magnitude()(StepContext({name: model.get_parameter(name).detach() for name in makers}))
        chosen = replace(elements, found=replace(elements.found, combine=combine))
        found = Unit(pool=pool).gather(scores, chosen)
        assert list(found) == ["stage3.0.conv2"]
        assert torch.allclose(found["stage3.0.conv2"], expected, rtol=1e-12)

    def test_over_all_that_goes_with_a_unit(self):
        model = small_resnet()
        block = model.stage2[0]
        figures = sum(
            part.detach().double().abs().flatten(1).sum(1)
            for part in (
                block.conv1.weight,
                block.bn1.weight[:, None],
                block.bn1.bias[:, None],
                block.conv2.weight.transpose(0, 1),
            )
        )
        pruned = prune(model, groups(granularity={"over": "all"}, targets=["stage2.0.conv1"]), images())
        off = (~pruned.kept["stage2.0.conv1"]).nonzero().flatten().tolist()
        assert off == sorted(figures.argsort()[:4].tolist())

    def test_over_the_rows_of_a_head(self):
        model = Attention()
        figures = sum(
            layer.weight.detach().double().abs().view(3, 4, 12).sum((1, 2))
            for layer in (model.query, model.key, model.value)
        )
        pruned = prune(
            model,
            groups(granularity={"kinds": ["heads"]}, sparsity=0.34),
            example_inputs=torch.rand(2, 5, 12),
        )
        assert list(pruned.kept) == ["query (heads)"]
        assert (~pruned.kept["query (heads)"]).nonzero().flatten().tolist() == [int(figures.argmin())]

    @pytest.mark.parametrize("score", ["gradient", "weight_gradient", "input_deviation", "ria"])
    def test_scores_of_weights_that_look_at_data(self, score):
        pruned = prune(small_resnet(), groups(score), images())
        assert pruned.kept.sparsity == 0.5


class TestScoresOfUnits:
    @pytest.mark.parametrize("score", ["oracle", "unit_taylor", "skeletonization"])
    def test_step_by_step_on_a_residual_network(self, score):
        """The oracle's losses: each step's scores are taken again on what is left."""
        model, data = small_resnet(), images()
        recipe = groups(score, schedule={"name": "linear", "sparsity": 0.5, "steps": 2})
        pruned = prune(model, recipe, data)
        masked = copy.deepcopy(model)
        assert pruned.history[-1].sparsity == pytest.approx(0.5, abs=0.05)
        pruned.shrink(data[0][:3])
        assert torch.allclose(model(data[0]), masked(data[0]), atol=1e-6)


class TestCounts:
    @number_of_examples(8)
    @given(
        sparsity=st.floats(0.02, 0.9),
        allocation=st.sampled_from(["global", "per_layer"]),
        seed=st.integers(0, 9),
    )
    def test_exactly_so_many_go_and_every_tensor_keeps_some(self, sparsity, allocation, seed):
        model = Halves(seed)
        most = 6  # of the 8 units of two halves
        recipe = groups("random", sparsity, allocation=allocation)
        if round(sparsity * 8) > most:
            with pytest.raises(InputError, match="floor"):
                prune(model, recipe, example_inputs=torch.rand(2, 6))
            return
        kept = prune(model, recipe, example_inputs=torch.rand(2, 6), seed=seed).kept["both"]
        assert int((~kept).sum()) == round(sparsity * 8)
        assert bool(kept[:4].any())
        assert bool(kept[4:].any())

    def test_the_worse_half_is_not_emptied(self):
        model = Halves()
        with torch.no_grad():
            model.both.weight[4:] *= 1e-3
        pruned = prune(model, groups(), example_inputs=torch.rand(2, 6))
        assert int(pruned.kept["both"][4:].sum()) == 1
        graph = copy.deepcopy(pruned)
        graph.shrink(torch.rand(2, 6), form="graph")
        assert graph.model.right.weight.shape == (3, 1)
        assert graph.model.left.weight.shape == (3, 3)
        pruned.shrink(torch.rand(2, 6))  # its code cuts in the middle
        assert "must lose equally many units" in pruned.shrunk.stayed["both"]
        assert pruned.model.right.weight.shape == pruned.model.left.weight.shape == (3, 3)
        assert int(pruned.model.right.weight.any(0).sum()) == 1

    @pytest.mark.parametrize(
        ("round_to", "left"), [(1, [2, 4, 5, 7]), (4, [4, 4, 8, 8]), (32, [4, 8, 16, 8])]
    )
    def test_widths_are_rounded_up_to_multiples(self, round_to, left):
        names = ["stage1.0.conv1", "stage2.0.conv1", "stage3.0.conv1", "stage2.0.conv2"]
        sparsities = dict(zip(names, [0.6, 0.5, 0.7, 0.1], strict=True))
        recipe = groups(
            granularity={"round_to": round_to, "residual": True},
            targets=names,
            allocation={"name": "manual", "sparsities": sparsities},
            schedule="allocation_decides",
        )
        pruned = prune(small_resnet(), recipe, images())
        assert [int(pruned.kept[name].sum()) for name in names] == left

    def test_pruning_twice_removes_no_more_than_once(self):
        model = small_resnet()
        once = prune(model, groups("random"), images(), seed=1)
        state = copied(model)
        twice = prune(model, groups("random"), images(), seed=2)
        assert once.kept == twice.kept
        assert same(state, copied(model))

    def test_units_that_are_off_stay_off_in_training(self):
        training = {"iterations": 4, "batch_size": 6, "lr": 0.05, "optimizer": "adam", "weight_decay": 0.1}
        recipe = groups(
            "gradient",
            granularity={"residual": True},
            retrain={"name": "fine_tune", "training": training},
            schedule={"name": "linear", "sparsity": 0.5, "steps": 2},
        )
        model, (inputs, targets) = small_resnet(), images()
        before = copied(model)
        pruned = prune(model, recipe, (inputs, targets))
        assert not torch.equal(before["fc.bias"], model.fc.bias)
        for parameter, mask in pruned.masks.parameters(model):
            assert bool((parameter[~mask] == 0).all())
        masked = copy.deepcopy(model.eval())
        pruned.shrink(inputs[:2])
        assert torch.allclose(model(inputs), masked(inputs), atol=1e-5)

    def test_an_interruption_changes_nothing(self):
        recipe = groups("random", schedule={"name": "linear", "sparsity": 0.6, "steps": 3})
        whole = small_resnet()
        expected = prune(whole, recipe, images(), seed=4)
        model = small_resnet()
        first = Session(model, recipe, data=images(), seed=4)
        next(first.run())
        again = small_resnet(seed=9)
        again.load_state_dict(copied(model))
        second = Session(again, recipe, data=images(), seed=4)
        second.load_state_dict(first.state_dict())
        for _ in second.run():
            pass
        assert second.kept == expected.kept
        assert same(copied(again), copied(whole))


class TestChoice:
    @pytest.mark.parametrize(
        ("granularity", "choice", "names"),
        [
            (
                {},
                {},
                ["stage1.0.conv1", "stage2.0.conv1", "stage2.0.conv2", "stage3.0.conv1", "stage3.0.conv2"],
            ),
            ({"kinds": ["residual stream"], "residual": True}, {}, ["conv1"]),
            ({}, {"targets": ["stage1.*"]}, ["stage1.0.conv1"]),
            ({}, {"targets": ["re:stage[23].0.shortcut.0"]}, ["stage2.0.conv2", "stage3.0.conv2"]),
            ({}, {"targets": ["Conv2d"], "ignore": ["*.conv2"]}, [f"stage{n}.0.conv1" for n in (1, 2, 3)]),
            ({}, {"ignore": ["stage2.0.shortcut.0.weight", "*.conv1"]}, ["stage3.0.conv2"]),
        ],
    )
    def test_groups_are_chosen_by_the_layers_that_make_them(self, granularity, choice, names):
        plan = groups(granularity=granularity, **choice).plan(small_resnet(), torch.rand(2, 3, 8, 8))
        assert plan.names == names

    @pytest.mark.parametrize(
        ("values", "kind", "message"),
        [
            ({"targets": ["nowhere"]}, InputError, "'nowhere' matches no group; groups are: conv1, stage1"),
            ({"ignore": ["re:("]}, InputError, "'re:\\(' is not a regular expression"),
            (
                {"targets": ["conv1"]},
                ModelError,
                r"conv1 \(residual stream\): .* unless it is asked",
            ),
            ({"targets": ["fc"]}, ModelError, r"fc \(neurons\): is the network's output"),
            (
                {"granularity": {"kinds": ["heads"]}},
                ModelError,
                "none fits; kinds that can be pruned are: filters",
            ),
            ({"sparsity": 0.99}, InputError, "fewer than the floor"),
        ],
    )
    def test_what_the_model_cannot_do(self, values, kind, message):
        model = small_resnet()
        before = copied(model)
        with pytest.raises(kind, match=message):
            prune(model, groups(**values), images())
        assert same(before, copied(model))

    def test_without_an_example_one_is_made_up(self):
        model = small_resnet()
        assert groups().plan(model).elements.targets == groups().plan(model, images(2)[0]).elements.targets
        two = Two()
        with pytest.raises(ModelError, match="give example_inputs"):
            prune(two, groups())
        assert prune(two, groups(), example_inputs=(torch.randn(2, 5), torch.ones(2, 3))).masks

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"granularity": {"name": "unit", "combine": "median"}}, "combine"),
            ({"granularity": {"name": "unit", "kinds": ["blocks"]}}, "kinds"),
            ({"granularity": {"name": "unit", "kinds": []}}, "kinds"),
            ({"granularity": {"name": "unit", "round_to": 0}}, "round_to"),
        ],
    )
    def test_recipes_that_do_not_fit(self, values, message):
        schedule = {"name": "one_shot", "sparsity": 0.5}
        with pytest.raises(InputError, match=message):
            Recipe.parse({"schedule": schedule, "granularity": "unit", **values})

    def test_the_published_recursion_is_for_paths(self):
        model = small_resnet()
        before = copied(model)
        with pytest.raises(InputError, match=r"path of linear layers.*use form='exact'"):
            prune(model, groups({"name": "unit_taylor", "form": "published"}), images())
        assert same(before, copied(model))

    def test_weights_that_are_not_finite(self):
        model = small_resnet()
        with torch.no_grad():
            model.stage2[0].conv1.weight[0, 0] = torch.nan
        with pytest.raises(ModelError, match=r"stage2.0.conv1.weight holds NaN"):
            prune(model, groups(), images())


class OfItsOwn(nn.Module):
    """A layer whose matrix is the network's own: its group has the name of the parameter that makes it."""

    def __init__(self, layer: nn.Linear, last: nn.Linear) -> None:
        super().__init__()
        self.w, self.b, self.last = layer.weight, layer.bias, last

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(nn.functional.linear(x, self.w, self.b).relu())
        return logits


def test_a_group_of_the_name_of_its_parameter_is_scored_as_that_of_a_layer() -> None:
    torch.manual_seed(0)
    layer, last = nn.Linear(10, 8), nn.Linear(8, 3)
    half = Recipe.parse({"granularity": "unit", "schedule": {"name": "one_shot", "sparsity": 0.5}})
    wanted = prune(nn.Sequential(copy.deepcopy(layer), nn.ReLU(), copy.deepcopy(last)), half)
    found = prune(OfItsOwn(layer, last), half, example_inputs=torch.randn(2, 10))
    assert found.kept["w"].tolist() == wanted.kept["0"].tolist()
