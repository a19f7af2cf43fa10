"""Training with the bits of levels in the loss: the model of the coder, and the network by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import AveragedModel

from prunekit import Loop, Recipe, prune
from prunekit.errors import InputError
from prunekit.loggers import Logger
from prunekit.parts.quantize import SymbolCosts
from small_nets import blobs, convnet, mlp, same

DATA = blobs(60, dtype=torch.float64)
SGD = {"optimizer": "sgd", "lr": 0.05, "batch_size": 60, "weight_decay": 0.01, "iterations": 5}


def net(seed: int = 0) -> nn.Sequential:
    return mlp(10, 12, 8, 3, seed=seed, dtype=torch.float64)


def recipe(sparsity: float = 0.5, **quantize: object) -> Recipe:
    return Recipe.parse(
        {
            "schedule": {"name": "one_shot", "sparsity": sparsity},
            "quantize": {"name": "entropy", "training": SGD, "half_biases": False, **quantize},
        }
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.dim() > 1}


# ---- the model of the coder --------------------------------------------------------------------------------


def by_definition(
    levels: list[list[int]], counted: bool = False
) -> tuple[list[list[float]], list[list[float]], dict[int, float]]:
    """Bits of the flags (zero, not zero) and of magnitudes, in loops over places."""
    rows, columns = len(levels), len(levels[0])
    flat = [level for row in levels for level in row]
    there = [abs(level) for level in flat if level]
    whole = (len(there) + 0.5) / (len(flat) + 1)

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    zero, other = [], []
    for i in range(rows):
        zero.append([])
        other.append([])
        for j in range(columns):
            row = sum(levels[i][k] != 0 for k in range(columns) if k != j)
            column = sum(levels[k][j] != 0 for k in range(rows) if k != i)
            odds = logit((row + 2 * whole) / (columns - 1 + 2)) + logit((column + 2 * whole) / (rows - 1 + 2))
            p = 1 / (1 + math.exp(-(odds - logit(whole))))
            zero[i].append(-math.log2(1 - p))
            other[i].append(-math.log2(p))
    most = max(there, default=1) + 2
    mean = (2 + sum(there)) / (1 + len(there))
    sizes = {}
    for k in range(1, most + 1):
        share = (1 - 1 / mean) ** (k - 1) / mean
        if counted:
            share = (there.count(k) + 0.5**k) / (len(there) + 1)
        sizes[k] = 1 - math.log2(share)
    return zero, other, sizes | {0: 0.0}


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda columns: st.lists(
            st.lists(st.sampled_from([0, 0, 0, 1, -1, 2, -3]), min_size=columns, max_size=columns),
            min_size=1,
            max_size=5,
        )
    ),
    st.booleans(),
)
def test_the_bits_of_levels_are_those_of_the_definition(levels, counted):
    costs = SymbolCosts.of(
        torch.tensor(levels, dtype=torch.float64),
        torch.float64,
        magnitudes="counted" if counted else "geometric",
    )
    zero, other, sizes = by_definition(levels, counted)
    torch.testing.assert_close(costs.zero, torch.tensor(zero, dtype=torch.float64))
    torch.testing.assert_close(costs.nonzero, torch.tensor(other, dtype=torch.float64))
    assert len(costs.magnitudes) == len(sizes)
    assert all(costs.magnitudes[size].item() == pytest.approx(bits) for size, bits in sizes.items())
    wanted = [
        zero[i][j] if not level else other[i][j] + sizes[abs(level)]
        for i, row in enumerate(levels)
        for j, level in enumerate(row)
    ]
    found = costs.bits(torch.tensor(levels))
    torch.testing.assert_close(found.flatten(), torch.tensor(wanted, dtype=torch.float64))


def test_a_weight_alone_costs_more_than_one_among_others_and_flags_are_probabilities():
    levels = torch.zeros(6, 8, dtype=torch.int64)
    levels[0, :5] = 1
    levels[5, 7] = 1
    costs = SymbolCosts.of(levels, dtype=torch.float64)
    assert costs.nonzero[5, 7] > costs.nonzero[0, 0] + 1
    torch.testing.assert_close(2**-costs.zero + 2**-costs.nonzero, torch.ones(6, 8, dtype=torch.float64))
    for magnitudes in ("counted", "geometric"):
        sizes = SymbolCosts.of(levels, torch.float64, magnitudes=magnitudes).magnitudes
        assert 0.5 < (2 ** -(sizes[1:] - 1)).sum() <= 1


# ---- the training, by hand ---------------------------------------------------------------------------------


def trained_by_hand(momentum: float, learn_step: bool, rate: float, refresh: int) -> dict[str, Tensor]:
    """Straight-through by autograd, the bits as a sum over places, and torch's SGD on real weights."""
    model = net()
    prune(model, Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}}))
    kept = {name: weight != 0 for name, weight in weights(model).items()}
    real = {name: weight.requires_grad_() for name, weight in weights(model).items()}
    start = {name: 0.5 * each[each != 0].detach().square().mean().sqrt() for name, each in real.items()}
    logs = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in real}
    rest = {name: each for name, each in model.named_parameters() if each.dim() == 1}
    learned = [*real.values(), *rest.values(), *(logs.values() if learn_step else ())]
    optimizer = torch.optim.SGD(learned, 0.05, momentum, weight_decay=0.01)
    total = sum(each.numel() for each in real.values())
    for number in range(5):
        scaled = {name: each / (start[name] * logs[name].exp()) for name, each in real.items()}
        if number % refresh == 0:
            tables = {
                name: by_definition([[round(x) for x in row] for row in each.tolist()])
                for name, each in scaled.items()
            }
        rounded = {
            name: start[name] * logs[name].exp() * (each + (each.round() - each).detach())
            for name, each in scaled.items()
        }
        loss = F.cross_entropy(functional_call(model, {**rounded, **rest}, DATA[0]), DATA[1])
        for name, each in scaled.items():
            zero, other, sizes = tables[name]
            for i, j in kept[name].nonzero().tolist():
                size = each[i, j].abs()
                below = math.floor(size.item())
                left = zero[i][j] if not below else other[i][j] + sizes[below]
                right = other[i][j] + sizes[below + 1]
                loss = loss + rate / total * (left + (size - below) * (right - left))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, each in real.items():
                each.mul_(kept[name])
    found = {}
    for name, each in real.items():
        step = start[name] * logs[name].exp()
        found[name] = ((each / step).round() * step).detach()
    return found | {name: each.detach() for name, each in rest.items()}


