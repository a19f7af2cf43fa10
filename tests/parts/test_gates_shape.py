"""A target shape for gates: densities by patterns of groups or layers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.regularize import L0, VIB, Regularizer
from prunekit.parts.regularize.gating import Gating
from prunekit.study import Study, run_study
from small_nets import blobs, copied, mlp, same
from tiny_study import settings as study_settings
from tiny_study import table


def attached(model: nn.Module, lr: float = 1e-3, **settings: Any) -> tuple[Gating, torch.optim.Optimizer]:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    (handle,) = Regularizer.build(settings).attach(model, optimizer)
    return handle, optimizer


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: tuple[Tensor, Tensor], steps: int
) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


def shares(handle: Gating) -> dict[str, float]:
    """How far the gates of each group are open, by NumPy: P(gate != 0), or the share of signal."""
    found = {}
    for name, learned in zip(handle.gates.names, handle.gates.learned, strict=True):
        first, *others = (each.detach().double().numpy() for each in learned)
        if others:
            found[name] = float((first**2 / (first**2 + np.exp(others[0]))).mean())
        else:
            found[name] = float((1 / (1 + np.exp(2 / 3 * np.log(0.1 / 1.1) - first))).mean())
    return found


SHAPES: list[dict[str, Any]] = [
    {"name": "l0", "inputs": True, "density": {"input": 0.1, "0": 0.05, "2": 0.2}},
    {"name": "l0", "of": "weights", "density": {"0": 0.02, "2.weight": 0.01, "4": 0.3}},
    {"name": "vib", "inputs": True, "strength": 0.01, "density": {"input": 0.4, "0": 0.1, "2": 0.3}},
]


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_every_group_comes_to_its_density(settings: dict[str, Any]) -> None:
    """Within 1 % before the gates are ranked, and exactly when they are."""
    model, data = mlp(40, 60, 40, 3), blobs(256, 40, 3)
    handle, optimizer = attached(model, lr=0.1 if "of" in settings else 0.05, ramp=600, **settings)
    for group in optimizer.param_groups[:1]:
        group["lr"] = 1e-3
    trained(model, optimizer, data, 2000)
    found = shares(handle)
    wanted = dict(zip(found, settings["density"].values(), strict=True))
    assert found == pytest.approx(wanted, abs=0.01)
    layers = [model[0], model[2], model[4]]
    handle.remove()
    if "of" in settings:
        left = [float((layer.weight != 0).double().mean()) for layer in layers]
        sizes = [layer.weight.numel() for layer in layers]
    else:  # the gates of units multiply the columns of what reads them
        left = [float((layer.weight != 0).any(0).double().mean()) for layer in layers]
        sizes = [40, 60, 40]
    assert left == [round(share * size) / size for share, size in zip(wanted.values(), sizes, strict=True)]


def test_groups_of_one_pattern_share_a_density() -> None:
    """As those of all do, of which `*` is the pattern."""
    states = []
    for density in ({"*": 0.3}, 0.3):
        model = mlp(10, 20, 12, 3)
        torch.manual_seed(0)
        handle, optimizer = attached(model, name="l0", density=density, lr=0.2, ramp=20)
        trained(model, optimizer, blobs(), 60)
        handle.remove()
        states.append(copied(model))
    assert same(*states)
    assert sum(int((model[layer].weight != 0).any(0).sum()) for layer in (2, 4)) == round(0.3 * 32)


@pytest.mark.parametrize("name", ["l0", "vib"])
def test_what_no_pattern_fits_has_no_gates(name: str) -> None:
    model = mlp(10, 20, 12, 3)
    handle, optimizer = attached(model, name=name, density={"2": 0.25}, lr=0.2, ramp=20)
    assert handle.gates.names == ("2",)
    trained(model, optimizer, blobs(), 40)
    handle.remove()
    assert [int((model[layer].weight != 0).any(0).sum()) for layer in (2, 4)] == [20, 3]


def test_the_penaltys_gradient_is_that_of_finite_differences() -> None:
    """Of a Lagrangian for each pattern, written as a loop over them."""
    model = mlp(10, 8, 6, 3, dtype=torch.float64)
    handle, _ = attached(model, name="l0", inputs=True, density={"input": 0.2, "re:[02]": 0.4}, ramp=1000)
    gates = handle.gates
    gates.ran.fill_(True)
    gates.steps.fill_(500)
    multipliers = [(0.3, 0.2), (-0.1, 0.7)]
    for lagrangian, values in zip(gates.lagrangians, multipliers, strict=True):
        lagrangian.multipliers += torch.tensor(values)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for (location,) in gates.learned:
            location.copy_(2 * torch.randn(location.shape, generator=generator))

    def penalty() -> float:
        by_group = shares(handle)
        led = [by_group["input"], (8 * by_group["0"] + 6 * by_group["2"]) / 14]
        total = 0.0
        for share, wanted, (linear, squared) in zip(led, (0.2, 0.4), multipliers, strict=True):
            excess = share - (1 - (1 - wanted) * 0.5)
            total += linear * excess + (100 + squared) * excess**2
        return total

    wanted = []
    for (location,) in gates.learned:
        for entry in location.detach().view(-1):
            at = float(entry)
            ends = []
            for place in (at + 1e-5, at - 1e-5):
                entry.fill_(place)
                ends.append(penalty())
            entry.fill_(at)
            wanted.append((ends[0] - ends[1]) / 2e-5)
    handle._before_step()
    found = [float(each) for (location,) in gates.learned for each in location.grad]
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"density": {}}, "l0: density: a share, or shares by patterns of groups or layers, are needed"),
        ({"density": {0: 0.5}}, "shares by patterns of groups or layers, are needed"),
        (
            {"density": {"0": 0.5, "2": 1.0}},
            "l0: density: a share above 0 and below 1 is needed of '2', not 1.0",
        ),
        ({"density": {"0": 0}}, "below 1 is needed of '0', not 0"),
        ({"density": {"0": True}}, "is needed of '0', not True"),
        ({"density": {"0": "half"}}, "is needed of '0', not 'half'"),
        ({"density": 1}, "l0: density: a share above 0 and below 1 is needed, not 1"),
        ({"density": float("nan")}, "below 1 is needed, not nan"),
        ({"density": {"0": 0.5}, "strength": 0.1}, "give either 'strength'"),
        ({"density": {"0": 0.5}, "counts": "macs"}, "leave 'counts' at 'gates'"),
    ],
    ids=str,
)
def test_densities_that_are_none_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        L0.parse(settings)


@pytest.mark.parametrize(
    ("density", "said"),
    [
        (
            {"0": 0.5, "fc1": 0.5},
            "density: 'fc1' matches no group or layer that can have gates; they are: 0, 2$",
        ),
        ({"input": 0.5}, "'input' matches no group"),
        ({"[0-2]": 0.5, "2": 0.5}, r"density: '\[0-2\]' and '2' both match 2: let only one of them match"),
        ({"re:(": 0.5}, "'re:\\(' is not a regular expression"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [L0, VIB])
def test_patterns_that_fit_nothing_or_the_same_are_refused_before_anything_is_changed(
    kind: Any, density: dict[str, float], said: str
) -> None:
    model = mlp(10, 8, 6, 3)
    before, keys = copied(model), list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(InputError, match=said):
        kind(density=density).attach(model, optimizer, Masks({}))
    assert same(before, copied(model))
    assert list(model.state_dict()) == keys
    assert len(optimizer.param_groups) == 1


def test_a_frozen_layers_gates_cannot_be_named() -> None:
    model = mlp(10, 8, 6, 3)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], 0.1)
    with pytest.raises(InputError, match="'0' matches no group or layer that can have gates; they are: 2, 4"):
        L0(of="weights", density={"0": 0.5}).attach(model, optimizer)


@pytest.mark.usefixtures("no_report")
def test_a_study_of_a_shape_in_yaml(tmp_path: Path) -> None:
    recipe = yaml.safe_load("""
        granularity: {name: unit, inputs: true}
        score: outgoing_norm
        allocation: {name: zeros, floor: 0}
        schedule: allocation_decides
        warm_up:
          iterations: 40
          lr: 0.01
          regularize: [{name: l0, inputs: true, density: {input: 0.5, "*1": 0.25}, lr: 0.2}]
    """)
    study = study_settings(
        seeds=1, model={"name": "mlp", "hidden": [8, 6]}, methods={"gates": {"recipe": recipe}}, controls={}
    )
    run_study(Study.parse(yaml.safe_load(yaml.safe_dump(study))), tmp_path, workers=1)
    kept = {row["layer"]: row["kept"] for row in table(tmp_path / "layers.csv")}
    assert kept == {"input": "2", "fc1": "2", "fc2": "6"}
