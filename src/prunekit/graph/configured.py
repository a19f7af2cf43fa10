"""Networks that can be built anew from their configuration, as those of the library transformers can."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from prunekit.models import without_data
from prunekit.seeds import keeping_generators

Path = tuple[str, ...]
"""The keys to a value in nested settings."""


def settings_of(model: nn.Module) -> dict[str, Any] | None:
    """The settings that a network can be built from; None where it keeps none, or its class takes none."""
    config: Any = getattr(model, "config", None)
    if not has_settings(config) or not callable(getattr(model, "from_pretrained", None)):
        return None
    return copy.deepcopy(dict(config.to_dict()))


def has_settings(value: Any) -> bool:
    """Whether a value is a configuration that can be written to a file and read."""
    return all(callable(getattr(type(value), name, None)) for name in ("to_dict", "from_dict"))


def built_anew(model: nn.Module, settings: dict[str, Any]) -> nn.Module | None:
    """A network of the same class from settings, without data; None where there is none."""
    try:
        with without_data():
            return from_settings(model, settings)
    except Exception:  # whatever the constructors of the network's class raise
        return None


def from_settings(model: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """A network of the same class from settings; random numbers are left as they were.

    Raises:
        Exception: whatever the constructors of the network's class raise.
    """
    config: Any = model.config
    with keeping_generators():
        return type(model)(type(config).from_dict(copy.deepcopy(settings)))


def form_of(model: nn.Module) -> dict[str, Any]:
    """By full name the class of every module, and the shape of every tensor."""
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        **{name: type(module) for name, module in model.named_modules(remove_duplicate=False) if name},
        **{name: tensor.shape for name, tensor in tensors},
    }


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a text, None, or a list or dict of such."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return value is None or isinstance(value, int | float | str)


def leaves(settings: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All values of nested settings but those that are settings themselves."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, str(name)))
        else:
            yield (*path, str(name)), value


def with_value(settings: dict[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Settings in which one is another."""
    return with_changes(settings, [(path, value)])


def with_changes(settings: dict[str, Any], changes: Iterable[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    """Settings in which some are others; those within settings that are not there are added."""
    changed = copy.deepcopy(settings)
    for path, value in changes:
        inner = changed
        for name in path[:-1]:
            inner = inner.setdefault(name, {})
        inner[path[-1]] = value
    return changed


def set_value(config: Any, path: Path, value: Any) -> None:
    """Give a setting of a configuration another value, in place."""
    for name in path[:-1]:
        config = getattr(config, name)
    vars(config)[path[-1]] = value
