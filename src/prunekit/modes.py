"""A network left as it was: its training flags, its values, and what its forward writes to its modules."""

from __future__ import annotations

import operator
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks


@contextmanager
def keeping_modes(*roots: nn.Module) -> Iterator[None]:
    """Afterwards every module below has the training flag that it had, mixed ones too.

    `train()` and `eval()` are not called for it: users override them.
    """
    flags = [(module, module.training) for root in roots for module in root.modules()]
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def evaluating(*roots: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module below; afterwards each has the training flag that it had."""
    with keeping_modes(*roots):
        for root in roots:
            for module in root.modules():
                module.training = False
        yield


_CONTAINERS = (dict, list, set, deque, tuple)


class Holdings:
    """What the modules of a network hold: their attributes, and the lists, dicts and sets in them.

    Most are empty, as those for hooks: of the 3,900 of a ResNet-50 all but 800.
    """

    def __init__(self, model: nn.Module) -> None:
        self._empty: dict[int, Any] = {}
        self._filled: dict[int, tuple[Any, Any]] = {}
        self._owners: dict[int, str] = {}
        for module in model.modules():
            self._take(vars(module), type(module).__name__)

    @property
    def changed(self) -> str:
        """The class of the first module that holds something else now; empty if none does."""
        others = {id(value) for value in self._others()}
        return next((owner for key, owner in self._owners.items() if key in others), "") if others else ""

    def put_back(self) -> None:
        """Let all be as it was."""
        for value in self._others():
            _, before = self._filled.get(id(value), (value, ()))
            value.clear()
            (value.update if isinstance(value, (dict, set)) else value.extend)(before)

    def _others(self) -> list[Any]:
        """The containers that hold something else now."""
        filled = [value for value, before in self._filled.values() if not _alike(value, before)]
        empty = self._empty.values()
        return [*filled, *filter(None, empty)] if any(empty) else filled

    def _take(self, held: dict[str, Any], owner: str) -> None:
        waiting: list[Any] = [held]
        while waiting:
            value = waiting.pop()
            if id(value) in self._owners:
                continue
            self._owners[id(value)] = owner
            if not value:
                self._empty[id(value)] = value
                continue
            self._filled[id(value)] = value, _content(value)
            every = value.values() if isinstance(value, dict) else value
            waiting += [each for each in every if isinstance(each, _CONTAINERS)]


def _content(value: Any) -> Any:
    """What a container holds, to be put back; of a tuple that is itself."""
    kinds = (tuple, dict, set)
    return next((kind for kind in kinds if isinstance(value, kind)), list)(value)


def _alike(value: Any, before: Any) -> bool:
    """Whether a container holds the same objects, in the same order if it has one."""
    if len(value) != len(before):
        return False
    if isinstance(value, set):
        return bool(value == before)
    if isinstance(value, dict) and not all(map(operator.is_, value.values(), before.values())):
        return False
    return all(map(operator.is_, value, before))


@contextmanager
def untouched(model: nn.Module) -> Iterator[Holdings]:
    """A network runs to be looked at: what it writes to its modules is put back, and hooks are set aside.

    Hooks that are PyTorch's own, such as those of weight norm, are part of what it computes and stay.
    Functions that remember their results (`functools.lru_cache`) are called anew, and remember nothing.

    Yields:
        What the modules held before.
    """
    with _hooks_aside(model), _caches_aside(model), _data_kept(model), holding(model) as holdings:
        yield holdings


@contextmanager
def holding(model: nn.Module) -> Iterator[Holdings]:
    """What the modules of a network hold is put back afterwards.

    Yields:
        What they held before.
    """
    holdings = Holdings(model)
    try:
        yield holdings
    finally:
        holdings.put_back()


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def _hooks_aside(model: nn.Module) -> Iterator[None]:
    places = [getattr(module, name) for module in model.modules() for name in _HOOKS]
    places += [getattr(global_hooks, f"_global{name}") for name in _HOOKS]
    before = [(place, place.copy()) for place in places if place]
    for place, found in before:
        for key, hook in found.items():
            if not str(getattr(hook, "__module__", "")).startswith("torch."):
                del place[key]
    try:
        yield
    finally:
        for place, found in before:
            place.clear()
            place.update(found)


@contextmanager
def _data_kept(model: nn.Module) -> Iterator[None]:
    """Tensors get back the data that the forward took from them, as where it casts a layer."""
    every = [*model.parameters(), *model.buffers()]
    before = [(tensor, tensor.detach()) for tensor in every if tensor.layout == torch.strided]
    try:
        yield
    finally:
        for tensor, data in before:
            if not _same_data(tensor, data):
                tensor.data = data


def _same_data(tensor: Tensor, data: Tensor) -> bool:
    try:
        return tensor.data_ptr() == data.data_ptr() and tensor.dtype == data.dtype
    except RuntimeError:  # it has no data any more
        return False


_Cache = type(lru_cache(len))


@contextmanager
def _caches_aside(model: nn.Module) -> Iterator[None]:
    """Functions in the place of those that remember their results, in the modules' classes and files."""
    files: dict[str, None] = {}
    places: list[Any] = []
    for kind in dict.fromkeys(base for module in model.modules() for base in type(module).__mro__):
        if not kind.__module__.startswith(("torch.", "builtins")):
            places.append(kind)
            files[kind.__module__] = None
    places += [sys.modules[name] for name in files if name in sys.modules]
    put_back: list[Callable[[], None]] = []
    for place in places:
        for name, value in list(vars(place).items()):
            if isinstance(value, _Cache):
                put_back.append(partial(setattr, place, name, value))
                setattr(place, name, value.__wrapped__)
            closure = value.__closure__ if isinstance(value, FunctionType) else None
            for cell in closure or ():
                if isinstance(cached := _cell_content(cell), _Cache):
                    put_back.append(partial(setattr, cell, "cell_contents", cached))
                    cell.cell_contents = cached.__wrapped__
    try:
        yield
    finally:
        for each in put_back:
            each()


def _cell_content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty yet
        return None


class Snapshot:
    """A copy of the parameters and buffers of a network; those that are in no state dict, too.

    Args:
        model: the network.
        parameters: whether the parameters are copied, or buffers alone.
    """

    def __init__(self, model: nn.Module, *, parameters: bool = True) -> None:
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self._copies: dict[int, Tensor] = {}
        for module in model.modules():
            tables = (module._parameters, module._buffers) if parameters else (module._buffers,)
            for table in tables:
                for name, value in table.items():
                    if value is not None:
                        self._places.append((table, name, value))  # type: ignore[arg-type]
                        if id(value) not in self._copies:
                            self._copies[id(value)] = value.detach().clone()

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back: the same tensors, with the same bits."""
        for table, name, value in self._places:
            if not _is_expanded(value):
                value.detach().copy_(self._copies[id(value)])
            if table.get(name) is not value:
                table[name] = value


def _is_expanded(value: Tensor) -> bool:
    """Elements that share memory: torch itself lets nobody write to them."""
    return any(not stride and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))
