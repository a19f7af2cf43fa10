"""Amounts as people write them, with their unit: "100 MMACs", "5 ms"."""

from __future__ import annotations

import math
import re
from typing import Literal

from prunekit.errors import InputError, shown

Cost = Literal["parameters", "macs", "bytes", "latency"]
"""What a network costs: its parameters, MACs per example, bytes, or seconds of a run."""

_COUNTS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BYTES = {**_COUNTS, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SECONDS = {"n": 1e-9, "u": 1e-6, "µ": 1e-6, "m": 1e-3, "": 1.0}
_KINDS: tuple[tuple[Cost, dict[str, float], str], ...] = (
    ("macs", _COUNTS, "MACs?|macs?"),
    ("parameters", _COUNTS, "parameters?|params?"),
    ("bytes", _BYTES, "B|bytes?"),
    ("latency", _SECONDS, "s"),
)


def read_amount(text: str) -> tuple[float, Cost]:
    """The value of an amount, in units without a prefix, and the cost that it is of.

    "100 MMACs" is (1e8, "macs"), "5 ms" (0.005, "latency"). Prefixes are powers of 1000, but for Ki, Mi, Gi
    and Ti before B; K is k. A comma stands between thousands alone: "0,5 ms" is none.

    Raises:
        InputError: if it is no positive number with one of the units.
    """
    for cost, prefixes, units in _KINDS:
        found = re.fullmatch(
            rf"\s*((?:\d{{1,3}}(?:,\d{{3}})+|\d[\d_]*)\.?\d*(?:[eE][+-]?\d+)?)\s*({'|'.join(prefixes)})\s*(?:{units})\s*",
            text,
        )
        if found:
            value = float(found[1].replace(",", "")) * prefixes[found[2]]
            if 0 < value < math.inf:
                return value, cost
    raise InputError(
        f"{shown(text)} is no amount: write a number above 0 and its unit, such as '100 MMACs', "
        "'2.5 M parameters', '500 kB' or '5 ms'"
    )
