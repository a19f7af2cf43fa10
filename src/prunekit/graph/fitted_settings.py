"""The configuration of a network that lost units, so that its class builds the smaller one from it.

Which settings count what is found by trying: the class is built anew, without data, from settings in which a
number is another one, until every tensor has the size that it has in the smaller network. Where no setting is
soon found, it is looked at first what each counts: some axis may be counted by none that can change.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import torch
from torch import nn

from prunekit.batches import Inputs, arguments
from prunekit.graph.configured import (
    Path,
    built_anew,
    form_of,
    has_settings,
    leaves,
    set_value,
    settings_of,
    with_changes,
)
from prunekit.graph.counted_axes import Sizes, counted_axes, may_change, sizes_of
from prunekit.graph.proof_run import tensors_in
from prunekit.modes import evaluating

_MOST_BUILT = 120
"""Networks that are built at most before the search is given up."""
_UNLISTED = ("head_dim",)
"""Settings that classes of transformers read where they are given, though configurations do not list them."""
Change = tuple[Path, int]
"""A setting, and what it becomes."""
Distance = tuple[float, str]
"""The ratios of the sizes of two networks, as logarithms, and a tensor whose size is another one."""


def fit_settings(model: nn.Module, example_inputs: Inputs) -> str:
    """Let a network's configuration say the sizes that it has now, if it can.

    Args:
        model: the network, in its own class. Its configuration is replaced by another one.
        example_inputs: on which it must give what it gave before.

    Returns:
        Why its class cannot build it from any configuration; empty where it can, or where it keeps none.
    """
    settings = settings_of(model)
    if settings is None:
        return ""
    found = _searched(model, settings)
    if isinstance(found, str):
        return found
    if not found.changes:
        return ""
    outputs = _outputs(model, example_inputs)
    undo = _applied(model, found)
    try:
        same = all(map(torch.equal, outputs, _outputs(model, example_inputs)))
    except Exception:  # whatever a forward raises that reads its configuration
        same = False
    if same:
        return ""
    undo()
    return f"{type(model).__name__} reads sizes from its configuration while it computes"


def setting_changes(model: nn.Module) -> list[Change] | str:
    """The settings that a network which lost units has otherwise, or why its class cannot build it from any.

    Args:
        model: the network, in its own class, with the configuration from before; values are not looked at.
    """
    settings = settings_of(model)
    if settings is None:
        return f"{type(model).__name__} keeps no configuration"
    found = _searched(model, settings)
    return found if isinstance(found, str) else found.changes


def _searched(model: nn.Module, settings: dict[str, Any]) -> _FittedSettings | str:
    before = built_anew(model, settings)
    if before is None:
        return f"{type(model).__name__} cannot be built from its own configuration"
    return _SettingsSearch(model, settings, before).found()


def _applied(model: nn.Module, found: _FittedSettings) -> Callable[[], None]:
    """Give a network the settings that were found, in configurations of its own; what undoes it."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    copies: dict[int, Any] = {}  # one configuration may be held by many modules
    for place, module in model.named_modules():
        own = vars(module)
        for name, value in list(own.items()):
            if has_settings(value):
                fitted = copy.deepcopy(value, copies)
                held = dict(leaves(fitted.to_dict()))
                for path, number in found.changes:
                    if path in held or (path[-1] in _UNLISTED and value is getattr(model, "config", None)):
                        set_value(fitted, path, number)
                replaced.append((own, name, value))
                own[name] = fitted
            elif (place, name) in found.attributes:
                replaced.append((own, name, value))
                own[name] = found.attributes[place, name]

    def undo() -> None:
        for own, name, value in replaced:
            own[name] = value

    return undo


