"""A network in the form of its exported graphs, to and from the files of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prunekit.errors import DataError
from prunekit.files import read_json
from prunekit.saving.folder import CONSTANT, DESCRIPTION, GRAPH, consistent, sha256
from prunekit.saving.graphs import from_json, to_json
from prunekit.structure.coupling import Graph, GraphModel
from prunekit.structure.coupling.graph_model import holder_of


def graph_to_files(model: GraphModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What goes into `graph.json`, and the constants for the file of the weights.

    Raises:
        ModelError: where a graph holds something that a file may not name.
    """
    graphs, tensors = [], {}
    for number, graph in enumerate(model.graphs):
        saved, constants = to_json(graph)
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
    folder: Path, description: Mapping[str, Any], state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> GraphModel:
    """The network, with the values of `state`; parameters and buffers are new objects.

    Args:
        folder: of the files.
        description: what `prunekit.json` says.
        state: parameters and buffers by full name, tied ones under each of their names.
        tensors: everything that the file of the weights holds.

    Raises:
        DataError: if the file is missing, damaged or was not written by prunekit.
    """
    saved = _checked(folder, description)
    with consistent(folder, GRAPH):
        holder = nn.Module()
        tied: Mapping[str, str] = description["tied"]
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
        graphs = []
        for number, graph in enumerate(saved["graphs"]):
            start = f"{number}."
            constants = {
                name.removeprefix(start).removesuffix(CONSTANT): value
                for name, value in tensors.items()
                if name.startswith(start) and name.endswith(CONSTANT)
            }
            graphs.append(from_json(graph, constants))
        if not graphs or not _reads(graphs) <= {*saved["parameters"], *saved["buffers"]}:
            raise ValueError("its graphs read parameters that it does not have")
        return GraphModel(holder, graphs)


def _checked(folder: Path, description: Mapping[str, Any]) -> dict[str, Any]:
    path = folder / GRAPH
    if not path.is_file():
        raise DataError(f"{folder} lacks {GRAPH}, which its network is made of")
    if sha256(path) != description["graph"]:
        raise DataError(f"{path} is damaged or truncated: its checksum is not the one in {DESCRIPTION}")
    saved = read_json(path)
    if not isinstance(saved, dict) or not {"parameters", "buffers", "graphs"} <= set(saved):
        raise DataError(f"{path} was not written by prunekit")
    return saved


def _reads(graphs: Sequence[Graph]) -> set[str]:
    inputs = [entry for graph in graphs for entry in graph.signature.inputs]
    outputs = [entry for graph in graphs for entry in graph.signature.outputs]
    return {name for kind, name in inputs if kind == "tensor"} | {
        name for kind, name in outputs if kind == "buffer"
    }
