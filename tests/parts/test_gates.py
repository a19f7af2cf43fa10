"""Gates in training: hardening, penalties, exact numbers, and what is refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torch.utils.checkpoint import checkpoint

from prunekit import Loop, Recipe, Task, methods, prune
from prunekit.errors import InputError, ModelError
from prunekit.hard_concrete import open_probability
from prunekit.masks import Masks
from prunekit.parts.regularize import L0, L1, VIB, GroupLasso
from prunekit.parts.regularize.gates import Gates
from prunekit.parts.regularize.gating import GateRegularizer, Gating
from prunekit.training import Training, train
from small_nets import Residual, blobs, copied, mlp, same


def convnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


NETS: dict[str, Any] = {
    "mlp": (lambda: mlp(10, 8, 6, 3), torch.randn(7, 10, generator=torch.Generator().manual_seed(1))),
    "convnet": (convnet, torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(1))),
    "residual": (Residual, torch.randn(7, 10, generator=torch.Generator().manual_seed(1))),
}


def gated(
    net: nn.Module, example: Tensor | None = None, **settings: Any
) -> tuple[Gating, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    (handle,) = L0(**settings).attach(net, optimizer, None, example)
    return handle, optimizer


def staying(handle: Gating) -> int:
    """How many gates stay, where densities say so."""
    return sum(count for _, _, count in handle.gates.led)


def opened(handle: Gating, seed: int) -> None:
    """Locations at random, as after a step, so that some gates are closed and some between."""
    generator = torch.Generator().manual_seed(seed)
    handle.gates.steps.fill_(10_000)
    handle.gates.ran.fill_(True)
    with torch.no_grad():
        for location in handle.gates.locations:
            location.copy_(4 * torch.randn(location.shape, generator=generator))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "settings",
    [
        {"strength": 1.0},
        {"density": 0.4},
        {"strength": 1.0, "of": "weights"},
        {"density": 0.3, "of": "weights"},
    ],
    ids=str,
)
def test_a_hardened_network_is_the_gated_one_in_evaluation(net: str, settings: dict[str, Any]) -> None:
    make, inputs = NETS[net]
    model = make().double().eval()
    keys = list(model.state_dict())
    inputs = inputs.double()
    handle, optimizer = gated(model, **settings)
    opened(handle, 3)
    model.eval()
    wanted = model(inputs)
    assert any(isinstance(module, Gates) for module in model.modules())
    count = staying(handle)
    handle.remove()
    torch.testing.assert_close(model(inputs), wanted, rtol=1e-9, atol=1e-12)
    assert list(model.state_dict()) == keys
    assert len(optimizer.param_groups) == 1
    assert not any(module._forward_pre_hooks for module in model.modules())
    if settings.get("of") == "weights" and count:
        weights = [p for p in model.parameters() if p.dim() > 1]
        assert sum(int((weight != 0).sum()) for weight in weights) == count


class Tied(nn.Module):
    """A vocabulary of 12 words that are read and predicted by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.up, self.down = nn.Embedding(12, 8), nn.Linear(8, 10), nn.Linear(10, 8)
        self.out = nn.Linear(8, 12)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.down(self.up(self.words(x)).relu()).mean(1))
        return logits


