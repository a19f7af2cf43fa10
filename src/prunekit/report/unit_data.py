"""units.json, checked: gain sweeps and correlations of the units of one trained network of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from prunekit.report.study_files import read_checked

UNITS = "units.json"
"""In the folder of a study that asks for it."""

MOST_UNITS = 4096
"""How many units a layer may have to be drawn."""

Row = Annotated[list[FiniteFloat], Field(min_length=1, max_length=MOST_UNITS)]


class GainSweep(BaseModel):
    """The error with one unit at each gain, just before it is removed.

    Attributes:
        layer: the layer that makes the unit.
        unit: its number there.
        removed: how many units were removed before it.
        errors: one for each gain.
    """

    model_config = ConfigDict(frozen=True)
    layer: str
    unit: int = Field(ge=0)
    removed: int = Field(ge=0)
    errors: Row


class UnitData(BaseModel):
    """Gain sweeps and correlations.

    Attributes:
        key: the hash of the network and of what was asked.
        error: what the errors are, in words.
        gains: those of every sweep, 0 and 1 among them.
        sweeps: in the order in which the oracle removes the units.
        correlations: by layer, Pearson's r between its units, (units, units).
    """

    model_config = ConfigDict(frozen=True)
    key: str
    error: str
    gains: Row
    sweeps: list[GainSweep] = Field(min_length=1, max_length=MOST_UNITS)
    correlations: dict[str, list[Row]] = Field(min_length=1)

    @model_validator(mode="after")
    def _sizes_fit(self) -> UnitData:
        if not {0.0, 1.0} <= set(self.gains):
            raise ValueError("gains: 0 and 1 must be among them")
        for sweep in self.sweeps:
            if len(sweep.errors) != len(self.gains):
                raise ValueError(f"sweeps: {len(sweep.errors)} errors for {len(self.gains)} gains")
        for name, matrix in self.correlations.items():
            if not 1 <= len(matrix) <= MOST_UNITS or any(len(row) != len(matrix) for row in matrix):
                raise ValueError(f"correlations: {name}: must be a square matrix")
        return self


def read_units(path: Path) -> UnitData:
    """What a units.json says. Raises DataError, in one line with the place, if it is damaged."""
    return read_checked(path, UnitData)
