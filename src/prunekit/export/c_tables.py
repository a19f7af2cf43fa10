"""Weights of a layer as tables in C: dense or by gaps, as numbers or as codes into a codebook."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

FAR = 255
"""The gap that goes on by so many positions without a weight."""


def number(value: float) -> str:
    """A float32 as a C constant, exact."""
    text = format(float(value), ".9g")
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def table(kind: str, name: str, values: Iterable[float | int]) -> str:
    """A constant array; one zero where it would be empty, which C does not allow."""
    written = [number(value) if kind == "float" else str(int(value)) for value in values] or ["0"]
    lines = [", ".join(written[start : start + 12]) for start in range(0, len(written), 12)]
    return f"static const {kind} {name}[{len(written)}] = {{\n  " + ",\n  ".join(lines) + "\n};\n"


def smallest_index(largest: int) -> tuple[str, int]:
    """The smallest unsigned type that holds a number, and its bytes."""
    for bits in (8, 16):
        if largest < 1 << bits:
            return f"uint{bits}_t", bits // 8
    return "uint32_t", 4


@dataclass(frozen=True)
class Tables:
    """The weights of a layer, stored in the form of the fewest bytes.

    Attributes:
        text: the arrays in C.
        loop: the head of a loop over the weights of row `o`, which sets `k`, the column, and `w`, the weight.
        start: what stands before the rows.
        size: bytes of the arrays.
        form: in words.
    """

    text: str
    loop: str
    start: str
    size: int
    form: str


def tables_of(name: str, weight: Tensor) -> Tables:
    """The tables of a matrix (rows, columns) of float32.

    With gaps, each row is a count and as many bytes: how many zeros stand before the next weight. `FAR` goes
    on by so many positions and has no weight (Han et al., arXiv 1510.00149, store a zero weight).
    """
    rows, columns = weight.shape
    counts: list[int] = []
    gaps: list[int] = []
    for row in (weight != 0).numpy():
        before, place = len(gaps), 0
        for column in np.flatnonzero(row):
            far, near = divmod(int(column) - place, FAR)
            gaps += [FAR] * far + [near]
            place = int(column) + 1
        counts.append(len(gaps) - before)
    count_type, count_bytes = smallest_index(max(counts, default=0))
    sparse_bytes = len(gaps) + count_bytes * rows

    def values(kept: Tensor, which: str) -> tuple[int, str, str]:
        """Bytes, arrays, and the expression that reads the weight after the one before."""
        book, codes = torch.unique(kept, return_inverse=True)
        plain = (4 * len(kept), table("float", f"{name}_w", kept.tolist()), f"{name}_w[{which}]")
        if len(book) > 256 or len(kept) + 4 * len(book) >= plain[0]:
            return plain
        text = table("float", f"{name}_book", book.tolist()) + table("uint8_t", f"{name}_w", codes.tolist())
        return len(kept) + 4 * len(book), text, f"{name}_book[{name}_w[{which}]]"

    dense = values(weight.flatten(), "j++")
    sparse = values(weight[weight != 0], "j++")
    coded = "codes" if "_book" in min(dense, (sparse[0] + sparse_bytes, *sparse[1:]))[2] else "floats"
    if dense[0] <= sparse[0] + sparse_bytes:
        loop = f"for (int k = 0; k < {columns}; k++) {{\n      const float w = {dense[2]};\n"
        return Tables(dense[1], loop, "size_t j = 0;", dense[0], f"dense, {coded}")
    text = table(count_type, f"{name}_n", counts) + table("uint8_t", f"{name}_gap", gaps) + sparse[1]
    loop = (
        f"for (int n = {name}_n[o], k = -1; n > 0; n--) {{\n"
        f"      const int gap = {name}_gap[i++];\n"
        f"      k += gap;\n      if (gap == {FAR}) continue;\n      k++;\n"
        f"      const float w = {sparse[2]};\n"
    )
    return Tables(text, loop, "size_t i = 0, j = 0;", sparse[0] + sparse_bytes, f"gaps, {coded}")
