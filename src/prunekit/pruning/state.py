"""The state of a session, and how a saved one is read: all is checked before anything is taken over."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from prunekit.digests import KEY, bytes_of
from prunekit.errors import InputError, PrunekitError, said, shown
from prunekit.history import Record
from prunekit.masks import Masks
from prunekit.parts.context import ASKED, REACHED
from prunekit.parts.stopping import Held, Stopped
from prunekit.recipe import Plan, Recipe
from prunekit.settings import WHOLE, whole
from prunekit.statistics import Found, Statistic

NEEDED = ("recipe", "seed", "masks", "ranking", "optimizer_steps", "checkpoints", "history")
QUANTIZED, BUDGETED = ("levels", "bits"), (ASKED, REACHED)
OPTIONAL = ("measured", "stop", "parts", "every", KEY)


@dataclass
class State:
    """All that changes in a session from step to step.

    Attributes:
        kept: what was chosen from, True = kept.
        masks: the same over the parameters.
        parts: the tensors that the recipe's parts carry, by the parts' keys; they change them in place.
        history: what each step achieved.
        optimizer_steps: of a training loop of the user's.
        checkpoints: the values that the recipe rewinds to, by the step of the training.
        ranking: the scores, where elements are ranked once.
        measured: the statistics that are asked for however elements are ranked, where they are taken once.
        allowed: the greatest error that the recipe's `stop` allows, once the network was measured.
        held: the last network known to be within it, until the next is measured.
        stopped: why the pruning has ended, once the `stop` says so.
    """

    kept: Masks
    masks: Masks
    parts: dict[str, dict[str, Tensor]]
    history: list[Record] = field(default_factory=list)
    optimizer_steps: int = 0
    checkpoints: dict[int, Mapping[str, Tensor]] = field(default_factory=dict)
    ranking: Mapping[str, Tensor] | None = None
    measured: Found | None = None
    allowed: float | None = None
    held: Held | None = None
    stopped: Stopped | None = None

    def copy(self) -> State:
        """The same, which later steps do not change."""
        parts = {key: {name: each.clone() for name, each in own.items()} for key, own in self.parts.items()}
        return replace(self, parts=parts, history=list(self.history), checkpoints=dict(self.checkpoints))

    def take_over(self, other: State) -> None:
        """Become what another one is, for all that hold this one."""
        vars(self).update(vars(other))

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors, as `read_state` reads them."""
        held = None
        if self.held is not None:
            values = None if self.held.state is None else dict(self.held.state)
            held = {"steps": self.held.steps, "kept": dict(self.held.kept), "state": values}
        measured = None
        if self.measured is not None:
            measured = {str(statistic): dict(values) for statistic, values in self.measured.items()}
        return {
            "masks": {name: kept.clone() for name, kept in self.kept.items()},
            "ranking": None if self.ranking is None else dict(self.ranking),
            "measured": measured,
            "optimizer_steps": self.optimizer_steps,
            "checkpoints": {step: dict(state) for step, state in self.checkpoints.items()},
            "history": [record.to_dict() for record in self.history],
            "stop": {
                "allowed": self.allowed,
                "held": held,
                "stopped": None if self.stopped is None else asdict(self.stopped),
            },
            **({"parts": self.copy().parts} if self.parts else {}),
        }


def asked_again(recipe: Recipe) -> tuple[Statistic, ...]:
    """What is asked of the data however elements are ranked: all that the recipe needs beside its score."""
    return tuple(need for key, part in recipe.parts.items() if key != "score" for need in part.needs)


@dataclass(frozen=True)
class Owner:
    """The session that a state is read for: what it does, and how its own state looks.

    Attributes:
        every: by how many steps of an optimizer it takes one of its own; None where it does not.
    """

    recipe: Recipe
    plan: Plan
    seed: int
    state: State
    every: int | None = None


def read_state(values: Any, owner: Owner) -> State:
    """The state that a session saved.

    Raises:
        InputError: naming the place, if it is no such state, is damaged, or is that of another recipe, seed
            or model.
    """
    try:
        return _read(values, owner)
    except PrunekitError:
        raise
    except Exception as error:  # of values that nobody thought of
        raise InputError(f"this is not the state of a session: {said(error)}") from error