def _outputs(model: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    args, kwargs = arguments(inputs)
    with evaluating(model), torch.no_grad():
        return [each.nan_to_num() for each in tensors_in(model(*args, **kwargs))]


@dataclass(frozen=True)
class _FittedSettings:
    """Settings that give the smaller network.

    Attributes:
        changes: those that are others.
        attributes: by module and name, whole numbers that modules built from them keep for the record.
    """

    changes: list[Change]
    attributes: dict[tuple[str, str], int]


class _SettingsSearch:
    """The search for settings.

    Args:
        model: the smaller network.
        settings: those of the larger one.
        before: the larger one, built from them.
    """

    def __init__(self, model: nn.Module, settings: dict[str, Any], before: nn.Module) -> None:
        self._model, self._settings = model, settings
        self._wanted = form_of(model)
        self._before = before
        self._likely, self._others = self._possible()
        self._left = _MOST_BUILT

    def found(self) -> _FittedSettings | str:
        """What changes in the settings, or why nothing will do."""
        changes, built = list[Change](), self._before
        distance, where = self._distance(built)
        while distance:
            nearer = self._nearer(changes, distance, self._likely, 1)
            if nearer is None:
                free, uncounted = self._counted
                where = uncounted or where
                nearer = None if uncounted else self._nearer(changes, distance, free, 2)
            if nearer is None:
                return f"no setting of {type(self._model).__name__}'s configuration gives {where}"
            changes, built, (distance, where) = nearer
        return self._made_anew() or self._with_attributes(changes, built)

    def _made_anew(self) -> str:
        """Why there are none where the class computes a tensor from the sizes, such as frequencies."""
        before, saved = form_of(self._before), self._model.state_dict(keep_vars=True)
        for name, buffer in self._model.named_buffers():
            if name not in saved and before.get(name) != buffer.shape:
                return (
                    f"built from its configuration, {type(self._model).__name__} would make {name} anew, "
                    "with other values than those that have stayed"
                )
        return ""

    @cached_property
    def _counted(self) -> tuple[list[Change], str]:
        """The changes of settings that count something and may be others, and what none of these counts.

        Left out is what alone counts an axis that stays. What cannot be another by itself may count anything.
        """
        before, after = sizes_of(form_of(self._before)), sizes_of(self._wanted)
        changed = dict.fromkeys(axis for axis, size in after.items() if before.get(axis) != size)
        every, own = [*self._likely, *self._others], dict(leaves(self._settings))
        first = dict(reversed(every))
        unset = {path: number for path, number in first.items() if own.get(path, 0) is None}
        single = [{path: number} for path, number in first.items() if path not in unset]
        # for those whose number is refused, or counts nothing, as that of heads whose width follows it
        doubled = [{path: 2 * own.get(path, number) for path, number in each.items()} for each in single]
        counts = counted_axes(self._sizes_with, before, [*single, *doubled, unset])
        counts = {path: axes for path, axes in counts.items() if axes or (axes is None and path not in unset)}
        free = may_change(counts, after.keys() - changed.keys())
        known = [counts[path] for path in free]
        counted = set().union(*(axes for axes in known if axes))
        missed = next((name for name, axis in changed if (name, axis) not in counted), None)
        return (
            [each for each in every if each[0] in free],
            "" if missed is None or None in known else f"{missed} {_in_words(self._wanted[missed])}",
        )

    def _sizes_with(self, numbers: Mapping[Path, int]) -> Sizes | None:
        built = self._built(list(numbers.items()))
        return None if built is None else sizes_of(form_of(built))

    def _nearer(
        self, changes: list[Change], distance: float, candidates: Sequence[Change], most: int
    ) -> tuple[list[Change], nn.Module, Distance] | None:
        """The changes with which the network is nearest: of one setting more, or else of a few.

        A number of heads may bring a network nearer whose heads have become narrower, but their width brings
        it all the way.
        """
        single = [each for each in candidates if each not in changes]
        for number in range(1, most + 1):
            nearest: tuple[list[Change], nn.Module, Distance] | None = None
            for more in combinations(single, number):
                replaced = {path for path, _ in more}
                if len(replaced) < len(more):
                    continue
                if self._left <= 0:
                    return nearest
                tried = [*(each for each in changes if each[0] not in replaced), *more]
                built = self._built(tried)
                if built is None:
                    continue
                found = self._distance(built)
                if found[0] < min(distance - 1e-9, nearest[2][0] if nearest else math.inf):
                    nearest = tried, built, found
                if nearest and (number > 1 or not nearest[2][0]):
                    return nearest
            if nearest:
                return nearest
        return None

    def _possible(self) -> tuple[list[Change], list[Change]]:
        """Settings with the number that they may have become: what equals them has; what shrank like it."""
        sizes, named = self._changed_numbers()
        pairs = [(old, new) for old, every in sizes.items() for new in sorted(every)]
        same: list[Change] = []
        alike: list[Change] = []
        for path, value in leaves(self._settings):
            if type(value) is int and value > 1:
                same += [(path, new) for new in sorted(sizes.get(value, ()))]
                alike += [(path, value * new // old) for old, new in pairs if value * new % old == 0]
            elif value is None:
                given = named.get(path[-1]) or {new for _, new in pairs}
                alike += [(path, each) for each in sorted(given)[:4]]
        unlisted = [
            ((name,), vars(module)[name])
            for module in self._model.modules()
            for name in _UNLISTED
            if name not in self._settings and type(vars(module).get(name)) is int
        ]
        likely = list(dict.fromkeys((*unlisted, *same)))
        return likely, [each for each in dict.fromkeys(alike) if each not in likely]

    def _changed_numbers(self) -> tuple[dict[int, set[int]], dict[str, set[int]]]:
        """What numbers have become: by the number, of axes and attributes; by the name of the attribute."""
        sizes: dict[int, set[int]] = {}
        named: dict[str, set[int]] = {}
        for name, shape in form_of(self._before).items():
            if isinstance(shape, torch.Size) and isinstance(self._wanted.get(name), torch.Size):
                for old, new in zip(shape, self._wanted[name], strict=False):
                    if old != new:
                        sizes.setdefault(old, set()).add(new)
        now = dict(self._model.named_modules())
        for name, module in self._before.named_modules():
            for attribute, old in vars(module).items():
                new = vars(now[name]).get(attribute) if name in now else None
                if type(old) is int and type(new) is int and old != new:
                    sizes.setdefault(old, set()).add(new)
                    named.setdefault(attribute, set()).add(new)
        return sizes, named

    def _built(self, changes: list[Change]) -> nn.Module | None:
        self._left -= 1
        return built_anew(self._model, with_changes(self._settings, changes))

    def _distance(self, built: nn.Module) -> Distance:
        """Of a network from the smaller one."""
        form, distance, where = form_of(built), 0.0, ""
        for name, wanted in self._wanted.items():
            given = form.get(name)
            if given == wanted:
                continue
            where = where or f"{name} {_in_words(wanted)}"
            if not isinstance(wanted, torch.Size) or not isinstance(given, torch.Size):
                return math.inf, where
            if len(wanted) != len(given) or 0 in (*wanted, *given):
                return math.inf, where
            distance += sum(abs(math.log(one / other)) for one, other in zip(wanted, given, strict=True))
        return distance, where

    def _with_attributes(self, changes: list[Change], built: nn.Module) -> _FittedSettings | str:
        """The changes, or where the class would compute with another number, such as a temperature."""
        now = dict(self._model.named_modules())
        attributes: dict[tuple[str, str], int] = {}
        for name, module in built.named_modules():
            for attribute, number in vars(module).items():
                own = vars(now[name]).get(attribute)
                if type(number) not in (int, float) or type(own) is not type(number) or own == number:
                    continue
                if type(number) is int:
                    attributes[name, attribute] = number
                else:
                    place = f"{name}.{attribute}" if name else attribute
                    return (
                        f"built from its configuration, {type(self._model).__name__} would have {place} = "
                        f"{number:g}, and it is {own:g}"
                    )
        return _FittedSettings(changes, attributes)


def _in_words(wanted: Any) -> str:
    return f"the shape {tuple(wanted)}" if isinstance(wanted, torch.Size) else f"the class {wanted.__name__}"
