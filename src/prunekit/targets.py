"""The parameters of a model that are pruned: chosen by name, by type or by regular expression."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from prunekit.errors import InputError, ModelError, escaped, shown

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
        types: the names of the module's class and of all that it is derived from.
    """

    name: str
    layer: str
    kind: str
    shape: torch.Size
    least: int = 0
    types: frozenset[str] = frozenset()


def check_module(model: Any) -> None:
    """Refuse what is no network.

    Raises:
        InputError: saying what it is.
    """
    if not isinstance(model, nn.Module):
        inside = ": give its `model`" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise InputError(f"the model must be a torch.nn.Module, not {shown(model)}{inside}")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside `torch.compile` and (distributed) data parallel wrappers.

    Raises:
        InputError: if it is no network.
    """
    check_module(model)
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


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none.

    Raises:
        InputError: if it is no network.
    """
    check_module(model)
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def owner_of(model: nn.Module, name: str) -> nn.Module:
    """The module of a network without wrappers that a parameter, by its full name, is an attribute of."""
    return model.get_submodule(name.rpartition(".")[0])


def types_of(module: nn.Module) -> set[str]:
    """The names of a module's class and of all that it is derived from."""
    return {kind.__name__ for kind in type(module).__mro__}


def matches(pattern: str, name: str) -> bool:
    """Whether a full name fits a pattern: `re:` and a regular expression for all of it, or a glob."""
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


def find_targets(
    model: nn.Module,
    targets: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    *,
    sharded: bool = False,
) -> tuple[Target, ...]:
    """The parameters that fit the patterns, in the model's order; a tied weight counts once.

    Args:
        model: any module, without wrappers.
        targets: patterns, each a layer's or parameter's full name (globs allowed), a type name, or `re:...`.
            None takes the weights of all linear and convolution layers.
        ignore: patterns of what is left out, of the same form.
        sharded: whether DTensors are taken, whose values are not looked at.

    Raises:
        InputError: if a pattern matches nothing or is no regular expression.
        ModelError: if nothing is left to prune, or a chosen weight is not a plain parameter.
    """
    check_whole(model, sharded=sharded)
    candidates = _candidates(model)
    check_patterns([*(targets or ()), *ignore], layers_to_choose(model), "layer of the model; layers")
    chosen = [
        target
        for target, known in candidates
        if (known.fits(targets) if targets else not known.types.isdisjoint(DEFAULT_TYPES))
        and not known.fits(ignore)
    ]
    if not chosen:
        raise ModelError(
            "the model has nothing to prune: no linear or convolution layer is left; "
            "parameters of two or more dimensions are: " + _listing(target.name for target, _ in candidates)
        )
    check_plain(model, [target.name for target in chosen])
    return tuple(chosen)


@dataclass(frozen=True)
class Known:
    """The names and the types that something which may be pruned is known by."""

    names: set[str] = field(default_factory=set)
    types: set[str] = field(default_factory=set)

    def fits(self, patterns: Iterable[str]) -> bool:
        """Whether one of the patterns is a type of it, or fits a name of it."""
        return any(
            pattern in self.types or any(pattern == name or matches(pattern, name) for name in self.names)
            for pattern in patterns
        )


def check_patterns(patterns: Iterable[str], candidates: Sequence[tuple[str, Known]], kind: str) -> None:
    """Refuse patterns that are no regular expression, or that no candidate fits.

    Args:
        patterns: as of `find_targets`.
        candidates: with the names that the error lists.
        kind: what they are called, in the singular and the plural.

    Raises:
        InputError: naming the first such pattern.
    """
    for pattern in patterns:
        _check_expression(pattern)
        if not any(known.fits([pattern]) for _, known in candidates):
            listed = _listing(name for name, _ in candidates)
            raise InputError(f"{pattern!r} matches no {kind} are: {listed}")


def layers_to_choose(model: nn.Module) -> list[tuple[str, Known]]:
    """The names of the layers with parameters of two or more dimensions, and what patterns know them by.

    Only shapes are looked at, so that the network needs no values.
    """
    return [(target.layer or target.name, known) for target, known in _candidates(model)]