def digest_of(values: Any) -> str:
    """SHA-256 of nested values and tensors, in hexadecimal digits."""
    found = hashlib.sha256()
    _feed(found, values)
    return found.hexdigest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().contiguous()
        found.update(f"tensor {value.dtype} {tuple(value.shape)};".encode())
        found.update(bytes_of(value))
    elif isinstance(value, Mapping):
        found.update(f"{len(value)} keys;".encode())
        for key in sorted(value, key=repr):
            found.update(f"{key!r}=".encode("utf-8", "surrogatepass"))
            _feed(found, value[key])
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)} values;".encode())
        for each in value:
            _feed(found, each)
    else:
        found.update(f"{value!r};".encode("utf-8", "surrogatepass"))


def _read(values: Any, owner: Owner) -> State:
    _keys(values, "", NEEDED, OPTIONAL)
    recipe = owner.recipe.to_dict()
    if digest_of(values["recipe"]) != digest_of(recipe):
        raise InputError(
            f"the saved session followed another recipe, with {_difference(values['recipe'], recipe)}: "
            "build the session from the same one"
        )
    if type(values["seed"]) is not int or values["seed"] != owner.seed:
        raise InputError(f"the saved session has seed {shown(values['seed'])}, this one {owner.seed}")
    every = values.get("every")
    if every is not None and owner.every is not None and every != owner.every:
        raise InputError(
            f"the saved session took a step after every {shown(every)} steps of the optimizer, this one has "
            f"every = {owner.every}: attach it with the same"
        )
    kept = _flags(values["masks"], "masks", owner)
    history = _history(values["history"], owner)
    _check_counts(kept, "masks", history, owner)
    state = State(
        kept=kept,
        masks=owner.plan.elements.masks(kept),
        history=history,
        optimizer_steps=whole("state: optimizer_steps", values["optimizer_steps"], 0, 2**63 - 1),
        checkpoints=_checkpoints(values["checkpoints"], bool(history), owner),
        ranking=_ranking(values["ranking"], bool(history), owner),
        measured=_measured(values.get("measured"), bool(history), owner),
        parts=_parts(values.get("parts", {}), owner),
        **_stop(values.get("stop"), kept, history, owner),
    )
    state.masks.parameters(owner.plan.elements.model)
    if KEY in values and values[KEY] != digest_of({key: each for key, each in values.items() if key != KEY}):
        raise InputError(f"the state of the session is damaged or was changed: it is not what {KEY!r} says")
    return state


def _difference(saved: Any, own: Any, place: str = "") -> str:
    """The first setting in which two recipes differ, with both values: "schedule.steps = 4, not 5"."""
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        for key in (*own, *saved):
            if digest_of(saved.get(key)) != digest_of(own.get(key)):
                return _difference(saved.get(key), own.get(key), f"{place}.{key}" if place else str(key))
    return f"{place or 'settings'} = {shown(saved)}, not {shown(own)}"


# ---- masks and history -----------------------------------------------------------------------------------


def _flags(values: Any, place: str, owner: Owner) -> Masks:
    """In the session's own order, which decides between equal scores."""
    own_names = list(owner.state.kept)
    if not isinstance(values, Mapping):
        raise _wrong(place, f"a mapping is needed, not a {type(values).__name__}")
    for name in (*values, *own_names):
        if name not in values or name not in own_names:
            has, lacks = ("it", "this one") if name in values else ("this one", "it")
            raise InputError(
                f"the saved session pruned other layers, {len(values)} where this one prunes "
                f"{len(own_names)}: {has} has {shown(name)}, {lacks} has not; it belongs to another model"
            )
    found = {}
    for name, own in owner.state.kept.items():
        flags = values[name]
        if not isinstance(flags, Tensor) or flags.dtype != torch.bool:
            raise _wrong(place, f"the mask of {name} must be a boolean tensor (True = kept)")
        if flags.shape != own.shape:
            raise _wrong(
                place,
                f"{name} has shape {tuple(own.shape)}, its mask {tuple(flags.shape)}: "
                "the masks belong to another model",
            )
        found[name] = _tensor(flags, f"{place}: {name}").to(own.device, copy=True)
    return Masks(found)


def _history(values: Any, owner: Owner) -> list[Record]:
    if not isinstance(values, list | tuple):
        raise _wrong("history", f"a list of records is needed, not {shown(values)}")
    steps = owner.plan.steps
    if len(values) > len(steps):
        raise _wrong("history", f"it has {len(values)} steps, but the schedule only {len(steps)}")
    found: list[Record] = []
    for number, each in enumerate(values, start=1):
        found.append(_record(each, number, owner))
        _check_order(found, owner)
    return found


