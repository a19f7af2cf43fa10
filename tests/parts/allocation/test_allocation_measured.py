"""Budgets, against networks that are built anew with the widths that are left."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from allocation_context import context_of
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from examples import number_of_examples
from group_nets import Attention, groups, images, small_resnet
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.measure import count, state_bytes
from prunekit.parts.allocation import Budget, Sensitivity
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from small_nets import copied, mlp, same

FIGURES = {
    "parameters": lambda sizes: sum(a * b + b for a, b in sizes),
    "macs": lambda sizes: sum(a * b for a, b in sizes),
    "bytes": lambda sizes: 4 * sum(a * b + b for a, b in sizes),
}


def sizes_of(*widths):
    return list(pairwise(widths))


def budget(of="macs", sparsity=0.5, granularity="unit", score="random", **settings):
    allocation = {"name": "budget", "of": of, **settings.pop("allocation", {})}
    schedule = settings.pop("schedule", {"name": "one_shot", "sparsity": sparsity})
    return Recipe.parse(
        {
            "score": score,
            "granularity": granularity,
            "allocation": allocation,
            "schedule": schedule,
            **settings,
        }
    )


def examples(inputs=10):
    return torch.rand(8, inputs), torch.arange(8) % 3


class TestNoSmallerRemovalMeetsIt:
    @number_of_examples(15)
    @given(
        sparsity=st.floats(0.02, 0.85),
        of=st.sampled_from(sorted(FIGURES)),
        granularity=st.just("unit"),
        round_to=st.sampled_from([1, 1, 4]),
        seed=st.integers(0, 99),
    )
    def test_by_trying_every_number_of_the_lowest_scores(self, sparsity, of, granularity, round_to, seed):
        hidden = (12, 9, 7)
        model = mlp(10, *hidden, 3, seed=seed)
        norms = [layer.weight.detach().abs().double().sum(1) for layer in (model[0], model[2], model[4])]
        lowest = sorted(
            ((float(norm), layer) for layer, each in enumerate(norms) for norm in each.sort().values[:-1]),
        )
        left, figure = list(hidden), FIGURES[of]
        whole = figure(sizes_of(10, *hidden, 3))

        def rounded(widths):
            pairs = zip(widths, hidden, strict=True)
            return [min(size, -(-width // round_to) * round_to) for width, size in pairs]

        for _, layer in lowest:
            if figure(sizes_of(10, *rounded(left), 3)) <= (1 - sparsity) * whole:
                break
            left[layer] -= 1
        reached = figure(sizes_of(10, *rounded(left), 3))
        recipe = budget(of, sparsity, {"name": granularity, "round_to": round_to}, "magnitude")
        if reached > (1 - sparsity) * whole:
            with pytest.raises(InputError, match="cannot be reached"):
                prune(model, recipe, examples())
            return
        pruned = prune(model, recipe, examples())
        assert [int(kept.sum()) for kept in pruned.kept.values()] == rounded(left)
        pruned.shrink(examples()[0])
        found = count(pruned.model, examples()[0])
        assert {"parameters": found.parameters, "macs": found.macs, "bytes": state_bytes(model)}[
            of
        ] == reached

    @pytest.mark.parametrize("of", ["macs", "bytes"])
    def test_of_a_residual_network(self, of):
        model, (inputs, targets) = small_resnet(), images()
        figures = {
            "macs": lambda m: count(m, inputs[:1]).macs,
            "bytes": state_bytes,
        }
        whole = figures[of](model)
        recipe = groups(
            "random",
            0.4,
            granularity={"residual": True},
            allocation={"name": "budget", "of": of},
            rank="once",
        )
        pruned = prune(copy.deepcopy(model), recipe, (inputs, targets), seed=2)
        # as many of the same order but one do not meet it
        removed = pruned.kept.total - pruned.kept.kept
        fewer = groups(
            "random", (removed - 1) / pruned.kept.total, granularity={"residual": True}, allocation="global"
        )
        rest = prune(copy.deepcopy(model), fewer, (inputs, targets), seed=2)
        assert rest.kept.kept == pruned.kept.kept + 1
        assert all(bool((rest.kept[name] >= kept).all()) for name, kept in pruned.kept.items())
        pruned.shrink(inputs[:2])
        rest.shrink(inputs[:2])
        assert figures[of](pruned.model) <= 0.6 * whole < figures[of](rest.model)

    def test_macs_of_attention_are_those_of_heads_as_well(self):
        """Products of queries, keys and values have no weights; they count, also where a graph runs."""
        model, inputs = Attention(), torch.randn(2, 5, 12)
        whole = count(model, inputs).macs
        recipe = groups(
            "random", 0.3, granularity={"kinds": ["heads"]}, allocation={"name": "budget", "of": "macs"}
        )
        pruned = prune(model, recipe, example_inputs=inputs)
        # 4 projections of 5 tokens with 12 x 12 weights, 2 products of 5 x 5 x 12; the others stay
        attention = 4 * 5 * 144 + 2 * 25 * 12
        heads = next(kept for kept in (2, 1) if whole - attention * (3 - kept) / 3 <= 0.7 * whole)
        assert pruned.kept.kept == heads
        pruned.shrink(inputs)
        assert count(pruned.model, inputs).macs == whole - attention * (3 - heads) / 3


class TestShares:
    @number_of_examples(10)
    @given(sparsity=st.floats(0.1, 0.8), seed=st.integers(0, 99))
    def test_equal_fractions_of_every_layer(self, sparsity, seed):
        model = mlp(10, 20, 10, 5, 3, seed=seed)
        norms = [model[place].weight.detach().abs().sum(1) for place in (0, 2, 4)]
        recipe = budget("macs", sparsity, score="magnitude", allocation={"share": "per_layer"})
        kept = prune(model, recipe, examples()).kept
        left = {name: int(each.sum()) / each.numel() for name, each in kept.items()}
        assert max(left.values()) - min(left.values()) <= 1 / 5
        for norm, flags in zip(norms, kept.values(), strict=True):
            lost = norm[~flags].tolist()
            assert max(lost, default=0.0) <= float(norm[flags].min())

    def test_scores_per_cost(self):
        """Units of equal scores: those go first whose layer saves most."""
        model = mlp(10, 6, 6, 3)
        with torch.no_grad():
            for layer in (model[0], model[2]):
                layer.weight.copy_(torch.ones_like(layer.weight) / layer.in_features)
        # a unit of the first layer saves 10 + 6 products, one of the second 6 + 3
        kept = prune(
            model, budget("macs", 0.3, score="magnitude", allocation={"per_cost": True}), examples()
        ).kept
        whole, first = 10 * 6 + 36 + 18, next(n for n in range(7) if (10 + 6) * (6 - n) + 18 <= 0.7 * 114)
        assert whole == 114
        assert [int(each.sum()) for each in kept.values()] == [6 - first, 6]


class TestSteps:
    def test_each_step_is_a_smaller_budget_of_the_network_as_it_was(self):
        model, (inputs, targets) = small_resnet(), images()
        training = {"iterations": 2, "batch_size": 6, "lr": 0.01}
        recipe = groups(
            allocation={"name": "budget", "of": "macs"},
            schedule={"name": "linear", "sparsity": 0.6, "steps": 3},
            retrain={"name": "fine_tune", "training": training},
        )
        whole = count(model, inputs[:1]).macs
        left = []
        for _ in Session(model, recipe, data=(inputs, targets)).run():
            left.append(count(model, inputs[:1]).macs_nonzero / whole)
        assert all(found <= goal for found, goal in zip(left, (0.8, 0.6, 0.4), strict=True))
        assert all(found > goal - 0.1 for found, goal in zip(left, (0.8, 0.6, 0.4), strict=True))

    def test_pruning_twice_removes_no_more_than_once(self):
        model = small_resnet()
        recipe = groups("random", allocation={"name": "budget", "of": "macs"})
        once = prune(model, recipe, images(), seed=1)
        state = copied(model)
        twice = prune(model, recipe, images(), seed=2)
        assert once.kept == twice.kept
        assert same(state, copied(model))

    def test_latency_is_that_of_the_network_that_is_left(self, monkeypatch):
        """With a clock that goes by the parameters, so that the test does not hang on the machine."""

        def clock(model, inputs, **settings):
            seconds = sum(p.numel() for p in model.parameters()) * 1e-6
            return type("Latency", (), {"median": seconds})()

        monkeypatch.setattr("prunekit.parts.allocation.measured.latency", clock)
        model = mlp(10, 12, 9, 7, 3)
        timed = prune(copy.deepcopy(model), budget("latency", 0.5, score="magnitude"), examples())
        counted = prune(copy.deepcopy(model), budget("parameters", 0.5, score="magnitude"), examples())
        assert timed.kept == counted.kept


class TestRefusals:
    def test_a_budget_that_cannot_be_reached_names_the_smallest(self):
        model = mlp(10, 12, 9, 3)
        before = copied(model)
        # one unit of each layer: 10 + 1 + 3 of 120 + 108 + 27 products
        with pytest.raises(InputError, match=r"a budget of 12.8 MACs, 0.05 of 255 .* has 14 MACs, 0.0549"):
            prune(model, budget("macs", 0.95), examples())
        with pytest.raises(InputError, match=r"with a floor of 0.5 of each layer.* has 105 MACs"):
            prune(model, budget("macs", 0.6, allocation={"floor": 0.5}), examples())
        assert same(before, copied(model))

    def test_macs_without_an_example(self):
        with pytest.raises(InputError, match="a budget of macs runs the network: give data"):
            prune(mlp(10, 12, 3), budget("macs"))
        inputs = torch.rand(2, 10)
        assert prune(mlp(10, 12, 3), budget("macs"), example_inputs=inputs).kept.kept == 6
        # 10 x 6 weights, 6 biases, 3 x 6 weights, 3 biases are 87 of 171 parameters
        assert prune(mlp(10, 12, 3), budget("parameters", 0.49)).kept.kept == 6
        assert prune(mlp(10, 12, 3), budget("parameters", 0.5)).kept.kept == 5

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (
                {"granularity": "weight"},
                "budget' works on whole units or whole blocks, the granularity 'weight'.*'unit' or 'block'",
            ),
            ({"order": "forward"}, "use the order 'all'"),
            ({"schedule": "allocation_decides"}, "states no sparsity, which the allocation 'budget' needs"),
            (
                {"schedule": {"name": "fixed_count", "every": 2, "sparsity": 0.5}},
                "the schedule 'fixed_count' states",
            ),
            ({"allocation": {"of": "watts"}}, "of"),
        ],
    )
    def test_recipes_that_do_not_fit(self, values, message):
        with pytest.raises(InputError, match=message):
            budget(**values)

    @pytest.mark.parametrize("values", [{"of": "latency"}, {"share": "per_layer"}])
    def test_costs_that_mean_nothing(self, values):
        with pytest.raises(InputError, match="cost"):
            Budget(per_cost=True, **values)

    def test_a_forward_with_sizes_in_it(self):
        class Viewed(nn.Module):
            def __init__(self):
                super().__init__()
                self.into, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)

            def forward(self, x):
                return self.out(torch.relu(self.into(x)).view(-1, 144))

        data = (torch.rand(4, 1, 8, 8), torch.arange(4) % 3)
        assert prune(Viewed(), budget("parameters", 0.49, "unit"), data).kept.kept == 2


GRID = (0.2, 0.4, 0.6, 0.8)


def toy(costs: dict[str, float]):
    """A loss that rises with a layer's sparsity squared, at a cost of its own."""

    def loss(masks: Masks) -> float:
        return sum(cost * float((~masks[name]).double().mean()) ** 2 for name, cost in costs.items())

    return loss