class Attention(nn.Module):
    """Attention and a layer behind it, on a residual stream that is normalised."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm, self.up, self.last = nn.LayerNorm(16), nn.Linear(16, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = self.norm(x + self.attention(*(self.norm(x) for _ in range(3)), need_weights=False)[0])
        logits: Tensor = self.last(self.up(x).relu().mean(1))
        return logits


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 6), nn.RMSNorm(6),
                         nn.Linear(6, 3))  # fmt: skip


def grouped() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 6, 3),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))  # fmt: skip


FELT: dict[str, Any] = {
    "tied": (Tied, torch.randint(12, (7, 5), generator=torch.Generator().manual_seed(1))),
    "attention": (Attention, torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(1))),
    "normed": (normed, torch.randn(7, 10, generator=torch.Generator().manual_seed(1))),
    "grouped": (grouped, torch.randn(7, 2, 6, 6, generator=torch.Generator().manual_seed(1))),
}
"""Networks where a closed unit is felt elsewhere than where a layer of its own reads it."""


@pytest.mark.parametrize("net", FELT)
@pytest.mark.parametrize(
    "gates",
    [L0(density=0.5), L0(density=0.5, of="weights"), VIB(density=0.5, noise="batch")],
    ids=["units", "weights", "noise"],
)
def test_gates_are_felt_where_masks_are(net: str, gates: GateRegularizer) -> None:
    """In tied weights, statistics over units and the width of heads; ties and names are those of before."""
    make, inputs = FELT[net]
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    model = make().double()
    before = {name: id(each) for name, each in model.named_parameters(remove_duplicate=False)}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (handle,) = gates.attach(model, optimizer, None, inputs[:2])
    handle.gates.steps.fill_(10_000)
    handle.gates.ran.fill_(True)
    with torch.no_grad():
        for first, *_ in handle.gates.learned:  # half of each group
            first.view(-1)[torch.randperm(first.numel())[: first.numel() // 2]] -= 0.5
    model.eval()
    wanted = model(inputs).detach()
    handle.remove()
    assert {name: id(each) for name, each in model.named_parameters(remove_duplicate=False)} == before
    torch.testing.assert_close(model(inputs), wanted, rtol=1e-9, atol=1e-12)
    granularity = "weight" if isinstance(gates, L0) and gates.of == "weights" else "unit"
    chosen = {"granularity": granularity, "allocation": "zeros", "schedule": "allocation_decides"}
    pruned = prune(model, Recipe.parse(chosen), example_inputs=inputs[:2])
    torch.testing.assert_close(model(inputs), wanted, rtol=1e-9, atol=1e-12)
    assert pruned.kept.kept == staying(handle)


@pytest.mark.parametrize("net", NETS)
def test_closed_units_are_zero_and_the_network_shrinks_by_them(net: str) -> None:
    make, inputs = NETS[net]
    model = make().double().eval()
    handle, _ = gated(model, density=0.5)
    opened(handle, 5)
    kept, total = staying(handle), sum(each.numel() for each in handle.gates.locations)
    handle.remove()
    model.eval()
    wanted = model(inputs.double())
    chosen = Recipe.parse({"granularity": "unit", "allocation": "zeros", "schedule": "allocation_decides"})
    pruned = prune(model, chosen, example_inputs=inputs.double()[:2])
    assert kept is not None
    assert (pruned.kept.kept, pruned.kept.total) == (kept, total)
    small = pruned.shrink(inputs.double()[:2]).model
    torch.testing.assert_close(small(inputs.double()), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("counts", ["gates", "parameters", "macs"])
@pytest.mark.parametrize("net", NETS)
def test_expected_shares_are_means_over_samples(net: str, counts: str) -> None:
    """Of networks whose units are drawn with the gates' probabilities, by what is left of each."""
    make, inputs = NETS[net]
    model = make()
    handle, _ = gated(model, inputs[:2], strength=1.0, counts=counts)
    opened(handle, 1)
    found = float(handle.share().detach())
    coupled = handle._coupled
    assert coupled is not None
    probabilities = {
        name: open_probability(location.detach())
        for name, location in zip(handle.gates.names, handle.gates.locations, strict=True)
    }
    generator = torch.Generator().manual_seed(0)
    sizes = {name: parameter.shape for name, parameter in make().named_parameters()}
    positions = {"mlp": {}, "residual": {}, "convnet": {"0": 36, "3": 16}}[net]
    drawn = []
    for _ in range(4000):
        flags = {
            name: torch.rand(each.shape, generator=generator) < each for name, each in probabilities.items()
        }
        left = whole = 0.0
        if counts == "gates":
            left = float(sum(int(each.sum()) for each in flags.values()))
            whole = float(sum(each.numel() for each in flags.values()))
        else:
            for name, shape in sizes.items():
                now = list(shape)
                for group in coupled.groups:
                    for member in group.members:
                        if member.tensor == name:
                            gone = sum(
                                len(own)
                                for own, kept in zip(member.indices, flags[group.name].tolist(), strict=True)
                                if not kept
                            )
                            now[member.dim] -= gone
                factor = 1.0
                if counts == "macs":
                    factor = positions.get(name.partition(".")[0], 1) if len(shape) > 1 else 0
                left += factor * torch.Size(now).numel()
                whole += factor * shape.numel()
        drawn.append(left / whole)
    assert found == pytest.approx(sum(drawn) / len(drawn), abs=0.01)


