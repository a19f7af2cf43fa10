"""What a recipe counts and removes on a model: single weights, or whole units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph import INPUT, Chain, Coupled, chain_of
from prunekit.graph.capture import Inputs
from prunekit.graph.surgery import Surgery, copy_of
from prunekit.masks import Masks
from prunekit.maxout import Maxout
from prunekit.structure import unit_masks
from prunekit.structure.units import check_kept, cut_of
from prunekit.targets import Target, find_targets, unwrap
from prunekit.units import outgoing_norms


@dataclass(frozen=True)
class Elements(ABC):
    """The elements that a recipe chooses from.

    Attributes:
        targets: what they belong to: one parameter of weights, or one group of units each.
    """

    targets: tuple[Target, ...]

    @property
    def names(self) -> list[str]:
        """The targets' names."""
        return [target.name for target in self.targets]

    @property
    def chain(self) -> Chain | None:
        """The chain of layers whose units are counted; None where weights are."""
        return None

    @property
    def coupled(self) -> Coupled | None:
        """The coupled groups whose units are counted; None where something else is."""
        return None

    @property
    @abstractmethod
    def parameters(self) -> list[str]:
        """The full names of the weights that a score may look at."""

    @abstractmethod
    def all_kept(self, model: nn.Module) -> Masks:
        """Flags that keep every element."""

    @abstractmethod
    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """The masks over parameters that remove what is not kept."""

    @abstractmethod
    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """The elements of a target that go first: those removed already, and what is zero anyway."""

    def smaller(self, model: nn.Module, kept: Masks) -> nn.Module:
        """A copy of the model without what is not kept, to be counted or timed.

        Raises:
            InputError: where single elements cannot be taken out.
        """
        raise InputError("only whole units can be taken out of a network: use the shape 'unit' or 'group'")

    def shielded(self, name: str, scores: Tensor) -> Tensor:
        """The scores of a target, with infinity for elements that must stay whatever they score."""
        return scores


class Weights(Elements):
    """Single weights: what is counted is what is masked."""

    @property
    def parameters(self) -> list[str]:
        """The pruned parameters."""
        return self.names

    def all_kept(self, model: nn.Module) -> Masks:
        """One flag per weight, on its device."""
        return Masks.ones(model, self.names)

    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """The flags themselves."""
        return kept

    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """Zeros count as removed, so that pruning twice removes no more than once."""
        assert weight is not None
        return ~kept[name] | (weight == 0)


@dataclass(frozen=True)
class Units(Elements):
    """Neurons and filters of a chain of layers."""

    links: Chain

    @property
    def chain(self) -> Chain:
        """The chain."""
        return self.links

    @property
    def parameters(self) -> list[str]:
        """The weights of the layers that make the units."""
        producers = [self.links.group(name).producer for name in self.names]
        return [f"{producer}.weight" for producer in producers if producer is not None]

    def all_kept(self, model: nn.Module) -> Masks:
        """One flag per unit."""
        device = next(unwrap(model).parameters()).device
        return Masks(
            {target.name: torch.ones(target.size, dtype=torch.bool, device=device) for target in self.targets}
        )

    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """Rows, biases and, in the layer that reads the unit, columns."""
        return unit_masks(model, self.links, kept, allow_empty=True)

    def smaller(self, model: nn.Module, kept: Masks) -> nn.Module:
        """The units are taken out of a copy; input features are off, but stay."""
        model = unwrap(model)
        copied = copy_of(model)
        flags = {name: each for name, each in kept.items() if name != INPUT}
        Surgery(copied).cut(cut_of(copied, self.links, check_kept(self.links, flags, removing=True)))
        return copied

    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """Those without an outgoing weight count as removed: pruning twice removes no more than once."""
        return ~kept[name] | (outgoing_norms(self.links, groups=[name])[name] == 0)


def find_units(
    model: nn.Module,
    targets: Sequence[str] | None,
    ignore: Sequence[str],
    example_inputs: Inputs | None = None,
    *,
    inputs: bool,
) -> Units:
    """The units of the chosen layers; the network's outputs are none.

    Raises:
        InputError: if a pattern matches nothing, or no layer with units is left.
        ModelError: naming the layer that makes the network no chain, or one that `targets` asks for and whose
            units cannot be removed.
    """
    layers = {target.layer for target in find_targets(model, targets, ignore)}
    chain = chain_of(unwrap(model), example_inputs, inputs=inputs)
    for name in chain.refused:
        if targets is not None and name in layers:
            chain.group(name)  # says why
    chosen = tuple(
        Target(group.name, group.name, "units", (group.units,))
        for group in chain.groups
        if group.producer is None or group.producer in layers
    )
    if not chosen:
        raise InputError(
            "the recipe chooses no layer with units: the last layer makes the network's outputs, "
            f"layers with units are: {', '.join(group.name for group in chain.groups) or 'none'}"
            + "".join(f"; not {name!r}: {reason}" for name, reason in chain.refused.items())
        )
    return Units(chosen, chain)


@dataclass(frozen=True)
class Pieces(Elements):
    """The pieces of maxout layers: (units, pieces) flags each."""

    @property
    def parameters(self) -> list[str]:
        """The weights that make the pieces."""
        return [f"{name}.layer.weight" for name in self.names]

    def all_kept(self, model: nn.Module) -> Masks:
        """One flag per piece; those that are all zero count as removed."""
        model = unwrap(model)
        return Masks({name: maxout(model, name).present() for name in self.names})

    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """Rows and biases of the layers that make the pieces."""
        masks = {}
        for name, flags in kept.items():
            for short, parameter in maxout(unwrap(model), name).layer.named_parameters(recurse=False):
                shape = (-1, *[1] * (parameter.dim() - 1))
                masks[f"{name}.layer.{short}"] = flags.flatten().view(shape).expand_as(parameter).clone()
        return Masks(masks)

    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """Those removed already."""
        return ~kept[name]


def maxout(model: nn.Module, name: str) -> Maxout:
    """The maxout layer of that name."""
    module = model.get_submodule(name)
    assert isinstance(module, Maxout)
    return module


def find_pieces(model: nn.Module, targets: Sequence[str] | None, ignore: Sequence[str]) -> Pieces:
    """The pieces of the chosen maxout layers.

    Raises:
        InputError: if a pattern matches nothing, or no maxout layer of several pieces is left.
        ModelError: as `find_targets`.
    """
    layers = {target.layer for target in find_targets(model, targets, ignore)}
    chosen = tuple(
        Target(name, name, "pieces", (module.units, module.pieces))
        for name, module in unwrap(model).named_modules()
        if isinstance(module, Maxout) and f"{name}.layer" in layers and module.pieces > 1
    )
    if not chosen:
        raise InputError("the recipe chooses no maxout layer (prunekit.maxout.Maxout) with several pieces")
    return Pieces(chosen)
