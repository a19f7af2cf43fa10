import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from examples import number_of_examples
from prunekit import methods
from prunekit.errors import DataError, InputError, ModelError
from prunekit.parts.allocation import Allocation
from prunekit.parts.allocation.rules import DECIDED
from prunekit.parts.retrain import FineTune
from prunekit.parts.scores import Score
from prunekit.pruning import Session, prune
from small_nets import Tied, blobs, convnet, copied, images, mlp, recipe, same, zeros

OPTIMIZERS = ("sgd", "adam", "adamw")


def linear(sparsity, steps):
    return {"name": "linear", "sparsity": sparsity, "steps": steps}


def fine_tune(**training):
    return {"name": "fine_tune", "training": {"iterations": 5, "lr": 0.05, "batch_size": 16, **training}}


class TestAgainstSorting:
    def test_global_magnitude(self):
        model = mlp(10, 16, 3)
        before = copied(model)
        prune(model, recipe(schedule={"name": "one_shot", "sparsity": 0.7}))
        both = np.concatenate([before[name].numpy().reshape(-1) for name in ("0.weight", "2.weight")])
        threshold = np.sort(np.abs(both))[round(0.7 * both.size) - 1]
        for name in ("0.weight", "2.weight"):
            value = before[name].numpy()
            assert np.array_equal(
                model.get_parameter(name).detach().numpy(), np.where(np.abs(value) > threshold, value, 0)
            )
        assert torch.equal(model[0].bias, before["0.bias"])

    def test_per_layer_gradient(self):
        model, data = mlp(10, 16, 3), blobs()
        expected = torch.autograd.grad(
            cross_entropy(model(data[0]), data[1]), [model[0].weight, model[2].weight]
        )
        pruned = prune(model, recipe(score="gradient", allocation="per_layer"), data)
        for mask, gradient in zip(pruned.masks.values(), expected, strict=True):
            order = np.argsort(gradient.abs().numpy().reshape(-1), kind="stable")
            assert not mask.flatten()[order[: round(0.5 * mask.numel())]].any()

    @given(
        st.floats(0.01, 0.98), st.sampled_from(["global", "per_layer", "erk", "sensitivity"]), st.booleans()
    )
    @number_of_examples(25)
    def test_the_count_is_exact_even_if_all_weights_are_equal(self, sparsity, allocation, constant):
        model = mlp(10, 16, 3)
        if constant:
            for name in ("0.weight", "2.weight"):
                nn.init.constant_(model.get_parameter(name), 0.5)
        chosen = recipe(
            schedule={"name": "one_shot", "sparsity": sparsity}, allocation={"name": allocation, "floor": 0}
        )
        pruned = prune(model, chosen, blobs())
        if allocation == "per_layer":
            assert [zeros(model, name) for name in pruned.masks] == [
                round(sparsity * 160),
                round(sparsity * 48),
            ]
        else:
            assert sum(zeros(model, name) for name in pruned.masks) == round(sparsity * 208)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions(self, dtype):
        model = mlp(10, 16, 3, dtype=dtype)
        pruned = prune(model, recipe())
        assert pruned.masks.kept == 104
        assert model[0].weight.dtype == dtype


