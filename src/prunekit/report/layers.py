"""Which layers a method takes from: choosing the place to compare, and the numbers there. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.report.best import asked_ratios, point_at
from prunekit.report.points import LayerPoint, Point, dense_of, methods_of
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
    layers: dict[str, Layer] = {}
    for p in found:
        layers.setdefault(p.layer, Layer(p.layer, p.shape, p.parameters))
    return tuple(layers.values())


def layer_table(points: Sequence[Point], found: Sequence[LayerPoint], primary: Primary) -> LayerTable | None:
    """The table at the ratio of ASKED where most methods have a point; None if there is no such point.

    Of ratios with as many methods: the largest at which some method still holds to dense, since what is
    spared matters most there; failing that the smallest.
    """
    known = {p.method for p in found}
    methods = [m for m in methods_of(points) if m in known]
    dense = dense_of(points).values[primary.test]
    best: tuple[tuple[int, bool, float], float, dict[str, Point]] | None = None
    for asked in asked_ratios(points, primary):
        at = {m: point for m in methods if (point := point_at(points, m, asked, primary))}
        held = any(
            primary.better(dense.mean, p.values[primary.test].mean) <= primary.tolerance(dense)
            for p in at.values()
        )
        rank = (len(at), held, asked if held else -asked)
        if at and (best is None or rank > best[0]):
            best = rank, asked, at
    if best is None:
        return None
    _, asked, at = best
    places = {(p.method, p.cell, p.step): m for m, p in at.items()}
    sparsity: dict[str, dict[str, float]] = {}
    for p in found:
        method = places.get((p.method, p.cell, p.step))
        if method is not None:
            sparsity.setdefault(p.layer, {})[method] = p.sparsity
    there = tuple(layer for layer in layers_of(found) if layer.name in sparsity)
    return LayerTable(asked, there, at, sparsity) if there else None
