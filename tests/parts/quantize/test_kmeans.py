"""Weight sharing as a part of a recipe: clusters, and the training of the values that they share."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.vq import kmeans as scipy_kmeans
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from prunekit import Loop, Recipe, methods, prune
from prunekit.errors import InputError, ModelError
from prunekit.pruning import Session
from prunekit.training import TrainingError
from small_nets import blobs, convnet, mlp, same

DATA = blobs(60, dtype=torch.float64)
SGD = {"optimizer": "sgd", "lr": 0.05, "batch_size": 60, "weight_decay": 0.01, "iterations": 4}
RETRAIN = {"name": "fine_tune", "training": {"iterations": 2, "batch_size": 60}}
UNTRAINED = {"retrain": Recipe.model_fields["retrain"].default}


def net(seed: int = 0) -> nn.Sequential:
    return mlp(10, 12, 8, 3, seed=seed, dtype=torch.float64)


def recipe(sparsity: float = 0.5, **quantize: object) -> Recipe:
    return Recipe.parse(
        {
            "schedule": {"name": "linear", "sparsity": sparsity, "steps": 2},
            "retrain": RETRAIN,
            "quantize": {"name": "kmeans", "bits": 2, "half_biases": False, **quantize},
        }
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.dim() > 1}


def distinct(weight: Tensor) -> int:
    return len(set(weight.flatten().tolist()) - {0.0})


def unquantized(model: nn.Module, chosen: Recipe, data: object = DATA) -> nn.Module:
    prune(model, chosen.model_copy(update={"quantize": Recipe.model_fields["quantize"].default}), data)
    return model


# ---- the clusters ------------------------------------------------------------------------------------------


def test_linear_clusters_are_those_of_scipy_from_the_same_start_and_zeros_stay_zeros():
    chosen = recipe()
    before = weights(unquantized(net(), chosen))
    model = net()
    prune(model, chosen, DATA)
    for name, weight in weights(model).items():
        assert torch.equal(weight == 0, before[name] == 0)
        left = before[name][before[name] != 0].numpy()
        start = np.linspace(left.min(), left.max(), 4)
        found, _ = scipy_kmeans(left[:, None], start[:, None], thresh=1e-15)
        nearest = found[np.abs(left[:, None] - found[:, 0]).argmin(1), 0]
        np.testing.assert_allclose(weight[weight != 0].numpy(), nearest, rtol=1e-6)


def test_optimal_clusters_have_no_greater_error_than_any_cut_of_the_sorted_weights():
    chosen = recipe(bits=1, start="optimal")
    before = weights(unquantized(net(), chosen))
    model = net()
    prune(model, chosen, DATA)
    for name, weight in weights(model).items():
        left = np.sort(before[name][before[name] != 0].numpy())
        cuts = [np.split(left, [cut]) for cut in range(1, len(left))]
        least = min(sum(((part - part.mean()) ** 2).sum() for part in parts) for parts in cuts)
        assert float(((weight - before[name]) ** 2).sum()) == pytest.approx(least, rel=1e-5)


def test_bits_are_by_type_and_name_and_the_history_says_levels_and_bits():
    model = convnet()
    data = torch.randn(20, 4, 6, 6), torch.arange(20) % 3
    chosen = Recipe.parse(
        {
            "schedule": {"name": "one_shot", "sparsity": 0.5},
            "quantize": {
                "name": "kmeans",
                "bits": {"Conv2d": 3, "Linear": 1, "0": 2, "Conv1d": 4},
                "start": "optimal",
            },
        }
    )
    pruned = prune(model, chosen, data)
    found = {name: distinct(weight) for name, weight in weights(model).items()}
    record = pruned.history[-1]
    assert record.levels == found
    kinds = {name: type(model.get_submodule(name.rpartition(".")[0])) for name in found}
    assert found.pop("0.weight") == 4
    assert all(count == (8 if kinds[name] is nn.Conv2d else 2) for name, count in found.items())
    total = sum(each.numel() for each in weights(model).values())
    entropy = 0.0
    for weight in weights(model).values():
        _, counts = np.unique(weight.numpy(), return_counts=True)
        entropy -= (counts * np.log2(counts / counts.sum())).sum()
    assert record.bits == pytest.approx(entropy / total, rel=1e-12)


def test_deep_compression_keeps_and_shares_what_is_published():
    kept = {"0": 0.08, "2": 0.09, "4": 0.26}
    training = {"iterations": 3, "batch_size": 60}
    chosen = methods.recipe("deep_compression", kept=kept, bits=3, steps=2, training=training)
    model = mlp(30, 20, 15, 10, dtype=torch.float64)
    data = torch.randn(60, 30, dtype=torch.float64), torch.arange(60) % 10
    pruned = prune(model, chosen, data)
    for name, weight in weights(model).items():
        share = kept[name.partition(".")[0]]
        assert pruned.history[-1].layers[name] == round(share * weight.numel())
        assert (weight != 0).sum() == round(share * weight.numel())
        assert distinct(weight) <= 8
    assert len(pruned.history) == 2
    others = methods.recipe("deep_compression", sparsity=0.8)
    assert others.quantize.training.lr == pytest.approx(others.retrain.training.lr / 10)
    for wrong in ({"Linear": "a"}, {"0": 2.0}, {"0": 0}, {"0": True}, {"0": math.nan}, {3: 0.5}):
        with pytest.raises(InputError, match=r"kept = .*a name or pattern of layers needs a share above 0"):
            methods.recipe("deep_compression", kept=wrong)
    with pytest.raises(InputError, match=r"a mapping from layers to shares is needed, not \{\}"):
        methods.recipe("deep_compression", kept={})
    with pytest.raises(InputError, match=r"kept = 0\.1: a mapping from layers to shares is needed, not 0\.1"):
        methods.recipe("deep_compression", kept=0.1)
    with pytest.raises(InputError, match=r"method deep_compression: bits = 1\.5"):
        methods.recipe("deep_compression", bits=1.5)


def test_types_names_and_all_others_have_their_bits():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 40), nn.Linear(40, 20))
    chosen = Recipe.parse(
        {
            "schedule": "allocation_decides",
            "allocation": "none",
            "quantize": {"name": "kmeans", "bits": {"Linear": 2, "*": 1, "3": 3}, "start": "optimal"},
        }
    )
    prune(model, chosen)
    assert [distinct(each) for each in weights(model).values()] == [2, 4, 8]


# ---- the training of shared values -------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_values_are_trained_as_parameters_of_a_network_that_looks_them_up(momentum):
    """Independent: autograd through the table and torch's SGD on the tables and biases."""
    training = {**SGD, "momentum": momentum}
    by_hand = net()
    prune(by_hand, recipe(), DATA)
    tables, codes = {}, {}
    for name, weight in weights(by_hand).items():
        values, inverse = np.unique(weight.numpy(), return_inverse=True)
        tables[name] = torch.tensor(values[values != 0], requires_grad=True)
        shift = (values < 0).sum()
        codes[name] = torch.tensor(inverse.reshape(weight.shape)), int(shift)
    rest = {name: each for name, each in by_hand.named_parameters() if each.dim() == 1}
    optimizer = torch.optim.SGD([*tables.values(), *rest.values()], 0.05, momentum, weight_decay=0.01)

    def looked_up() -> dict[str, Tensor]:
        found = {}
        for name, (code, zero) in codes.items():
            table = torch.cat([tables[name][:zero], torch.zeros(1).double(), tables[name][zero:]])
            found[name] = table[code]
        return found

    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(functional_call(by_hand, {**looked_up(), **rest}, DATA[0]), DATA[1]).backward()
        optimizer.step()
    model = net()
    prune(model, recipe(training=training), DATA)
    for name, weight in looked_up().items():
        torch.testing.assert_close(model.get_parameter(name), weight, rtol=1e-9, atol=1e-12)
    for name, bias in rest.items():
        torch.testing.assert_close(model.get_parameter(name), bias, rtol=1e-9, atol=1e-12)