def fits_layer(pattern: str, name: str) -> bool:
    """Whether a parameter fits a pattern by its full name or its layer's, or a group of units by its own."""
    return matches(pattern, name) or matches(pattern, name.rpartition(".")[0])


def check_layers(
    setting: str, patterns: Iterable[str], targets: Sequence[Target], kind: str = "pruned layer; layers"
) -> None:
    """Refuse patterns of a setting that are no regular expression, or that no target fits by `fits_layer`.

    Args:
        setting: what the error begins with.
        patterns: as of `matches`.
        targets: what is chosen from.
        kind: what they are called, in the singular and the plural.

    Raises:
        InputError: naming the first such pattern.
    """
    for pattern in patterns:
        _check_expression(pattern)
        if not any(fits_layer(pattern, target.name) for target in targets):
            known = ", ".join(target.layer or target.name for target in targets)
            raise InputError(f"{setting}: {pattern!r} matches no {kind} are: {known}")


Number = TypeVar("Number", int, float)


def value_of_layer(setting: str, values: Mapping[str, Number], target: Target) -> Number | None:
    """What a setting by layers says of a target; None if nothing does.

    Keys have no order (equal recipes have equal hashes), so that none of them can come first; but those that
    a name fits come before types.

    Args:
        setting: what the error begins with.
        values: by patterns as of `matches`, or by names of types.
        target: of them.

    Raises:
        InputError: if two keys of a kind say different things.
    """
    named = [pattern for pattern in values if fits_layer(pattern, target.name)]
    said = named or [pattern for pattern in values if pattern in target.types]
    for pattern in said[1:]:
        if values[pattern] != values[said[0]]:
            raise InputError(
                f"{setting}: {said[0]!r} and {pattern!r} both match {target.layer or target.name}, "
                f"with {values[said[0]]:g} and {values[pattern]:g}: let only one of them match"
            )
    return values[said[0]] if said else None


def value_by_layer(
    setting: str, values: Mapping[str, Number], targets: Sequence[Target]
) -> dict[str, Number]:
    """What a setting by layers says of each target, by the parameter's full name.

    A type of layers that there are by default, such as `Conv2d`, may have none in the network. `*` stands for
    all of which nothing else is said.

    Raises:
        InputError: naming a pattern that fits nothing, or a layer of which nothing or two things are said.
    """
    types = {*DEFAULT_TYPES, *(each for target in targets for each in target.types)}
    check_layers(setting, [pattern for pattern in values if pattern not in types], targets, "layer; layers")
    found, others = {}, {pattern: value for pattern, value in values.items() if pattern != "*"}
    for target in targets:
        value = value_of_layer(setting, others, target)
        if value is None:
            value = values.get("*")
        if value is None:
            raise InputError(
                f"{setting}: nothing is said of {target.layer or target.name} ({target.kind}): name it, its "
                "type, or '*'"
            )
        found[target.name] = value
    return found


def _check_expression(pattern: str) -> None:
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except re.error as error:
            raise InputError(f"{pattern!r} is not a regular expression: {error}") from None


def _candidates(model: nn.Module) -> list[tuple[Target, Known]]:
    """All parameters of two or more dimensions; a tied one stands under its first name and fits by all."""
    found: dict[int, tuple[Target, Known]] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        layer = place
        if isinstance(module, ParametrizationList):  # the user knows it as the layer's
            layer, _ = weight_of(f"{place}.original")
        owner = model.get_submodule(layer)
        for short, parameter in module.named_parameters(recurse=False):
            unknown = isinstance(parameter, nn.parameter.UninitializedParameter)
            if not unknown and parameter.dim() < 2:
                continue
            name = f"{place}.{short}" if place else short
            shape = torch.Size() if unknown else parameter.shape
            types = types_of(owner)
            target = Target(name, layer, type(owner).__name__, shape, types=frozenset(types))
            _, known = found.setdefault(id(parameter), (target, Known()))
            known.names.update((name, layer))
            known.types.update(types)
    return list(found.values())


