"""Where models come from: the built-in factories by name, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from prunekit.errors import InputError
from prunekit.models.char_transformer import char_transformer
from prunekit.models.lenet5 import lenet5
from prunekit.models.lenet_300_100 import lenet_300_100
from prunekit.models.maxout_lenet5 import maxout_lenet5
from prunekit.models.mlp import mlp
from prunekit.models.resnet import resnet, resnet20
from prunekit.models.vgg_small import vgg_small
from prunekit.settings import import_object

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
    """The factory of a built-in name, or the callable that `package.module:function` names.

    Raises:
        InputError: if there is no such model, or it cannot be imported or called.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if ":" not in name:
        raise InputError(
            f"there is no model {name!r}; names are: {', '.join(names())}, "
            "and package.module:function for a model of your own"
        )
    found = import_object(name)
    if not callable(found):
        raise InputError(f"{name!r} is not a function that makes a model, it is {found!r}")
    return found