def test_a_step_goes_down_the_slope_that_finite_differences_find():
    before = net()
    prune(before, recipe(), DATA)
    training = {**SGD, "momentum": 0.0, "weight_decay": 0.0, "iterations": 1}
    model = net()
    prune(model, recipe(training=training), DATA)
    name = "2.weight"
    weight = before.get_parameter(name)
    for value in sorted(set(weight.flatten().tolist()) - {0.0}):
        members = weight.detach() == value

        def loss(shift: float, members: Tensor = members) -> float:
            moved = {name: weight.detach() + shift * members}
            return F.cross_entropy(functional_call(before, moved, DATA[0]), DATA[1]).item()

        slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
        moved = (model.get_parameter(name).detach() - weight.detach())[members]
        torch.testing.assert_close(moved, torch.full_like(moved, -0.05 * slope), rtol=1e-5, atol=1e-9)


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from(["sgd", "adam", "adamw"]),
    st.sampled_from(["linear", "optimal"]),
    st.integers(0, 99),
)
def test_training_makes_no_more_values_and_brings_nothing_back(bits, optimizer, start, seed):
    before = unquantized(net(seed), recipe())
    model = net(seed)
    training = {**SGD, "optimizer": optimizer}
    pruned = prune(model, recipe(bits=bits, start=start, training=training, half_biases=True), DATA)
    for name, weight in weights(model).items():
        assert 1 <= distinct(weight) == pruned.history[-1].levels[name] <= 2**bits
        assert not (weight != 0)[before.get_parameter(name) == 0].any()
    for value in model.parameters():
        assert torch.equal(value, value.half().double())


