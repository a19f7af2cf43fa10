"""Which layers a method takes from: choosing the place to compare, and the numbers there. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.report.best import ASKED, point_at
from prunekit.report.points import LayerPoint, Point, methods_of
from prunekit.report.words import Primary


@dataclass(frozen=True, slots=True)
class Layer:
    """A target layer as the study found it: name, shape of its weight, number of weights."""

    name: str
    shape: str
    parameters: int


@dataclass(frozen=True, slots=True)
class LayerTable:
    """Per-layer sparsity of several methods at about the same compression.

    ``sparsity[layer][method]`` is a fraction in [0, 1], or missing; ``at`` gives each method's own point.
    """

    asked: float
    layers: tuple[Layer, ...]
    at: dict[str, Point]
    sparsity: dict[str, dict[str, float]]


def layers_of(found: Sequence[LayerPoint]) -> tuple[Layer, ...]:
    """The layers in order of first appearance, which is their order in the network."""
    return tuple(
        {p.layer: Layer(p.layer, p.shape, p.parameters) for p in reversed(found)}[name]
        for name in dict.fromkeys(p.layer for p in found)
    )


def layer_table(points: Sequence[Point], found: Sequence[LayerPoint], primary: Primary) -> LayerTable | None:
    """The table at the ratio of ASKED where most methods have a point, the largest such; None if nowhere."""
    known = {p.method for p in found}
    methods = [m for m in methods_of(points) if m in known]
    choices = []
    for asked in (*ASKED, *sorted({round(p.ratio, 2) for p in points if p.ratio > 1.001})):
        at = {m: point for m in methods if (point := point_at(points, m, asked, primary))}
        choices.append((len(at), asked in ASKED, asked, at))
    many, _, asked, at = max(choices, key=lambda choice: choice[:3])
    if not many:
        return None
    places = {(p.method, p.cell, p.step): m for m, p in at.items()}
    sparsity: dict[str, dict[str, float]] = {}
    for p in found:
        method = places.get((p.method, p.cell, p.step))
        if method is not None:
            sparsity.setdefault(p.layer, {})[method] = p.sparsity
    there = tuple(layer for layer in layers_of(found) if layer.name in sparsity)
    return LayerTable(asked, there, at, sparsity) if there else None
