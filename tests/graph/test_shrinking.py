"""Taking units out in place: the same function, nothing else changed, and nothing at all where it fails."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.graph import groups, proof, prune_groups, shrink, surgery, traced
from prunekit.graph.coupling_graph import INPUT
from prunekit.graph.l1_pruning import units_left
from prunekit.graph.reference_run import Deviation, VerificationError
from prunekit.masks import Masks
from prunekit.models import LeNet5, LeNet300100, VGGSmall


def flags(units: int, *removed: int) -> Tensor:
    kept = torch.ones(units, dtype=torch.bool)
    kept[list(removed)] = False
    return kept


def every_other(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    return {group.name: torch.arange(group.units) % 2 == 0 for group in groups(model, inputs).prunable}


def small() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip
    model(torch.randn(8, 2, 4, 4))  # statistics that are not the initial ones
    return model


X = torch.linspace(-2, 2, 6 * 2 * 4 * 4, dtype=torch.float64).view(6, 2, 4, 4).sin()
KEPT = {"0": flags(4, 1), "4": flags(5, 0, 3)}


def snapshot(model: nn.Module) -> dict[str, object]:
    """Every object that a module holds, and every attribute's value."""
    return {
        f"{name}.{key}": {k: (id(v), None if v is None else v.detach().clone()) for k, v in value.items()}
        if key in ("_parameters", "_buffers")
        else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
    }


def assert_untouched(model: nn.Module, before: dict[str, object]) -> None:
    after = snapshot(model)
    assert list(after) == list(before)
    for key, value in before.items():
        found = after[key]
        if key.endswith(("_parameters", "_buffers")):
            assert isinstance(value, dict)
            assert isinstance(found, dict)
            assert list(found) == list(value)
            for name, (identity, tensor) in value.items():
                assert found[name][0] == identity, f"{key} {name} is another object"
                assert tensor is None or torch.equal(found[name][1], tensor)
        else:
            assert found == value, key