def test_the_same_seed_gives_the_same_network_and_a_teacher_changes_it():
    chosen = recipe(training={**SGD, "batch_size": 20})
    first, second, taught = net(), net(), net()
    prune(first, chosen, DATA, seed=1)
    prune(second, chosen, DATA, seed=1)
    assert same(first.state_dict(), second.state_dict())
    prune(taught, Recipe.parse({**chosen.to_dict(), "teacher": "logits"}), DATA, seed=1)
    assert not same(first.state_dict(), taught.state_dict())
    assert all(distinct(weight) <= 4 for weight in weights(taught).values())


def test_weights_that_are_frozen_take_their_values_and_keep_them():
    model, still = net(), net()
    model[2].weight.requires_grad_(False)
    still[2].weight.requires_grad_(False)
    prune(model, recipe(training=SGD), DATA)
    prune(still, recipe(), DATA)
    assert torch.equal(model[2].weight, still[2].weight)
    assert not torch.equal(model[0].weight, still[0].weight)


def test_what_is_ignored_stays_as_it_was():
    chosen = recipe(ignore=["2"])
    plain = unquantized(net(), chosen)
    model = net()
    pruned = prune(model, chosen, DATA)
    assert torch.equal(model[2].weight, plain[2].weight)
    assert set(pruned.history[-1].levels) == {"0.weight", "4.weight"}


def test_batch_norms_are_rounded_with_their_running_statistics_and_other_types_work():
    data = torch.randn(24, 4, 6, 6), torch.arange(24) % 3
    model = convnet().to(memory_format=torch.channels_last)
    chosen = recipe(training={"iterations": 3, "batch_size": 8}, half_biases=True)
    prune(model, chosen, data)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(value, value.half().float()), name
    assert all(distinct(weight) <= 4 for weight in weights(model).values())


def test_the_loop_of_the_user_serves_the_shared_values_too():
    chosen = recipe(training=SGD)
    model = net()
    loop = Loop(average=lambda model: AveragedModel(model), clip=1.0, accumulate=2)
    prune(model, chosen, DATA, loop=loop)
    assert all(1 < distinct(weight) <= 4 for weight in weights(model).values())
    with pytest.raises(
        InputError, match="shared values: acts on the gradients just before a step, but LBFGS"
    ):
        prune(
            net(),
            chosen.model_copy(update={"retrain": Recipe.model_fields["retrain"].default}),
            DATA,
            loop=Loop(optimizer=lambda each: torch.optim.LBFGS(each, lr=0.1)),
        )