@pytest.mark.parametrize(
    ("momentum", "learn_step", "rate", "refresh"),
    [(0.0, False, 2.0, 20), (0.9, False, 1.0, 1), (0.9, False, 4.0, 2), (0.9, True, 2.0, 20)],
)
def test_the_training_is_that_of_real_weights_behind_a_rounding(momentum, learn_step, rate, refresh):
    model = net()
    training = {**SGD, "momentum": momentum}
    prune(model, recipe(training=training, learn_step=learn_step, rate=rate, refresh=refresh), DATA)
    wanted = trained_by_hand(momentum, learn_step, rate, refresh)
    still = net()
    prune(still, recipe(training={**training, "iterations": 0}), DATA)
    assert not torch.equal(still[0].weight, model[0].weight)
    for name, value in wanted.items():
        torch.testing.assert_close(model.get_parameter(name).detach(), value, rtol=1e-9, atol=1e-12)


def test_without_a_step_the_weights_are_rounded_to_the_grid_that_the_settings_say():
    chosen = recipe(training={**SGD, "iterations": 0}, step=0.7)
    before = net()
    prune(before, chosen.model_copy(update={"quantize": Recipe.model_fields["quantize"].default}))
    model = net()
    prune(model, chosen, DATA)
    for name, weight in weights(model).items():
        old = before.get_parameter(name).detach()
        step = 0.7 * math.sqrt(float((old**2).sum()) / int((old != 0).sum()))
        torch.testing.assert_close(weight, torch.round(old / step) * step)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([0.0, 1.0, 30.0]), st.booleans(), st.booleans(), st.integers(0, 99))
def test_masks_never_grow_and_all_values_are_of_half_precision(rate, revive, learn_step, seed):
    before = net(seed)
    prune(before, Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}}))
    model = net(seed)
    training = {"batch_size": 20, "iterations": 12, "lr": 0.02}
    chosen = recipe(rate=rate, revive=revive, learn_step=learn_step, training=training, half_biases=True)
    pruned = prune(model, chosen, DATA)
    for name, weight in weights(model).items():
        assert not (weight != 0)[before.get_parameter(name) == 0].any()
        assert pruned.history[-1].levels[name] == len(set(weight.flatten().tolist()) - {0.0})
    assert all(torch.equal(value, value.half().double()) for value in model.parameters())


def test_a_greater_rate_leaves_fewer_bits_and_what_may_not_come_back_does_not():
    training = {"batch_size": 20, "iterations": 40, "lr": 0.01}
    bits = []
    for rate in (0.0, 0.1, 1.0):
        pruned = prune(net(), recipe(rate=rate, training=training), DATA)
        bits.append(pruned.history[-1].bits)
    assert bits[0] > bits[1] > bits[2]

    first, later = net(), net()
    prune(first, recipe(0.1, revive=False, training={**training, "iterations": 1}), DATA)
    prune(later, recipe(0.1, revive=False, training=training), DATA)
    for name, weight in weights(later).items():
        assert not (weight != 0)[first.get_parameter(name) == 0].any()
    revived = net()
    prune(revived, recipe(0.1, revive=True, rate=0.0, training=training), DATA)
    assert (revived[0].weight != 0)[first[0].weight == 0].any()


