"""The parts of a training loop that are the user's own, against loops that are written out."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prunekit import Loop, Recipe, Training, prune, train
from prunekit.errors import InputError
from prunekit.methods import gradual_magnitude, iterative_magnitude, magnitude, movement
from small_nets import blobs, copied, mlp, recipe, same


def data() -> list[tuple[Tensor, Tensor]]:
    inputs, targets = blobs(90, dtype=torch.float64)
    targets = targets.masked_fill(torch.rand(90, generator=torch.Generator().manual_seed(1)) < 0.3, -100)
    return list(zip(inputs.split(15), targets.split(15), strict=True))


def net() -> nn.Sequential:
    return mlp(10, 12, 3, dtype=torch.float64)


def close(one: nn.Module, other: nn.Module) -> None:
    for name, value in copied(one).items():
        torch.testing.assert_close(value, copied(other)[name], rtol=1e-9, atol=1e-11)


def adam(parameters: Any) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=0.01)


def test_optimizer_scheduler_and_clipping() -> None:
    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> OneCycleLR:
        return OneCycleLR(optimizer, 0.05, total_steps=steps)

    ours, theirs = net(), net()
    loop = Loop(optimizer=adam, scheduler=schedule, clip=0.1)
    assert train(ours, data(), Training(epochs=2), loop=loop).iterations == 12
    optimizer = adam(theirs.parameters())
    scheduler = OneCycleLR(optimizer, 0.05, total_steps=12)
    for inputs, targets in data() * 2:
        optimizer.zero_grad()
        cross_entropy(theirs(inputs), targets).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        optimizer.step()
        scheduler.step()
    close(ours, theirs)


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_some_parameters_learn_faster(decay: str) -> None:
    """Groups of Adam with rates of their own, which fall together."""
    ours, theirs = net(), net()
    last = [name for name, _ in ours.named_parameters()][-2:]
    loop = Loop(relative_lr=lambda name: 10.0 if name in last else 1.0)
    train(ours, data(), Training(epochs=2, lr=0.002, decay=decay), loop=loop)
    new = [value for name, value in theirs.named_parameters() if name in last]
    rest = [value for name, value in theirs.named_parameters() if name not in last]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 0.002}, {"params": new, "lr": 0.02}])
    for step, (inputs, targets) in enumerate(data() * 2):
        for group, lr in zip(optimizer.param_groups, (0.002, 0.02), strict=True):
            group["lr"] = lr * (0.5 * (1 + math.cos(math.pi * step / 12)) if decay == "cosine" else 1)
        optimizer.zero_grad()
        cross_entropy(theirs(inputs), targets).backward()
        optimizer.step()
    close(ours, theirs)


def test_rates_that_cannot_be() -> None:
    with pytest.raises(InputError, match="relative_lr must give a number of at least 0, not -1"):
        train(net(), data(), Training(epochs=1), loop=Loop(relative_lr=lambda name: -1))
    with pytest.raises(InputError, match="relative_lr is for the settings' own optimizer"):
        Loop(optimizer=adam, relative_lr=lambda name: 1.0)
    with pytest.raises(InputError, match="relative_lr must be a function"):
        Loop(relative_lr=10.0)  # type: ignore[arg-type]


def test_accumulated_batches_are_one_batch_of_all_their_terms() -> None:
    """Three batches of a step, with different numbers of targets that count, as one of 45 examples."""
    ours, theirs = net(), net()
    done = train(ours, data(), Training(epochs=2), loop=Loop(optimizer=adam, accumulate=3))
    assert done.iterations == 4
    joined = [tuple(torch.cat(each) for each in zip(*data()[k : k + 3], strict=True)) for k in (0, 3)]
    optimizer = adam(theirs.parameters())
    for inputs, targets in joined * 2:
        optimizer.zero_grad()
        cross_entropy(theirs(inputs), targets).backward()
        optimizer.step()
    close(ours, theirs)


def test_an_optimizer_that_needs_a_closure() -> None:
    def lbfgs(parameters: Any) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(parameters, max_iter=5, line_search_fn="strong_wolfe")

    ours, theirs = net(), net()
    train(ours, data(), Training(iterations=3), loop=Loop(optimizer=lbfgs))
    optimizer = lbfgs(theirs.parameters())
    for inputs, targets in data()[:3]:

        def closure(inputs: Tensor = inputs, targets: Tensor = targets) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(theirs(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)
    close(ours, theirs)


def test_an_optimizer_that_needs_a_closure_has_one_function_in_a_step() -> None:
    """Were the inputs drawn anew whenever it asks, a search along a line would compare two functions."""
    drawn = []

    def shaken(inputs: Tensor) -> Tensor:
        drawn.append(inputs + torch.randn_like(inputs))
        return drawn[-1]

    def lbfgs(parameters: Any) -> torch.optim.LBFGS:
        return torch.optim.LBFGS(parameters, max_iter=5, line_search_fn="strong_wolfe")

    ours, theirs = net(), net()
    train(ours, data(), Training(iterations=3), loop=Loop(optimizer=lbfgs, augment=shaken))
    assert len(drawn) == 3
    seen = [(inputs, targets) for inputs, (_, targets) in zip(drawn, data()[:3], strict=True)]
    train(theirs, seen, Training(iterations=3), loop=Loop(optimizer=lbfgs))
    close(ours, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "l1", "strength": 0.1},
        {"name": "l2", "strength": 0.1},
        {"name": "l0", "density": 0.5, "ramp": 2},
        {"name": "group_lasso", "strength": 0.1, "form": "subgradient"},
    ],
)
def test_what_adds_to_gradients_is_refused_where_they_come_inside_a_step(settings: dict[str, Any]) -> None:
    """It did nothing at all: the closure takes the gradients anew."""
    ours = net()
    before, names = copied(ours), list(ours.state_dict())
    with pytest.raises(
        InputError, match=r"acts on the gradients just before a step, but LBFGS works them out"
    ):
        train(
            ours,
            data(),
            Training.parse({"iterations": 3, "regularize": [settings]}),
            loop=Loop(optimizer=lambda parameters: torch.optim.LBFGS(parameters)),
        )
    assert same(before, copied(ours))
    assert list(ours.state_dict()) == names


def test_movement_is_refused_where_gradients_come_inside_a_step() -> None:
    inputs, targets = blobs(90, dtype=torch.float64)
    ours = net()
    before = copied(ours)
    loop = Loop(optimizer=lambda parameters: torch.optim.LBFGS(parameters))
    with pytest.raises(InputError, match="a part of the recipe: acts on the gradients"):
        prune(ours, movement(0.5), (inputs, targets), loop=loop)
    with pytest.raises(InputError, match="a part of the recipe: acts on the gradients"):
        movement(0.5).attach(ours, torch.optim.LBFGS(ours.parameters()))
    assert same(before, copied(ours))


def test_the_average_of_a_network_with_gates() -> None:
    """The gates are averaged with the weights, and hardened then."""
    ours = net()
    l0 = {"name": "l0", "of": "weights", "density": 0.25, "ramp": 2}
    warm = Recipe.parse(
        {
            "warm_up": {"iterations": 6, "regularize": [l0]},
            "allocation": "zeros",
            "schedule": "allocation_decides",
        }
    )
    pruned = prune(ours, warm, data(), loop=Loop(optimizer=adam, average=AveragedModel))
    assert pruned.masks.kept == round(0.25 * pruned.masks.total)


def test_the_average_is_what_is_left() -> None:
    def average(model: nn.Module) -> AveragedModel:
        return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    ours, theirs = net(), net()
    train(ours, data(), Training(epochs=2), loop=Loop(optimizer=adam, average=average))
    optimizer, averaged = adam(theirs.parameters()), average(theirs)
    for inputs, targets in data() * 2:
        optimizer.zero_grad()
        cross_entropy(theirs(inputs), targets).backward()
        optimizer.step()
        averaged.update_parameters(theirs)
    close(ours, averaged.module)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_that_of_autocast(precision: torch.dtype) -> None:
    model = net().float()
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    batches = [(inputs.float(), targets) for inputs, targets in data()]
    loop = Loop(optimizer=adam, precision=precision, clip=1.0)
    train(ours, batches, Training(epochs=1), loop=loop)
    optimizer = adam(theirs.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=precision is torch.float16)
    for inputs, targets in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=precision):
            loss = cross_entropy(theirs(inputs), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert same(copied(ours), copied(theirs))
    assert not same(copied(ours), copied(model))


LOOPS = {
    "sgd, clipped": Loop(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), clip=0.5),
    "lbfgs": Loop(optimizer=lambda p: torch.optim.LBFGS(p, max_iter=3)),
    "accumulated": Loop(accumulate=2),
    "averaged": Loop(average=lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(0.9))),
    "bfloat16": Loop(precision=torch.bfloat16),
    "float16": Loop(precision=torch.float16, clip=1.0),
}


@pytest.mark.parametrize("name", list(LOOPS))
def test_removed_weights_stay_removed(name: str) -> None:
    model = net().float()
    batches = [(inputs.float(), targets) for inputs, targets in data()]
    done = prune(model, iterative_magnitude(0.8, steps=2, epochs=2), batches, loop=LOOPS[name])
    left = sum(int((model.get_parameter(each) != 0).sum()) for each in done.masks)
    assert left == done.masks.kept
    assert done.history[-1].train_loss is not None


def test_bad_loops_are_refused() -> None:
    for settings, message in (
        ({"accumulate": 0}, "accumulate"),
        ({"clip": -1.0}, r"clip must be a number above 0, not -1.0"),
        ({"precision": torch.int8}, "precision must be float16 or bfloat16"),
        (
            {"optimizer": torch.optim.SGD(net().parameters(), lr=1)},
            "optimizer must be a function",
        ),
    ):
        with pytest.raises(InputError, match=message):
            Loop(**settings)  # type: ignore[arg-type]
    model = net()
    before = copied(model)
    with pytest.raises(InputError, match=r"must make a torch\.optim\.Optimizer, not list"):
        prune(model, iterative_magnitude(0.5, steps=1, epochs=1), data(), loop=Loop(optimizer=list))
    assert same(before, copied(model))
    with pytest.raises(InputError, match="one training that the steps interrupt"):
        prune(model, gradual_magnitude(0.5, steps=2, epochs=1), data(), loop=Loop(optimizer=adam))
    assert same(before, copied(model))
    assert prune(model, magnitude(0.5), loop=Loop(clip=1.0)).masks.sparsity == 0.5


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        (Loop(optimizer=lambda each: torch.optim.SGD(each, lr=-1.0)), "loop: the optimizer cannot be made"),
        (Loop(scheduler=lambda each, steps: LambdaLR(each, [])), "loop: the scheduler cannot be made"),
        (
            Loop(scheduler=lambda optimizer, steps: OneCycleLR(optimizer, 0.1, total_steps=2)),
            "loop: the scheduler cannot take a step",
        ),
        (Loop(average=lambda model: AveragedModel(model.missing)), "loop: the average cannot be made"),
    ],
    ids=["optimizer", "scheduler", "step", "average"],
)
def test_what_a_loop_makes_and_pytorch_refuses_is_named(loop: Loop, said: str) -> None:
    ours = net()
    before = copied(ours)
    with pytest.raises(InputError, match=said):
        prune(ours, recipe(retrain={"name": "fine_tune", "training": {"iterations": 5}}), data(), loop=loop)
    assert same(before, copied(ours))