class TestNesting:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("score", ["magnitude", "random", "weight_gradient"])
    def test_no_weight_comes_back(self, optimizer, score):
        model, data = mlp(10, 16, 3), blobs()
        chosen = recipe(
            score=score,
            schedule=linear(0.8, 4),
            retrain=fine_tune(optimizer=optimizer, weight_decay=0.1, momentum=0.9),
        )
        session = Session(model, chosen, data=data)
        before = session.masks
        for k, _ in enumerate(session.run(), 1):
            for name, mask in session.masks.items():
                assert not bool((mask & ~before[name]).any())
                assert zeros(model, name) == int((~mask).sum())
            assert session.masks.total - session.masks.kept == round(0.2 * k * 208)
            before = session.masks

    @given(
        st.lists(st.floats(0.01, 0.95), min_size=1, max_size=5, unique_by=lambda s: round(s, 2)),
        st.sampled_from(
            ["global", "per_layer", "erk", "sensitivity", {"name": "per_layer", "output_rate": 0.5}]
        ),
        st.sampled_from(["magnitude", "random", "gradient"]),
        st.sampled_from(["all", "forward", "backward"]),
        st.booleans(),
    )
    @number_of_examples(30)
    def test_counts_nest_and_floors_hold(self, sparsities, allocation, score, order, retrained):
        allocation = {"name": allocation} if isinstance(allocation, str) else allocation
        chosen = recipe(
            schedule={"name": "explicit", "values": sorted(sparsities)},
            allocation={**allocation, "floor": 0.02},
            score=score,
            order=order,
            retrain=fine_tune(optimizer="sgd", iterations=2) if retrained else "none",
        )
        session = Session(mlp(10, 16, 3), chosen, data=blobs(32), seed=1)
        before = session.masks
        for record in session.run():
            assert all(not bool((mask & ~before[name]).any()) for name, mask in session.masks.items())
            assert record.layers["0.weight"] >= 4
            assert record.layers["2.weight"] >= 1
            before = session.masks
            if session.plan.steps[record.step - 1].layers[-1] == session.plan.steps[-1].layers[-1]:
                sparsity = session.plan.steps[record.step - 1].sparsity
                if allocation["name"] != "per_layer":
                    assert record.total - record.kept == round(sparsity * 208)

    def test_threshold_rounds_nest(self):
        chosen = recipe(
            allocation={"name": "threshold", "q": 0.6},
            schedule={"name": "allocation_decides", "steps": 3},
            retrain=fine_tune(),
        )
        kept = [record.kept for record in prune(mlp(10, 16, 3), chosen, blobs()).history]
        assert 208 > kept[0] > kept[1] > kept[2] > 0

    def test_regrow_lets_them_compete_again(self):
        chosen = recipe(score="random", schedule=linear(0.6, 3), regrow=True)
        session = Session(mlp(10, 16, 3), chosen)
        before, regrown = session.masks, 0
        for k, _ in enumerate(session.run(), 1):
            regrown += sum(int((mask & ~before[name]).sum()) for name, mask in session.masks.items())
            assert session.masks.total - session.masks.kept == round(0.2 * k * 208)
            before = session.masks
        assert regrown > 0


class Receding(Allocation):
    name = "receding"
    requires = (DECIDED,)
    local = True
    asked: tuple[float, ...] = (0.5, 0.25, 0.75)

    def amounts(self, context):
        share = self.asked[context.step.round - 1]
        return {name: round(share * scores.numel()) for name, scores in context.scores.items()}


class TestAnAllocationThatAsksForLessThanIsRemoved:
    def steps(self, **changes):
        chosen = recipe(
            **{
                "score": "random",
                "allocation": Receding(),
                "schedule": {"name": "allocation_decides", "steps": 3},
                "retrain": fine_tune(optimizer="adam"),
                **changes,
            }
        )
        model = mlp(10, 16, 8)
        session = Session(model, chosen, data=blobs())
        masks = [session.kept]
        for record in session.run():
            masks.append(session.kept)
            assert record.layers == {name: int(flags.sum()) for name, flags in session.kept.items()}
            assert all(zeros(model, name) >= int((~each).sum()) for name, each in session.masks.items())
        return masks

    @pytest.mark.parametrize("order", ["all", "forward"])
    @pytest.mark.parametrize("granularity", ["weight", "unit"])
    def test_nothing_comes_back(self, order, granularity):
        masks = self.steps(order=order, granularity=granularity)
        for before, after in itertools.pairwise(masks):
            assert not any(bool((flags & ~before[name]).any()) for name, flags in after.items())
        if order == "all":
            _, first, second, third = masks
            assert first == second
            for name, flags in third.items():
                assert int((~first[name]).sum()) == round(0.5 * flags.numel())
                assert int((~flags).sum()) == round(0.75 * flags.numel())

    def test_with_regrow_as_many_are_removed_as_are_asked_for(self):
        _, first, second, third = self.steps(regrow=True)
        for name, flags in first.items():
            removed = [int((~masks[name]).sum()) for masks in (first, second, third)]
            assert removed == [round(share * flags.numel()) for share in (0.5, 0.25, 0.75)]
            assert bool((second[name] & ~flags).any())


