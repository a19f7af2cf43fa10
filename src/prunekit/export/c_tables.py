"""Weights of a layer as tables in C: dense or by gaps, as numbers or codes, or as a stream of codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit.compress.huffman import MAX_SYMBOLS, canonical_code, no_bits

FAR = 255
"""The gap that goes on by so many positions without a weight."""

_MOST_CODED = 1 << 26  # of weights, whose codes of at most 31 bits are counted in 32 bits


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
        huffman: whether the decoder is called.
    """

    text: str
    loop: str
    start: str
    size: int
    form: str
    huffman: bool = False


def tables_of(name: str, weight: Tensor, coder: str | None = None) -> Tables:
    """The tables of a matrix (rows, columns) of float32.

    Args:
        name: what the arrays begin with.
        weight: the matrix.
        coder: what the functions of `decoder` begin with, if Huffman codes may be taken.
    """
    forms = [_dense(name, weight), _by_gaps(name, weight)]
    if coder is not None and weight.numel() < _MOST_CODED:
        forms.append(_by_codes(name, weight, coder))
    return min(forms, key=lambda each: each.size)  # the first of those that are equal


def _values(name: str, kept: Tensor) -> tuple[int, str, str, str]:
    """Bytes, arrays, the expression that reads the weight after the one before, and the form in words."""
    book, codes = torch.unique(kept, return_inverse=True)
    plain = 4 * len(kept)
    if len(book) > 256 or len(kept) + 4 * len(book) >= plain:
        return plain, table("float", f"{name}_w", kept.tolist()), f"{name}_w[j++]", "floats"
    text = table("float", f"{name}_book", book.tolist()) + table("uint8_t", f"{name}_w", codes.tolist())
    return len(kept) + 4 * len(book), text, f"{name}_book[{name}_w[j++]]", "codes"


def _dense(name: str, weight: Tensor) -> Tables:
    size, text, value, form = _values(name, weight.flatten())
    loop = f"for (int k = 0; k < {weight.shape[1]}; k++) {{\n      const float w = {value};\n"
    return Tables(text, loop, "size_t j = 0;", size, f"dense, {form}")


def _steps(places: np.ndarray, start: int) -> list[int]:
    """How many zeros stand before each place from a start on, in bytes; `FAR` goes on and has no weight."""
    found: list[int] = []
    for place in places.tolist():
        far, near = divmod(place - start, FAR)
        found += [FAR] * far + [near]
        start = place + 1
    return found


def _by_gaps(name: str, weight: Tensor) -> Tables:
    """Each row is a count and as many bytes: how many zeros stand before the next weight.

    `FAR` goes on by so many positions and has no weight (Han et al., arXiv 1510.00149, store a zero weight).
    """
    rows = [_steps(np.flatnonzero(row), 0) for row in (weight != 0).numpy()]
    counts, gaps = [len(row) for row in rows], [gap for row in rows for gap in row]
    count_type, count_bytes = smallest_index(max(counts, default=0))
    size, arrays, value, form = _values(name, weight[weight != 0])
    text = table(count_type, f"{name}_n", counts) + table("uint8_t", f"{name}_gap", gaps) + arrays
    loop = (
        f"for (int n = {name}_n[o], k = -1; n > 0; n--) {{\n"
        f"      const int gap = {name}_gap[i++];\n"
        f"      k += gap;\n      if (gap == {FAR}) continue;\n      k++;\n"
        f"      const float w = {value};\n"
    )
    size += len(gaps) + count_bytes * len(counts)
    return Tables(text, loop, "size_t i = 0, j = 0;", size, f"gaps, {form}")


def _by_codes(name: str, weight: Tensor, coder: str) -> Tables:
    """One stream of bits for all rows: the code of a gap, then the code of its weight, and so on.

    Gaps run on from row to row. The codebook lies in the order of the codes, so that a code's place in that
    order is the weight's place in it; without a codebook weights are floats.
    """
    flat = weight.flatten()
    kept, end = flat[flat != 0], flat.numel()
    gaps = _steps(np.flatnonzero((flat != 0).numpy()), 0)
    book, codes = torch.unique(kept, return_inverse=True)
    coded = len(book) <= MAX_SYMBOLS and len(kept) > len(book)
    gap_codes, gap_counts, gap_order = _code(gaps)
    value_codes, value_counts, value_order = _code(codes.tolist() if coded else [])
    bits, weights = no_bits(), iter(codes.tolist())
    for gap in gaps:
        bits += gap_codes[gap]
        if gap != FAR and coded:
            bits += value_codes[next(weights)]
    stream = bits.tobytes()
    text = table("uint8_t", f"{name}_bits", list(stream)) + table("uint16_t", f"{name}_gn", gap_counts)
    text += table("uint8_t", f"{name}_gap", gap_order)
    size = len(stream) + 2 * len(gap_counts) + len(gap_order)
    if coded:
        # a symbol that only makes up a code of two has no weight
        values = [float(book[code]) if code < len(book) else 0.0 for code in value_order]
        text += table("uint16_t", f"{name}_wn", value_counts) + table("float", f"{name}_book", values)
        size += 2 * len(value_counts) + 4 * len(values)
        value = f"{name}_book[{coder}_symbol({name}_bits, &at, {name}_wn)]"
    else:
        text += table("float", f"{name}_w", kept.tolist())
        size, value = size + 4 * len(kept), f"{name}_w[j++]"
    step = f"{coder}_step({name}_bits, &at, {name}_gn, {name}_gap, "
    start = "" if coded else "size_t j = 0;\n  "
    start += f"uint32_t at = 0, left = {len(kept)};\n  int32_t next = {f'{step}0)' if len(kept) else end};"
    columns = weight.shape[1]
    loop = (
        f"while (next < (int32_t)(o + 1) * {columns}) {{\n"
        f"      const int k = (int)(next - (int32_t)o * {columns});\n"
        f"      const float w = {value};\n"
        f"      next = --left ? {step}next + 1) : {end};\n"
    )
    return Tables(text, loop, start, size, f"Huffman, {'codes' if coded else 'floats'}", huffman=True)


def _code(symbols: list[int]) -> tuple[dict[int, Any], list[int], list[int]]:
    """A canonical Huffman code; of fewer than two symbols it is one of two, so that each has a bit."""
    values, counts = np.unique(np.array(symbols, dtype=np.int64), return_counts=True)
    while len(values) < 2:
        other = next(each for each in (0, 1) if each not in values)
        values, counts = np.append(values, other), np.append(counts, 1)
    return canonical_code(values, counts)


def decoder(name: str) -> str:
    """The functions in C that read a canonical Huffman code bit by bit, and gaps by it.

    Of the codes of each length only the number is kept: the first code of a length follows from those before.
    """
    return f"""static int {name}_symbol(const uint8_t *bits, uint32_t *at, const uint16_t *count) {{
  uint32_t code = 0, first = 0;
  int place = 0;
  for (;; count++) {{
    code |= bits[*at >> 3] >> (7 - (*at & 7)) & 1;
    ++*at;
    if (code - first < *count) return place + (int)(code - first);
    place += *count;
    first = (first + *count) * 2;
    code *= 2;
  }}
}}

static int32_t {name}_step(const uint8_t *bits, uint32_t *at, const uint16_t *count, const uint8_t *gaps,
                          int32_t from) {{
  for (;;) {{
    const int gap = gaps[{name}_symbol(bits, at, count)];
    from += gap;
    if (gap != {FAR}) return from;
  }}
}}
"""
