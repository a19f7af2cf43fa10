"""An exported graph as a module: the parameters under their own names, one graph for each mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.graph.captured import Captured, Signature, signature_of

Run = Callable[[int, fx.GraphModule, list[Any]], Any]


@dataclass(frozen=True)
class Graph:
    """A graph that can be run.

    Attributes:
        signature: what goes in and out.
        module: the graph, with parameters and buffers as inputs.
        constants: tensors that it reads besides.
    """

    signature: Signature
    module: fx.GraphModule
    constants: Mapping[str, Tensor]


def graphs_of(captured: Sequence[Captured], modules: Mapping[int, fx.GraphModule]) -> tuple[Graph, ...]:
    """The graphs as exported.

    Args:
        captured: as exported.
        modules: the graphs to run in their place, by number, with other constants.
    """
    return tuple(
        Graph(signature_of(graph), modules[number], graph.constants) for number, graph in enumerate(captured)
    )


class GraphModel(nn.Module):
    """A network that runs its exported graphs, in evaluation and in training mode.

    It takes inputs of the shapes that it was exported with, the batch included. Names of parameters and
    buffers are those of the network that was exported.

    Args:
        model: whose parameters and buffers it gets: the same objects.
        graphs: for evaluation and for training; one for both if there is only one.
    """

    def __init__(self, model: nn.Module, graphs: Sequence[Graph]) -> None:
        super().__init__()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            holder_of(self, name).register_parameter(name.rpartition(".")[2], parameter)
        persistent = set(model.state_dict(keep_vars=True))
        for name, buffer in model.named_buffers(remove_duplicate=False):
            holder_of(self, name).register_buffer(
                name.rpartition(".")[2], buffer, persistent=name in persistent
            )
        self._signatures = [graph.signature for graph in graphs]
        for number, graph in enumerate(graphs):
            self.add_module(f"_graph{number}", graph.module)
            for name, value in graph.constants.items():
                self.register_buffer(constant_name(number, name), value, persistent=False)
        # looking modules up by name in every pass would take as long as a small network's layers
        self._sources = [
            [self._source(number, *entry) for entry in graph.signature.inputs]
            for number, graph in enumerate(graphs)
        ]
        for module in self.modules():
            module.training = model.training

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graphs with their constants as they are now."""
        return tuple(
            Graph(
                signature,
                getattr(self, f"_graph{number}"),
                {
                    name: getattr(self, constant_name(number, name))
                    for kind, name in signature.inputs
                    if kind == "constant"
                },
            )
            for number, signature in enumerate(self._signatures)
        )

    @property
    def input_shapes(self) -> tuple[tuple[int, ...] | None, ...]:
        """Of the arguments in a row, the batch included; None for what is no tensor."""
        return self._signatures[0].shapes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs."""
        return self.run(args, kwargs, lambda _, module, given: module(*given))

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Run) -> Any:
        """The outputs, where `call` runs the graph: given its number, itself and its inputs."""
        number = min(int(self.training), len(self._signatures) - 1)
        signature = self._signatures[number]
        flat = signature.flattened(args, kwargs)
        user = iter(flat)
        given = [
            next(user) if owner is None else getattr(owner, name) for owner, name in self._sources[number]
        ]
        found = call(number, getattr(self, f"_graph{number}"), given)
        for (kind, target), value in zip(signature.outputs, found, strict=True):
            if kind == "buffer":
                with torch.no_grad():
                    self.get_buffer(target).copy_(value)
        results = [value for (kind, _), value in zip(signature.outputs, found, strict=True) if kind == "user"]
        return signature.returned(results)

    def _source(self, number: int, kind: str, name: str) -> tuple[nn.Module | None, str]:
        """The module that holds an input, and its name there; None for what the user gives."""
        if kind == "user":
            return None, name
        place, _, short = (constant_name(number, name) if kind == "constant" else name).rpartition(".")
        return self.get_submodule(place), short


def holder_of(root: nn.Module, name: str) -> nn.Module:
    """The module, made if need be, that holds the parameter or buffer of that full name."""
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        below = root._modules[part]
        assert below is not None
        root = below
    return root


def constant_name(number: int, name: str) -> str:
    """The name of the buffer that holds a constant of a graph."""
    return f"_constant{number}_" + name.replace(".", "_")