class TestTwice:
    @pytest.mark.parametrize("allocation", ["global", "per_layer"])
    @pytest.mark.parametrize("score", ["magnitude", "random"])
    def test_pruning_a_fifth_twice_is_a_fifth(self, allocation, score):
        chosen = recipe(schedule={"name": "one_shot", "sparsity": 0.2}, allocation=allocation, score=score)
        model = mlp(10, 16, 3)
        once = prune(model, chosen, seed=1)
        state = copied(model)
        twice = prune(model, chosen, seed=2)
        assert once.masks == twice.masks
        assert same(state, copied(model))
        assert twice.masks.sparsity == pytest.approx(0.2, abs=0.003)

    def test_going_further_keeps_what_is_gone(self):
        model = mlp(10, 16, 3)
        first = prune(model, recipe(score="random", schedule={"name": "one_shot", "sparsity": 0.3})).masks
        further = recipe(score="random", schedule={"name": "one_shot", "sparsity": 0.6})
        second = prune(model, further, seed=7).masks
        assert all(not bool((mask & ~first[name]).any()) for name, mask in second.items())
        assert second.total - second.kept == round(0.6 * 208)


class TestPatterns:
    @pytest.mark.parametrize("last", [False, True])
    def test_every_group_of_a_convolution(self, last):
        model = convnet()
        if last:
            model = model.to(memory_format=torch.channels_last)
        chosen = recipe(
            granularity={"name": "n:m", "n": 2, "m": 4}, allocation="per_layer", schedule=linear(0.5, 2)
        )
        session = Session(model, chosen)
        for record in session.run():
            kept = 4 - record.step
            for name in session.masks:
                weight = model.get_parameter(name).detach()
                flat = weight.reshape(*weight.shape[:2], -1).numpy()
                for row in flat:
                    for start in range(0, flat.shape[1], 4):
                        assert (np.count_nonzero(row[start : start + 4], axis=0) == kept).all()


class TestDeterminism:
    def run(self, seed, **changes):
        chosen = recipe(**{"schedule": linear(0.6, 2), "retrain": fine_tune(), **changes})
        model = mlp(10, 16, 3)
        return prune(model, chosen, blobs(), seed=seed).masks, copied(model)

    @pytest.mark.parametrize("score", ["magnitude", "random", "gradient"])
    def test_the_same_seed_is_the_same_result(self, score):
        one = self.run(3, score=score)
        torch.manual_seed(99)
        other = self.run(3, score=score)
        assert one[0] == other[0]
        assert same(one[1], other[1])

    def test_another_seed_is_another_order_of_data(self):
        assert not same(self.run(3)[1], self.run(4)[1])

    def test_another_seed_is_another_lot(self):
        assert (
            self.run(3, score="random", retrain="none")[0] != self.run(4, score="random", retrain="none")[0]
        )
        assert self.run(3, retrain="none")[0] == self.run(4, retrain="none")[0]

    def test_another_seed_is_another_calibration_sample(self):
        masks = [self.run(seed, score="gradient", retrain="none", calibration=10)[0] for seed in (3, 4)]
        assert masks[0] != masks[1]

    def test_rounds_see_other_orders_of_data(self):
        chosen = recipe(schedule=linear(0.02, 2), retrain={"name": "rewind", "training": {"iterations": 4}})
        model = mlp(10, 16, 3)
        states = []
        session = Session(model, chosen, data=blobs(), checkpoints={0: copied(model)})
        for _ in session.run():
            states.append(copied(model)["0.bias"])
        assert not torch.equal(*states)


