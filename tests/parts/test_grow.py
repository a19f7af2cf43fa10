"""Dynamic sparse training: weights are exchanged while a network is trained, at one density."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit import Recipe, methods, prune
from prunekit.errors import InputError, ModelError
from prunekit.masks import Masks
from prunekit.parts.allocation import PerLayer
from prunekit.parts.context import StepContext
from prunekit.parts.grow import Grow, GrowAtRandom, GrowByGradient
from prunekit.parts.schedule import Step
from prunekit.pruning import Session
from small_nets import blobs, copied, mlp, same

DATA = blobs(60, dtype=torch.float64)
SGD = {"optimizer": "sgd", "lr": 0.05, "batch_size": 60, "weight_decay": 0.01}


def net(seed: int = 0) -> nn.Sequential:
    return mlp(10, 12, 8, 3, seed=seed, dtype=torch.float64)


def dynamic(name: str = "rigl", steps: int = 6, **changes: object) -> Recipe:
    return methods.recipe(
        name, sparsity=0.6, steps=steps, fraction=0.4, training={"iterations": 3, **SGD}, **changes
    )


# ---- RigL by hand ------------------------------------------------------------------------------------------


def by_hand(model: nn.Module, kept: dict[str, Tensor], steps: int, distance: int, iterations: int) -> None:
    """RigL with SGD and momentum, element by element; `kept` begins as the random masks."""
    named = {name: model.get_parameter(name) for name in kept}
    momentum = {name: torch.zeros_like(each) for name, each in model.named_parameters()}

    def gradients() -> dict[str, Tensor]:
        loss = F.cross_entropy(model(DATA[0]), DATA[1])
        names, values = zip(*model.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, values), strict=True))

    for iteration in range(iterations):
        update, between = divmod(iteration, distance)
        if not between and 0 < update < steps:
            dense = gradients()
            share = 0.4 / 2 * (1 + math.cos(math.pi * iteration / (steps * distance)))
            for name, weight in named.items():
                places = [divmod(place, weight.shape[1]) for place in range(weight.numel())]
                on = [place for place in places if kept[name][place]]
                drop = sorted(on, key=lambda place: weight.detach()[place].abs().item())[
                    : int(share * len(on))
                ]
                staying = [place for place in on if place not in drop]
                off = [place for place in places if place not in staying]
                grow = sorted(off, key=lambda place: -abs(float(dense[name][place])))[: len(drop)]
                with torch.no_grad():
                    for place in places:
                        if place in grow and place not in on:
                            momentum[name][place] = 0
                        kept[name][place] = place in staying or place in grow
                        if not kept[name][place]:
                            weight[place] = 0
        found = gradients()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                step = found[name] + 0.01 * weight
                momentum[name] = 0.9 * momentum[name] + step if iteration else step
                moved = weight - 0.05 * momentum[name]
                weight.copy_(moved if name not in kept else torch.where(kept[name], moved, 0.0))
                if name in kept:
                    momentum[name][~kept[name]] = 0


def test_rigl_is_the_loop_by_hand() -> None:
    chosen = dynamic()
    model = net()
    session = Session(model, chosen, data=DATA, seed=4)
    session._work.remove(session.plan.steps[0], None)
    masks = {name: mask.clone() for name, mask in session.masks.items()}
    wanted = net()
    session.masks.apply(wanted)
    by_hand(wanted, masks, 6, 3, 24)
    found = prune(net(), chosen, DATA, seed=4)
    assert found.masks == Masks(masks)
    assert found.masks != session.masks
    for name, value in copied(wanted).items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def trained(session: Session, optimizer: torch.optim.Optimizer, iterations: int) -> None:
    for _ in range(iterations):
        optimizer.zero_grad()
        F.cross_entropy(session.model(DATA[0]), DATA[1]).backward()
        optimizer.step()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)


def test_a_loop_of_ones_own_is_the_loop_by_hand() -> None:
    model = net()
    optimizer = sgd(model)
    session = dynamic().attach(model, optimizer, data=DATA, seed=4, every=3)
    session.advance()
    masks = {name: mask.clone() for name, mask in session.masks.items()}
    wanted = net()
    session.masks.apply(wanted)
    by_hand(wanted, masks, 6, 3, 24)
    trained(session, optimizer, 24)
    assert session.done
    assert session.masks == Masks(masks)
    for name, value in copied(wanted).items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_network_without_masks() -> None:
    """Also while hooks hold the gradients of removed weights at zero."""
    model = net()
    session = dynamic(steps=2).attach(model, sgd(model), data=DATA, seed=4)
    session.advance()
    free = net(seed=1)
    free.load_state_dict(model.state_dict())
    F.cross_entropy(free(DATA[0]), DATA[1]).backward()
    before = session.masks
    session.advance()
    for name, mask in session.masks.items():
        count = int(0.2 * int(before[name].sum()))  # 0.4 / 2 (1 + cos(pi / 2))
        weight, pulls = model.get_parameter(name), free.get_parameter(name).grad.abs()
        values = free.get_parameter(name).detach().abs()
        staying = before[name] & (values > values[before[name]].sort().values[count - 1])
        off = ~staying
        assert int((mask & off).sum()) == count > 0
        assert pulls[mask & off].min() >= pulls[off & ~mask].max()
        assert not weight[mask & ~before[name]].any()


# ---- what holds at every update ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["set", "rigl"]),
    sizes=st.lists(st.integers(4, 9), min_size=1, max_size=3),
    sparsity=st.floats(0.05, 0.9),
    fraction=st.floats(0.01, 1.0),
    steps=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_every_update_leaves_the_exact_number(name, sizes, sparsity, fraction, steps, seed) -> None:
    model = mlp(10, *sizes, 3, seed=seed)
    chosen = methods.recipe(
        name, sparsity=sparsity, steps=steps, fraction=fraction, training={"iterations": 1, "batch_size": 20}
    )
    total = sum(module.weight.numel() for module in model if isinstance(module, nn.Linear))
    session = Session(model, chosen, data=blobs(20), seed=seed)
    layers = None
    for record in session.run():
        layers = layers or record.layers
        assert record.kept == total - round(sparsity * total)
        assert record.layers == layers
        assert record.layers == {key: int(mask.sum()) for key, mask in session.masks.items()}
        for key, mask in session.masks.items():
            assert not model.get_parameter(key)[~mask].any()
    assert session.done


def test_how_much_is_exchanged() -> None:
    grow = GrowAtRandom(fraction=0.3)
    assert [grow.exchanged(Step(round=k, rounds=4), 1000) for k in range(1, 5)] == [0, 256, 150, 43]


def test_a_gradual_schedule_may_grow_as_well() -> None:
    chosen = Recipe.parse(
        {
            "schedule": {"name": "cubic", "sparsity": 0.7, "steps": 4},
            "allocation": "per_layer",
            "regrow": True,
            "grow": {"name": "gradient", "start": "score"},
            "retrain": {"name": "continued", "training": {"iterations": 2, **SGD}},
        }
    )
    found = prune(net(), chosen, DATA)
    levels = chosen.schedule.sparsities()
    for record, level in zip(found.history, levels, strict=True):
        assert record.layers == {
            "0.weight": 120 - round(level * 120),
            "2.weight": 96 - round(level * 96),
            "4.weight": 24 - round(level * 24),
        }


class Fewer(PerLayer):
    """Half as many removed at each later step."""

    name = "fewer"

    def amounts(self, context: StepContext) -> dict[str, int]:
        return {name: count // context.step.round for name, count in super().amounts(context).items()}


def test_weights_come_back_in_exchange_alone() -> None:
    chosen = Recipe.parse({**dynamic().to_dict(), "allocation": Fewer()})
    found = prune(net(), chosen, DATA)
    assert [record.layers for record in found.history] == [found.history[0].layers] * 6


def test_the_first_removal_is_drawn_or_scored() -> None:
    drawn = Session(net(), dynamic(), data=DATA, seed=1)
    again = Session(net(), dynamic(), data=DATA, seed=2)
    scored = dynamic().to_dict()
    scored["grow"]["start"] = "score"
    by_score = Session(net(), Recipe.parse(scored), data=DATA, seed=1)
    for session in (drawn, again, by_score):
        session._work.remove(session.plan.steps[0], None)
    assert drawn.masks != again.masks
    for name, mask in by_score.masks.items():
        values = by_score.model.get_parameter(name).abs()
        assert values[mask].min() > net().get_parameter(name).abs()[~mask].max()


def test_set_draws_all_removed_weights_equally_often() -> None:
    """Each of 300 places is drawn about as often: a chi-squared statistic within 5 sigma."""
    kept = Masks({"weight": torch.arange(400).reshape(20, 20) < 100})
    counts = torch.zeros(20, 20)
    for seed in range(400):
        context = StepContext({"weight": torch.zeros(20, 20)}, generator=torch.Generator().manual_seed(seed))
        grown = Grow.grown(kept, GrowAtRandom()(context), {"weight": 30})["weight"]
        assert int(grown.sum()) == 130
        assert bool(grown[kept["weight"]].all())
        counts += grown & ~kept["weight"]
    expected = 400 * 30 / 300
    chi = float(((counts[~kept["weight"]] - expected) ** 2 / (expected * (1 - 30 / 300))).sum())
    assert abs(chi - 299) < 5 * math.sqrt(2 * 299)


class Same(GrowByGradient):
    """The weights that were dropped just now are the ones that come back."""

    name = "same"
    needs = ()

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        return {name: kept.double() for name, kept in context.kept.items()}


def test_what_wins_its_place_back_has_never_been_away() -> None:
    plain = dynamic().to_dict()
    chosen = Recipe.parse({**plain, "grow": Same(fraction=1.0)})
    still = Recipe.parse({**plain, "grow": Same(fraction=1e-9)})
    one, other = prune(net(), chosen, DATA, seed=3), prune(net(), still, DATA, seed=3)
    assert same(copied(one.model), copied(other.model))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_what_comes_back_has_no_moments(kind) -> None:
    model = net()
    optimizer = kind(model.parameters(), 0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    session = dynamic().attach(model, optimizer, data=DATA, every=3)
    session.advance()
    trained(session, optimizer, 2)
    before = session.masks
    # an optimizer may move what it has of removed weights, too
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.dim():
                value.add_(1.0)
    trained(session, optimizer, 1)
    for name, mask in session.masks.items():
        new = mask & ~before[name]
        assert bool(new.any())
        for value in optimizer.state[model.get_parameter(name)].values():
            if isinstance(value, Tensor) and value.dim():
                assert not value[new].any()
                assert bool(value[mask & before[name]].all())


def test_units_that_died_are_taken_out_and_the_function_stays() -> None:
    model = mlp(10, 40, 30, 3, dtype=torch.float64)
    chosen = methods.recipe("rigl", sparsity=0.95, steps=4, training={"iterations": 3, **SGD})
    pruned = prune(model, chosen, DATA)
    expected, kept = copy.deepcopy(model)(DATA[0]), pruned.masks.kept
    alive = sum(int(pruned.masks[name].any(1).sum()) for name in ("0.weight", "2.weight"))
    pruned.shrink(DATA[0][:4])
    assert model[0].out_features + model[2].out_features <= alive < 70
    torch.testing.assert_close(model(DATA[0]), expected)
    assert pruned.masks.kept <= kept
    pruned.masks.apply(model)
    torch.testing.assert_close(model(DATA[0]), expected)


# ---- interruptions and copies ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_it_goes_on_from_a_saved_state_to_the_same_bits(name) -> None:
    chosen = dynamic(name)
    whole = prune(net(), chosen, DATA, seed=2)
    first = net()
    run = (session := Session(first, chosen, data=DATA, seed=2)).run()
    for _ in range(3):
        next(run)
    state = copy.deepcopy(session.state_dict())
    again = net(seed=5)
    again.load_state_dict(first.state_dict())
    resumed = Session(again, chosen, data=DATA, seed=2)
    resumed.load_state_dict(state)
    assert len(list(resumed.run())) == 3
    assert resumed.masks == whole.masks
    assert same(copied(again), copied(whole.model))


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_a_loop_of_ones_own_goes_on_to_the_same_bits_saved_or_copied(name) -> None:
    def begun() -> tuple[nn.Module, torch.optim.Optimizer, Session]:
        model = net()
        optimizer = sgd(model)
        return model, optimizer, dynamic(name).attach(model, optimizer, data=DATA, seed=2, every=4)

    model, optimizer, session = begun()
    trained(session, optimizer, 30)
    first, first_optimizer, first_session = begun()
    trained(first_session, first_optimizer, 14)
    twin, twin_optimizer = copy.deepcopy((first_session, first_optimizer))
    saved = copy.deepcopy([each.state_dict() for each in (first, first_optimizer, first_session)])
    trained(twin, twin_optimizer, 16)
    again, again_optimizer, again_session = begun()
    for each, state in zip((again, again_optimizer, again_session), saved, strict=True):
        each.load_state_dict(state)
    trained(again_session, again_optimizer, 16)
    for other in (twin, again_session):
        assert other.done
        assert other.masks == session.masks
        assert same(copied(other.model), copied(model))


# ---- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regrow": False}, "the grow 'gradient' brings removed weights back: set 'regrow' to true"),
        ({"rank": "once"}, "set 'rank' to 'every_step'"),
        ({"statistics": "once"}, "set 'statistics' to 'every_step'"),
        (
            {"grow": None},
            "the schedule 'constant' removes nothing after its first step: give the recipe a 'grow'",
        ),
        ({"grow": "movement"}, "there is no grow 'movement'; names are: gradient, "),
        ({"grow": {"name": "random", "fraction": 0}}, "fraction"),
        ({"granularity": "unit", "allocation": "global"}, "the grow 'gradient' works on single weights"),
        ({"allocation": {"name": "erk", "dense": ["last"]}}, "dense: 'last' matches no pruned layer"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message) -> None:
    with pytest.raises(InputError, match=message):
        Recipe.parse({**dynamic().to_dict(), **changes}).plan(net())


def test_a_gradient_needs_data() -> None:
    model = net()
    with pytest.raises(InputError, match="the recipe's grow 'gradient' needs data"):
        dynamic().attach(model, sgd(model))
    dynamic("set").attach(model, sgd(model))


class Odd(GrowAtRandom):
    """A grow score of one's own that is no number."""

    name = "odd"

    def __call__(self, context: StepContext) -> dict[str, Tensor]:
        return {name: torch.full_like(weight, math.nan) for name, weight in context.weights.items()}


def test_a_grow_score_that_is_no_number_is_refused_and_nothing_changes() -> None:
    model = net()
    session = Session(model, Recipe.parse({**dynamic().to_dict(), "grow": Odd()}), data=DATA)
    run = session.run()
    next(run)
    before, masks = copied(model), session.masks
    with pytest.raises(ModelError, match=r"the grow score 'odd' of 0.weight is NaN"):
        next(run)
    assert same(copied(model), before)
    assert session.masks == masks
