"""Sizes after units are taken out: in the attributes of modules, and written into exported graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from prunekit.errors import InputError
from prunekit.graph.captured import Captured, argument, attributes_of, module_of, op_name
from prunekit.graph.groups import GroupPlan, KeepMasks
from prunekit.graph.ops import OPERATORS, operator_of
from prunekit.graph.ops.moves import RESHAPED
from prunekit.graph.ops.registry import Keeps, Kept


def corrected(graph: Captured, keeping: KeepMasks, number: int) -> Captured:
    """A copy of a graph with its constants made to fit; checks of dtypes and sizes are left out.

    Args:
        graph: as captured.
        keeping: what stays of every node.
        number: of the graph.

    Raises:
        InputError: where nothing would be left of a tensor.
    """
    smaller, named = _corrected(graph.graph, graph.named, partial(keeping, number), "")
    return replace(graph, graph=smaller, named=named)


def _corrected(
    graph: fx.Graph,
    named: Mapping[str, Any],
    keeping: Callable[[str], Kept],
    prefix: str,
) -> tuple[fx.Graph, dict[str, Any]]:
    """Likewise, of a graph whose nodes' names begin with a prefix, with what its `get_attr` nodes name."""
    smaller, named = copy.deepcopy(graph), dict(named)

    def keeps(node: fx.Node) -> Kept:
        return keeping(f"{prefix}{node.name}")

    for node in list(smaller.nodes):
        _not_empty(node, keeps)
        if node.op != "call_function":
            continue
        if op_name(node).startswith(("_assert", "sym_constrain")):
            smaller.erase_node(node)
            continue
        for arg in node.args:
            if isinstance(arg, fx.Node) and arg.op == "get_attr":
                inner = named[str(arg.target)]
                if isinstance(inner, fx.GraphModule):
                    inside = attributes_of(inner.graph, inner)
                    below, inside = _corrected(inner.graph, inside, keeping, f"{prefix}{node}/")
                    named[str(arg.target)] = fx.GraphModule(inside, below)
        resize = operator_of(node).resize
        if resize is not None:
            resize(node, keeps)
        node.target = RESHAPED.get(node.target, node.target)
    return smaller, named


def _not_empty(node: fx.Node, keeps: Keeps) -> None:
    for axes in keeps(node):
        for axis, flags in enumerate(axes):
            if flags is not None and not flags.any():
                module = module_of(node)
                raise InputError(
                    f"these units are all that axis {axis} of {node.name!r}"
                    f"{f' in {module!r}' if module else ''} has: at least one must stay"
                )


# what attention in libraries and in users' code calls the number of heads, and the width of all or of one
_HEADS = (
    "num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads",
    "num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads",
)  # fmt: skip
_ALL = (
    "all_head_size", "embed_dim", "inner_dim", "split_size", "hidden_size", "dim", "hidden_dim",
    "kv_dim", "attn_dim", "width",
)  # fmt: skip
_EACH = (
    "head_dim", "attention_head_size", "head_size", "key_value_proj_dim", "d_head", "dim_head", "d_kv",
)  # fmt: skip

# what PyTorch's layers and Conv1D of transformers call theirs
_LAYERS = (
    "out_features", "in_features", "out_channels", "in_channels", "groups", "num_features", "num_embeddings",
    "embedding_dim", "num_parameters", "nx", "nf", "normalized_shape", "num_groups", "num_channels",
)  # fmt: skip