@pytest.mark.parametrize(
    "settings", [{"strength": 0.7}, {"strength": 0.7, "counts": "parameters"}, {"density": 0.2}]
)
def test_the_penaltys_gradient_is_that_of_finite_differences(settings: dict[str, Any]) -> None:
    model = mlp(10, 8, 6, 3, dtype=torch.float64)
    handle, _ = gated(model, **settings)
    opened(handle, 2)
    gates = handle.gates
    gates.steps.fill_(500)
    for lagrangian in gates.lagrangians:
        lagrangian.multipliers += torch.tensor([0.3, 0.2])

    def penalty() -> float:
        share = float(handle.share().detach())
        if "strength" in settings:
            return settings["strength"] * share
        excess = share - (1 - 0.8 * 0.5)
        return 0.3 * excess + (100 + 0.2) * excess**2

    places = [(location, place) for location in gates.locations for place in range(location.numel())]
    wanted = []
    with torch.no_grad():
        for location, place in places:
            ends = []
            for step in (1e-5, -2e-5):
                location.view(-1)[place] += step
                ends.append(penalty())
            location.view(-1)[place] += 1e-5
            wanted.append((ends[0] - ends[1]) / 2e-5)
    handle._before_step()
    found = [float(location.grad.view(-1)[place]) for location, place in places]  # type: ignore[union-attr]
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("density", [0.3, 0.01])
def test_the_lagrangian_leads_to_the_density(density: float) -> None:
    """The expected share at the end of a training, before the gates are ranked."""
    model, data = mlp(40, 60, 40, 3), blobs(256, 40, 3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    settings = L0(of="weights", density=density, lr=0.1, ramp=600)
    (handle,) = settings.attach(model, optimizer, None)
    model.train()
    for _ in range(2000):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
    assert float(handle.share().detach()) == pytest.approx(density, abs=0.005)
    handle.remove()
    weights = [p for p in model.parameters() if p.dim() > 1]
    total = sum(weight.numel() for weight in weights)
    assert sum(int((weight != 0).sum()) for weight in weights) == round(density * total)


def test_a_training_with_gates_removes_what_is_asked_and_stays_accurate() -> None:
    model, data = mlp(10, 30, 3), blobs(300, 10, 3)
    chosen = Recipe.parse(
        {
            "warm_up": {
                "epochs": 30, "lr": 0.01, "batch_size": 30,
                "regularize": [{"name": "l0", "density": 0.2, "lr": 0.05, "ramp": 150}],
            },
            "granularity": "unit",
            "allocation": "zeros",
            "schedule": "allocation_decides",
        }
    )  # fmt: skip
    pruned = prune(model, chosen, data)
    assert pruned.kept.kept == 6
    small = pruned.shrink(data[0][:2]).model
    assert small[0].out_features == 6
    assert float((small(data[0]).argmax(1) == data[1]).float().mean()) > 0.9


@pytest.mark.parametrize("method", ["l0_units", "vib_units"])
def test_where_all_gates_of_a_layer_close_one_unit_stays_and_the_network_shrinks(method: str) -> None:
    """It is a unit without effect: the branch of a residual network may close whole."""
    setting: dict[str, Any] = {"sparsity": 0.95, "ramp": 10} if method == "l0_units" else {"strength": 300.0}
    chosen = getattr(methods, method)(lr=0.5, training={"iterations": 30}, **setting)
    data = blobs(48)
    pruned = prune(Residual(), chosen, data)
    assert 1 in pruned.history[-1].layers.values()
    wanted = pruned.model.eval()(data[0])
    small = pruned.shrink(data[0][:2])
    torch.testing.assert_close(small.model(data[0]), wanted)


def test_a_seed_gives_the_same_training_and_modules_of_gates_are_gone() -> None:
    states = []
    for seed in (0, 0, 1):
        model = mlp(10, 8, 3)
        train(model, blobs(48), Training(epochs=2, batch_size=8, regularize=(L0(strength=0.1),)), seed=seed)
        states.append(copied(model))
    assert same(states[0], states[1])
    assert not same(states[0], states[2])


def test_gates_survive_deepcopy_and_a_checkpoint_of_a_loop() -> None:
    """A copy in the middle goes on as the original does, and so does a network that loads its state."""
    inputs, targets = blobs(48)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    settings = L0(density=0.5, lr=0.1, ramp=4)
    model = mlp(10, 8, 3)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    (handle,) = settings.attach(model, optimizer, None)
    steps(model, optimizer, range(5))
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    wanted = model(inputs)
    torch.manual_seed(3)
    torch.testing.assert_close(twin(inputs), wanted)
    steps(model, optimizer, range(5, 9))
    other = mlp(10, 8, 3)
    second = torch.optim.Adam(other.parameters(), 0.01)
    (loaded,) = settings.attach(other, second, None)
    other.load_state_dict(state[0])
    second.load_state_dict(state[1])
    steps(other, second, range(5, 9))
    assert same(copied(model), copied(other))
    handle.remove()
    loaded.remove()
    assert same(copied(model), copied(other))


@pytest.mark.parametrize("of", ["units", "weights"])
@pytest.mark.parametrize("frozen", ["0.weight", "2.weight", "2.bias"])
def test_frozen_parameters_stay_as_they_are(of: str, frozen: str) -> None:
    """Gates multiply what reads a unit, and closing one zeroes what makes it: neither may be frozen."""
    model, data = mlp(10, 8, 6, 5, 3), blobs(48)
    model.get_parameter(frozen).requires_grad_(False)
    before = copied(model)
    gates = L0(of=of, density=0.5, lr=0.1, ramp=10)
    train(model, data, Training(iterations=30, regularize=(gates,)))
    assert torch.equal(model.get_parameter(frozen), before[frozen])
    assert not model.get_parameter(frozen).requires_grad
    weights = {name: value for name, value in copied(model).items() if value.dim() > 1}
    zeros = {name for name, value in weights.items() if bool((value == 0).any())}
    gated = {
        "units": {
            "0.weight": {"2.weight", "4.weight", "6.weight"},
            "2.weight": {"4.weight", "6.weight"},  # the units before and behind it have no gates
            "2.bias": {"0.weight", "2.weight", "4.weight", "6.weight"},
        },
        "weights": {
            "0.weight": {"2.weight", "4.weight", "6.weight"},
            "2.weight": {"0.weight", "4.weight", "6.weight"},
            "2.bias": {"0.weight", "2.weight", "4.weight", "6.weight"},
        },
    }[of][frozen]
    assert zeros == gated


def test_what_has_no_gates_is_told() -> None:
    """Its weights are not among those that a density is of."""
    for of, left in (("units", r"no gates on '0', .* 0\.weight"), ("weights", r"no gates on '0\.weight', ")):
        model = mlp(10, 8, 6, 3)
        model[0].weight.requires_grad_(False)
        with pytest.warns(UserWarning, match=left + ".*density are of the others"):
            handle, _ = gated(model, density=0.5, of=of)
        assert staying(handle) == (3 if of == "units" else (48 + 18) // 2)


@pytest.mark.parametrize("of", ["units", "weights"])
def test_what_acts_on_weights_beside_gates_does_not_act_on_gates(of: str) -> None:
    """In any order in a training; in a loop of one's own the gates come last."""
    found = []
    others = L1(strength=0.1), GroupLasso(strength=0.3)
    for order in ((L0(density=0.5, of=of, ramp=3), *others), (*others, L0(density=0.5, of=of, ramp=3))):
        model = mlp(10, 8, 6, 3)
        train(model, blobs(48), Training(iterations=6, regularize=order))
        found.append(copied(model))
    assert same(*found)
    handle, optimizer = gated(model, density=0.5, of=of)
    for other in others:
        with pytest.raises(InputError, match=f"{other.name}: the network has gates already"):
            other.attach(model, optimizer)
    handle.remove()


def test_gates_are_refused_where_all_that_could_have_them_is_frozen() -> None:
    for of, said in (("units", "makes or reads all units"), ("weights", "all weights are frozen")):
        model = mlp(10, 8, 3)
        for name in ("0.weight", "2.weight"):
            model.get_parameter(name).requires_grad_(False)
        before = copied(model)
        with pytest.raises(InputError, match=said):
            train(model, blobs(24), Training(iterations=3, regularize=(L0(of=of, strength=1.0),)))
        assert same(before, copied(model))


class Parts(nn.Module):
    """A network of which a task runs `body` alone; `head` is run by `forward` only, `spare` by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.spare = mlp(10, 8, 6, 3), mlp(3, 5, 2, seed=1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(x).relu())
        return found


class BodyOnly(Task):
    def run(self, model: Any, batch: Any) -> Tensor:
        found: Tensor = model.body(batch.inputs)
        return found


class ByHand(Task):
    """Parameters are read without any module running."""

    def run(self, model: Any, batch: Any) -> Tensor:
        first, _, second, _, third = model.body
        x = nn.functional.linear(batch.inputs, first.weight, first.bias).relu()
        x = nn.functional.linear(x, second.weight, second.bias).relu()
        return nn.functional.linear(x, third.weight, third.bias)


@pytest.mark.parametrize("task", [BodyOnly(), ByHand()], ids=["body", "by hand"])
@pytest.mark.parametrize("of", ["units", "weights"])
def test_what_a_task_does_not_run_stays_as_it_is(task: Task, of: str) -> None:
    model, data = Parts(), blobs(64)
    before = copied(model)
    gates = L0(of=of, density=0.5, lr=0.1, ramp=100)
    train(model, data, Training(iterations=300, lr=0.01, regularize=(gates,)), task=task)
    after = copied(model)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("body"))
    if of == "weights":
        weights = [value for name, value in after.items() if name.startswith("body") and value.dim() > 1]
        assert sum(int((weight == 0).sum()) for weight in weights) == round(0.5 * (80 + 48 + 18))
    else:
        closed = [bool((after["body.2.weight"][:, unit] == 0).all()) for unit in range(8)]
        closed += [bool((after["body.4.weight"][:, unit] == 0).all()) for unit in range(6)]
        assert sum(closed) == 7
    accuracy = (model.body(data[0]).argmax(1) == data[1]).double().mean()
    assert float(accuracy) > 0.9


def test_a_training_that_runs_nothing_with_gates_is_refused() -> None:
    class Spare(Task):
        def run(self, model: Any, batch: Any) -> Tensor:
            found: Tensor = model.spare(batch.inputs[:, :4])
            return found

    model = Parts()
    before = copied(model)
    gates = L0(of="units", density=0.5, ramp=2)
    with pytest.raises(InputError, match=r"runs nothing that has gates, which are those of body\.0"):
        train(model, blobs(64), Training(iterations=3, regularize=(gates,)), task=Spare())
    assert same(before, copied(model))


def test_one_sample_serves_a_run_also_where_parts_run_anew_in_the_backward_pass() -> None:
    """Checkpoints of activations have the gradients of a run that keeps them."""
    gradients = []
    for again in (False, True):
        model, (inputs, targets) = Parts(), blobs(32)
        gated(model, inputs[:2], strength=1.0)
        model.train()
        torch.manual_seed(7)
        if again:
            forward = model.body.forward
            model.body.forward = lambda x, forward=forward: checkpoint(forward, x, use_reentrant=False)
        nn.functional.cross_entropy(model(inputs), targets % 2).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_every_run_of_a_part_has_a_sample_of_its_own() -> None:
    model, (inputs, _) = Parts(), blobs(32)
    gated(model, inputs[:2], strength=1.0)
    model.train()
    assert not torch.equal(model.body(inputs), model.body(inputs))
    model.eval()
    assert torch.equal(model.body(inputs), model.body(inputs))


def test_gates_that_no_step_has_moved_leave_the_network_as_it_was() -> None:
    model = mlp(10, 8, 3)
    before = copied(model)
    handle, _ = gated(model, density=0.5)
    handle.remove()
    assert same(before, copied(model))


def test_a_ramp_that_is_longer_than_the_training_is_refused_before_it() -> None:
    model, data = mlp(10, 8, 3), blobs(48)
    before = copied(model)
    for gates in (L0(density=0.5, ramp=13), L0(of="weights", density=0.5, ramp=1000)):
        with pytest.raises(InputError, match=r"ramp = (13|1,000) steps, but the training has only 12"):
            train(model, data, Training(epochs=4, batch_size=16, regularize=(gates,)))
    gates = {"name": "l0", "density": 0.5, "ramp": 1000}
    training = {"epochs": 4, "batch_size": 16, "regularize": [gates]}
    chosen = Recipe.parse(
        {
            "warm_up": training,
            "granularity": "unit",
            "allocation": "zeros",
            "schedule": "allocation_decides",
        }
    )
    with pytest.raises(InputError, match=r"the recipe's warm_up: l0: .* 1,000 steps, .* only 12"):
        prune(model, chosen, data)
    assert same(before, copied(model))
    train(model, data, Training(epochs=4, batch_size=16, regularize=(L0(density=0.5, ramp=12),)))


@pytest.mark.parametrize(
    "settings", [{"name": "l0", "density": 0.5}, {"name": "vib", "density": 0.5}], ids=str
)
@pytest.mark.parametrize(("steps", "ramp"), [(13, 6), (1, 1)])
def test_the_target_falls_over_half_of_a_training(settings: dict[str, Any], steps: int, ramp: int) -> None:
    """Which is the training that says so; a recipe of before keeps its hash."""
    states = []
    for gates in (settings, {**settings, "ramp": ramp}):
        model = mlp(10, 8, 3)
        training = Training.parse({"iterations": steps, "batch_size": 16, "regularize": [gates]})
        train(model, blobs(48), training)
        states.append(copied(model))
    assert same(*states)
    assert "ramp" not in str(Training.parse({"regularize": [settings]}).identity())


def test_the_target_falls_over_a_thousand_steps_where_nobody_knows_how_many_there_are() -> None:
    handle, _ = gated(mlp(10, 8, 3), density=0.5)
    assert [lagrangian.ramp for lagrangian in handle.gates.lagrangians] == [1000]


def test_gates_that_are_hardened_while_the_target_falls_warn() -> None:
    model, (inputs, targets) = mlp(10, 8, 3), blobs(48)
    handle, optimizer = gated(model, density=0.5, ramp=50)
    model.train()
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    with pytest.warns(UserWarning, match="hardened after 5 steps, while their target falls over 50"):
        handle.remove()


def test_a_scheduler_that_does_not_know_of_the_gates_is_named() -> None:
    model, data = mlp(10, 8, 3), blobs(48)
    before = copied(model)
    loop = Loop(scheduler=lambda optimizer, steps: LambdaLR(optimizer, [lambda step: 1.0]))
    with pytest.raises(InputError, match=r"scheduler cannot be made for an optimizer of 2 .*Expected 2"):
        train(model, data, Training(iterations=3, regularize=(L0(strength=0.1),)), loop=loop)
    assert same(before, copied(model))
    train(model, data, Training(iterations=3), loop=loop)


def test_a_scheduler_that_is_there_already_is_refused() -> None:
    """Some of PyTorch's would fail at their next step, others leave the rate of the gates as it is."""
    for make in (lambda each: OneCycleLR(each, 0.1, total_steps=9), lambda each: CosineAnnealingLR(each, 9)):
        model = mlp(10, 8, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        make(optimizer)
        before = copied(model)
        with pytest.raises(InputError, match=r"l0: the optimizer has a .* scheduler already.*before it is"):
            L0(strength=0.1).attach(model, optimizer)
        assert len(optimizer.param_groups) == 1
        assert same(before, copied(model))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        L0(strength=0.1, lr=0.3).attach(model, optimizer)
        scheduler = make(optimizer)
        rates = []
        for _ in range(6):
            model(blobs(8)[0]).sum().backward()
            optimizer.step()
            scheduler.step()
            rates.append(optimizer.param_groups[1]["lr"])
        assert rates[5] < rates[4]


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = convnet()

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        found: Tensor = self.net(pixels)
        return found


@pytest.mark.parametrize("counts", ["macs", "parameters"])
def test_batches_of_named_inputs_have_the_costs_of_those_in_order(counts: str) -> None:
    pixels = torch.randn(12, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    targets = torch.arange(12) % 3
    states = []
    for model, data in (
        (convnet(), [(pixels, targets)]),
        (ByName(), [{"pixels": pixels, "labels": targets}]),
    ):
        gates = L0(strength=3.0, counts=counts, lr=0.2)
        train(model, data, Training(iterations=30, regularize=(gates,)))
        states.append(list(copied(model).values()))
    assert all(torch.equal(one, other) for one, other in zip(*states, strict=True))


def test_gates_and_a_session_one_after_the_other() -> None:
    """Neither takes what the other has; gates that are removed twice are gone once."""
    model, (inputs, targets) = mlp(10, 8, 3), blobs(24)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    chosen = Recipe.parse({"schedule": LINEAR})
    session = chosen.attach(model, optimizer)
    before = copied(model)
    with pytest.raises(InputError, match="l0: the optimizer carries the masks of a session"):
        L0(density=0.5).attach(model, optimizer)
    assert same(before, copied(model))
    session.detach()
    (handle,) = L0(density=0.5, ramp=1).attach(model, optimizer)
    with pytest.raises(ModelError, match="parametrization"):
        chosen.attach(model, optimizer)
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    handle.remove()
    hardened = copied(model)
    handle.remove()
    assert same(hardened, copied(model))
    assert chosen.attach(model, optimizer).advance() is not None


LINEAR = {"name": "linear", "sparsity": 0.5, "steps": 2}


def test_what_is_refused() -> None:
    for settings, said in [
        ({}, "give either 'strength'"),
        ({"strength": 1.0, "density": 0.5}, "give either 'strength'"),
        ({"strength": -1.0}, "strength"),
        ({"density": 1.0}, "density"),
        ({"strength": 1.0, "of": "weights", "counts": "macs"}, "'counts' is 'gates'"),
        ({"density": 0.5, "counts": "macs"}, "leave 'counts' at 'gates'"),
    ]:
        with pytest.raises(InputError, match=said):
            L0.parse(settings)
    model = mlp(10, 8, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    mask = torch.ones(8, 10, dtype=torch.bool)
    mask[0] = False
    before = copied(model)
    with pytest.raises(InputError, match=r"0\.weight is pruned already, by masks"):
        L0(strength=1.0).attach(model, optimizer, Masks({"0.weight": mask}))
    (handle,) = L0(strength=1.0).attach(model, optimizer, None)
    with pytest.raises(InputError, match="has gates already"):
        L0(strength=1.0).attach(model, optimizer, None)
    handle.remove()
    assert list(before) == list(model.state_dict())
    for retrain in ("fine_tune", "continued"):
        training = {"epochs": 1, "regularize": [{"name": "l0", "strength": 1.0}]}
        for chosen in ({"schedule": "allocation_decides", "allocation": "zeros"}, {"schedule": LINEAR}):
            with pytest.raises(InputError, match=rf"the retrain '{retrain}': .* 'l0' acts .* in 'warm_up'"):
                Recipe.parse({**chosen, "retrain": {"name": retrain, "training": training}})
