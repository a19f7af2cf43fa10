"""What is saved of a network in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from prunekit.errors import InputError, ModelError, escaped, shown
from prunekit.graph import GraphModel, ShrinkResult, dropped_layers, size_attributes
from prunekit.masks import Masks
from prunekit.pruning import Pruned
from prunekit.runtime import SparseConv2d, SparseLinear
from prunekit.saving.description import (
    BITS,
    BUFFER,
    CONSTANT,
    VALUES,
    Architecture,
    BuiltAs,
    Description,
    PrunedTensor,
    without_zeros,
    wrong_dtype,
    wrong_name,
)
from prunekit.saving.graph_files import graph_to_files
from prunekit.saving.saved_files import Contents
from prunekit.targets import check_shaped, check_whole, unwrap

Network = Pruned | ShrinkResult | nn.Module


def model_in(network: Network) -> nn.Module:
    """The network without wrappers.

    Raises:
        InputError: if it is neither a network nor something that has one.
    """
    if not isinstance(network, nn.Module | Pruned | ShrinkResult):
        raise InputError(
            "what is saved must be a torch.nn.Module, or what prune(), prune_groups() or shrink() returned, "
            f"not {shown(network)}"
        )
    return unwrap(network if isinstance(network, nn.Module) else network.model)


def contents_of(network: Network, masks: Masks | None, architecture: Architecture | None) -> Contents:
    """What is saved of a network.

    Args:
        network: what `prune()`, `prune_groups()` or `shrink()` returned, or a model.
        masks: which weights are removed, if a plain model is given.
        architecture: how it is built, if that is to be said.

    Raises:
        InputError: if the masks are another model's, or an argument is of another kind.
        ModelError: if the model's state holds something other than dense tensors, or of names or dtypes
            that are not loaded again, or an exported graph holds what a file may not name; if tensors have
            no values or no shape yet; or if layers run sparse.
    """
    model = model_in(network)
    check_whole(model)
    check_shaped(model)
    _check_dense(model)
    if masks is not None and not isinstance(masks, Masks):
        raise InputError(f"masks must be Masks, of names and boolean tensors, not {shown(masks)}")
    if architecture is not None and not isinstance(architecture, Architecture):
        raise InputError(f"architecture must be an Architecture, not {shown(architecture)}")
    masks = network.masks if isinstance(network, Pruned) else masks or Masks({})
    masks.parameters(model)
    tensors, tied = _tensors(model.state_dict(), masks)
    graph, constants = graph_to_files(model) if isinstance(model, GraphModel) else (None, {})
    beside = beside_state(model)
    for name, value in beside.items():
        _check_storable(name.removesuffix(BUFFER), value)
    beside = {name: value.detach().cpu().contiguous().clone() for name, value in beside.items()}
    tensors = {**tensors, **beside, **constants}
    _check_loadable(tensors, (*tensors, *tied, *(name for name, _ in model.named_modules())))
    description = Description.model_construct(
        architecture=BuiltAs.model_construct(**architecture.to_dict()) if architecture else None,
        pruned={
            name: PrunedTensor(shape=list(mask.shape), kept=int(mask.sum())) for name, mask in masks.items()
        },
        tied=tied,
        sizes=size_attributes(model) if graph is None else {},
        dropped=dropped_layers(model) if graph is None else {},
        shrunk=network.to_dict() if isinstance(network, ShrinkResult) else None,
        recipe=network.recipe.to_dict() if isinstance(network, Pruned) else None,
        history=[record.to_dict() for record in network.history] if isinstance(network, Pruned) else [],
    )
    return Contents(description, tensors, graph)


def _tensors(state: Mapping[str, Tensor], masks: Masks) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What goes into the file, and the names that share the tensor of another name."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name in sorted(
        state, key=lambda name: name not in masks
    ):  # a tied weight is stored where its mask is
        value = state[name]
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name} of the model's state is a {type(value).__name__}: only tensors are saved"
            )
        _check_storable(name, value)
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        if name in masks:
            tensors[name + BITS], tensors[name + VALUES] = without_zeros(value, masks[name])
        else:
            tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, tied


def beside_state(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that the state leaves out: of real numbers, which may have lost entries; of a graph all."""
    every = isinstance(model, GraphModel)
    named = set(model.state_dict(keep_vars=True))
    return {
        name + BUFFER: buffer
        for name, buffer in model.named_buffers(remove_duplicate=not every)
        if name not in named
        and not (every and name.startswith("_constant"))
        and (every or buffer.is_floating_point())
    }


def _check_dense(model: nn.Module) -> None:
    """Refuse, with a `ModelError`, layers that run sparse: which do is for each machine to find out."""
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear | SparseConv2d):
            raise ModelError(
                f"{name or 'the model'} runs sparse on this machine: save the network before "
                "sparsify_for_cpu, and call that again where it is loaded"
            )


def _check_storable(name: str, value: Tensor) -> None:
    """Refuse, with a `ModelError`, what cannot be copied to a file, and names that only a file gives.

    PyTorch cannot copy integers of a few bits, nor tensors that are not dense.
    """
    kind = "nested" if value.is_nested else "quantized" if value.is_quantized else str(value.layout)[6:]
    if kind != "strided":
        raise ModelError(f"{escaped(name)} is a {kind} tensor: only dense ones are saved")
    _check_dtypes({name: value})
    if name.endswith((BITS, VALUES, BUFFER, CONSTANT)):
        raise ModelError(f"the model names {shown(name)}: in a file '#{name.rpartition('#')[2]}' means more")


def _check_loadable(tensors: Mapping[str, Tensor], names: Iterable[str]) -> None:
    """Refuse, with a `ModelError`, to write what would be refused when it is read."""
    name = wrong_name(names)
    if name is not None:
        raise ModelError(f"the model names {shown(name)}: a name must be of characters that can be printed")
    _check_dtypes(tensors)


def _check_dtypes(tensors: Mapping[str, Tensor]) -> None:
    wrong = wrong_dtype(tensors)
    if wrong is not None:
        raise ModelError(f"the network cannot be saved: {wrong}")
