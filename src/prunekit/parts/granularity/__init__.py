"""Granularity: what goes together when weights are removed, and what of it there is in a model."""

from prunekit.parts.granularity.of_blocks import Block, Blocks
from prunekit.parts.granularity.of_units import Kind, MaxoutPiece, Pieces, Unit, Units
from prunekit.parts.granularity.of_weights import (
    INPUTS_FIRST,
    NM,
    Elements,
    FilterShape,
    Granularity,
    Weight,
    Weights,
    check_one_input,
    shaped_targets,
)

__all__ = [
    "INPUTS_FIRST",
    "NM",
    "Block",
    "Blocks",
    "Elements",
    "FilterShape",
    "Granularity",
    "Kind",
    "MaxoutPiece",
    "Pieces",
    "Unit",
    "Units",
    "Weight",
    "Weights",
    "check_one_input",
    "shaped_targets",
]
