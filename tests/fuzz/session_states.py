"""Damaged states of sessions: each is refused, with nothing changed, or loaded as it was saved.

`python tests/fuzz/session_states.py` damages the states of sessions of several kinds, in one place or two.
Half of them have lost their digest, so that only what the state says can tell that it is wrong; what is
loaded then agrees with itself, and the session goes on from it.
"""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import harness

from prunekit.errors import InputError, PrunekitError
from prunekit.pruning import Session
from small_nets import blobs, mlp, recipe

LINEAR = {"name": "linear", "sparsity": 0.6, "steps": 3}
KINDS: tuple[dict[str, Any], ...] = (
    {"schedule": LINEAR},
    {"schedule": LINEAR, "score": "random", "retrain": {"name": "rewind", "step": 1}},
    {"schedule": LINEAR, "score": "weight_gradient", "rank": "once", "calibration": 32},
    {
        "schedule": LINEAR,
        "score": "layer_obs",
        "repair": "masked_least_squares",
        "rank": "once",
        "statistics": "once",
        "calibration": 32,
    },
    {"schedule": LINEAR, "granularity": "unit", "order": "forward", "allocation": "per_layer"},
    {"schedule": LINEAR, "stop": {"name": "error_limit", "increase": 5.0}, "calibration": 32},
    {"schedule": LINEAR, "stop": {"name": "error_limit", "increase": 0.0}, "calibration": 32},
    {
        "schedule": LINEAR,
        "stop": {"name": "error_limit", "increase": 0.0, "roll_back": False},
        "calibration": 32,
    },
    {"schedule": LINEAR, "regrow": True, "allocation": "per_layer"},
    {"schedule": LINEAR, "score": "movement", "retrain": "distill"},
)
BAD: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 1.5, math.nan, math.inf, 2**63, 2**80, "", "x", [], {}, [1],
    {"a": 1}, {1: 2}, b"1", object(), torch.tensor(1), torch.zeros(2, 2), torch.full((3, 16), math.nan),
)  # fmt: skip


def session_of(kind: int, *, steps: int, seed: int = 0) -> tuple[Session, SGD]:
    """A session that was attached for some optimizer steps, every other of which prunes."""
    inputs, targets = blobs(32)
    model = mlp(10, 8, 3, seed=seed)
    optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
    session = recipe(**KINDS[kind]).attach(model, optimizer, data=(inputs, targets), seed=3, every=2)
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return session, optimizer


@cache
def saved(kind: int, steps: int) -> dict[str, Any]:
    return session_of(kind, steps=steps)[0].state_dict()


