"""What becomes of a layer's outputs before anything mixes them: the activations of its neurons."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, fx, nn

from prunekit.errors import ModelError
from prunekit.structure.calls import call_operation, is_size, module_stage
from prunekit.structure.modules import module_operation
from prunekit.structure.operations import Kind
from prunekit.structure.parts import Stage
from prunekit.structure.tracing import trace

Function = Callable[[Tensor], Tensor]


def activations(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Function]:
    """For each layer, by a name of the caller's, a function from its outputs to its neurons' activations.

    It is made of the batch norms and pointwise functions directly behind the layer, and ends where a pooling,
    another layer or a sum takes over. Where the outputs go several ways, the layer is called several times or
    `forward` cannot be traced, the outputs themselves are taken for the activations. The functions change
    nothing of what they are given.
    """
    try:
        graph = trace(model)
    except ModelError:
        return dict.fromkeys(layers, _same)
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(model.get_submodule(str(node.target)), []).append(node)
    found = {}
    for name, layer in layers.items():
        nodes = calls.get(layer, [])
        found[name] = _behind(model, nodes[0]) if len(nodes) == 1 else _same
    return found


def _behind(model: nn.Module, node: fx.Node) -> Function:
    stages: list[Stage] = []
    while True:
        users = [user for user in node.users if not is_size(user)]
        stage = _stage(model, node, users[0]) if len(users) == 1 else None
        if stage is None:
            return _through(stages)
        stages.append(stage)
        node = users[0]


def _stage(model: nn.Module, node: fx.Node, user: fx.Node) -> Stage | None:
    """The batch norm or pointwise function that uses a node alone; None for anything else."""
    if user.op == "output" or any(one is not node for one in user.all_input_nodes if not is_size(one)):
        return None
    if user.op == "call_module":
        module = model.get_submodule(str(user.target))
        read = module_operation(module)
        fits = not isinstance(read, str) and read[0] in (Kind.NORM, Kind.POINTWISE)
        return module_stage(str(user.target), module) if fits else None
    operation = call_operation(user)
    fits = not isinstance(operation, str) and operation.kind is Kind.POINTWISE
    return operation.stage if fits and not isinstance(operation, str) else None


def _through(stages: list[Stage]) -> Function:
    def run(x: Tensor) -> Tensor:
        for stage in stages:
            x = stage.run(x)
        return x

    return run


def _same(x: Tensor) -> Tensor:
    return x