def test_perceptron_against_numpy() -> None:
    model = nn.Sequential(nn.Linear(6, 7), nn.Sigmoid(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    w1, b1, w2, b2, w3, b3 = (parameter.detach().numpy().copy() for parameter in model.parameters())
    x = np.random.default_rng(0).normal(size=(9, 6))
    first, second = [0, 2, 3, 6], [1, 4]
    hidden = 1 / (1 + np.exp(-(x @ w1[first].T + b1[first])))
    hidden = np.tanh(hidden @ w2[np.ix_(second, first)].T + b2[second])
    expected = hidden @ w3[:, second].T + b3
    shrink(model, torch.from_numpy(x), {"0": flags(7, 1, 4, 5), "2": flags(5, 0, 2, 3)})
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(model[2].weight.detach().numpy(), w2[np.ix_(second, first)])


def test_input_features_against_numpy() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    w1, b1, w2, b2 = (parameter.detach().numpy().copy() for parameter in model.parameters())
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    result = shrink(model, x, {INPUT: flags(12, 0, 5, 11), "1": flags(3, 2)})
    assert result.kept_inputs is not None
    kept = [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert result.kept_inputs.tolist() == kept
    narrow = x.flatten(1)[:, result.kept_inputs]
    expected = np.maximum(narrow.numpy() @ w1[:2][:, kept].T + b1[:2], 0) @ w2[:, :2].T + b2
    np.testing.assert_allclose(model(narrow).detach().numpy(), expected, rtol=1e-12)


def test_input_channels() -> None:
    model = small().eval()
    model[0].weight.data[:, 0] = 0
    with torch.no_grad():
        expected = model(X)
    result = shrink(model, X, {INPUT: flags(2, 0)})
    assert model[0].in_channels == 1
    torch.testing.assert_close(model(X[:, result.kept_inputs]), expected)


@pytest.mark.parametrize(
    ("model", "shape", "hand"),
    [
        (LeNet5((1, 28, 28), 10), (1, 28, 28), 26 * 10 + 251 * 25 + (25 * 16 + 1) * 250 + 251 * 10),
        (LeNet300100((1, 28, 28), 10), (1, 28, 28), 785 * 150 + 151 * 50 + 51 * 10),
        (
            VGGSmall((3, 16, 16), 10, widths=((8, 8), (12,))),
            (3, 16, 16),
            27 * 4 + 8 + 36 * 4 + 8 + 36 * 6 + 12 + 7 * 10,
        ),
    ],
    ids=["lenet5", "lenet_300_100", "vgg_small"],
)
def test_papers_networks(model: nn.Module, shape: tuple[int, ...], hand: int) -> None:
    model = copy.deepcopy(model).double()
    inputs = torch.rand(2, *shape)
    result = shrink(model, inputs, every_other(model, inputs))
    assert result.parameters_after == hand == sum(parameter.numel() for parameter in model.parameters())
    assert result.deviation.accepted
    assert all(group.after == (group.before + 1) // 2 for group in result.groups)


def test_everything_else_stays() -> None:
    model = small()
    model[4].weight.requires_grad_(False)
    model[1].eval()
    model[0].weight.mark = "mine"  # type: ignore[attr-defined]
    layers, last_bias = list(model), model[6].bias
    state = {name: value.clone() for name, value in model.state_dict().items()}
    shrink(model, X, KEPT)
    assert list(model) == layers
    assert model[6].bias is last_bias
    assert model[0].weight.mark == "mine"
    assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["4.weight"]
    assert list(model.state_dict()) == list(state)
    assert torch.equal(model[1].running_var, state["1.running_var"][KEPT["0"]])
    assert torch.equal(model[1].num_batches_tracked, state["1.num_batches_tracked"])
    sizes = (model[0].out_channels, model[1].num_features, model[4].in_features, model[4].out_features)
    assert sizes == (3, 3, 48, 3)
    assert model[6].in_features == 3
    assert torch.equal(model[0].weight, state["0.weight"][KEPT["0"]])


def test_batch_norm_without_numbers_of_its_own() -> None:
    model = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False), nn.Linear(4, 2)
    )
    shrink(model, torch.randn(5, 3), {"0": flags(4, 0)})
    assert model[1].num_features == 3


def test_memory_format_and_precision_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    model = model.to(memory_format=torch.channels_last, dtype=torch.bfloat16)  # type: ignore[call-overload]
    shrink(model, torch.randn(2, 3, 8, 8, dtype=torch.bfloat16), {"0": flags(6, 1)})
    assert model[2].weight.dtype == torch.bfloat16
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last)
    assert not model[2].weight.is_contiguous()


def test_keeping_everything_changes_nothing() -> None:
    model = small()
    before = snapshot(model)
    result = shrink(model, X, {"0": flags(4), "4": flags(5)})
    assert_untouched(model, before)
    assert result.deviation.largest == 0
    assert result.parameters_before == result.parameters_after


def test_weight_masks_are_applied_and_shrink_along() -> None:
    model = small()
    chosen = {name: torch.rand_like(p) < 0.5 for name, p in model.named_parameters() if p.dim() > 1}
    masks = Masks(chosen)
    expected = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, mask in chosen.items():
            expected.get_parameter(name).mul_(mask)
        expected[4].weight.view(5, 4, 16)[:, 1] = 0
        expected[6].weight[:, [0, 3]] = 0
    last = model[6]
    result = shrink(model, X, KEPT, masks=masks)
    model.eval()
    torch.testing.assert_close(model(X), expected(X))
    assert result.masks["6.weight"].shape == last.weight.shape == (3, 3)
    assert torch.equal(result.masks["6.weight"], chosen["6.weight"][:, KEPT["4"]])
    assert not model[4].weight[~result.masks["4.weight"]].any()


def test_training_continues() -> None:
    model = small()
    shrink(model, X, KEPT)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed >= set(before) - {"0.bias"}  # a batch norm takes away what that bias adds


def test_parameters_can_be_trained_after_inference_mode() -> None:
    model = small()
    with torch.inference_mode():
        shrink(model, X, KEPT)
    model(X).sum().backward()
    assert model[0].weight.grad is not None


def test_copies_and_pickles_afterwards() -> None:
    model = small().eval()
    shrink(model, X, KEPT)
    assert torch.equal(copy.deepcopy(model)(X), model(X))
    assert torch.equal(pickle.loads(pickle.dumps(model))(X), model(X))


def test_random_numbers_are_not_taken() -> None:
    model = small()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    shrink(model, X, KEPT)
    assert torch.equal(torch.rand(4), expected)


def test_model_is_untouched_where_the_proof_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    masks = Masks({"6.weight": torch.rand(3, 5) < 0.5, "0.bias": flags(4, 2)})
    before = snapshot(model)
    monkeypatch.setattr(proof, "_deviation", lambda *_, **__: Deviation(1, 1, 0, "output 0"))
    with pytest.raises(VerificationError, match=r"output 0 is off by 1 .*; the model is as it was"):
        shrink(model, X, KEPT, masks=masks)
    assert_untouched(model, before)


def test_model_is_untouched_where_the_proof_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    before = snapshot(model)

    def interrupted(*given: object, **named: object) -> Deviation:
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "_deviation", interrupted)
    with pytest.raises(KeyboardInterrupt):
        shrink(model, X, KEPT)
    assert_untouched(model, before)


