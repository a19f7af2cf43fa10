"""Gates with Gaussian noise: formulas by samples, trainings by hand, hardening, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunekit import Recipe, methods, prune
from prunekit.errors import InputError, ModelError
from prunekit.masks import Masks
from prunekit.parts.regularize import L0, VIB
from prunekit.parts.regularize.gating import Gating
from prunekit.parts.regularize.vib import BottleneckGates, information, log_alpha, signal
from prunekit.study import run_study
from prunekit.training import Training, train
from small_nets import blobs, copied, mlp, same
from tiny_study import table, tiny

GATES = [(1.0, -9.0), (1.3, -1.0), (-0.7, -0.2), (0.5, math.log(0.25)), (0.2, 0.5), (0.01, 0.0)]


@pytest.mark.parametrize(("mean", "log_variance"), GATES)
def test_information_is_the_divergence_from_the_best_prior(mean: float, log_variance: float) -> None:
    """By samples of the gate times an output of 1.7, and a search for the prior's deviation."""
    output, deviation = 1.7, math.exp(log_variance / 2)
    gate = stats.norm(mean * output, deviation * output)
    samples = gate.rvs(400_000, random_state=0)
    own = gate.logpdf(samples)

    def divergence(log_prior: float) -> float:
        return float(np.mean(own - stats.norm(0, math.exp(log_prior)).logpdf(samples)))

    best = optimize.minimize_scalar(divergence, bounds=(-8, 4), method="bounded")
    found = float(information(torch.tensor(mean), torch.tensor(log_variance)))
    assert found == pytest.approx(best.fun, abs=0.005)
    assert math.exp(2 * best.x) == pytest.approx((mean**2 + deviation**2) * output**2, rel=0.02)


@pytest.mark.parametrize(("mean", "log_variance"), GATES)
def test_signal_is_the_squared_mean_over_the_mean_square_and_a_half_at_the_threshold(
    mean: float, log_variance: float
) -> None:
    samples = np.random.default_rng(1).normal(mean, math.exp(log_variance / 2), 400_000)
    at = torch.tensor(mean, dtype=torch.float64), torch.tensor(log_variance, dtype=torch.float64)
    assert float(signal(*at)) == pytest.approx(mean**2 / np.mean(samples**2), abs=0.005)
    assert (float(signal(*at)) > 0.5) == (float(log_alpha(*at)) < 0)
    alpha = math.exp(log_variance) / mean**2
    assert float(log_alpha(*at)) == pytest.approx(math.log(alpha))