# ---- what is refused, and the state of a session -----------------------------------------------------------


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ({"bits": 0}, "bits: a whole number from 1 to 12 is needed, not 0"),
        ({"bits": 13}, "bits: a whole number from 1 to 12 is needed, not 13"),
        ({"bits": {"0": 2.5, "*": 2}}, "bits: a whole number from 1 to 12 is needed, not 2.5"),
        ({"bits": [1]}, r"bits: a whole number from 1 to 12 is needed, not \[1\]"),
        ({"bits": {}}, "bits: at least one number is needed"),
        ({"bits": {"Conv2d": 8}}, r"bits: nothing is said of 0 \(Linear\): name it, its type, or '\*'"),
        ({"bits": {"Linea": 8, "*": 2}}, "bits: 'Linea' matches no layer; layers are: 0, 2, 4"),
        ({"bits": {"[02]": 8, "2": 2, "4": 2}}, "'2' both match 2|'2' and .* both match 2"),
        ({"start": "random"}, "start"),
        ({"ignore": ["7"]}, "'7' matches no layer"),
        ({"ignore": ["Linear"]}, "nothing to prune"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_changed(quantize, message):
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((InputError, ModelError), match=message):
        prune(model, recipe(**quantize), DATA)
    assert same(model.state_dict(), before)


def test_a_stop_a_late_gate_and_a_loop_of_ones_own_are_refused():
    values = recipe().to_dict()
    with pytest.raises(InputError, match="the quantize 'kmeans' acts behind the last step"):
        Recipe.parse({**values, "stop": {"name": "error_limit", "limit": 0.5}})
    gates = {"name": "l0", "strength": 1e-6}
    late = {"name": "kmeans", "training": {"regularize": [gates]}}
    with pytest.raises(InputError, match="quantize 'kmeans': the regularizer 'l0' acts in a training before"):
        Recipe.parse({**values, "quantize": late})
    model = net()
    session = Session(model, recipe(), data=DATA)
    with pytest.raises(InputError, match="quantize 'kmeans' acts behind the last step's retraining"):
        session.advance()
    with pytest.raises(InputError, match="quantize 'kmeans' acts behind the last step's retraining"):
        session.attach(torch.optim.SGD(model.parameters(), 0.1))
    one = Recipe.parse({"schedule": values["schedule"], "quantize": {"name": "kmeans", "training": {}}})
    with pytest.raises(InputError, match="the recipe's quantize 'kmeans' needs data, but none is given"):
        prune(net(), one)


def test_a_training_that_fails_leaves_the_network_as_it_was():
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingError):
        prune(model, recipe(training={**SGD, "lr": 1e29, "iterations": 30}), DATA)
    assert same(model.state_dict(), before)


def test_a_session_is_interrupted_before_its_last_step_and_its_end_is_read_back():
    chosen = recipe(training=SGD)
    whole, half = net(), net()
    prune(whole, chosen, DATA)
    session = Session(half, chosen, data=DATA)
    next(session.run())
    resumed = Session(half, chosen, data=DATA)
    resumed.load_state_dict(session.state_dict())
    (last,) = resumed.run()
    assert same(whole.state_dict(), half.state_dict())
    state = resumed.state_dict()
    again = Session(half, chosen, data=DATA)
    again.load_state_dict(state)
    assert again.history[-1] == last
    assert again.history[0].levels == {}
    assert again.history[0].bits is None
    for place, wrong in (("levels", {}), ("bits", None), ("bits", -1.0), ("levels", {"0.weight": "4"})):
        broken = {key: value for key, value in state.items() if key != "digest"}
        broken["history"] = [broken["history"][0], {**broken["history"][1], place: wrong}]
        with pytest.raises(InputError, match=r"step 2: (levels|bits)"):
            again.load_state_dict(broken)


def test_a_recipe_reads_what_it_writes_and_hashes_as_before_without_one():
    chosen = recipe(training=SGD, bits={"*": 3})
    assert Recipe.from_yaml(chosen.to_yaml()) == chosen
    plain = {"schedule": {"name": "one_shot", "sparsity": 0.5}}
    assert "quantize" not in Recipe.parse(plain).identity()
    assert Recipe.parse({**plain, "quantize": "none"}).digest() == Recipe.parse(plain).digest()


def test_a_layer_of_zeros_stays_one_while_others_are_trained():
    model = net()
    with torch.no_grad():
        model[2].weight.zero_()
    others = model[4].weight.detach().clone()
    chosen = {"schedule": {"name": "one_shot", "sparsity": 0.5}, "ignore": ["2"]}
    prune(model, Recipe.parse({**chosen, "quantize": {"name": "kmeans", "training": SGD}}), DATA)
    assert not model[2].weight.any()
    assert model[2].bias.any()
    assert not torch.equal(model[4].weight, others)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_an_optimizer_of_matrices_is_refused_and_the_network_is_as_it_was():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop = Loop(optimizer=lambda each: torch.optim.Muon([one for one in each if one.dim() == 2]))
    chosen = recipe(training=SGD).model_copy(update=UNTRAINED)
    with pytest.raises(InputError, match="Muon trains nothing but matrices"):
        prune(model, chosen, DATA, loop=loop)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
