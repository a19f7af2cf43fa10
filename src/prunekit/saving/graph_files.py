"""A network in the form of its exported graphs, to and from the files of a folder."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph import Graph, GraphModel
from prunekit.graph.graph_model import constant_name, holder_of
from prunekit.messages import shown
from prunekit.saving.folder import CONSTANT, GRAPH, Description, consistent, read_graph
from prunekit.saving.graphs import from_json, to_json
from prunekit.saving.graphs.calls import MAX_BYTES, check_calls

_RESERVED = re.compile(r"(_constant|_graph)[0-9]|__")
"""How names begin that a network of graphs gives to its own."""


def graph_to_files(model: GraphModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What goes into `graph.json`, and the constants for the file of the weights.

    Raises:
        ModelError: where a graph holds something that a file may not name.
    """
    graphs, tensors = [], {}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    every = _tensors_of(model)
    for number, graph in enumerate(model.graphs):
        saved, constants = to_json(graph, every, parameters)
        try:
            check_calls(from_json(saved, constants), every, sys.maxsize)
        except ValueError as error:
            raise ModelError(f"the network cannot be saved as a graph: {error}") from None
        graphs.append(saved)
        for name, value in constants.items():
            tensors[f"{number}.{name}{CONSTANT}"] = value.detach().cpu().contiguous().clone()
    constant = {name for name, _ in model.named_buffers() if name.startswith("_constant")}
    persistent = set(model.state_dict(keep_vars=True))
    return {
        "parameters": {
            name: parameter.requires_grad
            for name, parameter in model.named_parameters(remove_duplicate=False)
        },
        "buffers": {
            name: name in persistent
            for name, _ in model.named_buffers(remove_duplicate=False)
            if name not in constant
        },
        "graphs": graphs,
    }, tensors


def graph_from_files(
    folder: Path,
    description: Description,
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    max_bytes: int = MAX_BYTES,
) -> GraphModel:
    """The network, with the values of `state`; parameters and buffers are new objects.

    Args:
        folder: of the files.
        description: what `prunekit.json` says.
        state: parameters and buffers by full name, tied ones under each of their names.
        tensors: everything that the file of the weights holds.
        max_bytes: what the tensors that a graph makes may take at any one time.

    Raises:
        DataError: if the file is missing, damaged or was not written by prunekit, or a graph calls what it
            may not.
    """
    saved = read_graph(folder, description)
    with consistent(folder, GRAPH):
        holder = nn.Module()
        tied: Mapping[str, str] = description.tied
        made: dict[str, Tensor] = {}
        for name, trained in saved["parameters"].items():
            source = tied.get(name, name)
            if source not in made:
                made[source] = nn.Parameter(state[source], requires_grad=bool(trained))
            holder_of(holder, name).register_parameter(name.rpartition(".")[2], made[source])  # type: ignore[arg-type]
        for name, persistent in saved["buffers"].items():
            source = tied.get(name, name)
            value = made.setdefault(source, state[source])
            holder_of(holder, name).register_buffer(
                name.rpartition(".")[2], value, persistent=bool(persistent)
            )
        every = _tensors_of(holder)
        graphs: list[Graph] = []
        if len(saved["graphs"]) > 2:
            raise ValueError("there is one graph for evaluation, and one for training")
        for number, graph in enumerate(saved["graphs"]):
            start = f"{number}."
            constants = {
                name.removeprefix(start).removesuffix(CONSTANT): value
                for name, value in tensors.items()
                if name.startswith(start) and name.endswith(CONSTANT)
            }
            graphs.append(from_json(graph, constants))
            check_calls(graphs[-1], every, max_bytes)
        if not graphs or not _reads(graphs) <= {*saved["parameters"], *saved["buffers"]}:
            raise ValueError("its graphs read parameters that it does not have")
        _check_own_names(every, graphs)
        model = GraphModel(holder, graphs)
        _check_same(model, graphs, every)
        return model


def _reads(graphs: Sequence[Graph]) -> set[str]:
    inputs = [entry for graph in graphs for entry in graph.signature.inputs]
    outputs = [entry for graph in graphs for entry in graph.signature.outputs]
    return {name for kind, name in inputs if kind == "tensor"} | {
        name for kind, name in outputs if kind == "buffer"
    }


def _check_own_names(names: Iterable[str], graphs: Sequence[Graph]) -> None:
    """Refuse names that would take the place of something else in the network."""
    for name in names:
        if hasattr(GraphModel, name.partition(".")[0]) or _RESERVED.match(name):
            raise ValueError(f"no parameter or buffer may be called {shown(name, 80)}")
    constants = [constant_name(number, name) for number, each in enumerate(graphs) for name in each.constants]
    if len(set(constants)) < len(constants):
        raise ValueError("two of its constants have the same name")


def _check_same(model: GraphModel, graphs: Sequence[Graph], every: Mapping[str, Tensor]) -> None:
    """What the network runs on is what its calls were checked with."""
    held = _tensors_of(model)
    wanted = {
        constant_name(number, name): value
        for number, graph in enumerate(graphs)
        for name, value in graph.constants.items()
    }
    for name, value in {**every, **wanted}.items():
        if held.get(name) is not value:
            raise ValueError(f"{shown(name, 80)} is not the network's own")


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all of their names."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
