"""A model's settings, the factories that they may name, and the network with reproducible initial values."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Self

from pydantic import ConfigDict, PrivateAttr, PydanticUserError, TypeAdapter, ValidationError, model_validator
from torch import nn

from prunekit.errors import InputError, ModelError, PrunekitError, instead, shown
from prunekit.models.char_transformer import CharTransformer
from prunekit.models.convnets import LeNet5, MaxoutLeNet5, ResNet, VGGSmall, resnet20
from prunekit.models.googlenet import GoogLeNetSmall
from prunekit.models.mlp import MLP, LeNet300100, feature_shape
from prunekit.permission import import_object, makes
from prunekit.seeds import seeded
from prunekit.settings import Settings, size_of, whole

Factory = Callable[..., nn.Module]

_BUILT_IN: Mapping[str, Factory] = MappingProxyType(
    {
        "char_transformer": CharTransformer,
        "googlenet_small": GoogLeNetSmall,
        "lenet5": LeNet5,
        "lenet_300_100": LeNet300100,
        "maxout_lenet5": MaxoutLeNet5,
        "mlp": MLP,
        "resnet": ResNet,
        "resnet20": resnet20,
        "vgg_small": VGGSmall,
    }
)


class ModelSettings(Settings):
    """The name of a model and its factory's own settings flat beside it: `{name: mlp, hidden: [64, 32]}`.

    The name is a built-in one (see `names`) or `package.module:function` for a factory of the user's own,
    which is imported, if its module is allowed (see `prunekit.permission`), to read its signature. In YAML a
    name alone means all defaults. Settings become attributes (`settings.hidden`); `to_dict` lists the
    defaults too.

    Raises:
        InputError: for an unknown model, one of a module that is not allowed, an unknown key or a value of
            another type than the factory's.
    """

    model_config = ConfigDict(extra="allow")  # `_from_signature` has checked every key against the factory

    name: str
    _factory: Factory | None = PrivateAttr(default=None)

    @classmethod
    def parse(cls, values: Any, *, allow: Iterable[str] = ()) -> Self:
        """The settings that a name, a mapping from YAML or JSON, or ready settings describe."""
        return super().parse({"name": values} if isinstance(values, str) else values, allow=allow)

    @property
    def factory(self) -> Factory:
        """The function or class that makes the model, as it was found when the settings were made."""
        return self._factory or find_factory(self.name)

    @property
    def own(self) -> dict[str, Any]:
        """The factory's own settings, without the name."""
        return dict(self.model_extra or {})

    @classmethod
    def _label(cls) -> str:
        return "model"

    @model_validator(mode="before")
    @classmethod
    def _from_signature(cls, values: Any) -> Any:
        if isinstance(values, str):
            values = {"name": values}
        if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
            raise InputError(
                f"expected the name of a model or a mapping with the key 'name', got {shown(values)}; "
                f"names are: {', '.join(names())}"
            )
        name = values["name"]
        given = {key: value for key, value in values.items() if key != "name"}
        return {"name": name, **checked_settings(name, find_factory(name), given)}

    @model_validator(mode="after")
    def _keep_factory(self) -> Self:
        self._factory = find_factory(self.name)  # so that who has the settings needs no permission any more
        return self


def create(
    settings: ModelSettings | Mapping[str, Any] | str,
    input_shape: Sequence[int],
    outputs: int,
    *,
    seed: int,
    allow: Iterable[str] = (),
) -> nn.Module:
    """The model that `settings` describe, its initial values drawn from `seed` alone.

    The same arguments give the same values, whatever was drawn before, and torch's global generators are left
    where they were. A user's own factory is called with its settings by keyword, and with `input_shape` and
    `outputs` if its signature names them; random numbers that it takes from elsewhere than torch are its own.

    Args:
        settings: the model's settings, their YAML form, or its name alone.
        input_shape: shape of one example, without the batch.
        outputs: number of outputs: classes, or regression targets.
        seed: a whole number in [0, 2**63).
        allow: modules of the user's own whose code the settings may name, such as `["my_models"]` for
            `my_models:small`.

    Raises:
        InputError: if a setting, a size or the seed cannot be accepted, or the model's module is not allowed.
        ModelError: if the factory fails or returns something other than a `torch.nn.Module`.
    """
    chosen = ModelSettings.parse(settings, allow=allow)
    from_data = data_arguments(
        chosen.name, chosen.factory, feature_shape(input_shape), size_of("outputs", outputs)
    )
    with seeded(whole("seed", seed, 0, 2**63 - 1)):
        try:
            model = chosen.factory(**from_data, **chosen.own)
        except PrunekitError:
            raise
        except Exception as error:  # the factory may be the user's: whatever it raises is the user's to see
            raise ModelError(
                f"the model {chosen.name} failed with {type(error).__name__}: {error}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model {chosen.name} gave {model!r}, which is no torch.nn.Module")
    return model


# ---- factories ---------------------------------------------------------------------------------------------


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
            f"there is no model {shown(name)}{instead(name, names())}, "
            "and package.module:function for a model of your own"
        )
    found = import_object(name)
    if not makes(found, nn.Module):
        what = f"def {found.__name__}(...) -> nn.Module" if inspect.isroutine(found) else "-> nn.Module"
        raise InputError(
            f"{name!r} is not called, because nothing says that it makes a model: write a class of "
            f"torch.nn.Module, or a function whose annotation does ({what})"
        )
    factory: Factory = found
    return factory


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
            raise InputError(f"{name}: unknown key {shown(key)}{instead(key, sorted(own), 'allowed keys')}")
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
