"""Networks whose configuration counts their layers, as those of transformers, with fewer of them.

What a network of fewer layers is like, its own class tells: it is built anew from the smaller configuration,
without data, and its attributes are the right ones, such as the place in the cache that each layer writes to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from prunekit.errors import ModelError, shown
from prunekit.graph.configured import (
    Path,
    built_anew,
    form_of,
    has_settings,
    is_plain,
    leaves,
    set_value,
    settings_of,
    with_value,
)

LISTS = (nn.ModuleList, nn.Sequential)
DROPPED = "_dropped"
"""What a list of layers remembers in, of which of those it was built with are gone."""


@dataclass(frozen=True)
class FewerLayers:
    """What changes in a network that loses layers of lists.

    Attributes:
        removed: by the full name of the list, the places of the layers that go.
        attributes: of modules, by their full names afterwards, and what they become.
        settings: by module and attribute that holds a configuration, what changes in that.
    """

    removed: Mapping[str, tuple[int, ...]]
    attributes: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    settings: Mapping[tuple[str, str], Mapping[Path, Any]] = field(default_factory=dict)

    def name(self, before: str) -> str | None:
        """The full name of a module, parameter or buffer afterwards; None where it goes."""
        for place, gone in self.removed.items():
            if before.startswith(f"{place}."):
                number, dot, rest = before.removeprefix(f"{place}.").partition(".")
                if not number.isdecimal():
                    continue
                if int(number) in gone:
                    return None
                before = f"{place}.{int(number) - sum(each < int(number) for each in gone)}{dot}{rest}"
        return before

    def names_before(self, names: Iterable[str]) -> dict[str, str]:
        """By each of these full names afterwards the one before, where it is another."""
        found = {}
        for after in names:
            before = after
            for place, gone in reversed([*self.removed.items()]):  # from outside in
                number, dot, rest = before.removeprefix(f"{place}.").partition(".")
                if before.startswith(f"{place}.") and number.isdecimal():
                    stay = [each for each in range(int(number) + len(gone) + 1) if each not in gone]
                    before = f"{place}.{stay[int(number)]}{dot}{rest}"
            if before != after:
                found[after] = before
        return found

    def apply(self, model: nn.Module) -> Callable[[], None]:
        """Take the layers out of a network, in place; its configuration is replaced by another one.

        Returns:
            What makes the network as it was.
        """
        changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for place, gone in self.removed.items():
            layers: Any = model.get_submodule(place)
            changed += [(each, dict(each)) for each in (vars(layers), layers._modules)]
            lost = dropped(layers)
            stay = [number for number in range(len(layers) + len(lost)) if number not in lost]
            for number in sorted(gone, reverse=True):
                del layers[number]
            vars(layers)[DROPPED] = (*sorted({*lost, *(stay[number] for number in gone)}),)
        modules = dict(model.named_modules())
        copies: dict[int, Any] = {}  # one configuration may be held by many modules
        for place, name in (*self.attributes, *self.settings):
            own: Any = vars(modules[place]) if place in modules else {}
            if name not in own:  # it was taken out
                continue
            changed.append((own, dict(own)))
            if (place, name) in self.settings:
                own[name] = copy.deepcopy(own[name], copies)
                for path, value in self.settings[place, name].items():
                    set_value(own[name], path, copy.deepcopy(value))
            else:
                own[name] = copy.deepcopy(self.attributes[place, name])

        def undo() -> None:
            for now, before in reversed(changed):
                now.clear()
                now.update(before)

        return undo


def dropped(layers: nn.Module) -> tuple[int, ...]:
    """The places of the layers that a list was built with and has no more."""
    return tuple(vars(layers).get(DROPPED, ()))


def dropped_layers(model: nn.Module) -> dict[str, list[int]]:
    """By the full name of each list of layers that lost some, the places of those."""
    return {name: list(dropped(module)) for name, module in model.named_modules() if dropped(module)}


def drop_layers(model: nn.Module, gone: Mapping[str, Sequence[int]]) -> Callable[[], None]:
    """Take layers out of a network, in place, as a network was saved.

    Args:
        model: the network, freshly built.
        gone: as `dropped_layers` gives them.

    Returns:
        What makes the network as it was.

    Raises:
        ModelError: naming the list, if there is none, it is shorter, or no configuration counts its layers;
            the network is as it was.
    """
    lists: Any = {name: module for name, module in model.named_modules() if isinstance(module, LISTS)}
    for name, numbers in gone.items():
        if name not in lists or not 0 < len(set(numbers)) < len(lists[name]) > max(numbers):
            raise ModelError(
                f"the model has no list of layers {shown(name)} that could lose {shown(numbers)}"
            )
    fewer = fewer_layers(model, {name: tuple(sorted({*numbers})) for name, numbers in gone.items()})
    if gone and (fewer is None or fewer.removed.keys() != gone.keys()):
        raise ModelError(f"the model's configuration does not count the layers of {shown(next(iter(gone)))}")
    return (lambda: None) if fewer is None else fewer.apply(model)


def whole_layers(model: nn.Module, tensors: Collection[str]) -> dict[str, tuple[int, ...]]:
    """By the full names of lists of layers, the places of those that lose all of their matrices.

    Norms may be left, which several branches share. Lists of which nothing would be left are not among them,
    nor are those within a layer that goes.

    Args:
        model: the network.
        tensors: the full names of what it loses.
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LISTS) or _is_in(name, found):
            continue
        gone = []
        for number, layer in enumerate(module):
            own = [f"{name}.{number}.{each}" for each, value in layer.named_parameters() if value.dim() > 1]
            if own and all(each in tensors for each in own):
                gone.append(number)
        if gone and len(gone) < len(module):
            found[name] = tuple(gone)
    return found