def is_shared_out(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor, told without importing its module, which takes long."""
    return "DTensor" in {kind.__name__ for kind in type(tensor).__mro__}


def check_whole(model: nn.Module, *, sharded: bool = False) -> None:
    """Refuse a network whose weights or buffers have no values yet, or of which a process has only a part.

    Args:
        model: the network.
        sharded: whether DTensors are taken, of which each process has a part.

    Raises:
        InputError: if it is no network.
        ModelError: naming the first such module or tensor.
    """
    check_module(model)
    for name, module in model.named_modules():
        if "FullyShardedDataParallel" in types_of(module):
            raise ModelError(
                f"{name or 'the model'} is a FullyShardedDataParallel, whose weights are shared out over "
                "processes: prune before wrapping, or train with DistributedDataParallel"
            )
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_meta:
            raise ModelError(
                f"{escaped(name)} is on the meta device and has no values: load the network's weights first "
                "(to_empty(), then load_state_dict())"
            )
        if is_shared_out(value) and not sharded:
            raise ModelError(
                f"{escaped(name)} is a DTensor, shared out over processes (fully_shard, tensor parallel): "
                "prune before that, train with DistributedDataParallel, or use "
                "prunekit.pruning.prune_sharded"
            )


def check_shaped(model: nn.Module) -> None:
    """Refuse lazy parameters and buffers, which get their shapes when the network first runs.

    Raises:
        InputError: if it is no network.
        ModelError: naming the first one.
    """
    check_module(model)
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value):
            raise ModelError(f"{escaped(name)} has no shape yet: run the model once on an example first")


def check_unparametrized(model: nn.Module) -> None:
    """Refuse weights that are computed from others: gates, weight norm and the like.

    Raises:
        ModelError: naming the first such module.
    """
    for name, module in model.named_modules():
        if is_parametrized(module):
            raise ModelError(
                f"{shown(name) if name else 'the model'} is parametrized: let the training with gates end, "
                "or call torch.nn.utils.parametrize.remove_parametrizations"
            )


def weight_of(name: str) -> tuple[str, str]:
    """The layer, and the short name of its weight, that a parameter or buffer has the shape of.

    'body.fc.weight' gives ('body.fc', 'weight'), and so do the directions of a weight norm,
    'body.fc.parametrizations.weight.original1' and 'body.fc.weight_v'. Its norms have another shape:
    'body.fc.weight_g' gives ('body.fc', '').
    """
    place, _, short = name.rpartition(".")
    layer, parametrized, weight = f".{place}".rpartition(".parametrizations.")
    if parametrized:
        return layer.removeprefix("."), weight if short in ("original", "original1") else ""
    return place, {"weight_v": "weight", "weight_g": ""}.get(short, short)


def parametrized_by(model: nn.Module, name: str) -> Literal["weight norm", "another"] | None:
    """The kind of the parametrization that computes a weight from this parameter; None for a plain one.

    Under a weight norm, units that are zero in its parts are zero in the weight, single entries are not.
    """
    place, _, short = name.rpartition(".")
    if short in ("weight_g", "weight_v"):
        return "weight norm"
    if ".parametrizations." not in f".{place}.":
        return "another" if short == "weight_orig" else None
    made = model.get_submodule(place).children()
    return "weight norm" if all(isinstance(each, _WeightNorm) for each in made) else "another"


def _ended_by(model: nn.Module, name: str) -> str:
    """The function of torch.nn.utils that ends the parametrization which this parameter is part of."""
    place, _, short = name.rpartition(".")
    if ".parametrizations." in f".{place}.":
        return "parametrize.remove_parametrizations"
    if short in ("weight_g", "weight_v"):
        return "remove_weight_norm"
    masked = hasattr(model.get_submodule(place), "weight_mask")
    return "prune.remove" if masked else "remove_spectral_norm"


def check_plain(
    model: nn.Module, names: Iterable[str], *, ignorable: bool = True, units: bool = False
) -> None:
    """Refuse parameters that cannot be pruned in place.

    They have no shape or no finite real values, are part of a parametrization, were made in inference mode,
    or share their memory without being the same.

    Args:
        model: the network.
        names: of the parameters.
        ignorable: whether the caller takes an `ignore` that leaves layers out.
        units: whether whole units are to be removed, which the parts of a weight norm have, too.

    Raises:
        ModelError: naming the first one.
    """
    names = list(names)
    for name in names:
        parameter = model.get_parameter(name)
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(f"{name} has no shape yet: run the model once on an example first")
        kind = parametrized_by(model, name)
        if kind == "another" or (kind and not units):
            raise ModelError(
                f"{name} is part of a parametrization, so its zeros are not zeros of the weight: "
                f"remove the parametrization first (torch.nn.utils.{_ended_by(model, name)})"
                f"{', or name the layer in `ignore`' if ignorable else ''}"
            )
        if not parameter.is_floating_point():
            raise ModelError(f"{name} holds {parameter.dtype}, only floating-point weights are pruned")
        if parameter.is_inference():
            raise ModelError(
                f"{name} was made in inference mode and cannot be changed: "
                "make the network outside of torch.inference_mode()"
            )
        # of DTensors each process has a part: they are looked at together
        if not is_shared_out(parameter) and not bool(torch.isfinite(parameter.detach()).all()):
            raise ModelError(f"{name} holds NaN or infinite values: such a network cannot be pruned")
    _check_own_memory(model, set(names))


@dataclass(frozen=True)
class _Span:
    """The memory between the first and the last entry of a tensor.

    Attributes:
        name: of the tensor.
        tensor: a parameter.
        start: address of its first entry.
        entries: how many there are from the first to the last, those of other tensors included.
    """

    name: str
    tensor: torch.Tensor
    start: int
    entries: int

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> _Span:
        """That of a dense tensor with entries; no stride is negative in PyTorch."""
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        return cls(name, tensor, tensor.data_ptr(), last + 1)

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.entries * self.tensor.element_size()

    def addresses(self) -> torch.Tensor:
        """Where its entries begin; columns of one matrix lie between each other and have none in common."""
        offsets = torch.arange(self.entries).as_strided(self.tensor.shape, self.tensor.stride())
        return self.start + offsets.flatten() * self.tensor.element_size()


def _check_own_memory(model: nn.Module, names: set[str]) -> None:
    """Refuse weights of which an entry is one of another weight, too: more would go than is counted."""
    spans = [
        _Span.of(name, tensor)
        for name, tensor in model.named_parameters()
        if not is_lazy(tensor) and type(tensor.data) is torch.Tensor  # other classes keep entries elsewhere
        if tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta
    ]
    before: list[_Span] = []
    for span in sorted(spans, key=lambda each: each.start):
        if span.name in names and span.tensor.numel() > span.entries:
            raise ModelError(
                f"{span.name} has entries that are one in memory, as expand() makes them: "
                "give the layer a copy, nn.Parameter(weight.clone())"
            )
        before = [each for each in before if each.end > span.start]
        for each in before:
            # a weight that is not pruned would lose its entries, too
            if names & {each.name, span.name} and _overlap(each, span):
                raise ModelError(
                    f"{span.name} shares memory with {each.name} and is another tensor, so what is removed "
                    "from one is gone from both: make them the same nn.Parameter, or give one a copy"
                )
        before.append(span)


def _overlap(one: _Span, other: _Span) -> bool:
    return bool(torch.isin(one.addresses(), other.addresses()).any())


def _listing(names: Iterable[str], limit: int = 20) -> str:
    found = list(names)
    more = f", ... ({len(found)} in all)" if len(found) > limit else ""
    return (", ".join(found[:limit]) or "none") + more


def count_parameters(model: nn.Module) -> int:
    """How many numbers all parameters of a network hold together."""
    return sum(parameter.numel() for parameter in model.parameters())
