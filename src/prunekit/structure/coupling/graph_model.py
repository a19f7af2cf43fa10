"""An exported graph as a module: the parameters under their own names, one graph for each mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from prunekit.errors import InputError
from prunekit.structure.coupling.capture import Captured

Run = Callable[[int, fx.GraphModule, list[Any]], Any]


class GraphModel(nn.Module):
    """A network that runs its exported graphs, in evaluation and in training mode.

    It takes inputs of the shapes that it was exported with, the batch included. Names of parameters and
    buffers are those of the network that was exported.

    Args:
        model: whose parameters and buffers it gets: the same objects.
        graphs: as exported.
        modules: the graphs to run in their place, with other constants.
    """

    def __init__(
        self, model: nn.Module, graphs: tuple[Captured, ...], modules: Mapping[int, fx.GraphModule]
    ) -> None:
        super().__init__()
        for name, parameter in model.named_parameters(remove_duplicate=False):
            _place(self, name).register_parameter(name.rpartition(".")[2], parameter)
        persistent = set(model.state_dict(keep_vars=True))
        for name, buffer in model.named_buffers(remove_duplicate=False):
            _place(self, name).register_buffer(name.rpartition(".")[2], buffer, persistent=name in persistent)
        self._plans = [_Signature(graph) for graph in graphs]
        for number, graph in enumerate(graphs):
            self.add_module(f"_graph{number}", modules[number])
            for name, value in _constants(graph).items():
                self.register_buffer(_constant(number, name), value, persistent=False)
        _set_training(self, model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs."""
        return self.run(args, kwargs, lambda _, module, given: module(*given))

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Run) -> Any:
        """The outputs, where `call` runs the graph: given its number, itself and its inputs."""
        number = min(int(self.training), len(self._plans) - 1)
        plan = self._plans[number]
        flat = plan.flattened(args, kwargs)
        given = [self._input(number, kind, name, flat) for kind, name in plan.inputs]
        found = call(number, getattr(self, f"_graph{number}"), given)
        for (kind, target), value in zip(plan.outputs, found, strict=True):
            if kind == "buffer":
                with torch.no_grad():
                    self.get_buffer(target).copy_(value)
        results = [value for (kind, _), value in zip(plan.outputs, found, strict=True) if kind == "user"]
        return pytree.tree_unflatten(results, plan.out_spec)

    def _input(self, number: int, kind: str, name: str, flat: list[Any]) -> Any:
        if kind == "user":
            return flat.pop(0)
        if kind == "constant":
            return getattr(self, _constant(number, name))
        place, _, short = name.rpartition(".")
        return getattr(self.get_submodule(place), short)


class _Signature:
    """What goes in and out of a graph, as plain data."""

    def __init__(self, graph: Captured) -> None:
        signature = graph.program.graph_signature
        spec = graph.program.call_spec
        assert spec.in_spec is not None
        assert spec.out_spec is not None
        self.in_spec, self.out_spec = spec.in_spec, spec.out_spec
        kinds = {
            InputKind.PARAMETER: "tensor",
            InputKind.BUFFER: "tensor",
            InputKind.USER_INPUT: "user",
        }
        self.inputs: list[tuple[str, str]] = []
        for item in signature.input_specs:
            kind = kinds.get(item.kind, "constant")
            self.inputs.append((kind, item.target or ""))
        self.outputs = [
            (
                "user"
                if item.kind == OutputKind.USER_OUTPUT
                else "buffer"
                if item.kind == OutputKind.BUFFER_MUTATION
                else "other",
                item.target or "",
            )
            for item in signature.output_specs
        ]

    def flattened(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments in a row, as the graph takes them."""
        names = self.in_spec.child(1).context if self.in_spec.num_children > 1 else []
        if set(names) == set(kwargs):
            kwargs = {name: kwargs[name] for name in names}
        flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        if spec != self.in_spec:
            raise InputError(
                "an exported network takes the arguments that it was exported with: "
                f"{self.in_spec.child(0).num_children} positional ones and {list(names)}"
            )
        return list(flat)


def _place(root: nn.Module, name: str) -> nn.Module:
    for part in name.split(".")[:-1]:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        below = root._modules[part]
        assert below is not None
        root = below
    return root


def _constants(graph: Captured) -> dict[str, Tensor]:
    found = graph.program.constants
    names = [
        spec.target
        for spec in graph.program.graph_signature.input_specs
        if spec.kind == InputKind.CONSTANT_TENSOR
    ]
    return {name: value for name in names if name and isinstance(value := found[name], Tensor)}


def _constant(number: int, name: str) -> str:
    return f"_constant{number}_" + name.replace(".", "_")


def _set_training(model: nn.Module, training: bool) -> None:
    for module in model.modules():
        module.training = training
