"""Running statistics of batch norms, measured anew after units are removed."""

import copy

import pytest
import torch
from torch import nn

from prunekit import methods, prune
from prunekit.errors import DataError, InputError
from prunekit.pruning.calibration import norms_with_statistics, recalibrate
from small_nets import copied, recipe, same

DATA = (torch.randn(96, 4, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 3)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    for _ in range(20):
        model(DATA[0])
    return model.eval()


def naive(model: nn.Sequential) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Mean and unbiased variance of what each norm is given, layer by layer, over all examples at once."""
    x, found = DATA[0], []
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            mean, var = x.mean((0, 2, 3)), x.movedim(1, 0).flatten(1).var(1)
            found.append((mean, var))
            biased = x.movedim(1, 0).flatten(1).var(1, correction=0)
            scale = module.weight / (biased + module.eps).sqrt()
            x = (x - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + module.bias.view(-1, 1, 1)
        else:
            x = module(x)
    return found


@torch.no_grad()
def assert_calibrated(model: nn.Sequential) -> None:
    norms = [module for module in model if isinstance(module, nn.BatchNorm2d)]
    for norm, (mean, var) in zip(norms, naive(model), strict=True):
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, var, rtol=1e-4, atol=1e-5)


def test_after_units_are_removed_the_statistics_are_those_of_what_is_left() -> None:
    model = network()
    pruned = prune(model, methods.random_units(0.4), DATA)
    assert_calibrated(model)
    assert [norm.momentum for norm in norms_with_statistics(model)] == [0.1, 0.1]
    assert not any(module.training for module in model.modules())
    expected = model(DATA[0])
    pruned.shrink(DATA[0][:4])
    torch.testing.assert_close(pruned.model(DATA[0]), expected, rtol=1e-4, atol=1e-5)


def test_it_mends_what_a_removal_shifts() -> None:
    """The outputs are nearer to those of the unpruned network, and not by a little."""
    distances = {}
    for choice in (None, False):
        model = network()
        before = model(DATA[0]).detach()
        chosen = recipe(granularity="unit", score="random", recalibrate=choice)
        after = prune(model, chosen, DATA).model(DATA[0]).detach()
        distances[choice] = float((after.std(0) - before.std(0)).abs().sum() / before.std(0).sum())
    assert distances[None] < distances[False]


@pytest.mark.parametrize(
    ("changes", "data"),
    [
        ({"granularity": "weight"}, DATA),
        ({"granularity": "unit"}, None),
        ({"granularity": "unit", "recalibrate": False}, DATA),
    ],
)
def test_where_it_is_not_done(changes: dict[str, object], data: object) -> None:
    model = network()
    before = copied(model)
    prune(model, recipe(**changes), data)
    assert all(torch.equal(before[name], value) for name, value in copied(model).items() if "running" in name)


def test_training_after_the_step_leaves_it_to_the_training() -> None:
    model = network()
    prune(
        model,
        recipe(granularity="unit", retrain={"name": "fine_tune", "training": {"iterations": 0}}),
        DATA,
    )
    assert torch.equal(model[1].running_mean, network()[1].running_mean)


def test_asked_for_it_comes_before_the_first_scores_and_for_single_weights_too() -> None:
    """A network that was never trained knows no statistics: its gradients are others with them."""
    torch.manual_seed(1)
    fresh = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
    twin = copy.deepcopy(fresh)
    recalibrate(twin, norms_with_statistics(twin), [DATA])
    chosen = {"score": "weight_gradient", "calibration": 96}
    asked = prune(fresh, recipe(**chosen, recalibrate=True), DATA)
    by_hand = prune(twin, recipe(**chosen), DATA)
    assert same(dict(asked.masks), dict(by_hand.masks))


def test_asked_for_without_data_is_refused() -> None:
    with pytest.raises(InputError, match="the recipe's recalibrate needs data, but no data is given"):
        prune(network(), recipe(recalibrate=True))


def test_a_rough_last_batch_is_left_out_and_a_failure_leaves_momenta() -> None:
    one, other = network(), network()
    batches = [(DATA[0][:40], DATA[1][:40]), (DATA[0][40:80], DATA[1][40:80])]
    recalibrate(one, norms_with_statistics(one), batches)
    recalibrate(other, norms_with_statistics(other), [*batches, (DATA[0][80:81], DATA[1][80:81])])
    assert same(copied(one), copied(other))
    with pytest.raises(RuntimeError):
        recalibrate(one, norms_with_statistics(one), [(DATA[0][:, :3], DATA[1])])
    assert one[1].momentum == 0.1


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("granularity", ["unit", "weight"])
def test_a_stop_compares_with_the_error_by_the_same_kind_of_statistics(
    granularity: str, trained: bool
) -> None:
    """By new ones where no training follows, else by those of a training, and they are left as they were."""
    validation = (DATA[0] * 1.5 + 0.5, DATA[1])
    model = network()
    with torch.no_grad():
        model[1].running_mean.add_(0.7)  # as a training that is long gone may leave them
    before = copied(model)
    twin = copy.deepcopy(model)
    if not trained:
        recalibrate(twin, norms_with_statistics(twin), [DATA])
    expected = float(nn.functional.cross_entropy(twin(validation[0]).detach(), validation[1]))
    training = {"name": "fine_tune", "training": {"iterations": 1}}
    chosen = recipe(
        granularity=granularity,
        score="random",
        recalibrate=True,
        calibration=96,
        schedule={"name": "linear", "sparsity": 0.8, "steps": 8},
        stop={"name": "error_limit", "increase": 1e-6},
        retrain=training if trained else "none",
    )
    pruned = prune(model, chosen, DATA, validation=validation)
    assert pruned.stopped is not None
    assert pruned.stopped.allowed == pytest.approx(expected + 1e-6, rel=1e-6)
    if pruned.stopped.step == 1:
        assert same(copied(model), before)


def test_what_fails_in_it_leaves_the_network_as_it_was() -> None:
    class Once(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Once.calls += 1
            if not torch.is_grad_enabled() and bool((x == 0).all(0).any()) and Once.calls > 3:
                raise RuntimeError("stop")
            return x

    model = network()
    model.insert(3, Once())
    before = copied(model)
    with pytest.raises(RuntimeError, match="stop"):
        prune(model, methods.random_units(0.5), DATA)
    assert same(before, copied(model))


class Branches(nn.Module):
    """A norm that runs in training mode only, one that counts its entries, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(4, 6, 3)
        self.twice = nn.BatchNorm2d(6)
        self.aside = nn.BatchNorm2d(6)
        self.own = nn.InstanceNorm2d(6, track_running_stats=True)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if self.training:
            x = self.aside(x)
        x = self.twice(torch.relu(self.twice(x)))
        return self.last(self.own(x).mean((2, 3)))


@torch.no_grad()
def test_norms_that_do_not_run_keep_their_statistics_and_others_have_the_mean_of_all_calls() -> None:
    model = Branches()
    model(DATA[0] + 1)
    model.eval()
    aside = copied(model.aside)
    batches = [(DATA[0][:48], DATA[1][:48]), (DATA[0][48:], DATA[1][48:])]
    recalibrate(model, norms_with_statistics(model), batches)
    assert same(copied(model.aside), aside)
    means, instances = [], []
    for x, _ in batches:
        x = model.first(x)
        for _ in range(2):
            means.append((x.mean((0, 2, 3)), x.movedim(1, 0).flatten(1).var(1)))
            x = torch.nn.functional.batch_norm(x, None, None, model.twice.weight, model.twice.bias, True)
            x = torch.relu(x) if len(means) % 2 else x
        instances.append((x.mean((2, 3)).mean(0), x.flatten(2).var(2).mean(0)))
    for norm, found in ((model.twice, means), (model.own, instances)):
        for buffer, wanted in zip(
            (norm.running_mean, norm.running_var), zip(*found, strict=True), strict=True
        ):
            torch.testing.assert_close(buffer, torch.stack(wanted).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            (torch.randn(1, 4), torch.zeros(1, dtype=torch.int64)),
            "recalibrate: norms .* on batches of a single example",
        ),
        ((torch.full((9, 4), torch.nan), torch.arange(9) % 3), "recalibrate: the statistics .* not finite"),
        ((torch.full((9, 4), 1e30), torch.arange(9) % 3), "recalibrate: the statistics .* not finite"),
    ],
)
def test_data_that_gives_no_statistics_is_refused_and_the_network_as_it_was(data, said) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    before = copied(model)
    with pytest.raises(DataError, match=said):
        prune(model, recipe(granularity="unit"), data)
    assert same(copied(model), before)
    assert model[1].momentum == 0.1
    assert not model[1]._forward_pre_hooks
