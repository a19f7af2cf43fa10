"""Whatever a forward writes to its modules is put back, and no hook sees a network that is only looked at."""

from __future__ import annotations

import copy
import functools
import pickle
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.utils.checkpoint import checkpoint

from prunekit.errors import ModelError
from prunekit.graph import VerificationError, groups, prune_groups
from prunekit.graph.capture import captured
from prunekit.graph.chain_view import chain_of
from prunekit.graph.proof import masked_reference, proven
from prunekit.graph.surgery import Cut

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two layers; subclasses say what is written on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)
        self.calls = 0
        self.seen: Any = None
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        self.write(x)
        return self.b(x)

    def write(self, x: Tensor) -> None:
        pass


class SetsAnAttribute(Net):
    def write(self, x: Tensor) -> None:
        self.seen = x


class SetsANewAttribute(Net):
    def write(self, x: Tensor) -> None:
        self.fresh = x


class CountsCalls(Net):
    def write(self, x: Tensor) -> None:
        self.calls += 1


class DeletesAnAttribute(Net):
    def write(self, x: Tensor) -> None:
        if hasattr(self, "seen"):
            del self.seen


class Appends(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kept = ["first"]

    def write(self, x: Tensor) -> None:
        self.kept.append(x)


class AppendsToAQueue(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kept = deque([1, 2], maxlen=2)

    def write(self, x: Tensor) -> None:
        self.kept.append(x)


class WritesToADict(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kept = OrderedDict(old=1)

    def write(self, x: Tensor) -> None:
        self.kept["new"] = x
        self.kept.move_to_end("old")


class WritesDeep(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kept = {"layers": ([{1}, []], "name")}

    def write(self, x: Tensor) -> None:
        ones, others = self.kept["layers"][0]
        ones.add(2)
        others.append(x)


class AddsToASet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kept = {1}

    def write(self, x: Tensor) -> None:
        self.kept.add(x.shape)


class ReplacesABuffer(Net):
    def write(self, x: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)


class RegistersABuffer(Net):
    def write(self, x: Tensor) -> None:
        self.register_buffer("late", x.detach())


class RegistersAHook(Net):
    def write(self, x: Tensor) -> None:
        self.b.register_forward_hook(lambda *_: None)


KINDS: list[type[Net]] = [
    SetsAnAttribute, SetsANewAttribute, CountsCalls, DeletesAnAttribute, Appends, AppendsToAQueue,
    WritesToADict, WritesDeep, AddsToASet, ReplacesABuffer, RegistersABuffer, RegistersAHook,
]  # fmt: skip
LOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "groups": lambda model: groups(model, X),
    "exported": lambda model: captured(model, X, record=False),
    "chain": lambda model: chain_of(model, X),
    "chain without an example": chain_of,
}


def held(model: nn.Module) -> list[tuple[Any, ...]]:
    """The attributes of all modules by their objects, and what containers hold, written out."""
    return [
        (id(value), copy.copy(value) if isinstance(value, list | dict | set | deque | tuple) else None, name)
        for module in model.modules()
        for name, value in vars(module).items()
    ]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_a_forward_writes_is_put_back(kind: type[Net], look: str) -> None:
    model = kind()
    before, bits = held(model), pickle.dumps(model)
    LOOKS[look](model)
    assert held(model) == before
    assert pickle.dumps(model) == bits
    model(X)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_also_where_it_fails(kind: type[Net], look: str) -> None:
    class Fails(kind):  # type: ignore[misc, valid-type]
        def write(self, x: Tensor) -> None:
            super().write(x)
            raise ValueError("halfway")

    model = Fails()
    before = held(model)
    with pytest.raises(ModelError, match="halfway"):
        LOOKS[look](model)
    assert held(model) == before


@pytest.mark.parametrize("kind", [SetsAnAttribute, Appends, CountsCalls, WritesToADict])
def test_what_is_only_written_leaves_the_plan_as_it_is(kind: type[Net]) -> None:
    assert groups(kind(), X) == groups(Net(), X)


@pytest.mark.parametrize("look", LOOKS)
def test_hooks_are_not_called_and_stay(look: str) -> None:
    model, calls = Net(), []

    def hook(*given: Any) -> None:
        calls.append(given)

    handles = [
        model.a.register_forward_pre_hook(hook),
        model.a.register_forward_hook(hook, with_kwargs=True, always_call=True),
        model.register_forward_hook(calls.append, prepend=True),  # type: ignore[arg-type]
        model.b.register_full_backward_hook(hook),
        global_hooks.register_module_forward_hook(hook),
    ]
    try:
        before = held(model)
        LOOKS[look](model)
        assert not calls
        assert held(model) == before
        assert hook in global_hooks._global_forward_hooks.values()
    finally:
        for handle in handles:
            handle.remove()
    assert not model.a._forward_hooks


def test_hooks_of_weight_norm_are_part_of_what_is_computed() -> None:
    model = Net()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.a)
    (graph,) = captured(model, X)
    assert {"a.weight_g", "a.weight_v"} <= set(graph.tensors.values())
    torch.testing.assert_close(graph.module(*_given(model, graph, X))[0], model(X))


def _given(model: nn.Module, graph: Any, x: Tensor) -> list[Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [x if kind == "user" else tensors[name] for kind, name in graph.inputs]


def test_hooks_that_keep_activations_in_a_list_of_the_network():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    model.seen = []
    model[1].register_forward_hook(lambda module, given, output: model.seen.append(output))
    assert prune_groups(model, torch.randn(4, 16), 0.5).form == "modules"
    assert model.seen == []
    copy.deepcopy(model)


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.last, self.every = nn.Linear(16, 8), nn.Linear(8, 3), None, {}

    def forward(self, x):
        self.last = torch.relu(self.a(x))
        self.every["last"] = [self.last]
        return self.b(self.last)


def test_activations_that_a_network_keeps_from_its_last_step():
    model, inputs = Keeping(), torch.randn(4, 16)
    model(inputs).sum().backward()
    before = model.last
    assert prune_groups(model, inputs, 0.5).form == "modules"
    assert model.last is before
    assert model.every["last"][0] is before


def test_gradients_of_embeddings_may_be_sparse():
    model = nn.Sequential(nn.Embedding(20, 16, sparse=True), nn.Linear(16, 12), nn.Linear(12, 3))
    result = prune_groups(model, torch.randint(0, 20, (4, 6)), 0.5)
    assert result.form == "modules"
    assert model[0].embedding_dim == 8


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(checkpoint(self.a, x, use_reentrant=reentrant))

    assert prune_groups(Checkpointed(), torch.randn(4, 16), 0.5).form == "modules"


class CastsALayer(Net):
    def write(self, x: Tensor) -> None:
        self.b = self.b.to(x.dtype)


class ReplacesData(Net):
    def write(self, x: Tensor) -> None:
        self.b.bias.data = self.b.bias.data * 1


@pytest.mark.parametrize("look", ["groups", "exported"])
@pytest.mark.parametrize("kind", [CastsALayer, ReplacesData])
def test_a_forward_that_gives_parameters_other_data(kind: type[Net], look: str) -> None:
    model = kind().double()
    before = {name: (each.data_ptr(), each.clone()) for name, each in model.named_parameters()}
    try:
        LOOKS[look](model)
    except ModelError:
        assert (kind, look) != (CastsALayer, "groups")
    for name, each in model.named_parameters():
        assert each.data_ptr() == before[name][0]
        assert torch.equal(each, before[name][1])


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    cached = functools.lru_cache(function)
    return functools.wraps(function)(lambda *given: cached(*given))


@functools.lru_cache
def positions(count: int) -> Tensor:
    return torch.arange(count) / count


@_remembering
def steps(count: int) -> Tensor:
    return torch.ones(count)


class Remembers(Net):
    """Three functions that remember what they gave, and the number of heads in a view."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.heads = nn.Linear(4, 8), 4

    @functools.lru_cache(maxsize=4)  # noqa: B019
    def scale(self, count: int) -> Tensor:
        return torch.full((count,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.c(x).view(len(x), self.heads, -1).sum(-1)
        return h.sum(1, keepdim=True) + positions(len(x))[:, None] + steps(len(x))[:, None] * self.scale(1)


@pytest.mark.parametrize("look", ["groups", "exported"])
def test_functions_that_remember_their_results_remember_none_without_data(look: str) -> None:
    model = Remembers()
    wanted = copy.deepcopy(model).double()(X)
    scale, at = Remembers.__dict__["scale"], positions
    for function in (Remembers.scale, positions):
        function.cache_clear()
    LOOKS[look](model.double())
    assert Remembers.__dict__["scale"] is scale
    assert positions is at
    assert positions.cache_info().currsize == scale.cache_info().currsize == 0
    assert torch.equal(model(X), wanted)


def test_a_network_that_remembers_tensors_keeps_its_class() -> None:
    model = Remembers().double()
    assert prune_groups(model, X, 0.5).form == "modules"
    assert model.heads * model.c.out_features < 32


class Accumulates(nn.Module):
    """What the last call gave comes in again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
        self.state: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        self.state = h if self.state is None else h + 0.5 * self.state.detach()
        return self.b(self.state)


def test_a_network_that_keeps_state_between_calls_is_pruned_and_keeps_it() -> None:
    model = Accumulates().double()
    whole = copy.deepcopy(model)
    result = prune_groups(model, X, 0.5)
    assert (result.form, model.a.out_features, model.state) == ("modules", 3, None)
    gone = ~result.axes["a.weight"][0]
    with torch.no_grad():
        whole.a.weight[gone] = whole.a.bias[gone] = 0
    for step in range(3):
        torch.testing.assert_close(model(X + step), whole(X + step))


def test_no_graph_takes_the_place_of_a_network_that_keeps_state() -> None:
    class Fixed(Accumulates):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.a(x).view(-1, 6) is not None else x

    with pytest.raises(ModelError, match=r"earlier calls decide .* forward of Fixed changes what its next"):
        prune_groups(Fixed().double(), X, 0.5)


def test_the_second_call_is_compared_too() -> None:
    class Forgets(Accumulates):
        def forward(self, x: Tensor) -> Tensor:
            self.state = None
            return super().forward(x)

    keeps, forgets = Accumulates().double(), Forgets().double()
    forgets.load_state_dict(keeps.state_dict())
    cut = Cut({}, {})
    proven(masked_reference(keeps, {}, X), forgets, cut, X)
    with pytest.raises(VerificationError, match="computes something else"):
        proven(masked_reference(keeps, {}, X, calls=2), forgets, cut, X)


def test_random_numbers_are_put_back_and_devices_that_nobody_uses_not_seeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 2)).double()
    before = torch.get_rng_state()

    def seeds_all_devices(seed: int) -> None:
        raise AssertionError("a GPU's generator would not be put back")

    monkeypatch.setattr(torch, "manual_seed", seeds_all_devices)
    prune_groups(model, X, 0.5)
    assert model[0].out_features == 3
    assert torch.equal(torch.get_rng_state(), before)
