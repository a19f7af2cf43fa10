"""What a proof costs, counted: runs of the networks, and numbers that are in memory at once."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from prunekit.graph import VerificationError, groups, proof, proof_run, prune_groups, same_function, shrinking
from prunekit.graph.proof import masked_reference, proven
from prunekit.graph.proof_run import exact_copy, in_precision
from prunekit.graph.surgery import Cut


class Counted(nn.Module):
    """Two layers with a batch norm between them, that take down their runs in double precision."""

    runs: ClassVar[list[tuple[int, bool]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if type(x) is Tensor and x.dtype == torch.float64:  # it is not being recorded
            self.runs.append((self.a.out_features, self.training))
        return self.b(torch.relu(self.norm(self.a(x))))


def test_each_network_is_run_twice_in_a_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    backward, count = torch.autograd.backward, [0]

    def counted(*args: Any, **kwargs: Any) -> None:
        count[0] += 1
        backward(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "backward", counted)
    Counted.runs.clear()
    prune_groups(Counted().float(), torch.randn(5, 4, dtype=torch.float32), 0.5)
    first, *others = Counted.runs
    assert first == (3, False)  # whether the smaller network can be run
    assert others == [(6, False)] * 2 + [(3, False)] + [(6, True)] * 2 + [(3, True)] * 2
    assert count == [4]


class Modes(nn.Module):
    """Layers that say in training what is done with what they give, of which the numbers stay the same."""

    def __init__(self, in_training: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)
        self.in_training = in_training

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.training:
            h = self.in_training(h)
        return self.b(self.norm(h))


class Reversed(torch.autograd.Function):
    """The same numbers, and gradients of the other sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return -gradient


@pytest.mark.parametrize(
    ("in_training", "once"),
    [
        (lambda h: nn.functional.dropout(h, 0.5), True),  # which a proof leaves out
        (lambda h: h.abs(), False),
        (lambda h: torch.cat((h[:, :1].detach(), h[:, 1:]), 1), False),
        (Reversed.apply, False),
        (lambda h: checkpoint(torch.relu, h, use_reentrant=True), False),
    ],
    ids=["dropout", "other operations", "a gradient that is cut", "a gradient of one's own", "checkpoint"],
)
def test_modes_that_do_the_same_are_compared_with_gradients_once(
    in_training: Callable[[Tensor], Tensor], once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, really = [0], proof_run._backward

    def counted(*args: Any, **kwargs: Any) -> bool:
        count[0] += 1
        return really(*args, **kwargs)

    monkeypatch.setattr(proof_run, "_backward", counted)
    found = prune_groups(Modes(in_training).eval(), torch.randn(5, 4), 0.5)
    assert found.deviation.accepted
    assert count[0] == 2 if once else count[0] >= 4


def test_a_mode_with_more_outputs_is_another() -> None:
    class More(Modes):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return [y] if self.training else [y, x]  # as XLNet gives what it remembers

    model, other = More(lambda h: nn.functional.dropout(h, 0.5)), More(lambda h: h)
    other.load_state_dict(model.state_dict())
    x, whole = torch.randn(5, 4), Cut({}, {})
    assert proven(masked_reference(model, {}, x), other, whole, x).accepted


def test_a_gradient_that_differs_in_training_alone_is_found() -> None:
    torch.manual_seed(0)
    model = Modes(lambda h: nn.functional.dropout(h, 0.5)).double()
    other = copy.deepcopy(model)
    other.in_training = lambda h: torch.cat((h[:, :1].detach(), h[:, 1:]), 1)
    x, whole = torch.randn(5, 4, dtype=torch.float64), Cut({}, {})
    assert proven(masked_reference(model, {}, x), other, whole, x, training=False).accepted
    for pair in ((model, other), (other, model)):
        with pytest.raises(VerificationError, match=r"gradient of .* in training"):
            proven(masked_reference(pair[0], {}, x), pair[1], whole, x)


class Live(TorchDispatchMode):
    """The most bytes that what is made within takes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {
            each.untyped_storage()._cdata for each in pytree.tree_leaves(args) if isinstance(each, Tensor)
        }
        for each in pytree.tree_leaves(found):
            if isinstance(each, Tensor) and each.untyped_storage()._cdata not in given:
                storage = each.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: each for key, each in self._live.items() if not each[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return found


def wide(layers: int = 16, width: int = 96) -> nn.Sequential:
    every = [module for _ in range(layers) for module in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*every, nn.Linear(width, 3)).float()


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_no_second_set_of_gradients_and_no_copy_in_single_precision(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the peak is one network in double precision, or the smaller one with its slices of gradients."""
    monkeypatch.setattr(proof, "HELD", 0)
    model, x = wide(), torch.randn(2, 96, dtype=torch.float32)
    kept = {
        group.name: torch.arange(group.units) >= share * group.units for group in groups(model, x).prunable
    }
    found = shrinking.traced(model, x)
    work = shrinking.operation(model, found, kept)
    doubles = 8 * sum(parameter.numel() for parameter in model.parameters())
    smaller = 8 * sum(
        parameter.numel() for parameter in prune_groups(copy.deepcopy(model), x, share).model.parameters()
    )
    largest = 8 * 96 * 96
    case = shrinking.Case(model, x, shrinking.Masks({}))
    with Live() as live:
        proven(
            masked_reference(model, work.cut.tensors, x),
            lambda: shrinking._candidate(case, work.cut, shrinking.Masks({}), torch.float64),
            work.cut,
            x,
            training=False,
        )
    # a few tensors of one layer come and go; what layers put out is small here
    assert live.peak <= max(doubles, 2 * smaller) + 5 * largest
    assert live.peak >= doubles


@pytest.mark.parametrize("held", [True, False])
def test_copies_of_small_networks_are_made_once(held: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        made.append(model.a.out_features)  # type: ignore[arg-type, union-attr]
        return in_precision(model, *args, **kwargs)

    monkeypatch.setattr(proof_run, "in_precision", counted)
    monkeypatch.setattr(shrinking, "in_precision", counted)
    monkeypatch.setattr(proof, "HELD", proof.HELD if held else 0)
    found = prune_groups(Counted().float(), torch.randn(5, 4), 0.5)
    assert made.count(3) == (1 if held else 3)
    assert made.count(6) == (1 if held else 2)
    assert found.deviation.accepted


def test_the_peak_would_show_gradients_that_stay() -> None:
    model, x = exact_copy(wide(), torch.float64), torch.randn(2, 96, dtype=torch.float64)
    doubles = 8 * sum(parameter.numel() for parameter in model.parameters())
    with Live() as live:
        exact_copy(model, torch.float64)(x).square().sum().backward()
    assert live.peak >= 2 * doubles


class Twice(nn.Module):
    """A layer in two segments that are computed anew for the gradients, which come to it in two parts."""

    def __init__(self, second: float = 1.0) -> None:
        super().__init__()
        self.first, self.layer, self.second = nn.Linear(4, 4), nn.Linear(4, 4), second

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(self.layer, self.first(x), use_reentrant=True)
        y = checkpoint(self.layer, torch.tanh(x), use_reentrant=True)
        if self.second != 1.0:  # the same outputs
            y = y.detach() + self.second * (y - y.detach())
        return torch.cat((x, y), 1)


def test_gradients_that_come_in_parts_are_summed() -> None:
    model, x = Twice(), torch.randn(3, 4)
    same = copy.deepcopy(model)
    assert same_function(model, same, x, gradients={}).largest == 0
    other = copy.deepcopy(model)
    other.second = 1 + 1e-6
    assert same_function(model, other, x).accepted
    deviation = same_function(model, other, x, gradients={})
    assert not deviation.accepted
    assert deviation.where.startswith("gradient of ")


def test_gradients_that_are_no_numbers_agree_with_themselves_only() -> None:
    class Root(nn.Module):
        def __init__(self, power: float) -> None:
            super().__init__()
            self.weight, self.other, self.power = (
                nn.Parameter(torch.zeros(3)),
                nn.Parameter(torch.ones(3)),
                power,
            )

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight).abs() ** self.power + x * self.other

    x = torch.randn(2, 3)
    assert same_function(Root(0.5), Root(0.5), x, gradients={}).accepted  # an infinite slope times 0
    deviation = same_function(Root(0.5), Root(0.75), x, gradients={})
    assert same_function(Root(0.5), Root(0.75), x).accepted
    assert same_function(Root(0.5), Root(2.0), x).accepted
    assert not same_function(Root(0.5), Root(2.0), x, gradients={}).accepted
    assert deviation.accepted


def test_a_parameter_that_has_no_gradient_in_one_network_is_found() -> None:
    class Reaching(nn.Module):
        def __init__(self, reached: bool) -> None:
            super().__init__()
            self.a, self.b, self.reached = nn.Linear(3, 3), nn.Linear(3, 2), reached

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(h if self.reached else h.detach())

    reached, not_reached = Reaching(True), Reaching(False)
    not_reached.load_state_dict(reached.state_dict())
    x = torch.randn(2, 3)
    for pair in ((reached, not_reached), (not_reached, reached)):
        deviation = same_function(*pair, x, gradients={})
        assert not deviation.accepted
        assert deviation.where.startswith("gradient of a.")


def test_complex_parameters_stay_complex() -> None:
    model = nn.Linear(3, 2)
    model.turn = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64))
    copied = exact_copy(model, torch.float64)
    assert copied.turn.dtype == torch.complex128
    assert torch.equal(copied.turn.to(torch.complex64), model.turn)
    assert model.turn.dtype == torch.complex64