def _record(values: Any, number: int, owner: Owner) -> Record:
    place = f"history: step {number}"
    optional = (*QUANTIZED, *BUDGETED)
    needed = [each.name for each in fields(Record) if each.name not in optional]
    _keys(values, place, needed, optional)
    _keys(values["layers"], f"{place}: layers", tuple(owner.state.kept))
    layers = {
        name: whole(f"state: {place}: layers: {name}", values["layers"][name], 0, own.numel())
        for name, own in owner.state.kept.items()
    }
    kept, total = sum(layers.values()), owner.state.kept.total
    counted = {"step": number, "kept": kept, "total": total, "sparsity": 1 - kept / total if total else 0.0}
    for name, right in counted.items():
        if type(values[name]) is not type(right) or values[name] != right:
            raise _wrong(f"{place}: {name}", f"{shown(values[name])} where {right!r} is right")
    ratio = values["compression_ratio"]
    if not isinstance(ratio, float) or not ratio >= 1:
        raise _wrong(f"{place}: compression_ratio", f"{shown(ratio)} where a number of at least 1 is needed")
    if owner.recipe.granularity.counts == "weights" and kept and ratio != total / kept:
        raise _wrong(f"{place}: compression_ratio", f"{shown(ratio)} where {total / kept!r} is right")
    train_loss = values["train_loss"]
    if train_loss is not None:
        _number(train_loss, f"{place}: train_loss")
        if owner.recipe.retrain.plan is None:
            raise _wrong(f"{place}: train_loss", "the recipe does not retrain")
    if _number(values["seconds"], f"{place}: seconds") < 0:
        raise _wrong(f"{place}: seconds", f"{values['seconds']} is no time")
    return Record(
        step=number,
        sparsity=values["sparsity"],
        kept=kept,
        total=total,
        layers=layers,
        compression_ratio=ratio,
        train_loss=train_loss,
        seconds=values["seconds"],
        measured=_evaluated(values["measured"], f"{place}: measured"),
        **_few_values(values, place, number == len(owner.plan.steps) and owner.recipe.quantize.changes),
        **_budgeted(values, place, owner.recipe.allocation.of_cost),
    )


def _budgeted(values: Mapping[str, Any], place: str, budget: bool) -> dict[str, Any]:
    if any((values.get(name) is not None) != budget for name in BUDGETED):
        raise _wrong(
            f"{place}: asked, reached", "they are there where the allocation is a budget, and only there"
        )
    return {name: _number(values[name], f"{place}: {name}") for name in BUDGETED} if budget else {}


def _few_values(values: Mapping[str, Any], place: str, quantized: bool) -> dict[str, Any]:
    levels, bits = values.get("levels", {}), values.get("bits")
    if not isinstance(levels, Mapping) or bool(levels) != quantized or (bits is not None) != quantized:
        raise _wrong(f"{place}: levels", "they are there behind a quantisation, and only there")
    if not quantized:
        return {}
    for name, number in levels.items():
        whole(f"state: {place}: levels: {shown(name)}", number, 0, WHOLE)
    number_of_bits = _number(bits, f"{place}: bits")
    if number_of_bits < 0:
        raise _wrong(f"{place}: bits", f"{bits} is no number of bits")
    return {"levels": dict(levels), "bits": number_of_bits}