def test_refined_values_are_trained_without_new_ones_and_a_teacher_is_heard():
    model, refined, taught = net(), net(), net()
    chosen = recipe(rate=3.0)
    prune(model, chosen, DATA)
    prune(refined, recipe(rate=3.0, refine=SGD), DATA)
    for name, weight in weights(refined).items():
        plain = model.get_parameter(name).detach()
        assert torch.equal(weight == 0, plain == 0)
        for value in plain.unique().tolist():
            assert len(weight[plain == value].unique()) == 1
        assert not torch.equal(weight, plain)
    prune(taught, Recipe.parse({**chosen.to_dict(), "teacher": "logits"}), DATA)
    assert not same(model.state_dict(), taught.state_dict())
    again = net()
    prune(again, chosen, DATA)
    assert same(model.state_dict(), again.state_dict())


@pytest.mark.parametrize("retrain", ["fine_tune", "continued"])
def test_all_trainings_of_a_step_are_reported_as_one(retrain: str) -> None:
    told: list[tuple[int, int]] = []
    chosen = Recipe.parse(
        {
            "schedule": {"name": "linear", "sparsity": 0.5, "steps": 2},
            "warm_up": {**SGD, "iterations": 3},
            "retrain": {"name": retrain, "training": {**SGD, "iterations": 6}},
            "quantize": {"name": "entropy", "training": SGD, "refine": {**SGD, "iterations": 4}},
        }
    )

    class Told(Logger):
        def progress(self, done, total):
            told.append((done, total))

    prune(net(), chosen, DATA, loggers=[Told()])
    first = [(number, 3 + 6) for number in range(1, 10)]  # a batch is an epoch
    assert told == [*first, *((number, 6 + 5 + 4) for number in range(1, 16))]


def test_convolutions_and_batch_norms_are_trained_and_nothing_is_left_behind():
    data = torch.randn(24, 4, 6, 6), torch.arange(24) % 3
    model = convnet().to(memory_format=torch.channels_last)
    names = set(model.state_dict())
    chosen = recipe(training={"iterations": 3, "batch_size": 8}, half_biases=True)
    prune(model, chosen, data)
    assert set(model.state_dict()) == names
    copied = copy.deepcopy(model)
    assert torch.equal(copied.eval()(data[0]), model.eval()(data[0]))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_average_over_the_training_ends_on_the_grid_too():
    chosen = recipe(step=0.7)
    before, model, plain = net(), net(), net()
    prune(before, Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}}))
    prune(model, chosen, DATA, loop=Loop(average=lambda own: AveragedModel(own), clip=1.0))
    prune(plain, chosen, DATA, loop=Loop(clip=1.0))
    assert not same(model.state_dict(), plain.state_dict())
    for name, weight in weights(model).items():
        old = before.get_parameter(name).detach()
        step = 0.7 * old[old != 0].square().mean().sqrt()
        torch.testing.assert_close((weight / step).round() * step, weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": None}, "training"),
        ({"step": 0}, "step"),
        ({"rate": -1}, "rate"),
        ({"refresh": 0}, "refresh"),
        ({"magnitudes": "flat"}, "magnitudes"),
        ({"revive": "x"}, "revive"),
    ],
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        recipe(**settings)


@pytest.mark.parametrize(
    "quantize",
    [
        {"name": "kmeans"},
        {"name": "entropy"},
        {"name": "second_order"},
        {"name": "rate_distortion", "bytes": 100},
        {"name": "rate_distortion", "bytes": 100, "importance": "none"},
    ],
)
def test_layers_without_weights_have_no_levels(quantize: dict[str, object]) -> None:
    model = nn.Sequential(nn.Linear(10, 0), nn.ReLU(), nn.Linear(0, 3))
    chosen = {
        "schedule": {"name": "one_shot", "sparsity": 0.5},
        "quantize": {**quantize, "training": {**SGD, "iterations": 1}},
    }
    found = prune(model, Recipe.parse(chosen), blobs(60)).history[-1]
    assert (dict(found.levels), found.bits) == ({"0.weight": 0, "2.weight": 0}, 0.0)


@pytest.mark.parametrize("scale", [2.0**-9, 1.0])
def test_in_half_precision_the_step_is_what_it_is_in_double(scale: float) -> None:
    """Squares of small numbers are none that half precision tells apart."""
    single = {**SGD, "lr": 1e-12, "weight_decay": 0.0, "iterations": 1}
    found = []
    for dtype in (torch.float16, torch.float64):
        model = mlp(10, 12, 8, 3, seed=0, dtype=torch.float64)
        with torch.no_grad():
            for each in model.parameters():
                each.copy_((each * scale).half())
        model.to(dtype)
        data = (DATA[0].to(dtype), DATA[1])
        prune(model, recipe(training=single, step=1.0, half_biases=True), data)
        found.append(weights(model))
    for name, right in found[1].items():
        assert torch.equal(found[0][name] != 0, right != 0)
        torch.testing.assert_close(found[0][name].double(), right, rtol=2**-7, atol=0)
