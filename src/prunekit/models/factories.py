"""Where models come from: the built-in factories by name, or a function of the user's own."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

from torch import nn

from prunekit.errors import InputError
from prunekit.models.char_transformer import char_transformer
from prunekit.models.lenet5 import lenet5
from prunekit.models.lenet_300_100 import lenet_300_100
from prunekit.models.maxout_lenet5 import maxout_lenet5
from prunekit.models.mlp import mlp
from prunekit.models.resnet import resnet, resnet20
from prunekit.models.vgg_small import vgg_small
from prunekit.permission import import_object
from prunekit.settings import shown

Factory = Callable[..., nn.Module]

_BUILT_IN: Mapping[str, Factory] = MappingProxyType(
    {
        "char_transformer": char_transformer,
        "lenet5": lenet5,
        "lenet_300_100": lenet_300_100,
        "maxout_lenet5": maxout_lenet5,
        "mlp": mlp,
        "resnet": resnet,
        "resnet20": resnet20,
        "vgg_small": vgg_small,
    }
)


def names() -> tuple[str, ...]:
    """The names of the built-in models, sorted."""
    return tuple(sorted(_BUILT_IN))


def find_factory(name: str) -> Factory:
    """The factory of a built-in name, or the class or function that `package.module:function` names.

    Raises:
        InputError: if there is no such model, its module is not allowed or cannot be imported, or it is
            neither a class of `nn.Module` nor a function that is annotated to return one.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if ":" not in name:
        raise InputError(
            f"there is no model {shown(name)}; names are: {', '.join(names())}, "
            "and package.module:function for a model of your own"
        )
    found = import_object(name)
    if not _is_module(found) and not _is_module(_returned(found)):
        what = f"def {found.__name__}(...) -> nn.Module" if inspect.isroutine(found) else "-> nn.Module"
        raise InputError(
            f"{name!r} is not called, because nothing says that it makes a model: write a class of "
            f"torch.nn.Module, or a function whose annotation does ({what})"
        )
    factory: Factory = found
    return factory


def _is_module(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _returned(function: Any) -> Any:
    """What a function is annotated to return; None for what is no function, or has no such annotation."""
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        return None
    try:  # the annotation of the result alone: those of arguments may be for type checkers only
        written = SimpleNamespace(__annotations__={"return": function.__annotations__["return"]})
        return typing.get_type_hints(written, inspect.unwrap(function).__globals__)["return"]
    except Exception:  # an annotation is code, too
        return None
