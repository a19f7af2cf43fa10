"""What a node of a captured graph calls, with which arguments, and what it reads and writes."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx


def op_name(node: fx.Node) -> str:
    """The name of an ATen operator without overload and the "_" of one that writes in place.

    Of any other target it is its text.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = target.overloadpacket.__name__
    return name.removesuffix("_") if target._schema.is_mutable else name


def argument(node: fx.Node, name: str) -> Any:
    """An argument of a node's call by its name in the schema, or its default; None where there is none."""
    schema = getattr(node.target, "_schema", None)
    for place, each in enumerate(schema.arguments if schema is not None else ()):
        if each.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, each.default_value)
    return None


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Give an argument of a node's call another value."""
    names = [each.name for each in node.target._schema.arguments]  # type: ignore[union-attr]
    if names.index(name) < len(node.args):
        node.update_arg(names.index(name), value)
    else:
        node.update_kwarg(name, value)


def shape_of(node: Any) -> list[int]:
    """The shape of a node's value."""
    return [int(size) for size in node.meta["val"].shape]


def module_of(node: fx.Node) -> str:
    """Full name of the module whose forward calls a node; empty for the network itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return str(list(stack.values())[-1][0]) if stack else ""


def is_written(node: fx.Node) -> bool:
    """Whether a node writes into its first argument."""
    return bool(node.args) and bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def is_view(node: fx.Node) -> bool:
    """Whether a node's value may lie in the memory of what it reads, into which it does not write."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    aliased = any(each.alias_info is not None for each in arguments)
    return node.target is operator.getitem or (aliased and not is_written(node))


def leading_to(node: fx.Node) -> set[fx.Node]:
    """Everything that a node is computed from, and the node itself."""
    found, waiting = {node}, [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def behind(first: Collection[fx.Node], nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The first ones and everything that is computed from them, in the order of the nodes."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        if node in first or any(before in found for before in node.all_input_nodes):
            found[node] = None
    return list(found)