def test_formulas_have_their_gradients_also_at_a_mean_of_zero() -> None:
    mean = torch.tensor([0.0, 1.0, -0.3], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([0.3, -9.0, -1.0], dtype=torch.float64, requires_grad=True)
    for function in (information, signal):
        assert torch.autograd.gradcheck(function, (mean, log_variance))
    assert float(log_alpha(mean, log_variance)[0].detach()) == math.inf


class Convnet(nn.Module):
    """Convolutions of 6 and 8 filters with 36 and 16 positions; the second is read flattened, with a pool."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3)
        self.last = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.norm(self.one(x)).relu()).relu()
        logits: Tensor = self.last(nn.functional.max_pool2d(x, 2).flatten(1))
        return logits


class Fork(nn.Module):
    """One layer that two read, with a sum behind them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.left, self.right = nn.Linear(10, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        logits: Tensor = self.left(x) + self.right(x).sigmoid()
        return logits


INPUTS = torch.randn(7, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
IMAGES = torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
NETS: dict[str, Any] = {
    "mlp": (lambda: mlp(10, 8, 6, 3), INPUTS),
    "convnet": (Convnet, IMAGES),
    "fork": (Fork, INPUTS),
}
NOISES = ("example", "batch")


def gated(net: str, **settings: Any) -> tuple[nn.Module, Gating, BottleneckGates, torch.optim.Optimizer]:
    """A network of `NETS` with gates, in which some are drowned and some are not."""
    make, inputs = NETS[net]
    model = make().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (handle,) = VIB(**settings).attach(model, optimizer, None, inputs[:2])
    gates = handle.gates
    gates.steps.fill_(10_000)
    gates.ran.fill_(True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for mean, log_variance in gates.learned:
            mean.copy_(torch.randn(mean.shape, generator=generator))
            logs = torch.linspace(-3, 2, len(mean))[torch.randperm(len(mean), generator=generator)]
            log_variance.copy_(2 * mean.abs().log() + logs)
    return model, handle, gates, optimizer


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("density", [None, 0.4])
def test_a_hardened_network_is_the_gated_one_in_evaluation_and_shrinks(
    net: str, noise: str, density: float | None
) -> None:
    model, handle, gates, optimizer = gated(net, noise=noise, density=density)
    inputs = NETS[net][1]
    open_ = [bool(s2 < m * m) for m, s2 in _moments(gates)]
    wanted_kept = sum(open_) if density is None else max(1, round(density * len(open_)))
    assert 0 < wanted_kept < len(open_)
    assert any(m < 0 for m, _ in _moments(gates))  # a gate may turn the sign
    model.eval()
    wanted = model(inputs)
    handle.remove()
    torch.testing.assert_close(model(inputs), wanted, rtol=1e-9, atol=1e-12)
    assert list(model.state_dict()) == list(NETS[net][0]().state_dict())
    assert len(optimizer.param_groups) == 1
    assert not any(module._forward_pre_hooks for module in model.modules())
    chosen = Recipe.parse(
        {
            "granularity": "unit",
            "allocation": {"name": "zeros", "floor": 0},
            "schedule": "allocation_decides",
        }
    )
    pruned = prune(model, chosen, example_inputs=inputs[:2])
    assert (pruned.kept.kept, pruned.kept.total) == (wanted_kept, len(open_))
    small = pruned.shrink(inputs[:2]).model
    torch.testing.assert_close(small(inputs), wanted, rtol=1e-8, atol=1e-10)


def _moments(gates: BottleneckGates) -> list[tuple[float, float]]:
    return [
        (mean, math.exp(log_variance))
        for means, log_variances in gates.learned
        for mean, log_variance in zip(means.tolist(), log_variances.tolist(), strict=True)
    ]


def test_noise_stands_behind_the_activation_on_whole_maps_of_each_example() -> None:
    """The network's run by hand, with the samples of the same generator."""
    model, _, gates, _ = gated("convnet")
    torch.manual_seed(5)
    found = model(IMAGES)
    torch.manual_seed(5)
    z = [
        mean + torch.randn(7, len(mean), dtype=torch.float64) * (log_variance / 2).exp()
        for mean, log_variance in gates.learned
    ]
    assert gates.names == ("one", "two")
    plain = Convnet().double()
    x = plain.norm(plain.one(IMAGES)).relu() * z[0][:, :, None, None]
    x = nn.functional.max_pool2d(plain.two(x).relu(), 2) * z[1][:, :, None, None]
    torch.testing.assert_close(found, plain.last(x.flatten(1)))


def test_layers_that_read_the_same_unit_have_the_same_noise() -> None:
    model, _, gates, _ = gated("fork")
    torch.manual_seed(5)
    found = model(INPUTS)
    torch.manual_seed(5)
    ((mean, log_variance),) = gates.learned
    z = mean + torch.randn(7, 6, dtype=torch.float64) * (log_variance / 2).exp()
    plain = Fork().double()
    x = plain.one(INPUTS).relu() * z
    torch.testing.assert_close(found, plain.left(x) + plain.right(x).sigmoid())


@pytest.mark.parametrize("net", NETS)
def test_examples_have_noise_of_their_own_and_a_batch_has_one(net: str) -> None:
    alike = NETS[net][1][:1].expand(5, *[-1] * (NETS[net][1].dim() - 1))
    for noise in NOISES:
        model, *_ = gated(net, noise=noise)
        found = model(alike)
        assert torch.allclose(found, found[:1]) == (noise == "batch")
        assert not torch.allclose(found, model(alike))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("inputs", [False, True])
def test_a_training_is_that_of_a_loop_by_hand(noise: str, inputs: bool) -> None:
    """The noise, the penalty and Adam's steps of gates and weights, written down for three layers."""
    data, targets = blobs(24, dtype=torch.float64)
    model = mlp(10, 8, 6, 3, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    settings = VIB(strength=0.3, lr=0.05, noise=noise, inputs=inputs, log_variance=-4.0)
    torch.manual_seed(1)
    (handle,) = settings.attach(model, optimizer, None)
    learned = {
        name: [each.detach().clone().requires_grad_() for each in group]
        for name, group in zip(handle.gates.names, handle.gates.learned, strict=True)
    }
    own = mlp(10, 8, 6, 3, dtype=torch.float64)
    groups = [each for group in learned.values() for each in group]
    by_hand = torch.optim.Adam([{"params": own.parameters()}, {"params": groups, "lr": 0.05}], 0.01)
    order = (["input"] if inputs else []) + ["0", "2"]
    assert sorted(learned) == sorted(order)
    if noise == "batch":  # drawn at the beginning of a run, in the order of the groups
        order = list(learned)
    for step in range(40):
        torch.manual_seed(step)
        optimizer.zero_grad()
        cross_entropy(model(data), targets).backward()
        optimizer.step()
        torch.manual_seed(step)
        z = {}
        for name in order:
            mean, log_variance = learned[name]
            rows = len(data) if noise == "example" else 1
            z[name] = mean + torch.randn(rows, len(mean), dtype=torch.float64) * (log_variance / 2).exp()
        x = own[0](data * z["input"] if inputs else data).relu()
        logits = own[4](own[2](x * z["0"]).relu() * z["2"])
        told = torch.cat([(1 + m**2 / v.exp()).log() / 2 for m, v in learned.values()])
        by_hand.zero_grad()
        (cross_entropy(logits, targets) + 0.3 * told.mean()).backward()
        by_hand.step()
    for name, group in zip(handle.gates.names, handle.gates.learned, strict=True):
        for found, wanted in zip(group, learned[name], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    handle.remove()
    for layer, unit in (("2", "0"), ("4", "2")):
        mean, log_variance = learned[unit]
        kept = log_variance.exp() < mean**2
        wanted = own.get_parameter(f"{layer}.weight") * mean * kept
        # what makes a unit that went is zero, too
        rows = learned["2"][1].exp() < learned["2"][0] ** 2 if layer == "2" else torch.ones(3)
        torch.testing.assert_close(
            model.get_parameter(f"{layer}.weight"), wanted * rows[:, None], rtol=1e-6, atol=1e-9
        )


@pytest.mark.parametrize("counts", ["gates", "positions", "parameters", "macs"])
def test_the_penalty_weighs_each_gate_by_what_goes_with_its_unit_alone(counts: str) -> None:
    """Costs of Convnet's units by hand, and the gradient by finite differences."""
    _, handle, gates, _ = gated("convnet", strength=0.7, counts=counts)
    units = [6, 8]
    cost, total = {
        "gates": ([1, 1], 14),
        "positions": ([36, 16], 6 * 36 + 8 * 16),
        # a filter, its bias and norm, and what reads it; all of them with the last layer's
        "parameters": ([18 + 1 + 2 + 8 * 9, 54 + 1 + 3 * 4], 6 * (18 + 1 + 2) + 8 * (54 + 1) + 3 * 33),
        "macs": ([36 * 18 + 16 * 72, 16 * 54 + 3 * 4], 36 * 6 * 18 + 16 * 8 * 54 + 3 * 32),
    }[counts]

    def penalty() -> float:
        told = [0.5 * math.log(1 + m * m / s2) for m, s2 in _moments(gates)]
        return 0.7 * sum(c * t for c, t in zip(np.repeat(cost, units), told, strict=True)) / total

    wanted = []
    places = [(each, place) for group in gates.learned for each in group for place in range(each.numel())]
    with torch.no_grad():
        for each, place in places:
            ends = []
            for step in (1e-6, -2e-6):
                each[place] += step
                ends.append(penalty())
            each[place] += 1e-6
            wanted.append((ends[0] - ends[1]) / 2e-6)
    handle._before_step()
    found = [float(each.grad[place]) for each, place in places]  # type: ignore[index]
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_a_density_is_reached_beside_the_penalty() -> None:
    """The share of signal at the end of a training, before the gates are ranked."""
    model, data = mlp(20, 60, 40, 3), blobs(256, 20, 3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    settings = VIB(strength=0.01, density=0.3, lr=0.05, ramp=600)
    (handle,) = settings.attach(model, optimizer, None)
    model.train()
    for _ in range(2000):
        optimizer.zero_grad()
        cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    powers = [m * m / (m * m + s2) for m, s2 in _moments(handle.gates)]
    assert np.mean(powers) == pytest.approx(0.3, abs=0.01)
    handle.remove()
    assert sum(int((model[layer].weight != 0).any(0).sum()) for layer in (2, 4)) == 30


def test_a_training_closes_what_tells_nothing_and_the_network_stays_accurate() -> None:
    """Inputs of pure noise go, by the method of that name but for its gates of inputs."""
    (inputs, targets), model = blobs(300), mlp(20, 30, 3)
    noise = torch.randn(300, 10, generator=torch.Generator().manual_seed(4))
    data = (torch.cat([inputs, noise], 1), targets)
    chosen = methods.recipe(
        "vib_units", strength=0.3, epochs=40, lr=0.03, training={"batch_size": 30, "lr": 0.01}
    )
    (gates,) = chosen.warm_up.regularize
    warm_up = chosen.warm_up.model_copy(update={"regularize": (gates.model_copy(update={"inputs": True}),)})
    chosen = chosen.model_copy(
        update={"warm_up": warm_up, "granularity": chosen.granularity.model_copy(update={"inputs": True})}
    )
    pruned = prune(model, chosen, data)
    kept = pruned.kept["input"]
    assert int(kept[10:].sum()) == 0
    assert int(kept[:10].sum()) >= 3
    assert 1 <= int(pruned.kept["0"].sum()) < 15
    assert float((model(data[0]).argmax(1) == targets).float().mean()) > 0.95


@pytest.mark.parametrize("noise", NOISES)
def test_a_seed_gives_the_same_training(noise: str) -> None:
    states = []
    for seed in (0, 0, 1):
        model = mlp(10, 8, 3)
        gates = VIB(strength=0.1, noise=noise)
        train(model, blobs(48), Training(epochs=2, batch_size=8, regularize=(gates,)), seed=seed)
        states.append(copied(model))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


@pytest.mark.parametrize("noise", NOISES)
def test_gates_survive_deepcopy_and_a_checkpoint_of_a_loop(noise: str) -> None:
    """A copy in the middle goes on as the original does, and so does a network that loads its state."""
    inputs, targets = blobs(48)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    settings = VIB(density=0.5, lr=0.1, ramp=4, noise=noise)
    model = mlp(10, 8, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    (handle,) = settings.attach(model, optimizer, None)
    steps(model, optimizer, range(5))
    model(inputs)  # leaves noise with a graph behind it
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    twin, its_optimizer, its_handle = copy.deepcopy((model, optimizer, handle))
    steps(model, optimizer, range(5, 9))
    steps(twin, its_optimizer, range(5, 9))
    assert same(copied(model), copied(twin))
    other = mlp(10, 8, 3)
    second = torch.optim.Adam(other.parameters(), 0.01)
    (loaded,) = settings.attach(other, second, None)
    other.load_state_dict(state[0])
    second.load_state_dict(state[1])
    steps(other, second, range(5, 9))
    assert same(copied(model), copied(other))
    for each in (handle, its_handle, loaded):
        each.remove()
    assert same(copied(model), copied(other))
    assert same(copied(model), copied(twin))


def test_a_loop_of_ones_own_ends_with_the_steps_of_a_pruning() -> None:
    """Gates in the loop first; then a recipe takes out what they have closed, at its next step."""
    (inputs, targets), model = blobs(96), mlp(10, 16, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    (handle,) = VIB(strength=0.3, lr=0.1).attach(model, optimizer)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    torch.manual_seed(0)
    steps(300)
    handle.remove()
    closed = int((model[2].weight == 0).all(0).sum())
    assert 0 < closed < 16
    chosen = Recipe.parse({"granularity": "unit", "allocation": "zeros", "schedule": "allocation_decides"})
    session = chosen.attach(model, optimizer, example_inputs=inputs[:2])
    session.advance()
    steps(20)
    assert int((model[2].weight == 0).all(0).sum()) == closed
    session.detach()
    small = session.result().shrink(inputs[:2]).model
    assert small[0].out_features == 16 - closed


@pytest.mark.usefixtures("no_report")
def test_a_study_with_gates_goes_on_where_it_was_interrupted(tmp_path, monkeypatch) -> None:
    gates = {"name": "vib", "strength": 3.0, "lr": 0.5, "log_variance": -2}
    recipe = {
        "granularity": "unit",
        "allocation": "zeros",
        "schedule": "allocation_decides",
        "warm_up": {"epochs": 4, "batch_size": 32, "lr": 0.01, "regularize": [gates]},
    }
    study = tiny(
        seeds=2,
        methods={"vib": {"recipe": recipe}, "random": {"method": "random_units"}},
    )
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_study(study, whole, workers=1)
    original, made = VIB.attach, []

    def interrupted(self, *args, **kwargs):
        made.append(self.strength)
        if len(made) == 2:
            raise RuntimeError("interrupted")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(VIB, "attach", interrupted)
    with pytest.raises(Exception, match="interrupted"):
        run_study(study, parted, workers=1)
    run_study(study, parted, workers=1)
    results = [table(folder / "results.csv") for folder in (whole, parted)]
    assert results[0] == results[1]
    rows = [row for row in results[0] if row["method"] == "vib"]
    assert any(int(row["kept"]) < int(row["prunable"]) for row in rows)


class Attending(nn.Module):
    """Attention as one module, whose projections are read without being called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(8, 8), nn.MultiheadAttention(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        logits: Tensor = self.last(self.attention(x, x, x, need_weights=False)[0])
        return logits


class Twice(nn.Module):
    """A layer that is called on batches of rows, and on batches of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(10, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        logits: Tensor = self.two(x) + self.two(x[:, None].expand(-1, 4, -1)).mean(1)
        return logits


def test_what_is_refused() -> None:
    for settings, said in [
        ({"strength": -1.0}, "strength"),
        ({"strength": 0}, "strength"),
        ({"density": 1.0}, "density"),
        ({"density": 0.5, "counts": "macs"}, "leave 'counts' at 'gates'"),
        ({"log_variance": 0.5}, "log_variance"),
        ({"noise": "pixel"}, "'example' or 'batch'"),
        ({"of": "weights"}, "of"),
    ]:
        with pytest.raises(InputError, match=said):
            VIB.parse(settings)
    model = mlp(10, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    mask = torch.ones(8, 10, dtype=torch.bool)
    mask[0] = False
    before = copied(model)
    with pytest.raises(InputError, match=r"vib: 0\.weight is pruned already, by masks"):
        VIB().attach(model, optimizer, Masks({"0.weight": mask}))
    (handle,) = VIB().attach(model, optimizer, None)
    for second in (VIB(), L0(strength=1.0)):
        with pytest.raises(InputError, match="has gates already"):
            second.attach(model, optimizer, None)
    handle.remove()
    assert list(before) == list(model.state_dict())
    for net, example, layer in [
        (Attending(), torch.randn(4, 2, 8), "attention"),
        (Twice(), torch.randn(4, 10), "two"),
    ]:
        before = copied(net)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with pytest.raises(ModelError, match=rf"vib: the layer '{layer}\S*' is not called .* 'batch'"):
            VIB().attach(net, optimizer, None, example)
        assert same(before, copied(net))
        assert len(optimizer.param_groups) == 1
        assert not any(module._forward_pre_hooks for module in net.modules())
        (handle,) = VIB(noise="batch").attach(net, optimizer, None, example)
        net(example).sum().backward()
        optimizer.step()
        handle.remove()
    normed = nn.Sequential(nn.Linear(10, 6), nn.LayerNorm(6), nn.Linear(6, 3))
    with pytest.raises(ModelError, match=r"vib: '1' takes statistics over the units of '0', .* 'batch'"):
        VIB().attach(normed, torch.optim.SGD(normed.parameters(), 0.1), None)
