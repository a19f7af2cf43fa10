"""A network's graph of operations, taken without a trace on the network."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import UninitializedParameter

from prunekit.errors import ModelError
from prunekit.modes import evaluating
from prunekit.structure.operations import is_leaf


def trace(model: nn.Module) -> fx.Graph:
    """The operations that `forward` performs in evaluation mode; arguments with a default take it.

    Raises:
        ModelError: naming the line of `forward` that cannot be traced, such as an `if` on the data.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ModelError(f"{name} has no shape yet: run the model once on an example first")
    defaults = {
        name: argument.default
        for name, argument in inspect.signature(model.forward).parameters.items()
        if argument.default is not inspect.Parameter.empty
    }
    with _untouched(model), evaluating(model):
        try:
            return _Tracer().trace(model, concrete_args=defaults or None)
        except Exception as error:  # whatever the user's forward makes of a symbol
            raise ModelError(
                f"the model cannot be read as a chain: its forward is not traceable{_place(error)} "
                f"({_first_line(error)})"
            ) from error


class _Tracer(fx.Tracer):
    """Stops at PyTorch's own layers and at their subclasses, and calls no hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # `forward` would be the module's whole call: a user's hooks are not to see symbols
        return super().call_module(m, m.forward, args, kwargs)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put all attributes back: a forward may store symbols in them, and the tracer its constants."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _place(error: Exception) -> str:
    """The last line of the user's code that ran, such as ` at net.py:12, 'if x.sum() > 0:'`."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*inside, "<")) and frame.lineno is not None:
            text = (frame.line or linecache.getline(frame.filename, frame.lineno)).strip()
            return f" at {Path(frame.filename).name}:{frame.lineno}, {text!r}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