class TestTheModelIsTheUsers:
    def test_state_keys_stay_and_copies_work(self):
        model = convnet()
        keys = list(model.state_dict())
        session = Session(model, recipe(schedule=linear(0.5, 2), retrain=fine_tune()), data=images())
        for _ in session.run():
            assert list(model.state_dict()) == keys
            twin = copy.deepcopy(model)
            assert same(copied(twin), copied(model))
            assert twin(images()[0]).shape == (48, 3)
        assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())

    def test_tied_weights_stay_tied_and_count_once(self):
        model = Tied()
        tokens = torch.randint(11, (40, 5))
        data = (tokens, tokens[:, 0])
        chosen = recipe(schedule=linear(0.6, 2), retrain=fine_tune(optimizer="adamw", weight_decay=0.1))
        pruned = prune(model, chosen, data)
        assert model.out.weight is model.embed.weight
        assert pruned.masks.total == 66 + 36
        assert pruned.masks.total - pruned.masks.kept == round(0.6 * 102)
        assert bool((model.out.weight[~pruned.masks["embed.weight"]] == 0).all())

    @pytest.mark.parametrize("score", ["gradient", "weight_gradient"])
    def test_frozen_parameters_stay_frozen(self, score):
        model = mlp(10, 16, 3)
        model[0].weight.requires_grad_(False)
        before = copied(model)
        pruned = prune(model, recipe(score=score, retrain=fine_tune()), blobs())
        assert [p.requires_grad for p in model.parameters()] == [False, True, True, True]
        assert torch.equal(model[0].weight, before["0.weight"] * pruned.masks["0.weight"])

    def test_a_frozen_model_is_pruned_if_nothing_is_trained(self):
        model = mlp(10, 16, 3).requires_grad_(False)
        prune(model, recipe(score="weight_gradient"), blobs())
        assert not any(p.requires_grad for p in model.parameters())
        assert all(p.grad is None for p in model.parameters())

    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_compiled_models(self, backend):
        chosen = recipe(score="weight_gradient", schedule=linear(0.6, 2), retrain=fine_tune())
        plain, inner = mlp(10, 16, 3), mlp(10, 16, 3)
        compiled = torch.compile(inner, backend=backend)
        compiled(blobs()[0])
        expected = prune(plain, chosen, blobs())
        pruned = prune(compiled, chosen, blobs())
        assert pruned.masks == expected.masks
        assert same(copied(inner), copied(plain))
        assert torch.allclose(compiled(blobs()[0]), plain(blobs()[0]), atol=1e-6)
        assert pruned.model is compiled

    def test_flags_and_gradients(self):
        model = convnet().eval()
        model[1].train()
        model[7].weight.grad = torch.ones_like(model[7].weight)
        prune(model, recipe(score="gradient", allocation="sensitivity"), images())
        assert [module.training for module in model][:3] == [False, True, False]
        assert bool((model[7].weight.grad == 1).all())

    def test_sensitivity_puts_the_weights_back(self):
        model = mlp(10, 16, 3)
        before = copied(model)
        pruned = prune(
            model, recipe(allocation="sensitivity", schedule={"name": "one_shot", "sparsity": 0.3}), blobs()
        )
        for name, mask in pruned.masks.items():
            assert torch.equal(model.get_parameter(name), before[name] * mask)


class TestHistory:
    def test_what_was_achieved_is_recorded(self):
        model = mlp(10, 16, 3)
        pruned = prune(
            model, recipe(schedule=linear(0.6, 3), retrain=fine_tune()), blobs(),
            evaluate=lambda m: {"zeros": np.float64(zeros(m, "0.weight")), "x": torch.tensor(2.5)},
        )  # fmt: skip
        for k, record in enumerate(pruned.history, 1):
            assert record.step == k
            assert record.total - record.kept == round(0.2 * k * 208)
            assert record.sparsity == pytest.approx(1 - record.kept / 208)
            assert record.compression_ratio == pytest.approx(208 / record.kept)
            assert sum(record.layers.values()) == record.kept
            assert record.measured == {"zeros": 160 - record.layers["0.weight"], "x": 2.5}
            assert all(type(value) is float for value in record.measured.values())
            assert record.train_loss > 0
            assert record.seconds > 0

    def test_without_training_there_is_no_training_loss(self):
        assert prune(mlp(4, 3), recipe()).history[0].train_loss is None
        none = recipe(retrain=fine_tune(iterations=0))
        assert prune(mlp(10, 3), none, blobs()).history[0].train_loss is None

    def test_the_result_says_what_comes_next(self):
        text = str(prune(mlp(10, 16, 3), recipe()))
        assert "50.0% of 208 weights removed (2x)" in text
        assert "save_pretrained" in text
        shapes = recipe(granularity="filter_shape", allocation="per_layer")
        assert "pruned.shrink(example_inputs) takes them out" in str(prune(nn.Conv2d(2, 3, 3), shapes))


