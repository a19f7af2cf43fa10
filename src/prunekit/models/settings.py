"""Which model, with which settings: the same in Python and YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import ConfigDict, PrivateAttr, model_validator

from prunekit.errors import InputError
from prunekit.models.factories import Factory, find_factory, names
from prunekit.models.signature import checked_settings
from prunekit.settings import Settings, shown


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
