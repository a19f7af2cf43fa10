"""A network's graphs, as it computes in evaluation and in training mode."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from prunekit.errors import InputError, ModelError
from prunekit.graph.captured import Captured
from prunekit.graph.export import exported
from prunekit.graph.record import NotRecordedError, recorded
from prunekit.modes import keeping_modes

Inputs = torch.Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
Mode = Literal["eval", "train"]
_LOG = logging.getLogger(__name__)


def arguments(example_inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments for the network.

    Raises:
        InputError: where the inputs are neither a tensor nor a tuple, list or dict.
    """
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    kind = type(example_inputs).__name__
    raise InputError(f"example_inputs must be a tensor, a tuple or a dict of named arguments, not {kind}")


def captured(model: nn.Module, example_inputs: Inputs, *, record: bool = True) -> tuple[Captured, ...]:
    """The graphs in evaluation and in training mode, one if they are the same; the network is left as it was.

    Where training cannot be captured, as where layers are left out at random, evaluation alone will do if it
    reads every parameter: then training has no layers of its own.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        record: whether to record the operators as they are called, which takes a tenth of the time, before
            `torch.export` is asked.

    Raises:
        InputError: where the example inputs are of no usable kind or do not fit the network's arguments.
        ModelError: where the network cannot be run or exported, with the line at which it fails.
    """
    evaluation = captured_in(model, example_inputs, "eval", record=record)
    try:
        training = captured_in(model, example_inputs, "train", record=record)
        # nothing may depend on the mode
        return (evaluation,) if evaluation.same_as(training) else (evaluation, training)
    except ModelError:
        placeholders = [node for node in evaluation.graph.nodes if node.op == "placeholder" and node.users]
        read = {evaluation.tensors.get(node.name) for node in placeholders}
        names = canonical(model)
        if {names[name] for name, _ in model.named_parameters()} <= read:
            return (evaluation,)
        raise


def takes(graph: Captured, example_inputs: Inputs) -> bool:
    """Whether a graph was made for inputs of these shapes."""
    nodes = [node for node in graph.graph.nodes if node.op == "placeholder"]
    kinds = [kind for kind, _ in graph.inputs]
    made = [node.meta.get("val") for node, kind in zip(nodes, kinds, strict=True) if kind == "user"]
    leaves = pytree.tree_leaves(arguments(example_inputs))
    given, asked = ([getattr(each, "shape", None) for each in values] for values in (leaves, made))
    return given == asked


def canonical(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer the first name of the same tensor."""
    first: dict[int, str] = {}
    found = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in found}


def captured_in(model: nn.Module, example_inputs: Inputs, mode: Mode, *, record: bool = True) -> Captured:
    """The graph in one mode; the arguments and what is raised are those of `captured`."""
    args, kwargs = arguments(example_inputs)
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"example_inputs do not fit the network's forward: {error}") from error
    names = canonical(model)
    with keeping_modes(model), torch.enable_grad():
        for module in model.modules():
            module.training = mode == "train"
        if record:
            try:
                return recorded(model, args, kwargs, names, mode)
            except NotRecordedError as error:
                _LOG.debug("exported in %s mode, since it cannot be recorded: %s", mode, error)
        return exported(model, args, kwargs, names, mode)