def scores(sizes: dict[str, int]) -> dict[str, torch.Tensor]:
    return {
        name: torch.rand(size, 10, generator=torch.Generator().manual_seed(1)) for name, size in sizes.items()
    }


def test_layers_end_at_the_same_loss_increase():
    costs = {"a": 1.0, "b": 4.0}
    grid = tuple(np.linspace(0.02, 0.98, 49))
    found = Sensitivity(grid=grid).amounts(
        context_of(scores({"a": 100, "b": 100}), 0.45, loss_with=toy(costs))
    )
    assert sum(found.values()) == 900
    # cost_a s_a^2 = cost_b s_b^2 and s_a + s_b = 0.9 give s_a = 0.6, s_b = 0.3
    assert found["a"] == pytest.approx(600, abs=5)
    assert found["b"] == pytest.approx(300, abs=5)


@given(st.floats(0.05, 0.95), st.lists(st.floats(0, 10), min_size=3, max_size=3))
def test_the_total_is_exact(sparsity, costs):
    names = ("a", "b", "c")
    given_ = context_of(
        scores({"a": 3, "b": 7, "c": 20}), sparsity, loss_with=toy(dict(zip(names, costs, strict=True)))
    )
    found = Sensitivity(grid=GRID).amounts(given_)
    assert sum(found.values()) == round(sparsity * 300)