class NaNScore(Score):
    name = "nan_score"

    def __call__(self, context):
        return {name: weight * float("nan") for name, weight in context.weights.items()}


class ShortScore(Score):
    name = "short_score"

    def __call__(self, context):
        return {name: weight[:1] for name, weight in context.weights.items()}


class TestRefusals:
    """Everything that can be refused is refused before the model changes."""

    def refused(self, error, message, chosen, data=None, model=None, **arguments):
        model = model or mlp(10, 16, 3)
        before, frozen = copied(model), [p.requires_grad for p in model.parameters()]
        modes = [module.training for module in model.modules()]
        with pytest.raises(error, match=message):
            prune(model, chosen() if callable(chosen) else chosen, data, **arguments)
        assert same(before, copied(model))
        assert [p.requires_grad for p in model.parameters()] == frozen
        assert [module.training for module in model.modules()] == modes
        assert not any(module._forward_hooks for module in model.modules())

    def test_sparsities(self):
        for sparsity in (40, 1.0):
            one = {"name": "one_shot", "sparsity": sparsity}
            self.refused(InputError, f"{sparsity:g} is no sparsity", lambda one=one: recipe(schedule=one))

    def test_unknown_keys(self):
        self.refused(InputError, "unknown key 'sched'", lambda: recipe(sched=1))

    def test_patterns(self):
        self.refused(InputError, "'fc1' matches no layer.*layers are: 0, 2", recipe(targets=["fc1"]))
        given_ = {"name": "manual", "sparsities": {"fc1": 0.5}}
        chosen = recipe(allocation=given_, schedule="allocation_decides")
        self.refused(InputError, "'fc1' matches no pruned layer; layers are: 0, 2", chosen)

    def test_nan_weights(self):
        model = mlp(10, 16, 3)
        nn.init.constant_(model[2].weight, float("inf"))
        self.refused(ModelError, r"2\.weight holds NaN or infinite", recipe(), model=model)

    def test_n_m(self):
        chosen = recipe(granularity="n:m", allocation="per_layer")
        self.refused(InputError, r"0\.weight has 10 inputs, which 2:4 does not divide", chosen)

    @pytest.mark.parametrize("allocation", ["global", "per_layer", "erk", "sensitivity"])
    def test_the_floor(self, allocation):
        chosen = recipe(
            schedule={"name": "one_shot", "sparsity": 0.95}, allocation={"name": allocation, "floor": 0.1}
        )
        self.refused(InputError, "floor of 0.1", chosen, blobs())

    def test_allocation_against_schedule(self):
        self.refused(InputError, "use the schedule 'allocation_decides'", lambda: recipe(allocation="none"))
        self.refused(InputError, "states no sparsity", lambda: recipe(schedule="allocation_decides"))

    @pytest.mark.parametrize(
        ("changes", "who"),
        [
            ({"score": "gradient"}, "score 'gradient'"),
            ({"allocation": "sensitivity"}, "allocation 'sensitivity'"),
        ],
    )
    def test_scores_without_data(self, changes, who):
        self.refused(InputError, f"the recipe's {who} needs data, but no data is given", recipe(**changes))

    @pytest.mark.parametrize("name", ["fine_tune", "reinitialize"])
    def test_retraining_without_data(self, name):
        self.refused(InputError, f"the recipe's retrain '{name}' needs data", recipe(retrain=name))

    @pytest.mark.parametrize("chosen", [{"score": "gradient"}, {"retrain": "fine_tune"}])
    def test_empty_data(self, chosen):
        empty = (torch.zeros(0, 10), torch.zeros(0, dtype=torch.long))
        self.refused(DataError, "the dataset is empty", recipe(**chosen), empty)
        self.refused(DataError, "the dataset is empty", recipe(**chosen), [])

    def test_a_loader_without_end(self):
        class Stream:
            def __iter__(self):
                yield blobs(8)

        self.refused(
            InputError, "the data is a stream without a length", recipe(retrain="fine_tune"), Stream()
        )

    def test_rewinding_without_checkpoints(self):
        chosen = recipe(retrain={"name": "rewind", "step": 3, "training": {"iterations": 5}})
        message = r"needs the values at step 3 .*\(given: {}\)"
        self.refused(InputError, message.format("none"), chosen, blobs())
        self.refused(
            InputError, message.format("0"), chosen, blobs(), checkpoints={0: copied(mlp(10, 16, 3))}
        )

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (mlp(10, 16, 4), r"2\.weight has shape \(4, 16\), in the model \(3, 16\)"),
            (mlp(10, 16, 3, 3), r"the model lacks 4\.bias"),
            (mlp(10, 3), r"they lack 2\.bias"),
        ],
    )
    def test_rewinding_to_another_model(self, other, message):
        states = {0: copied(other)}
        message = f"the values at step 0 are another model's: {message}"
        self.refused(InputError, message, recipe(retrain="rewind"), blobs(), checkpoints=states)

    def test_rewinding_past_the_end(self):
        chosen = recipe(retrain={"name": "rewind", "step": 9, "training": {"iterations": 8}})
        states = {9: copied(mlp(10, 16, 3))}
        message = "goes on from step 9, but the training has only 8 steps"
        self.refused(InputError, message, chosen, blobs(), checkpoints=states)

    def test_a_model_that_is_all_frozen(self):
        model = mlp(10, 16, 3).requires_grad_(False)
        chosen = recipe(retrain=FineTune())
        self.refused(
            ModelError, "'fine_tune' cannot train.*all its parameters are frozen", chosen, blobs(), model
        )

    def test_dropout_that_finds_nothing(self):
        chosen = recipe(retrain=fine_tune(regularize=[{"name": "dropout", "on": ["Swish"]}]))
        self.refused(InputError, "dropout: no module of the model is one of Swish", chosen, blobs())

    def test_scores_that_are_none(self):
        self.refused(ModelError, r"the score 'nan_score' of 0\.weight is NaN", recipe(score=NaNScore()))
        message = r"the score 'short_score' gave no scores of the shape of 0\.weight"
        self.refused(InputError, message, recipe(score=ShortScore()))

    @pytest.mark.parametrize("changes", [{"score": "gradient"}, {"allocation": "sensitivity"}])
    def test_data_of_nan(self, changes):
        inputs, targets = blobs()
        data = (torch.full_like(inputs, float("nan")), targets)
        self.refused(DataError, "the loss on .*calibration .* is nan", recipe(**changes), data)

    def test_data_that_is_none(self):
        self.refused(InputError, "data must be a pair of tensors", recipe(score="gradient"), "mnist")


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", ["iterative_magnitude", "snip", "obd"])
def test_gradients_that_the_caller_has_turned_off_are_computed_all_the_same(method, off):
    data, settings = blobs(24), {"epochs": 1} if method == "iterative_magnitude" else {}
    usual, within = mlp(10, 8, 3), mlp(10, 8, 3)
    within.load_state_dict(usual.state_dict())
    prune(usual, methods.recipe(method, sparsity=0.5, **settings), data)
    with off():
        prune(within, methods.recipe(method, sparsity=0.5, **settings), data)
        assert not torch.is_grad_enabled()
    assert same(copied(usual), copied(within))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loop": {"clip": 1.0}}, r"loop must be a prunekit.Loop, not \{'clip': 1.0\}"),
        ({"evaluate": 3}, "evaluate must be a function of the network, not 3"),
        ({"evaluate": lambda model: 0.9}, r"evaluate must give values by names, as .* not 0.9"),
        ({"checkpoints": mlp(10, 8, 3).state_dict()}, r"states by the steps of the training .*: Tensor"),
        ({"checkpoints": {"0": mlp(10, 8, 3).state_dict()}}, "states by the steps .* not '0': OrderedDict"),
    ],
)
def test_an_argument_of_another_kind_is_told_and_the_network_untouched(wrong, message):
    net = mlp(10, 8, 3)
    before = copied(net)
    with pytest.raises(InputError, match=message):
        prune(net, methods.iterative_magnitude(0.5, steps=1, epochs=1), blobs(24), **wrong)
    assert same(copied(net), before)
