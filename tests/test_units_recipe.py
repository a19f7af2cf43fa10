"""Recipes that count units, against naive loops that know nothing of chains, masks or scores."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from prunekit.graph import chain_of
from prunekit.losses import squared_error
from prunekit.models import ModelSettings, create
from prunekit.parts.scores import Oracle, Score
from prunekit.pruning import Session, prune
from prunekit.units import eliminate
from small_nets import blobs, copied, mlp, same
from unit_recipes import conv_net, data, naive_order, net, outputs, parts_of, units, walked

ERRORS = {"squared_error": squared_error, "cross_entropy": cross_entropy}


class NearlyEqual(Score):
    name = "nearly_equal"
    comparable = ("units",)
    works_on = ("units",)

    def __call__(self, context):
        ranks = {"0": torch.arange(4) * 2 + 1, "2": torch.arange(4) * 2}
        return {name: 1 + 1e-12 * rank.double() for name, rank in ranks.items()}


def one_by_one(score, total, count, **settings):
    return units(score, steps=count, sparsity=count / total, **settings)


def fine_tune(**training):
    return {"name": "fine_tune", "training": {"iterations": 6, "lr": 0.05, "batch_size": 16, **training}}


class TestTheOracle:
    @pytest.mark.parametrize("error", ERRORS)
    @pytest.mark.parametrize(
        ("model", "shape", "total"),
        [(net(6, 9, 4), (6,), 9), (net(6, 7, 6, 4), (6,), 13), (conv_net(), (1, 8, 8), 15)],
    )
    def test_the_order_is_that_of_a_naive_loop_and_of_eliminate(self, model, shape, total, error):
        examples, count = data(*shape), total - 4
        expected = naive_order(model, examples, ERRORS[error], count)
        course = eliminate(chain_of(model), *examples, error, count=count, floor=1)
        recipe = one_by_one({"name": "oracle", "error": error}, total, count)
        pruned = copy.deepcopy(model)
        found = walked(Session(pruned, recipe, data=examples))
        assert found == expected
        assert found == list(course.order)
        assert torch.allclose(pruned(examples[0]), outputs(model, examples[0], expected), atol=1e-12)

    def test_nearly_equal_scores_of_two_layers_are_told_apart(self):
        """Single precision would take them for equal, and the nearer layer would lose all."""
        found = walked(Session(net(6, 4, 4, 4), one_by_one("nearly_equal", 8, 6)))
        assert found == [("2", 0), ("0", 0), ("2", 1), ("0", 1), ("2", 2), ("0", 2)]

    def test_regression(self):
        model, (inputs, _) = net(6, 7, 3), data(6)
        examples = (inputs, torch.rand(len(inputs), 3, dtype=torch.float64))
        found = walked(Session(copy.deepcopy(model), one_by_one("oracle", 7, 6), data=examples))
        assert found == naive_order(model, examples, squared_error, 6)

    def test_input_features_are_units_where_they_are_asked_for(self):
        model, examples = net(6, 7, 4), data(6)
        pruned = prune(model, units("oracle", granularity={"name": "unit", "inputs": True}), examples)
        assert pruned.kept.total == 6 + 7
        off = (~pruned.kept["input"]).nonzero().flatten()
        assert bool((model[0].weight[:, off] == 0).all())


class TestRankingOnce:
    def count_calls(self, monkeypatch):
        calls, plain = [], Oracle.__call__

        def counted(self, context):
            calls.append({name: int(kept.sum()) for name, kept in context.kept.items()})
            return plain(self, context)

        monkeypatch.setattr(Oracle, "__call__", counted)
        return calls

    def test_scores_are_taken_once(self, monkeypatch):
        calls, model, examples = self.count_calls(monkeypatch), net(6, 7, 6, 4), data(6)
        found = walked(
            Session(copy.deepcopy(model), one_by_one("oracle", 13, 10, rank="once"), data=examples)
        )
        assert calls == [{"0": 7, "2": 6}]
        course = eliminate(chain_of(model), *examples, "squared_error", count=10, rerank=False, floor=1)
        assert found == list(course.order)

    def test_else_before_every_step(self, monkeypatch):
        calls = self.count_calls(monkeypatch)
        prune(net(6, 7, 6, 4), one_by_one("oracle", 13, 5), data(6))
        assert [sum(each.values()) for each in calls] == [13, 12, 11, 10, 9]

    @pytest.mark.parametrize("rank", ["once", "every_step"])
    @pytest.mark.parametrize("score", ["oracle", "random"])
    def test_an_interruption_changes_nothing(self, rank, score, monkeypatch, tmp_path):
        recipe = one_by_one(score, 13, 8, rank=rank, retrain=fine_tune(), retrain_every=3)
        whole, examples = net(6, 7, 6, 4), data(6)
        expected = prune(whole, recipe, examples, seed=4)
        model = net(6, 7, 6, 4)
        first = Session(model, recipe, data=examples, seed=4)
        for record in first.run():
            if record.step == 4:
                break
        torch.save([first.state_dict(), copied(model)], tmp_path / "state.pt")
        calls = self.count_calls(monkeypatch)
        session_state, state = torch.load(tmp_path / "state.pt", weights_only=True)
        again = net(6, 7, 6, 4, seed=9)
        again.load_state_dict(state)
        second = Session(again, recipe, data=examples, seed=4)
        second.load_state_dict(session_state)
        for _ in second.run():
            pass
        assert same(copied(again), copied(whole))
        assert second.kept == expected.kept
        assert len(calls) == (4 if (rank, score) == ("every_step", "oracle") else 0)

    def test_weights_can_be_ranked_once_too(self):
        recipe = units("magnitude", steps=3, granularity="weight", rank="once", retrain=fine_tune(lr=1.0))
        model = mlp(10, 16, 3)
        values = torch.cat([model[0].weight.detach().flatten(), model[2].weight.detach().flatten()]).abs()
        pruned = prune(model, recipe, blobs())
        kept = torch.cat([mask.flatten() for mask in pruned.masks.values()])
        assert float(values[~kept].max()) <= float(values[kept].min())


class TestRetraining:
    @pytest.mark.parametrize(
        ("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [3, 6, 8]), (20, [8])]
    )
    def test_after_every_so_many_steps_and_the_last(self, every, expected):
        recipe = one_by_one("magnitude", 13, 8, retrain=fine_tune(), retrain_every=every)
        model = net(6, 7, 6, 4)
        trained, before = [], model[4].bias.detach().clone()  # the outputs' biases change in training alone
        session = Session(model, recipe, data=data(6))
        for record in session.run():
            if not torch.equal(before, model[4].bias):
                trained.append(record.step)
            assert (record.train_loss is not None) == (record.step in trained)
            before = model[4].bias.detach().clone()
        assert trained == expected

    @pytest.mark.parametrize(
        "training",
        [
            {"optimizer": "adam", "weight_decay": 0.1},
            {"optimizer": "adamw", "weight_decay": 0.1},
            {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
        ],
    )
    @pytest.mark.parametrize(("model", "shape"), [(net(6, 7, 6, 4), (6,)), (conv_net(), (1, 8, 8))])
    def test_units_that_are_off_stay_off(self, model, shape, training):
        model, examples = copy.deepcopy(model), data(*shape)
        session = Session(
            model,
            units("random", steps=3, sparsity=0.6, retrain=fine_tune(**training)),
            data=examples,
            seed=2,
        )
        for _ in session.run():
            for name, kept in session.kept.items():
                for unit in range(len(kept)):
                    zero = [bool((part == 0).all()) for part in parts_of(model, name, unit)]
                    assert zero == [not bool(kept[unit])] * 3

    def test_batch_norms_follow(self):
        model = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4)
        )
        inputs, targets = data(1, 8, 8)
        recipe = units("random", retrain=fine_tune(weight_decay=0.1))
        pruned = prune(model, recipe, (inputs.float(), targets))
        off = ~pruned.kept["0"]
        assert int(off.sum()) == 3
        for parameter in (model[0].weight, model[0].bias, model[1].weight, model[1].bias):
            assert bool((parameter[off] == 0).all())
            assert bool((parameter[~off] != 0).any())
        assert bool((model[:3].eval()(inputs.float())[:, off] == 0).all())

    @pytest.mark.parametrize("make", [lambda p: Adam(p, 0.05, weight_decay=0.1), lambda p: SGD(p, 0.1, 0.9)])
    def test_in_a_loop_of_the_users(self, make):
        model, (inputs, targets) = net(6, 7, 6, 4), data(6)
        optimizer = make(model.parameters())
        recipe = units("oracle", steps=3, sparsity=0.6)
        session = recipe.attach(model, optimizer, data=(inputs, targets), every=4)
        for _ in range(20):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            for name, kept in session.kept.items():
                for unit in (~kept).nonzero().flatten().tolist():
                    assert all(bool((part == 0).all()) for part in parts_of(model, name, unit))
        assert session.done
        assert [record.kept for record in session.history] == [10, 8, 5]
        session.detach()
        assert session.result().kept.kept == 5


class TestCounts:
    @pytest.mark.parametrize("sparsity", [0.08, 0.3, 0.5, 0.77, 0.84])
    @pytest.mark.parametrize("score", ["oracle", "magnitude", "random"])
    def test_sparsity_counts_units(self, sparsity, score):
        pruned = prune(net(6, 7, 6, 4), units(score, sparsity=sparsity, allocation="global"), data(6))
        record = pruned.history[-1]
        assert record.total == pruned.kept.total == 13
        assert record.total - record.kept == round(sparsity * 13)
        assert record.sparsity == pytest.approx(round(sparsity * 13) / 13)
        assert record.layers == {name: int(kept.sum()) for name, kept in pruned.kept.items()}
        assert f"of 13 units removed ({record.compression_ratio:.4g}x)" in str(pruned)
        assert "shrink" in str(pruned)

    def test_a_layer_keeps_a_unit_unless_the_floor_is_lifted(self):
        model = net(6, 7, 6, 4)
        with torch.no_grad():
            model[0].weight.mul_(1e-6)  # by its norms all of this layer would go
        kept = prune(copy.deepcopy(model), units(sparsity=8 / 13, allocation="global")).history[-1].layers
        assert kept == {"0": 1, "2": 4}
        lifted = units(sparsity=8 / 13, allocation={"name": "global", "floor": 0})
        assert prune(copy.deepcopy(model), lifted).history[-1].layers == {"0": 0, "2": 5}

    def test_per_layer(self):
        kept = prune(net(6, 8, 6, 4), units("oracle", allocation="per_layer"), data(6)).history[-1].layers
        assert kept == {"0": 4, "2": 3}

    @pytest.mark.parametrize("score", ["oracle", "random", "magnitude"])
    def test_pruning_twice_removes_no_more_than_once(self, score):
        model = net(6, 7, 6, 4)
        once = prune(model, units(score), data(6), seed=1)
        state = copied(model)
        twice = prune(model, units(score), data(6), seed=2)
        assert once.kept == twice.kept
        assert same(state, copied(model))

    @pytest.mark.parametrize(
        ("choice", "layers"),
        [
            ({}, ["0", "2", "4"]),
            ({"targets": ["0", "4"]}, ["0", "4"]),
            ({"ignore": ["2"]}, ["0", "4"]),
            ({"targets": ["2", "6"]}, ["2"]),
        ],
    )
    @pytest.mark.parametrize("score", ["oracle", "n2ps", "outgoing_norm", "magnitude", "random"])
    def test_layers_are_chosen_by_targets_and_ignore(self, choice, layers, score):
        model = net(6, 7, 6, 5, 4)
        pruned = prune(model, units(score, sparsity=0.6, **choice), data(6))
        assert list(pruned.kept) == layers
        for name, size in (("0", 7), ("2", 6), ("4", 5)):
            off = [u for u in range(size) if bool((parts_of(model, name, u)[2] == 0).all())]
            expected = (~pruned.kept[name]).nonzero().flatten().tolist() if name in layers else []
            assert off == expected

    def test_an_order_of_layers(self):
        session = Session(net(6, 7, 6, 4), units("oracle", order="backward"), data=data(6))
        lost = [dict(record.layers) for record in session.run()]
        assert lost[0]["0"] == 7
        assert lost[-1]["0"] + lost[-1]["2"] == 7


class TestShrinking:
    def test_the_smaller_network_by_hand(self):
        model, examples = net(6, 9, 8, 4), data(6)
        pruned = prune(model, units("oracle"), examples)
        off = [
            (name, unit) for name, kept in pruned.kept.items() for unit in range(len(kept)) if not kept[unit]
        ]
        expected = outputs(net(6, 9, 8, 4), examples[0], off)
        result = pruned.shrink(examples[0])
        a, b = (int(kept.sum()) for kept in pruned.kept.values())
        assert a + b == 17 - 8
        assert result.parameters_after == 6 * a + a + a * b + b + b * 4 + 4
        assert result.parameters_after == sum(p.numel() for p in model.parameters())
        assert torch.allclose(model(examples[0]), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("score", ["oracle", "magnitude", "activation"])
    def test_lenet5(self, score):
        torch.manual_seed(0)
        inputs, targets = torch.rand(24, 1, 28, 28), torch.randint(10, (24,))
        model = create(ModelSettings.parse("lenet5"), (1, 28, 28), 10, seed=0)
        training = fine_tune(iterations=3, lr=0.001)
        recipe = units(score, steps=2, retrain=training)
        pruned = prune(model, recipe, (inputs, targets))
        masked = copy.deepcopy(model).eval()(inputs)
        before = sum(p.numel() for p in model.parameters())
        result = pruned.shrink(inputs)
        assert result.parameters_before == before
        assert result.parameters_after == sum(p.numel() for p in model.parameters()) < before
        assert torch.allclose(model.eval()(inputs), masked, atol=1e-5)
        kept = {group.name: group.after for group in result.groups}
        assert kept == {name: int(f.sum()) for name, f in pruned.kept.items() if not f.all()}

    def test_grouped_convolutions_lose_the_same_places_of_each_group(self):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 9),
            nn.ReLU(), nn.Linear(9, 4),
        )  # fmt: skip
        x = torch.randn(2, 1, 8, 8)
        pruned = prune(model, units("random"), example_inputs=x)
        assert {name: len(flags) for name, flags in pruned.kept.items()} == {"0": 4, "2": 4, "4": 9}
        left = int(pruned.kept["0"].sum())
        masked = model(x)
        pruned.shrink(x)
        assert (model[2].in_channels, model[2].groups) == (2 * left, 2)
        torch.testing.assert_close(model(x), masked)


def test_the_compression_ratio_counts_parameters_as_everywhere():
    """Half of the units on both sides of a layer are a quarter of its weights."""
    model = mlp(20, 30, 10, 4)
    pruned = prune(model, units("magnitude", sparsity=0.5, allocation="per_layer"))
    whole = sum(parameter.numel() for parameter in model.parameters())
    (record,) = pruned.history
    pruned.shrink(torch.randn(3, 20))
    left = sum(parameter.numel() for parameter in pruned.model.parameters())
    assert record.compression_ratio == pytest.approx(whole / left)
    assert record.compression_ratio > record.total / record.kept
    assert f"({record.compression_ratio:.4g}x)" in str(pruned)
