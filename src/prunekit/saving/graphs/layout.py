"""How a network's arguments and outputs are nested, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from prunekit.errors import ModelError

_LEAF = "*"


class Outputs(dict[str, Any]):
    """Named outputs: by name as in a mapping or as an attribute, or by number.

    It stands for whatever class a network's outputs are of, since a saved graph names no classes.
    """

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _restored(values: Any, names: Any) -> Outputs:
    return Outputs(zip(names, values, strict=True))


pytree.register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    _restored,
    serialized_type_name="prunekit.Outputs",
)


def layout_to_json(spec: pytree.TreeSpec) -> Any:
    """Tuples, lists and mappings with their names; other classes become `Outputs`.

    Raises:
        ModelError: for a class whose parts have no names.
    """
    if spec.is_leaf():
        return _LEAF
    parts = [layout_to_json(child) for child in spec.children()]
    if spec.type in (tuple, list):
        return {spec.type.__name__: parts}
    names = _names(spec, len(parts))
    if spec.type is dict:
        return {"dict": dict(zip(names, parts, strict=True))}
    return {"named": dict(zip(names, parts, strict=True))}


def layout_from_json(saved: Any) -> pytree.TreeSpec:
    """The inverse, up to classes.

    Raises:
        ValueError: where it is none.
    """
    return pytree.tree_flatten(_example(saved))[1]


def _names(spec: pytree.TreeSpec, count: int) -> Sequence[str]:
    fields = getattr(spec.type, "_fields", None)  # of a named tuple
    names = fields if fields is not None else spec.context
    if isinstance(names, tuple | list) and len(names) == count and all(isinstance(n, str) for n in names):
        return names
    kind = spec.type.__name__ if isinstance(spec.type, type) else str(spec.type)
    raise ModelError(f"a network that takes or returns a {kind} cannot be saved as a graph")


def _example(saved: Any) -> Any:
    if saved == _LEAF:
        return 0
    if isinstance(saved, dict) and len(saved) == 1:
        ((kind, parts),) = saved.items()
        if kind in ("tuple", "list") and isinstance(parts, list):
            examples = [_example(part) for part in parts]
            return tuple(examples) if kind == "tuple" else examples
        if kind in ("dict", "named") and isinstance(parts, dict):
            found = {name: _example(part) for name, part in parts.items()}
            return found if kind == "dict" else Outputs(found)
    raise ValueError(f"{str(saved)[:60]!r} says nothing of arguments or outputs")
