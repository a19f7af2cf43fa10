"""Every setting of every method, and of every part of a recipe, with numbers that are none or far too large.

Each is accepted, and works on a tiny network, or is refused in one line that names the setting, before the
network is touched. `python tests/fuzz/bad_numbers.py` runs the full product, in order, and prints the counts.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import harness

from prunekit.errors import DataError, InputError, ModelError, PrunekitError, shown
from prunekit.methods import METHODS
from prunekit.models import Maxout
from prunekit.parts.allocation import Allocation
from prunekit.parts.base import Part
from prunekit.parts.granularity import Granularity
from prunekit.parts.grow import Grow
from prunekit.parts.quantize import Quantizer
from prunekit.parts.regularize import Regularizer
from prunekit.parts.repair import Repair
from prunekit.parts.retrain import Retrain
from prunekit.parts.schedule import Schedule
from prunekit.parts.scores import Score
from prunekit.parts.selection import Selection
from prunekit.parts.stopping import Stop
from prunekit.pruning import prune
from prunekit.recipe import Recipe
from prunekit.training import Training, TrainingError
from residual_nets import Residual
from small_nets import blobs, mlp

VALUES: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, -0.0, 0, 1, 1.5, 40, 1e-308, 1e300, 1e308, 2**31, 2**63, 2**80,
    10**5000, True, False, None, "0.5", "x", "", [0.5], [], {}, 1j, (1, 2), b"1", object,
    np.float64(0.5), np.float32("nan"), np.int64(2), np.uint8(1), np.bool_(True), np.array([1.0, 2.0]),
    torch.tensor(0.5), torch.tensor([1, 2]),
)  # fmt: skip

SHORT = {"epochs": 1, "rounds": 2, "cycles": 2, "steps": 2, "every": 40}
FAMILIES: dict[str, type[Part]] = {
    "score": Score,
    "granularity": Granularity,
    "allocation": Allocation,
    "schedule": Schedule,
    "selection": Selection,
    "repair": Repair,
    "retrain": Retrain,
    "grow": Grow,
    "quantize": Quantizer,
    "stop": Stop,
}
FILL = {
    "sparsity": 0.5, "steps": 2, "every": 40, "values": [0.2, 0.5], "q": 0.5, "rate": 0.2, "limit": 10.0,
    "sparsities": {"*": 0.5}, "strength": 0.001, "removed": ({"0.weight": 9, "2.weight": 9, "4.weight": 9},),
    "bytes": 10_000,
}  # fmt: skip
"""What the settings without a default are, where another one is tried."""

BASES: tuple[dict[str, Any], ...] = (
    {"schedule": {"name": "one_shot", "sparsity": 0.5}},
    {"schedule": {"name": "one_shot", "sparsity": 0.5}, "allocation": "per_layer"},
    {"schedule": {"name": "one_shot", "sparsity": 0.5}, "granularity": "unit"},
    {"schedule": "allocation_decides", "allocation": "none"},
    {
        "schedule": {"name": "one_shot", "sparsity": 0.5},
        "granularity": "maxout_piece",
        "score": "maxout_wins",
    },
    {
        "schedule": {"name": "constant", "sparsity": 0.5, "steps": 2},
        "regrow": True,
        "grow": "random",
    },
)
"""Recipes in which a part is tried: the first one that it works in with its defaults."""


@dataclass(frozen=True)
class Place:
    """A setting, and how a value of it becomes a recipe."""

    owner: str
    setting: str
    key: str
    """As the setting is called where it stands, such as `epochs` of a part's training."""

    def recipe(self, value: Any) -> Recipe:
        if self.owner.startswith("method "):
            method = METHODS[self.owner.removeprefix("method ")]
            allowed = inspect.signature(method).parameters
            given: dict[str, Any] = {name: number for name, number in SHORT.items() if name in allowed}
            inner = {self.key: value} if self.setting == "training" else value
            return method(**{**given, self.setting: inner})
        if self.owner == "recipe":
            return Recipe.parse({**BASES[0], "retrain": SHORT_TRAINING, self.key: value})
        base, part = base_of(self.owner)
        family = self.owner.partition(" ")[0]
        if family == "regularizer":
            return _regularized({**part, self.key: value})
        return Recipe.parse({**base, family: {**part, self.key: value}})


MAKING = ("sparsity", "initial", "rounds", "pieces", "steps", "rate", "cycles", "every")
"""Settings that a sparsity is made of, which can be too high for a network's layers, or none."""

SHORT_TRAINING = {"name": "fine_tune", "training": {"epochs": 1}}


def _regularized(part: Mapping[str, Any]) -> Recipe:
    training = {"epochs": 1, "regularize": [part]}
    if part["name"] in ("l0", "vib"):  # they are for a training before the first removal
        return Recipe.parse({**BASES[0], "warm_up": training})
    return Recipe.parse({**BASES[0], "retrain": {"name": "fine_tune", "training": training}})