def _is_in(name: str, gone: Mapping[str, Collection[int]]) -> bool:
    """Whether a module is one of layers of lists, or in one."""
    return any(name == each or name.startswith(f"{each}.") for each in layers_of(gone))


def layers_of(gone: Mapping[str, Collection[int]]) -> list[str]:
    """The full names of layers of lists."""
    return [f"{place}.{number}" for place, numbers in gone.items() for number in numbers]


def fewer_layers(model: nn.Module, gone: Mapping[str, tuple[int, ...]]) -> FewerLayers | None:
    """What changes where a network loses layers that its configuration counts.

    Args:
        model: the network, which is built anew for this, on the meta device.
        gone: by the full name of a list, places of layers; those of lists that no setting counts stay.

    Returns:
        None where none of these lists follows a setting, or where what is built from the settings is not the
        network as it is, or without these layers.
    """
    settings = settings_of(model) if gone else None
    if settings is None:
        return None
    whole = built_anew(model, settings)
    if whole is None or form_of(whole) != form_of(model):
        return None
    counted: dict[str, tuple[int, ...]] = {}
    for place, numbers in sorted(gone.items(), key=lambda each: -each[0].count(".")):  # from inside out
        fewer = _counting_fewer(model, settings, place, numbers)
        if fewer is not None:
            counted[place], settings = numbers, fewer
    if not counted:
        return None
    removed = FewerLayers(counted)
    wanted = {
        after: form for name, form in form_of(model).items() if (after := removed.name(name)) is not None
    }
    small = built_anew(model, settings)
    if small is None or form_of(small) != wanted:
        return None
    return _changes(removed, (model, whole, small))


def _counting_fewer(
    model: nn.Module, settings: dict[str, Any], place: str, gone: Collection[int]
) -> dict[str, Any] | None:
    """Settings where one list has fewer layers and the other lists have as many; None where there are none.

    Lists beside the number of layers that have an entry for each lose entries, too: those without which no
    network can be built as soon as they are shorter.
    """
    lengths = _lengths(model, place)
    size = lengths[place]
    values = list(leaves(settings))
    shorter = {
        path: [each for number, each in enumerate(value) if number not in gone]
        for path, value in values
        if isinstance(value, list | tuple) and len(value) == size
    }
    of_layers = {
        path for path, kept in shorter.items() if built_anew(model, with_value(settings, path, kept)) is None
    }
    for path, value in values:
        if type(value) is int and value == size:
            fewer = with_value(settings, path, size - len(gone))
            for other in of_layers:
                if other[:-1] == path[:-1]:
                    fewer = with_value(fewer, other, shorter[other])
            small = built_anew(model, fewer)
            if small is not None and _lengths(small, place) == {**lengths, place: size - len(gone)}:
                return fewer
    return None


def _lengths(model: nn.Module, place: str) -> dict[str, int]:
    """How long the lists are, without those in the layers of one of them."""
    return {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, LISTS) and not name.startswith(f"{place}.")
    }


# ---- what a network of fewer layers has that is different --------------------------------------------------


def _changes(removed: FewerLayers, models: tuple[nn.Module, nn.Module, nn.Module]) -> FewerLayers:
    """With what differs between a network and one of fewer layers, where the network is as it was built."""
    attributes, settings = dict[tuple[str, str], Any](), dict[tuple[str, str], Mapping[Path, Any]]()
    for before, module in models[0].named_modules():
        after = removed.name(before)
        if after is None:
            continue
        whole, small = models[1].get_submodule(before), models[2].get_submodule(after)
        own, *built = (vars(each) for each in (module, whole, small))
        for name, value in own.items():
            if name.startswith("__") or not all(name in each for each in built):
                continue
            if has_settings(value):
                differing = dict(_differing(value, built[0][name], built[1][name]))
                if differing:
                    settings[after, name] = differing
            elif is_plain(value) and value == built[0][name] != built[1][name]:
                attributes[after, name] = built[1][name]
    return FewerLayers(removed.removed, attributes, settings)


def _differing(own: Any, whole: Any, small: Any) -> Iterator[tuple[Path, Any]]:
    """What a configuration of fewer layers has that is different, where the own one is as it was built."""
    for name, value in vars(own).items():
        others = [vars(each).get(name) for each in (whole, small) if hasattr(each, "__dict__")]
        if len(others) < 2:
            continue
        if has_settings(value):
            yield from (((name, *path), new) for path, new in _differing(value, *others))
        elif is_plain(value) and value == others[0] != others[1]:
            yield (name,), others[1]
