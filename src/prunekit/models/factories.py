"""The factories of models: built-in ones by name, a user's own, and the settings that each takes."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

from pydantic import PydanticUserError, TypeAdapter, ValidationError
from torch import nn

from prunekit.errors import InputError
from prunekit.messages import shown
from prunekit.models.char_transformer import char_transformer
from prunekit.models.lenet import lenet5, lenet_300_100, maxout_lenet5
from prunekit.models.mlp import mlp
from prunekit.models.resnet import resnet, resnet20
from prunekit.models.vgg_small import vgg_small
from prunekit.permission import import_object

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


_FROM_THE_DATA = ("input_shape", "outputs")  # these follow from the dataset and are never settings
_RESERVED = ("name", *_FROM_THE_DATA)


def checked_settings(name: str, factory: Factory, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to call `factory` with: those given, checked against their annotations, and the defaults.

    Values are read strictly, as JSON would hold them: "64", 64.0 and True are no whole numbers, and a list
    stands for a tuple. A parameter without a usable annotation takes any JSON value. Defaults are filled in
    where they are annotated and have a JSON form; the others are left to the factory.

    Raises:
        InputError: for an unknown key, a missing one or a value of another type; names the model and the key.
    """
    parameters = _parameters(name, factory)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    own = {
        key: parameter
        for key, parameter in parameters.items()
        if key not in _RESERVED
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for key in given:
        if key in _FROM_THE_DATA or (key not in own and not takes_any):
            allowed = ", ".join(sorted(own)) or "none"
            raise InputError(f"{name}: unknown key {shown(key)}; allowed keys are: {allowed}")
    settings = {}
    for key, parameter in own.items():
        if key in given:
            settings[key] = _checked(f"{name}: {key}", parameter.annotation, given[key])
        elif parameter.default is parameter.empty:
            raise InputError(f"{name}: the key {key!r} is missing")
        elif parameter.annotation is not parameter.empty:
            try:
                settings[key] = _checked(key, parameter.annotation, parameter.default)
            except InputError:
                continue  # not for us to judge: a default such as a class, or None for an int
    others = {key: _checked(f"{name}: {key}", Any, value) for key, value in given.items() if key not in own}
    return settings | others


def data_arguments(name: str, factory: Factory, input_shape: tuple[int, ...], outputs: int) -> dict[str, Any]:
    """`input_shape` and `outputs`, as far as the signature of `factory` names them."""
    available = dict(zip(_FROM_THE_DATA, (input_shape, outputs), strict=True))
    return {key: value for key, value in available.items() if key in _parameters(name, factory)}


def _parameters(name: str, factory: Factory) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = _signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: its settings cannot be read from its signature: {error}") from None
    for key, parameter in parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is parameter.empty:
            raise InputError(f"{name}: takes {key!r} by position only; settings are passed by keyword")
    return parameters


def _signature(factory: Factory) -> inspect.Signature:
    try:
        return inspect.signature(factory, eval_str=True)
    except Exception:  # an annotation that only type checkers can evaluate raises whatever it likes
        return inspect.signature(factory)


def _checked(place: str, annotation: Any, value: Any) -> Any:
    """`value` as the annotation's type, by way of JSON."""
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise InputError(f"{place} = {shown(value)}: not a plain number, text, list or mapping") from None
    try:
        return _adapter(annotation).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        inside = "".join(f".{step}" for step in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(
            f"{place}{inside} = {shown(first['input'])}: {message[0].lower()}{message[1:]}"
        ) from None


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return TypeAdapter(Any)
    try:
        return TypeAdapter(annotation)
    except PydanticUserError:  # a class that pydantic knows nothing of
        return TypeAdapter(Any)