def size_attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All attributes that surgery may change, by module and name: whole numbers, or lists of such."""
    found: dict[str, dict[str, Any]] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        for name in (*_LAYERS, *_HEADS, *_ALL, *_EACH):
            value = vars(module).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                found.setdefault(place, {})[name] = value
            elif isinstance(value, tuple | list) and value and all(type(each) is int for each in value):
                found.setdefault(place, {})[name] = list(value)
    return found


def sizes(
    model: nn.Module,
    plan: GroupPlan,
    kept: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    graphs: Sequence[Captured],
    keeping: KeepMasks,
) -> dict[tuple[str, str], Any]:
    """New values by (module, attribute); those that stay are not named.

    Args:
        model: the network as it is.
        plan: its groups.
        kept: for each group that loses units which stay.
        shapes: new shapes of the parameters and buffers that change.
        graphs: the captured graphs with corrected constants.
        keeping: what stays of every node.
    """
    found: dict[tuple[str, str], Any] = {}
    for (place, attribute), value in [
        *_attention(model, plan, kept),
        *_in_graphs(model, graphs, keeping),
        *_by_shape(model, shapes, graphs),
    ]:
        before = getattr(model.get_submodule(place), attribute, None)
        if before is not None and before != value:
            found[(place, attribute)] = value
    return found


def _by_shape(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    graphs: Sequence[Captured],
) -> list[tuple[tuple[str, str], Any]]:
    groups = {
        graph.tensors.get(str(node.args[1])): argument(node, "groups")
        for graph in graphs
        for node in graph.graph.nodes
        if operator_of(node).convolves
    }
    found: list[tuple[tuple[str, str], Any]] = []
    for name, shape in shapes.items():
        place, _, short = name.rpartition(".")
        module = model.get_submodule(place)
        for attribute, value in sizes_of_module(module, short, shape, groups.get(name) or 1).items():
            found.append(((place, attribute), value))
    return found


def sizes_of_module(module: nn.Module, short: str, shape: tuple[int, ...], groups: int) -> dict[str, Any]:
    """Attributes of a module that follow from the shape of one of its tensors; see `Operator`."""
    known = (record.module_sizes for record in OPERATORS.values() if record.module_sizes)
    return next((found for each in known if (found := each.of(module, short, shape, groups))), {})


def _in_graphs(
    model: nn.Module, graphs: Sequence[Captured], keeping: KeepMasks
) -> list[tuple[tuple[str, str], Any]]:
    """Of modules whose sizes may only stand in the graph, such as norms without parameters."""
    found: list[tuple[tuple[str, str], Any]] = []
    modules = dict(model.named_modules(remove_duplicate=False))
    for number, graph in enumerate(graphs):
        for node in graph.graph.nodes:
            place, repeated = module_of(node), operator_of(node).attributes
            owner = modules.get(place)
            if owner is not None and repeated is not None:
                new = repeated(owner, node, partial(_kept_of, keeping, number))
                found.extend(((place, name), value) for name, value in new.items())
    return found


def _kept_of(keeping: KeepMasks, number: int, node: fx.Node) -> Kept:
    return keeping(number, node.name)


def _attention(
    model: nn.Module, plan: GroupPlan, kept: Mapping[str, Tensor]
) -> list[tuple[tuple[str, str], Any]]:
    """Numbers and widths of heads in the modules around the projections that make them."""
    # for each module: kind, units and those left, with the widths they are met with; queries and values
    # whose width shrinks alike count once
    around: dict[str, dict[tuple[str, int, int], set[int]]] = {}
    for name, flags in kept.items():
        group = plan.group(name)
        if group.kind not in ("heads", "head width") or bool(flags.all()):
            continue
        change = (group.kind, group.units, int(flags.sum()))
        for member in group.members:
            parts = member.tensor.split(".")[:-1]
            for count in range(max(len(parts) - 2, 0), len(parts)):
                widths = around.setdefault(".".join(parts[:count]), {}).setdefault(change, set())
                widths.add(sum(map(len, member.indices)))
    found: list[tuple[tuple[str, str], Any]] = []
    for place, changes in around.items():
        module = model.get_submodule(place)
        for attribute in (*_HEADS, *_ALL, *_EACH):
            value = getattr(module, attribute, None)
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            new = value
            for (kind, units, left), widths in changes.items():
                fits = (
                    (kind == "heads" and attribute in _HEADS and value % units == 0)
                    or (attribute in _ALL and value in widths)
                    or (kind == "head width" and attribute in _EACH and value == units)
                )
                if fits:
                    new = new * left // units
            found.append(((place, attribute), new))
    return found
