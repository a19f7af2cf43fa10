"""Sizes written into an exported graph, made to fit what stays."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

from torch import fx, nn

from prunekit.errors import InputError
from prunekit.graph.captured import module_of
from prunekit.graph.groups import KeepMasks
from prunekit.graph.labels import Flags
from prunekit.graph.ops import op_name, operator_of
from prunekit.graph.ops.registry import Keeps


@dataclass(frozen=True)
class Corrected:
    """A graph whose constants fit what stays.

    Attributes:
        graph: the graph.
        named: what its `get_attr` nodes name.
    """

    graph: fx.Graph
    named: Mapping[str, Any]

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph, to be run."""
        self.graph.lint()
        return fx.GraphModule(dict(self.named), self.graph)


def corrected(
    graph: fx.Graph, root: nn.Module, keeping: KeepMasks, number: int, prefix: str = ""
) -> Corrected:
    """A copy of a graph with its constants made to fit; checks of dtypes and sizes are left out.

    Args:
        graph: with parameters as inputs.
        root: what its `get_attr` nodes name.
        keeping: what stays of every node.
        number: of the graph.
        prefix: of the names of its nodes.

    Raises:
        InputError: where nothing would be left of a tensor.
    """
    smaller, named = copy.deepcopy(graph), dict[str, Any]()

    def keeps(node: fx.Node) -> tuple[tuple[Flags | None, ...], ...]:
        return keeping(number, f"{prefix}{node.name}")

    for node in list(smaller.nodes):
        _not_empty(node, keeps)
        if node.op == "get_attr":
            named[str(node.target)] = attrgetter(str(node.target))(root)
        if node.op != "call_function":
            continue
        name = op_name(node)
        if name.startswith(("_assert", "_assert_tensor_metadata", "sym_constrain")):
            smaller.erase_node(node)
            continue
        for arg in node.args:
            if isinstance(arg, fx.Node) and arg.op == "get_attr":
                inner = named[str(arg.target)]
                if isinstance(inner, fx.GraphModule):
                    below = corrected(inner.graph, inner, keeping, number, f"{prefix}{node}/")
                    named[str(arg.target)] = below.module
        resize = operator_of(node).resize
        if resize is not None:
            resize(node, keeps)
    return Corrected(smaller, named)


def _not_empty(node: fx.Node, keeps: Keeps) -> None:
    for axes in keeps(node):
        for axis, flags in enumerate(axes):
            if flags is not None and not flags.any():
                module = module_of(node)
                raise InputError(
                    f"these units are all that axis {axis} of {node.name!r}"
                    f"{f' in {module!r}' if module else ''} has: at least one must stay"
                )