def equal(one: Any, other: Any) -> bool:
    """Whether two states say the same, bit for bit; keys are in any order, lists are tuples."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype
        return same and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and (one == other or (one != one and other != other))


# ---- damage ------------------------------------------------------------------------------------------------


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        found.append((value, key))
        found += places(each)
    return found


def damage(state: dict[str, Any], draw: random.Random) -> str:
    """Change a state in one place; what was done."""
    inside = [place for place in places(state) if not (place[0] is state and place[1] == "recipe")]
    deep = [place for place in inside if isinstance(place[0][place[1]], Tensor)]
    where, key = draw.choice(deep if deep and draw.random() < 0.3 else inside)
    value = where[key]
    ways: list[Callable[[], Any]] = [lambda: draw.choice(BAD)]
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
        ways += [lambda way=way: way(value, draw) for way in TENSORS] * 2
    elif isinstance(value, bool):
        ways += [lambda: not value]
    elif isinstance(value, int | float):
        ways += [
            lambda: value + 1,
            lambda: value - 1,
            lambda: -value - 1,
            lambda: float(value),
            lambda: value * 2,
        ]
    elif isinstance(value, list):
        ways += [lambda: value[:-1], lambda: value + value[-1:], lambda: value[::-1], lambda: tuple(value)]
    elif isinstance(value, dict):
        ways += [
            lambda: dict(reversed(value.items())),
            lambda: {**value, "more": 1},
            lambda: dict(list(value.items())[1:]),
            lambda: {f"{name}x": each for name, each in value.items()},
            lambda: list(value.items()),
        ]
    elif value is None:
        ways += [lambda: 0.5, lambda: copy.deepcopy(state["masks"])]
    if draw.random() < 0.1:
        del where[key]
        return f"no {key!r}"
    where[key] = draw.choice(ways)()
    return f"{key!r} is {str(where[key])[:60]!r}"


def _flipped(value: Tensor, draw: random.Random) -> Tensor:
    value = value.clone()
    if value.numel():
        value.view(-1)[draw.randrange(value.numel())] = not bool(value.view(-1)[0])
    return value


def _swapped(value: Tensor, draw: random.Random) -> Tensor:
    return value.flip(-1) if value.dim() else value


def _poisoned(value: Tensor, draw: random.Random) -> Tensor:
    value = value.clone() if value.is_floating_point() else value.float()
    value.view(-1)[: draw.randrange(1, 4)] = math.nan
    return value


TENSORS: tuple[Callable[[Tensor, random.Random], Any], ...] = (
    _flipped,
    _swapped,
    _poisoned,
    lambda value, draw: value.double(),
    lambda value, draw: value.to(torch.int32),
    lambda value, draw: value.bool(),
    lambda value, draw: value[:-1] if value.dim() else value,
    lambda value, draw: value.reshape(-1, 1),
    lambda value, draw: value.unsqueeze(0),
    lambda value, draw: torch.ones_like(value),
    lambda value, draw: torch.zeros_like(value),
    lambda value, draw: value.to("meta"),
    lambda value, draw: value.to_sparse() if value.dim() else value,
    lambda value, draw: value.tolist(),
)


# ---- what comes of it --------------------------------------------------------------------------------------


def case(number: int) -> str:
    """The outcome of one damaged state."""
    draw = random.Random(number)
    kind, steps = draw.randrange(len(KINDS)), draw.choice([0, 1, 2, 3, 4, 5, 6, 8])
    original = saved(kind, steps)
    state = copy.deepcopy(original)
    done = [damage(state, draw) for _ in range(draw.choice([1, 1, 1, 2]))]
    with_digest = draw.random() < 0.5
    if not with_digest:
        state.pop("sha256", None)
    if draw.random() < 0.03:  # of another model, recipe or seed
        other = draw.randrange(len(KINDS))
        state, done = copy.deepcopy(saved(other, steps)), [f"the state of kind {other}"]
    what = f"kind {kind}, {steps} steps, {'with' if with_digest else 'without'} digest: {'; '.join(done)}"
    session, optimizer = session_of(kind, steps=2, seed=1)
    before = whole_of(session, optimizer)
    given = copy.deepcopy(state)
    try:
        session.load_state_dict(state)
    except InputError as error:
        must("\n" not in str(error), f"{what}: more than one line: {error}")
        must(equal(whole_of(session, optimizer), before), f"{what}: changed, though refused: {error}")
        return "refused, unchanged"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:200]}") from error
    loaded = session.state_dict()
    if "sha256" in state:
        assert equal(loaded, original), f"{what}: loaded with other values"
        return "loaded equal"
    given.setdefault("stop", {"allowed": None, "held": None, "stopped": None})
    given.setdefault("measured", None)
    given.setdefault("every", original["every"])
    if given["stop"] is None:
        given["stop"] = {"allowed": None, "held": None, "stopped": None}
    loaded.pop("sha256")
    assert equal(loaded, given), f"{what}: loaded with values that were not given"
    agrees(session, what)
    return "loaded equal (no digest)"


def must(so: bool, else_what: str) -> None:
    if not so:
        raise AssertionError(else_what)


def whole_of(session: Session, optimizer: SGD) -> dict[str, Any]:
    """All that a session is: its own state, the network, the optimizer and its hooks."""
    values = {name: value.detach().clone() for name, value in session.model.state_dict().items()}
    return {
        "state": session.state_dict(),
        "model": values,
        "masks": {name: mask.clone() for name, mask in session.masks.items()},
        "moments": copy.deepcopy(optimizer.state_dict()),
        "hooks": len(optimizer._optimizer_step_post_hooks),
        "attached": str(id(session._loop.masked)),
    }


def agrees(session: Session, what: str) -> None:
    """A session that was loaded says of itself what is so, and goes on."""
    counts = {name: int(flags.sum()) for name, flags in session.kept.items()}
    if session.history:
        assert session.history[-1].layers == counts, f"{what}: the history contradicts the masks"
    assert len(session.history) <= len(session.plan.steps), f"{what}: beyond the plan"
    assert masked(session.model, session), f"{what}: the masks do not act"
    if session.recipe.statistics == "once":
        return  # of what shape statistics are only a digest can tell
    try:
        while not session.done and session.advance() is not None:
            pass
    except PrunekitError as error:
        must("\n" not in str(error), f"{what}: {error}")


def masked(model: nn.Module, session: Session) -> bool:
    return all(bool((value[~mask] == 0).all()) for value, mask in session.masks.parameters(model))


def make_case(folder: Path) -> harness.Case:
    torch.set_num_threads(1)
    for kind in range(len(KINDS)):
        saved(kind, 2)  # what torch sets up at its first call is none of a case's doing
    return case


if __name__ == "__main__":
    harness.main("damaged states of sessions", make_case, 2000)