def test_a_dip_does_not_make_more_removal_cheaper():
    # layer a gets better when half of it is gone; that is no reason to take all of it
    def loss(masks: Masks) -> float:
        gone = float((~masks["a"]).double().mean())
        return -0.5 if 0.3 < gone < 0.7 else gone + float((~masks["b"]).double().mean())

    found = Sensitivity(grid=GRID).amounts(context_of(scores({"a": 20, "b": 20}), 0.3, loss_with=loss))
    assert sum(found.values()) == 120


def test_later_rounds_start_from_what_is_gone():
    """A layer that lost more than the equal increase grants keeps its loss, and the total stays exact."""
    layers = scores({"a": 20, "b": 20})
    gone = torch.zeros(20, 10, dtype=torch.bool)
    gone.view(-1)[:130] = True  # 65 %, between two points of the grid
    masks = Masks({"a": ~gone, "b": torch.ones(20, 10, dtype=torch.bool)})
    found = Sensitivity(grid=GRID).amounts(
        context_of(layers, 0.5, masks=masks, loss_with=toy({"a": 100.0, "b": 0.001}))
    )
    assert found["a"] >= 130
    assert sum(found.values()) == 200


@pytest.mark.parametrize("grid", [(0.5, 0.5), (0.5, 0.2), (0.0, 0.5), ()])
def test_the_grid_increases(grid):
    with pytest.raises(InputError, match=r"sensitivity: .*grid"):
        Sensitivity(grid=grid)