def test_a_smaller_network_that_failed_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x)).view(-1, 6) if len(x) else x
            return self.c(torch.relu(self.b(h)))

    made: list[weakref.ref[nn.Module]] = []
    candidate, misfit = shrinking._candidate, shrinking.misfit
    alive: list[int] = []

    def noted(*args: Any) -> nn.Module:
        found = candidate(*args)
        made.append(weakref.ref(found))
        return found

    def looked(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        alive.append(sum(each() is not None for each in made))
        return misfit(*args, **kwargs)

    def chosen(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        alive.append(sum(each() is not None for each in made))
        return whole(*args, **kwargs)

    whole = shrinking.chosen
    monkeypatch.setattr(shrinking, "_candidate", noted)
    monkeypatch.setattr(shrinking, "misfit", looked)
    monkeypatch.setattr(shrinking, "chosen", chosen)
    result = prune_groups(Fixed(), torch.randn(3, 4), 0.5)
    assert result.form == "modules"
    assert "a" in result.stayed
    assert len(made) > 1
    assert max(alive) <= 1  # what `misfit` is given


@pytest.mark.parametrize("held", [True, False])
def test_a_difference_on_the_given_inputs_is_found_before_gradients(
    held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing of a large network is held then."""
    monkeypatch.setattr(proof, "HELD", proof.HELD if held else 0)
    model, x = Counted().float(), torch.randn(5, 4)
    other = copy.deepcopy(model)
    torch.nn.init.normal_(other.b.weight)
    reference = masked_reference(model, {}, x)
    Counted.runs.clear()
    with pytest.raises(VerificationError, match="in evaluation is off by"):
        proven(reference, other, Cut({}, {}), x)
    assert Counted.runs == [(6, False)] * 2
    assert (reference._made is not None) == held