def test_wrong_slices_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that keeps the right number of units but the wrong ones does not pass."""
    model = small()
    before = snapshot(model)
    right = surgery.axes_after

    def wrong(*given: object) -> dict[str, dict[int, Tensor]]:
        axes = right(*given)  # type: ignore[arg-type]
        axes["6.weight"][1] = axes["6.weight"][1].roll(1)
        return axes

    monkeypatch.setattr(surgery, "axes_after", wrong)
    with pytest.raises(VerificationError, match="computes something else than the masked one"):
        shrink(model, X, KEPT)
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("kept", "inputs", "why"),
    [
        ({"0": flags(4, 0, 1, 2, 3)}, X, "removes all 4 units"),
        ({"0": flags(9)}, X, "the group has 4 units"),
        ({"8": flags(3, 0)}, X, "no group is named '8'; there are '0', '4', '6'"),
        (KEPT, X[:0], "at least one example"),
        (KEPT, (X, X), "example_inputs do not fit the network's forward"),
        (KEPT, "X", "must be a tensor, a tuple or a dict"),
    ],
)
def test_bad_input(kept: dict[str, Tensor], inputs: Tensor, why: str) -> None:
    model = small()
    before = snapshot(model)
    with pytest.raises(InputError, match=why):
        shrink(model, inputs, kept)
    assert_untouched(model, before)


def test_masks_of_another_model() -> None:
    with pytest.raises(InputError, match="belong to another model"):
        shrink(small(), X, KEPT, masks=Masks({"6.weight": flags(5)}))


def test_inputs_of_another_shape() -> None:
    model = small()
    before = snapshot(model)
    with pytest.raises(ModelError, match="expected input"):
        shrink(model, X[:, :1], KEPT)
    assert_untouched(model, before)


def test_the_last_layer_s_units_are_the_network_s_outputs() -> None:
    model = small()
    before = snapshot(model)
    with pytest.raises(ModelError, match="units of '6' cannot be taken out: is the network's output"):
        shrink(model, X, {"6": flags(3, 0)})
    assert_untouched(model, before)


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mid, self.out = nn.Conv2d(1, 3, 2), nn.Linear(12, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mid(self.conv(x).view(-1, 12)))


def test_units_that_forward_counts() -> None:
    """12 numbers are written into forward: the graph, with 8 in their place, takes the network's."""
    model, x = Written(), torch.randn(2, 1, 3, 3)
    masked = copy.deepcopy(model)
    result = shrink(model, x, {"conv": flags(3, 0)})
    assert result.form == "graph"
    masked.mid.weight.data[:, :4] = 0
    torch.testing.assert_close(result.model(x), masked(x))
    assert model.mid.in_features == 12
    shrink(model, x, {"conv": flags(3), "mid": flags(4, 0)})
    assert model.mid.out_features == 3


@pytest.mark.parametrize("others", [2, 5])
def test_a_plan_that_was_made_with_other_examples_will_do(others: int) -> None:
    """Also where the graphs are run, which are made for one shape: for sizes in forward, and layer norms."""
    model, x = Written(), torch.randn(3, 1, 3, 3)
    found = traced(model, torch.randn(others, 1, 3, 3))
    result = shrink(model, x, {"conv": flags(3, 0)}, found=found)
    assert result.model(x).shape == (3, 2)
    normed = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    found = traced(normed, torch.randn(others, 4))
    assert shrink(normed, torch.randn(3, 4), {"0": flags(6, 2)}, found=found).deviation.accepted


