"""torch-pruning on any network, with no hint but the layers of the outputs, and what became of it."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def last_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """The layers whose results are outputs; where none is, the last linear layer or convolution."""
    given: dict[int, nn.Module] = {}
    held: list[Tensor] = []  # so that no address is used twice

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            given.setdefault(output.data_ptr(), module)
            held.append(output)

    layers = [each for each in model.modules() if isinstance(each, (nn.Linear, nn.modules.conv._ConvNd))]
    hooks = [each.register_forward_hook(note) for each in layers]
    with torch.no_grad():
        outputs = called(model, inputs)
    for hook in hooks:
        hook.remove()
    leaves = tensors(outputs)
    found = [given[each.data_ptr()] for each in leaves if each.data_ptr() in given]
    return found or layers[-1:]


def called(model: nn.Module, inputs: Any) -> Any:
    """What a network gives for a dict of named arguments, a tuple of them, or one tensor."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors(value: Any) -> list[Tensor]:
    """The tensors among outputs, in a row, those of a class of outputs included."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [each for part in value for each in tensors(part)] if isinstance(value, (list, tuple)) else []


def summed(outputs: Any) -> Tensor:
    """Outputs of any kind as one tensor, which torch-pruning can go back from."""
    return sum(each.sum() for each in tensors(outputs) if each.is_floating_point())  # type: ignore[return-value]


def halved(model: nn.Module, inputs: Any, keep: list[nn.Module]) -> tuple[float, float]:
    """Half of the units of every group but those of some layers taken out by L1 norm, in place.

    Returns:
        Seconds of the processor for the analysis and for the surgery.
    """
    import torch_pruning

    start = time.process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, inputs, importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5, ignored_layers=keep, output_transform=summed,
    )  # fmt: skip
    analysis = time.process_time() - start
    pruner.step()
    return analysis, time.process_time() - start - analysis


def what_stayed(before: nn.Module, after: nn.Module) -> dict[str, dict[int, Tensor]]:
    """For each parameter that lost entries, by dimension (size,) flags of what stays, found by the values.

    Raises:
        LookupError: where values do not say it, as they do where they are distinct.
    """
    old, found = dict(before.named_parameters()), {}
    for name, new in after.named_parameters():
        if name not in old or new.shape == old[name].shape:
            continue
        values, order = old[name].detach().flatten().sort()
        at = torch.searchsorted(values, new.detach().flatten()).clamp(max=len(values) - 1)
        if new.dim() != old[name].dim() or not torch.equal(values[at], new.detach().flatten()):
            raise LookupError(f"{name} has other values")
        places = torch.unravel_index(order[at].view(new.shape), old[name].shape)
        dims = {}
        for dim, place in enumerate(places):
            kept = place.movedim(dim, 0).flatten(1)[:, 0] if new.dim() > 1 else place
            flags = torch.zeros(old[name].shape[dim], dtype=torch.bool)
            flags[kept] = True
            if int(flags.sum()) != new.shape[dim]:
                raise LookupError(f"{name} has equal values")
            dims[dim] = flags
        found[name] = dims
    return found


def normalised(model: nn.Module, stays: Mapping[str, Any]) -> bool:
    """Whether norms over the units themselves, not over the examples, lost some."""
    owners = {name.rpartition(".")[0] for name in stays}
    kinds = [type(model.get_submodule(owner)).__name__.lower() for owner in owners]
    return any("norm" in kind and "batch" not in kind for kind in kinds)


def outcome(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """What torch-pruning makes of a network: it raises, or its result does not run, is wrong, or right.

    "right": the outputs are those of the network with zeros where units went, up to single precision;
    where norms run over units that went there are no such outputs ("runs").
    """
    from independent import call, difference, silenced

    before = copy.deepcopy(model)
    with torch.no_grad():
        wanted = [each.shape for each in call(before, inputs)]
    found: dict[str, Any] = {"before": sum(each.numel() for each in model.parameters())}
    try:
        found["analysis"], found["surgery"] = halved(model, inputs, last_layers(model, inputs))
    except Exception as error:  # any network may be too much for it
        return {
            **found,
            "outcome": "raises",
            "error": f"{type(error).__name__}: {error}".splitlines()[0][:200],
        }
    found["after"] = sum(each.numel() for each in model.parameters())
    try:
        given = call(model, inputs)
    except Exception as error:
        return {**found, "outcome": "does not run", "error": _words(error)}
    if [each.shape for each in given] != wanted:
        return {**found, "outcome": "other outputs"}
    try:
        stays = what_stayed(before, model)
    except LookupError as error:
        return {**found, "outcome": "runs", "error": str(error)}
    if normalised(before, stays):
        return {**found, "outcome": "runs"}
    off = difference(call(silenced(before, stays), inputs), given)
    return {**found, "outcome": "right" if off < 1e-3 else "wrong", "off": off}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