@cache
def base_of(owner: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe that the part works in with its defaults, and these."""
    family, _, name = owner.partition(" ")
    kind = Regularizer.members()[name] if family == "regularizer" else FAMILIES[family].members()[name]
    needed = {key for key, field in kind.model_fields.items() if field.is_required()}
    part = {"name": name, **{key: FILL[key] for key in needed}}
    part |= {"geometric": {"sparsity": 0.5}, "error_limit": {"limit": 10.0}, "l0": {"strength": 0.1}}.get(
        name, {}
    )
    if "training" in kind.model_fields:
        part["training"] = {"epochs": 1}
    for base in BASES:
        try:
            if family != "regularizer":
                tried(Recipe.parse({**base, family: part}))
            return base, part
        except PrunekitError:
            continue
    return BASES[0], part


def places() -> Iterator[Place]:
    """Every setting there is."""
    for name, method in METHODS.items():
        for setting in inspect.signature(method).parameters:
            if setting == "training":
                yield from (Place(f"method {name}", setting, key) for key in numeric(Training))
            else:
                yield Place(f"method {name}", setting, setting)
    for family, kind in (*FAMILIES.items(), ("regularizer", Regularizer)):
        for name, member in sorted(kind.members().items()):
            if member.__module__.startswith("prunekit."):
                yield from (Place(f"{family} {name}", key, key) for key in numeric(member))
    yield from (Place("recipe", key, key) for key in ("retrain_every", "calibration"))


def numeric(kind: type) -> list[str]:
    """The fields that hold numbers."""

    def leaves(annotation: Any) -> set[Any]:
        parts = () if get_origin(annotation) is Callable else get_args(annotation)  # its arguments are a list
        return set().union(*map(leaves, parts)) if parts else {annotation}

    fields = kind.model_fields.items()  # type: ignore[attr-defined]
    return [key for key, field in fields if leaves(field.annotation) & {int, float}]


PLACES = tuple(places())
COUNT = len(PLACES) * len(VALUES)


def network(recipe: Recipe, name: str = "") -> nn.Sequential:
    """A tiny network that has what the recipe looks at."""
    if recipe.granularity.counts == "pieces":
        torch.manual_seed(0)
        return nn.Sequential(Maxout(nn.Linear(12, 16), 4), nn.Linear(4, 4))
    granularity = recipe.granularity
    if granularity.name == "filter_shape" or "filters" in (getattr(granularity, "kinds", None) or ()):
        torch.manual_seed(0)
        convolution = nn.Conv2d(3, 8, 2)
        return nn.Sequential(
            nn.Unflatten(1, (3, 2, 2)), convolution, nn.ReLU(), nn.Flatten(), nn.Linear(8, 4)
        )
    if granularity.name == "block":
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 8), *(Residual(8, 6) for _ in range(4)), nn.Linear(8, 4))
    model = mlp(12, 8, 8, 4)
    if recipe.score.name == "norm_scale":
        for place in (3, 1):
            model.insert(place, nn.BatchNorm1d(model[place - 1].out_features))
    return model


def bits(model: nn.Module) -> list[tuple[str, bool, Tensor]]:
    """All that a network holds."""
    modes = [(name, module.training, torch.empty(0)) for name, module in model.named_modules()]
    values = [*model.named_parameters(), *model.named_buffers()]
    return modes + [(name, value.requires_grad, value.detach().clone()) for name, value in values]


def equal(one: list[tuple[str, bool, Tensor]], other: list[tuple[str, bool, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        a[:2] == b[:2] and torch.equal(a[2].view(-1).view(torch.uint8), b[2].view(-1).view(torch.uint8))
        for a, b in zip(one, other, strict=True)
    )


def tried(recipe: Recipe) -> nn.Module:
    """A tiny network that was pruned so."""
    model = network(recipe)
    step = recipe.retrain.checkpoint
    initial = {} if step is None else {step: {k: v.clone() for k, v in model.state_dict().items()}}
    before, generator = bits(model), torch.get_rng_state()
    try:
        teacher = network(recipe) if recipe.learns_from_given else None
        prune(model, recipe, blobs(64, 12, 4), checkpoints=initial, seed=1, teacher=teacher)
    except BaseException:
        assert equal(bits(model), before), "the model was changed before the error"
        raise
    finally:
        assert torch.equal(torch.get_rng_state(), generator), "torch's generator was moved"
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters()), "accepted, but NaN or inf"
    return model


def case(number: int) -> str:
    """The outcome for one setting and one value."""
    place, value = PLACES[number // len(VALUES)], VALUES[number % len(VALUES)]
    what = f"{place.owner}, {place.setting} {place.key} = {shown(value)}"
    try:
        recipe = place.recipe(value)
        tried(recipe)
    except (InputError, ModelError, DataError) as error:
        if place.key == "lr" and not isinstance(error, InputError):  # seen by the next step
            return _said(error, what, "diverged, put back")
        named = place.key in str(error) or (place.setting in MAKING and "sparsity" in str(error))
        return _said(error, what, "refused" if named else "")
    except TrainingError as error:
        return _said(error, what, "diverged, put back")
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None
    except BaseException as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:200]}") from None
    return "accepted"


def _said(error: Exception, what: str, outcome: str) -> str:
    text = str(error)
    if "\n" in text or len(text) > 1000:
        raise AssertionError(f"{what}: no line of a usual length: {text[:200]}")
    if not outcome:
        raise AssertionError(f"{what}: not named in {text!r}")
    return outcome


def make_case(folder: Path) -> harness.Case:
    """What torch imports and sets up at its first calls is none of a case's doing."""
    torch.set_num_threads(1)
    for place in PLACES:
        if place.owner.startswith("method "):
            warm(place.owner)
        elif place.owner != "recipe":
            base_of(place.owner)
    return case


@cache
def warm(owner: str) -> None:
    method = METHODS[owner.removeprefix("method ")]
    allowed = inspect.signature(method).parameters
    tried(method(**{name: number for name, number in SHORT.items() if name in allowed}))


if __name__ == "__main__":
    harness.main("settings with bad numbers", make_case, COUNT)
