"""The parameters of a model that are pruned: chosen by name, by type or by regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from prunekit.errors import InputError, ModelError

DEFAULT_TYPES = (
    "Linear", "Bilinear", "Conv1d", "Conv2d", "Conv3d",
    "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Conv1D",
)  # fmt: skip
"""The layer types that are pruned when no targets are named (`Conv1D` is the one of transformers)."""


@dataclass(frozen=True)
class Target:
    """A parameter that is pruned.

    Attributes:
        name: the parameter's full name, a key of the state dict.
        layer: the full name of the module that owns it.
        kind: the module's type, such as `Linear`.
        shape: the parameter's shape.
        least: how many of its elements have to stay, whatever an allocation's floor is.
    """

    name: str
    layer: str
    kind: str
    shape: torch.Size
    least: int = 0


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside `torch.compile` and (distributed) data parallel wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, with its data parallel wrapper, which shares out the gradients."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod  # type: ignore[assignment]
    return model


def owner_of(model: nn.Module, name: str) -> nn.Module:
    """The module of a network without wrappers that a parameter, by its full name, is an attribute of."""
    return model.get_submodule(name.rpartition(".")[0])


def matches(pattern: str, name: str) -> bool:
    """Whether a full name fits a pattern: `re:` and a regular expression for all of it, or a glob."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


def find_targets(
    model: nn.Module, targets: Sequence[str] | None = None, ignore: Sequence[str] = ()
) -> tuple[Target, ...]:
    """The parameters that fit the patterns, in the model's order; a tied weight counts once.

    Args:
        model: any module, without wrappers.
        targets: patterns, each a layer's or parameter's full name (globs allowed), a type name, or `re:...`.
            None takes the weights of all linear and convolution layers.
        ignore: patterns of what is left out, of the same form.

    Raises:
        InputError: if a pattern matches nothing or is no regular expression.
        ModelError: if nothing is left to prune, or a chosen weight is not a plain parameter.
    """
    candidates = _candidates(model)
    _check_patterns([*(targets or ()), *ignore], candidates)
    chosen = [
        candidate.target
        for candidate in candidates
        if candidate.fits(targets or DEFAULT_TYPES, by_name=targets is not None)
        and not candidate.fits(ignore, by_name=True)
    ]
    if not chosen:
        raise ModelError(
            "the model has nothing to prune: no linear or convolution layer is left; "
            "parameters of two or more dimensions are: "
            + _listing(candidate.target.name for candidate in candidates)
        )
    check_plain(model, chosen)
    return tuple(chosen)


@dataclass(frozen=True)
class _Candidate:
    """A parameter that could be pruned, with every name and type that it is known by."""

    target: Target
    names: set[str]
    types: set[str]

    def fits(self, patterns: Sequence[str], *, by_name: bool) -> bool:
        named = by_name and any(matches(pattern, name) for pattern in patterns for name in self.names)
        return named or any(pattern in self.types for pattern in patterns)


def _candidates(model: nn.Module) -> list[_Candidate]:
    """All parameters of two or more dimensions; a tied one stands under its first name and fits by all."""
    found: dict[int, _Candidate] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        layer = place
        if isinstance(module, ParametrizationList):  # the user knows it as the layer's
            layer, _, _ = place.rpartition(".parametrizations.")
        owner = model.get_submodule(layer)
        types = {kind.__name__ for kind in type(owner).__mro__}
        for short, parameter in module.named_parameters(recurse=False):
            if not isinstance(parameter, nn.parameter.UninitializedParameter) and parameter.dim() < 2:
                continue
            name = f"{place}.{short}" if place else short
            if id(parameter) not in found:
                found[id(parameter)] = _Candidate(
                    Target(name, layer, type(owner).__name__, _shape(parameter)), set(), set()
                )
            found[id(parameter)].names.update((name, layer))
            found[id(parameter)].types.update(types)
    return list(found.values())


def _shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size() if isinstance(parameter, nn.parameter.UninitializedParameter) else parameter.shape


def _check_patterns(patterns: Sequence[str], candidates: Sequence[_Candidate]) -> None:
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise InputError(f"{pattern!r} is not a regular expression: {error}") from None
        if not any(candidate.fits([pattern], by_name=True) for candidate in candidates):
            known = (candidate.target.layer or candidate.target.name for candidate in candidates)
            raise InputError(f"{pattern!r} matches no layer of the model; layers are: {_listing(known)}")


def check_plain(model: nn.Module, chosen: Sequence[Target]) -> None:
    """Refuse parameters that have no shape or no finite real values, or are part of a parametrization.

    Raises:
        ModelError: naming the first one.
    """
    for target in chosen:
        parameter = model.get_parameter(target.name)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(f"{target.name} has no shape yet: run the model once on an example first")
        if ".parametrizations." in f".{target.name}" or target.name.endswith(
            ("weight_g", "weight_v", "weight_orig")
        ):
            raise ModelError(
                f"{target.name} is part of a parametrization, so its zeros are not zeros of the weight: "
                "remove the parametrization first, or name the layer in `ignore`"
            )
        if not parameter.is_floating_point():
            raise ModelError(f"{target.name} holds {parameter.dtype}, only floating-point weights are pruned")
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(f"{target.name} holds NaN or infinite values: such a network cannot be pruned")


def _listing(names: Iterable[str], limit: int = 20) -> str:
    found = list(names)
    more = f", ... ({len(found)} in all)" if len(found) > limit else ""
    return (", ".join(found[:limit]) or "none") + more
