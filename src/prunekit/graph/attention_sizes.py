"""Sizes of PyTorch's own attention, whose heads make up the width of what it is given.

Its code runs in one function of PyTorch, so that the numbers that it is given cannot be followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx, nn

from prunekit.graph.captured_graph import Captured, module_of, op_name
from prunekit.graph.ops.registry import Kept, new_shape

Shapes = Mapping[str, tuple[int, ...]]
_PRODUCTS = {"scaled_dot_product_attention": 0, "bmm": 0, "baddbmm": 1}
"""The operators in which queries meet keys, with the place of the queries."""


def attention_sizes(
    model: nn.Module, shapes: Shapes, graph: Captured, keeps: Callable[[fx.Node], Kept]
) -> tuple[list[tuple[tuple[str, str], Any]], list[str]]:
    """New values by (module, attribute), and the modules for which there are none.

    Args:
        model: the network as it is.
        shapes: new shapes of the parameters and buffers that change.
        graph: of the network, with constants that fit.
        keeps: what stays of the values of a node.
    """
    found: list[tuple[tuple[str, str], Any]] = []
    unfit: list[str] = []
    for place, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.MultiheadAttention):
            continue
        full = {name: f"{place}.{name}" if place else name for name, _ in module.named_parameters()}
        if not any(name in shapes for name in full.values()):
            continue
        new = {each: shapes.get(name, tuple(module.get_parameter(each).shape)) for each, name in full.items()}
        width, inside = new["out_proj.weight"]
        head = _head_width(graph, place, keeps) or module.head_dim
        if {inside, *_rows(new)} != {width} or width % head:
            unfit.append(place)
            continue
        sizes = {
            "embed_dim": width,
            "head_dim": head,
            "num_heads": width // head,
            "kdim": width,
            "vdim": width,
        }
        if "k_proj_weight" in new:
            sizes |= {"kdim": new["k_proj_weight"][1], "vdim": new["v_proj_weight"][1]}
        found.extend(((place, name), value) for name, value in sizes.items())
    return found, unfit


def _rows(new: Shapes) -> list[int]:
    """The widths of queries, keys and values, and that of what queries are made from."""
    if "in_proj_weight" in new:
        rows, width = new["in_proj_weight"]
        return [rows // 3 if rows % 3 == 0 else 0, width]
    return [new["q_proj_weight"][1], *(new[f"{each}_proj_weight"][0] for each in "qkv")]


def _head_width(graph: Captured, place: str, keeps: Callable[[fx.Node], Kept]) -> int | None:
    """The width of the queries of one head, where the graph has them."""
    for node in graph.graph.nodes:
        if op_name(node) in _PRODUCTS and module_of(node) == place:
            queries = node.args[_PRODUCTS[op_name(node)]]
            assert isinstance(queries, fx.Node)
            return new_shape(queries, keeps)[-1]
    return None