def test_values_are_written_before_units_go() -> None:
    """A unit that is constantly tanh(0.5) goes, once the next bias holds what it gave."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0.5
        bias = model[2].bias + model[2].weight[:, 1] * torch.tanh(model[0].bias[1])
        expected = model(x := torch.randn(5, 3, dtype=torch.float64))
    before = snapshot(model)
    with pytest.raises(VerificationError, match="computes something else"):
        shrink(model, x, {"0": flags(4, 1)}, values={"2.bias": bias + 1e-6})
    assert_untouched(model, before)
    shrink(model, x, {"0": flags(4, 1)}, values={"2.bias": bias})
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-14)


def test_table_fits_80_columns() -> None:
    model = nn.Sequential()
    model.add_module("a_name_" + "so_long_" * 12, nn.Linear(3, 4))
    model.add_module("out", nn.Linear(4, 2))
    inputs = torch.randn(2, 3)
    table = str(shrink(model, inputs, every_other(model, inputs)))
    assert all(len(line) <= 80 for line in table.splitlines())
    assert table.splitlines()[2].split() == ["parameters", "26", "14", "53.8%"]


class Residual(nn.Module):
    def __init__(self, act=nn.ReLU, norm=True):
        super().__init__()
        self.into = nn.Conv2d(2, 4, 3, padding=1)
        self.up = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.down = nn.Conv2d(6, 4, 3, padding=1)
        self.act, self.fc = act(), nn.Linear(4, 3)

    def forward(self, x):
        x = self.into(x)
        return self.fc((x + self.down(self.act(self.norm(self.up(x))))).mean((2, 3)))


INPUTS = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(("multiple", "left"), [(1, 3), (2, 4), (4, 4)])
def test_widths_are_multiples(multiple, left):
    result = prune_groups(Residual().eval(), INPUTS, 0.5, round_to=multiple)
    assert [(group.name, group.after) for group in result.groups] == [("up", left)]


class Apart(nn.Module):
    """A layer whose first 4 and last 28 outputs are read by two others."""

    def __init__(self):
        super().__init__()
        self.u, self.a, self.b = nn.Linear(6, 32), nn.Linear(4, 3), nn.Linear(28, 3)

    def forward(self, x):
        y = self.u(x)
        return self.a(y[:, :4]) + self.b(y[:, 4:])


def test_parts_of_a_layer_add_up_to_a_multiple():
    result = prune_groups(Apart(), torch.randn(2, 6), 0.5, round_to=8)
    assert result.model.get_parameter("u.weight").shape[0] == 16


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    share=st.floats(0, 0.99),
    round_to=st.integers(1, 12),
)
def test_what_stays_is_a_multiple_or_all_and_no_less_than_was_asked(sizes, share, round_to):
    left = units_left(sizes, share, round_to)
    asked = [max(size - int(size * share), 1) for size in sizes]
    assert sum(left) % round_to == 0 or sum(left) == sum(sizes)
    assert all(least <= stay <= size for least, stay, size in zip(asked, left, sizes, strict=True))


def test_a_network_without_values_is_refused_by_name():
    model = Residual().eval()
    model.up.to("meta")
    with pytest.raises(ModelError, match=r"up\.weight is on the meta device and has no values"):
        prune_groups(model, INPUTS, 0.5)


def test_a_group_smaller_than_the_multiple_stays_whole():
    result = prune_groups(Residual().eval(), INPUTS, 0.9, round_to=8)
    assert result.groups == ()
    assert result.parameters_after == result.parameters_before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"round_to": 0}, "round_to must be at least 1, got 0"),
        ({"round_to": "8"}, "round_to must be at least 1, got '8'"),
        ({"sparsity": "half"}, r"sparsity must be in \[0, 1\), got 'half'"),
        ({"kinds": ["filter"]}, "no groups are of the kind 'filter'; kinds are: heads, head width"),
        ({"ignore": ["nothing"]}, "ignore: 'nothing' matches no module and no parameter"),
        ({"ignore": "up"}, "ignore must be a list"),
        ({"kinds": ["heads"]}, "no group of the kind heads can be pruned in this network, but filters can"),
        ({"ignore": ["*"]}, "nothing of this network can be pruned: .*ignore"),
    ],
)
def test_what_cannot_be_done_is_refused_and_nothing_is_changed(settings, message):
    model = Residual().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((InputError, ModelError), match=message):
        prune_groups(model, INPUTS, **{"sparsity": 0.5, **settings})
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_inputs_that_do_not_fit_are_refused_and_nothing_is_changed():
    model = Residual().eval()
    before = copy.deepcopy(model.state_dict())
    for inputs, message in (
        (torch.zeros(2, 3, 5, 5), r"expected input.* to have 2 channels, but got 3 .*, at line \d+ of"),
        ((INPUTS, INPUTS), "do not fit the network's forward: too many positional"),
        ({"y": INPUTS}, "do not fit the network's forward: missing a required argument: 'x'; it takes x"),
        (7, "must be a tensor, a tuple or a dict of named arguments, not int"),
    ):
        with pytest.raises((InputError, ModelError), match=message):
            prune_groups(model, inputs, 0.5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
