"""A model's settings, and the network with reproducible initial values that they describe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from pydantic import ConfigDict, PrivateAttr, model_validator
from torch import nn

from prunekit.errors import InputError, ModelError, PrunekitError
from prunekit.messages import shown
from prunekit.models.common import feature_shape, output_count
from prunekit.models.factories import Factory, checked_settings, data_arguments, find_factory, names
from prunekit.seeds import seeded
from prunekit.settings import Settings


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
    from_data = data_arguments(chosen.name, chosen.factory, feature_shape(input_shape), output_count(outputs))
    _check_seed(seed)
    with seeded(seed):
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


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number in [0, 2**63), got {seed!r}")