def _evaluated(values: Any, place: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise _wrong(place, f"names and figures are needed, not {shown(values)}")
    for key, value in values.items():
        if not isinstance(value, bool | int | float | complex | str | None):
            raise _wrong(f"{place}: {key}", f"a figure is needed, not a {type(value).__name__}")
    return dict(values)


def _check_order(history: Sequence[Record], owner: Owner) -> None:
    """No layer gets any back, unless the recipe lets it; those whose turn it is not stay as they are."""
    if len(history) < 2:
        return
    before, after = history[-2:]
    own = owner.plan.steps[after.step - 1].layers
    for name, count in after.layers.items():
        was = before.layers[name]
        if (count > was and not owner.recipe.regrow) or (count != was and name not in own):
            raise _wrong(
                f"history: step {after.step}: layers: {name}", f"{count} are kept, {was} were before the step"
            )


def _check_counts(kept: Masks, place: str, history: Sequence[Record], owner: Owner) -> None:
    """What is kept is what the last step left."""
    if not history and owner.recipe.granularity.counts == "pieces":
        return  # some may be missing from the beginning
    for name, flags in kept.items():
        left = history[-1].layers[name] if history else flags.numel()
        if int(flags.sum()) != left:
            raise _wrong(f"{place}: {name}", f"{int(flags.sum())} are kept, {left} by the history")


# ---- values that are gone back to, and ranked by -----------------------------------------------------------


def _checkpoints(values: Any, begun: bool, owner: Owner) -> dict[int, Mapping[str, Tensor]]:
    if not isinstance(values, Mapping):
        raise _wrong("checkpoints", f"states by their step are needed, not {shown(values)}")
    wanted = owner.recipe.retrain.checkpoint
    if begun and wanted is not None and wanted not in values:
        raise _wrong("checkpoints", f"the values at step {wanted} are missing, which the recipe goes back to")
    found: dict[int, Mapping[str, Tensor]] = {}
    for step, state in values.items():
        number = whole("state: checkpoints: step", step, 0, 2**63 - 1)
        own = owner.plan.elements.model.state_dict() if number == wanted else None
        found[number] = _tensors(state, f"checkpoints: step {number}", own)
    return found


def _ranking(values: Any, begun: bool, owner: Owner) -> dict[str, Tensor] | None:
    if owner.recipe.rank != "once" or (values is None and not begun):
        _none(values, "ranking", "the recipe ranks anew at every step")
        return None
    _keys(values, "ranking", tuple(owner.state.kept))
    found = {}
    for name, own in owner.state.kept.items():
        scores = _tensor(values[name], f"ranking: {name}", tuple(own.shape))
        if scores.dtype == torch.bool or scores.is_complex():
            raise _wrong(f"ranking: {name}", f"scores are real numbers, not {scores.dtype}")
        found[name] = scores.to(own.device)
    return found


def _measured(values: Any, begun: bool, owner: Owner) -> Found | None:
    if owner.recipe.statistics != "once" or (values is None and not begun):
        _none(values, "measured", "the recipe measures anew at every step")
        return None
    again = {str(statistic): statistic for statistic in asked_again(owner.recipe)}
    _keys(values, "measured", tuple(again))
    device = next(iter(owner.state.kept.values())).device
    read = {statistic: _tensors(values[key], f"measured: {key}") for key, statistic in again.items()}
    return {
        statistic: {name: each.to(device) for name, each in found.items()}
        for statistic, found in read.items()
    }


def _parts(values: Any, owner: Owner) -> dict[str, dict[str, Tensor]]:
    """What the parts carry, in tensors of the session's own, as parts change them in place."""
    _keys(values, "parts", tuple(owner.state.parts))
    found: dict[str, dict[str, Tensor]] = {}
    for key, own in owner.state.parts.items():
        read = _tensors(values[key], f"parts: {key}", own)
        for name, tensor in own.items():
            if read[name].dtype != tensor.dtype:  # what is added up goes on with the same bits
                place = f"parts: {key}: {name}"
                raise _wrong(place, f"the type is {read[name].dtype}, not {tensor.dtype}")
        found[key] = {name: each.detach().to(own[name].device, copy=True) for name, each in read.items()}
    return found


# ---- the rule that ends a pruning --------------------------------------------------------------------------


def _stop(values: Any, kept: Masks, history: Sequence[Record], owner: Owner) -> dict[str, Any]:
    rule = owner.recipe.stop
    if values is None:
        values = {"allowed": None, "held": None, "stopped": None}
    _keys(values, "stop", ("allowed", "held", "stopped"))
    allowed = values["allowed"]
    if not rule.needs_data:
        for key, value in values.items():
            _none(value, f"stop: {key}", "the recipe has no rule to stop by")
    elif allowed is None:
        if history or values["held"] is not None or values["stopped"] is not None:
            raise _wrong("stop: allowed", "it is not said, though the network was measured")
    else:
        _number(allowed, "stop: allowed", infinite=True)
    held = None if values["held"] is None else _held(values["held"], kept, history, owner)
    stopped = None if values["stopped"] is None else _stopped(values["stopped"], allowed, history, owner)
    if held is not None and stopped is not None:
        raise _wrong("stop", "the pruning has ended, and waits to be measured")
    return {"allowed": allowed, "held": held, "stopped": stopped}


def _held(values: Any, kept: Masks, history: Sequence[Record], owner: Owner) -> Held:
    _keys(values, "stop: held", ("steps", "kept", "state"))
    steps = whole("state: stop: held: steps", values["steps"], 0, len(history))
    flags = _flags(values["kept"], "stop: held: kept", owner)
    _check_counts(flags, "stop: held: kept", history[:steps], owner)
    if not owner.recipe.regrow:
        for name, was in flags.items():
            if bool((kept[name] & ~was).any()):
                raise _wrong(f"masks: {name}", "something is kept that was removed before")
    if (values["state"] is not None) != owner.recipe.stop.rolls_back:
        raise _wrong("stop: held: state", "it is there if the recipe's stop rolls back, and only then")
    state = None
    if values["state"] is not None:
        state = _tensors(values["state"], "stop: held: state", owner.plan.elements.model.state_dict())
    return Held(steps, flags, state)


def _stopped(values: Any, allowed: float, history: Sequence[Record], owner: Owner) -> Stopped:
    _keys(values, "stop: stopped", tuple(each.name for each in fields(Stopped)))
    step = whole("state: stop: stopped: step", values["step"], 1, len(owner.plan.steps))
    error = values["error"]
    if isinstance(error, bool) or not isinstance(error, int | float):
        raise _wrong("stop: stopped: error", f"a number is needed, not {shown(error)}")
    limit = _number(values["allowed"], "stop: stopped: allowed", infinite=True)
    if limit != allowed or error <= limit:
        raise _wrong("stop: stopped", f"an error of {error} is not over the limit of {allowed}")
    back = values["rolled_back"]
    if type(back) is not bool or back != owner.recipe.stop.rolls_back:
        raise _wrong("stop: stopped: rolled_back", f"{shown(back)} is not what the recipe's stop does")
    if len(history) != step and not (back and len(history) < step):
        raise _wrong("stop: stopped: step", f"the pruning ended at step {step}, after {len(history)} steps")
    return Stopped(step, error, limit, back)


# ---- single values -----------------------------------------------------------------------------------------


def _wrong(place: str, what: str) -> InputError:
    if not place:
        return InputError(f"this is not the state of a session: {what}")
    return InputError(f"the state of the session: {place}: {what}")


def _keys(values: Any, place: str, needed: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(values, Mapping):
        raise _wrong(place, f"a mapping is needed, not a {type(values).__name__}")
    for key in needed:
        if key not in values:
            raise _wrong(place, f"it has no {key!r}")
    for key in values:
        if key not in needed and key not in optional:
            raise _wrong(place, f"{shown(key)} is no key of it")


def _none(value: Any, place: str, why: str) -> None:
    if value is not None:
        raise _wrong(place, f"there should be none: {why}")


def _number(value: Any, place: str, *, infinite: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(place, f"a number is needed, not {shown(value)}")
    if math.isnan(value) or (math.isinf(value) and not infinite):
        raise _wrong(place, f"it is {value}")
    return float(value)


def _tensors(values: Any, place: str, own: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Tensors by their names; those of one's own, of the same shapes and kinds, where they are given."""
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise _wrong(place, f"tensors by their names are needed, not a {type(values).__name__}")
    if own is None:
        return {name: _tensor(each, f"{place}: {name}") for name, each in values.items()}
    _keys(values, place, tuple(own))
    return {
        name: _tensor(values[name], f"{place}: {name}", tuple(each.shape), each.dtype)
        for name, each in own.items()
    }


def _tensor(
    value: Any, place: str, shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """A tensor with values; of floating-point types any will do where one is asked for."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type == "meta":
        raise _wrong(place, f"a tensor is needed, not {type(value).__name__}")
    if value.is_quantized:
        raise _wrong(place, "it is quantized")
    if shape is not None and tuple(value.shape) != shape:
        raise _wrong(place, f"the shape is {tuple(value.shape)}, in the model it is {shape}")
    either = dtype is not None and dtype.is_floating_point and value.is_floating_point()
    if dtype is not None and value.dtype != dtype and not either:
        raise _wrong(place, f"the type is {value.dtype}, not {dtype}")
    if value.is_floating_point() and bool(torch.isnan(value).any()):
        raise _wrong(place, "it holds NaN")
    return value
