"""Copies of networks: deep ones, in a third of the time that Python takes, and such as share memory."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from prunekit.errors import ModelError
from prunekit.masks import Masks

_Memo = dict[int, Any]
"""By the identities of objects what stands in a copy for them, as for `copy.deepcopy`."""


def copy_of(model: nn.Module, instead: Mapping[int, Tensor] | None = None) -> nn.Module:
    """A deep copy.

    Args:
        model: the network.
        instead: what stands in the copy for some of its tensors, by their identities.

    Raises:
        ModelError: if the model cannot be copied.
    """
    try:
        return _deep_copy(model, {**_computed_values(model), **(instead or {})})
    except Exception as error:  # copying runs the user's code
        raise ModelError(
            f"the model cannot be copied for the proof: {type(error).__name__}: {error}"
        ) from error


def sharing_copy(model: nn.Module, written: Collection[str] = ()) -> nn.Module:
    """A copy to be operated on, whose parameters lie in the network's own memory until they get smaller.

    Args:
        model: the network.
        written: names of parameters that will be written to, and of which it gets copies.

    Raises:
        ModelError: if the model cannot be copied.
    """
    copied = {id(model.get_parameter(name)) for name in written}
    shared = {
        id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad)
        for parameter in model.parameters()
        if type(parameter) is nn.Parameter and not parameter.is_inference() and id(parameter) not in copied
    }
    return copy_of(model, shared)


def masked_copy(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy whose removed weights are zero.

    Raises:
        InputError: if the masks are another model's.
        ModelError: if the model cannot be copied.
    """
    masks.parameters(model)
    copied = copy_of(model)
    masks.apply(copied)
    return copied


def with_plain_weights(copied: nn.Module) -> nn.Module:
    """A copy whose weights are what its parametrizations computed of others, as weight norms do; in place.

    Args:
        copied: a deep copy of a network, in evaluation mode.
    """
    for module in list(copied.modules()):
        if parametrize.is_parametrized(module):
            give_own_class(module)
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return copied


def give_own_class(module: nn.Module) -> None:
    """Let a parametrized module share its class with no copy: plain weights of one would change the other."""
    shared = type(module)
    own = {key: value for key, value in vars(shared).items() if key not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)


def _computed_values(model: nn.Module) -> _Memo:
    """Copies of what a network keeps of its last call, which PyTorch does not copy."""
    found: _Memo = {}
    waiting: list[Any] = [vars(module) for module in model.modules()]
    seen: set[int] = set()
    while waiting:
        held = waiting.pop()
        for value in held.values() if isinstance(held, dict) else held:
            if isinstance(value, Tensor):
                if not value.is_leaf:
                    found[id(value)] = value.detach().clone()
            elif isinstance(value, (dict, list, tuple, set)) and value and id(value) not in seen:
                seen.add(id(value))
                waiting.append(value)
    return found


def _deep_copy(model: nn.Module, memo: _Memo) -> nn.Module:
    """What `copy.deepcopy` gives, which goes a long way round for each of a module's many empty hooks."""
    kinds = {kind for kind in set(map(type, model.modules())) if _is_plain(kind)}
    plain = list(_plain_modules(model, kinds, set()))
    for module in plain:
        memo[id(module)] = type(module).__new__(type(module))
    for module in reversed(plain):  # a module's code may look at those within, once it is copied
        held = module.__getstate__()  # type: ignore[no-untyped-call]
        state = {name: _copied(value, memo) for name, value in held.items()}
        memo[id(module)].__setstate__(state)
    copied: nn.Module = copy.deepcopy(model, memo)
    return copied


def _copied(value: Any, memo: _Memo) -> Any:
    kind = type(value)
    if kind in _UNCHANGING or id(value) in memo:
        return memo.get(id(value), value)
    if kind in _EMPTY and not value:
        memo[id(value)] = kind()
        return memo[id(value)]
    return copy.deepcopy(value, memo)


_UNCHANGING = (type(None), bool, int, float, str)
_EMPTY = (dict, OrderedDict, list, set)


def _plain_modules(module: nn.Module, kinds: Collection[type], seen: set[int]) -> Iterator[nn.Module]:
    """The modules of some classes, an outer one first, but for those within others."""
    if id(module) in seen or type(module) not in kinds or "__deepcopy__" in vars(module):
        return
    seen.add(id(module))
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _plain_modules(child, kinds, seen)


def _is_plain(kind: type) -> bool:
    """Whether what a class has copied are the attributes: it says nothing else of it."""
    bases = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    own = {name for base in bases for name in vars(base)}
    slots = any(vars(base).get("__slots__") for base in bases)
    return own.isdisjoint(_OF_COPYING) and not slots and kind not in copyreg.dispatch_table


_OF_COPYING = ("__new__", "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs_ex__")
