"""The places in a cache that layers write to, without gaps where modules before them are gone.

The caches of the library transformers count words by their first place, and by the first of each kind of
attention: where nothing writes to it, no word was ever read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from torch import nn

from prunekit.graph.cached_path import keeps_cache
from prunekit.graph.configured import built_anew, leaves, settings_of
from prunekit.models.absent import Absent


def close_gaps(model: nn.Module) -> Callable[[], None]:
    """Let the layers that are left write to the first places in the cache, in order, in place.

    A place is an attribute that is the number of the layer that it is in, in every layer of a list of a
    network that is built anew. Layers of different kinds by a list of the configuration keep places apart.

    Args:
        model: the network, in which some modules are `Absent`.

    Returns:
        What makes the places as they were.
    """
    changed: list[tuple[nn.Module, str, int]] = []

    def undo() -> None:
        for module, attribute, before in reversed(changed):
            setattr(module, attribute, before)

    gone = [name for name, module in model.named_modules() if isinstance(module, Absent)]
    settings = settings_of(model) if gone and keeps_cache(model) else None
    whole = None if settings is None else built_anew(model, settings)
    if settings is None or whole is None:
        return undo
    for name, layers in whole.named_modules():
        if not isinstance(layers, nn.ModuleList) or not any(each.startswith(f"{name}.") for each in gone):
            continue
        kinds = [value for _, value in leaves(settings) if _are_kinds(value, len(layers))]
        for (inner, attribute), numbers in _places(layers).items():
            by_kind: dict[Any, list[int]] = defaultdict(list)
            for number in numbers:
                by_kind[tuple(kind[number] for kind in kinds)].append(number)
            for places in by_kind.values():
                free = iter(places)
                for number in places:
                    full = ".".join(each for each in (name, str(number), inner) if each)
                    if not any(full == each or full.startswith(f"{each}.") for each in gone):
                        module = model.get_submodule(full)
                        changed.append((module, attribute, getattr(module, attribute)))
                        setattr(module, attribute, next(free))
    return undo


def _places(layers: nn.ModuleList) -> dict[tuple[str, str], list[int]]:
    """By module within a layer and attribute, the numbers of the layers that have it; it is that number."""
    found: dict[tuple[str, str], dict[int, Any]] = defaultdict(dict)
    for number, layer in enumerate(layers):
        for inner, module in layer.named_modules():
            for attribute, value in vars(module).items():
                if type(value) is int:
                    found[inner, attribute][number] = value
    return {
        where: list(values)
        for where, values in found.items()
        if len(layers) > 1 and all(number == value for number, value in values.items())
    }


def _are_kinds(value: Any, layers: int) -> bool:
    """Whether a setting says of what kind each layer is."""
    return isinstance(value, list | tuple) and len(value) == layers and all(isinstance(x, str) for x in value)
