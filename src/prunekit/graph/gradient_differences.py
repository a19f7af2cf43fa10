"""Gradients of two networks, compared as they come: of the first the entries stay that the second has."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from prunekit.graph.reference_run import Deviation, difference, largest, magnitude
from prunekit.graph.surgery import Axes, taken


class GradientSlices:
    """Of a network's gradients the entries that a smaller network has.

    Args:
        kept: what the smaller network kept of the network's parameters.
        parameters: the names of those that the smaller one has.
        names: of some of these, the names that they have in the network.
        factors: by which some of them were multiplied.

    Attributes:
        scale: the largest magnitude among all gradients.
        finite: whether all are numbers.
    """

    def __init__(
        self,
        kept: Mapping[str, Axes],
        parameters: Collection[str],
        names: Mapping[str, str] = MappingProxyType({}),
        factors: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.scale = 0.0
        self.finite = True
        self._kept, self._factors = kept, factors
        self._readers: dict[str, list[str]] = {}
        for name in parameters:
            self._readers.setdefault(names.get(name, name), []).append(name)
        self._found: dict[str, Tensor] = {}

    def take(self, name: str, gradient: Tensor) -> None:
        """Keep what is needed of a gradient."""
        found = magnitude(gradient)
        self.scale = max(self.scale, largest(gradient, found))
        self.finite = self.finite and math.isfinite(found)
        for reader in self._readers.get(name, ()):
            kept = taken(gradient, self._kept.get(reader, {}))
            if reader in self._factors:
                kept = kept / self._factors[reader].to(kept)
            self._found[reader] = kept

    def of(self, name: str, like: Tensor) -> Tensor:
        """What the gradient of a parameter of the smaller network must be: zeros where there was none."""
        return self._found[name] if name in self._found else torch.zeros_like(like)

    @property
    def names(self) -> Collection[str]:
        """The parameters of the smaller network for which there is a gradient."""
        return self._found.keys()


class GradientDifferences:
    """How far a smaller network's gradients are from those of the network, each by itself.

    Args:
        wanted: what they must be.
        tolerance: relative to the largest of the network's.
        what: was run, for the text.

    Attributes:
        finite: whether all are numbers.
    """

    def __init__(self, wanted: GradientSlices, tolerance: float, what: str) -> None:
        self.finite = True
        self._wanted, self._tolerance, self._what = wanted, tolerance, what
        self._found: dict[str, Deviation] = {}

    def take(self, name: str, gradient: Tensor) -> None:
        """Compare a gradient.

        Raises:
            VerificationError: where it has another shape.
        """
        self._compare(name, self._wanted.of(name, gradient), gradient)
        if not (self._wanted.finite and math.isfinite(self._found[name].largest)):
            self.finite = self.finite and math.isfinite(magnitude(gradient))

    def all(self) -> list[Deviation]:
        """Of every parameter that either network has a gradient for; where one has none, it is zero."""
        for name in self._wanted.names:
            if name not in self._found:
                wanted = self._wanted.of(name, torch.empty(0))
                self._compare(name, wanted, torch.zeros_like(wanted))
        return list(self._found.values())

    def _compare(self, name: str, wanted: Tensor, gradient: Tensor) -> None:
        where = f"gradient of {name} at {{}}{self._what}".format
        self._found[name] = difference(wanted, gradient, self._wanted.scale, self._tolerance, where)
