"""Which parameters of a model are pruned: chosen by name, by type or by regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

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
    """

    name: str
    layer: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of weights."""
        return int(torch.Size(self.shape).numel())


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside `torch.compile` and (distributed) data parallel wrappers."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        else:
            return model


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
        model: any module; wrappers of `torch.compile` and DDP are looked through.
        targets: patterns, each a layer's or parameter's full name (globs allowed), a type name, or `re:...`.
            None takes the weights of all linear and convolution layers.
        ignore: patterns of what is left out, of the same form.

    Raises:
        InputError: if a pattern matches nothing or is no regular expression.
        ModelError: if nothing is left to prune, or a chosen weight is not a plain parameter.
    """
    layers = list(_candidates(unwrap(model)))
    _check_patterns([*(targets or ()), *ignore], layers)
    chosen = [
        target
        for target, types in layers
        if _selected(target, types, targets or DEFAULT_TYPES, by_name=targets is not None)
        and not _selected(target, types, ignore, by_name=True)
    ]
    if not chosen:
        raise ModelError(
            "the model has nothing to prune: no linear or convolution layer is left; "
            f"parameters of two or more dimensions are: {_listing(target.name for target, _ in layers)}"
        )
    _check_plain(unwrap(model), chosen)
    return tuple(chosen)


def _candidates(model: nn.Module) -> Iterable[tuple[Target, frozenset[str]]]:
    seen: set[int] = set()
    for layer, module in model.named_modules():
        types = frozenset(kind.__name__ for kind in type(module).__mro__)
        for short, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2 and id(parameter) not in seen:
                seen.add(id(parameter))
                name = f"{layer}.{short}" if layer else short
                yield Target(name, layer, type(module).__name__, tuple(parameter.shape)), types


def _selected(target: Target, types: frozenset[str], patterns: Sequence[str], *, by_name: bool) -> bool:
    named = by_name and any(matches(p, target.layer) or matches(p, target.name) for p in patterns)
    return named or any(pattern in types for pattern in patterns)


def _check_patterns(patterns: Sequence[str], layers: Sequence[tuple[Target, frozenset[str]]]) -> None:
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise InputError(f"{pattern!r} is not a regular expression: {error}") from None
        if not any(_selected(target, types, [pattern], by_name=True) for target, types in layers):
            raise InputError(
                f"{pattern!r} matches no layer of the model; layers are: "
                f"{_listing(target.layer or target.name for target, _ in layers)}"
            )


def _check_plain(model: nn.Module, chosen: Sequence[Target]) -> None:
    for target in chosen:
        parameter = model.get_parameter(target.name)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(f"{target.name} has no shape yet: run the model once on an example first")
        if ".parametrizations." in f".{target.name}" or target.name.endswith(("weight_g", "weight_v")):
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
