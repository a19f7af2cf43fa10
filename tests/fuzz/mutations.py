"""Changes of bytes and of JSON values, drawn by a generator of Python's."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, -(2**63)),
    *(
        10**30,
        0.0,
        -0.0,
        0.5,
        1e308,
        -1e308,
        1e-320,
        "",
        "nan",
        "inf",
        "x",
        "../x",
        "os:system",
        "a\nb",
        "\x00",
    ),
    *(
        "a" * 300,
        "\ud800",
        "__class__",
        "__import__('os').system('touch pwned')",
        [],
        {},
        [[]],
        [0],
        [2**40] * 3,
    ),
    *(
        {"node": 0},
        {"node": 10**9},
        {"tuple": []},
        {"float": "nan"},
        {"dtype": "float64"},
        {"name": "os:getcwd"},
    ),
)


def changed_bytes(draw: random.Random, content: bytes) -> bytes:
    """The bytes with a few of them flipped, cut, doubled, swapped, dropped or added."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        place = draw.randrange(len(data) + 1)
        length = draw.choice((1, 1, 2, 8, 64, 1000))
        kind = draw.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif kind == 4:
            data[place:place] = draw.randbytes(length)
        elif kind == 5 and place < len(data):
            data[place] = draw.choice(b'0123456789"{}[],:\x00\xff')
        else:
            other = draw.randrange(len(data) + 1)
            data[place : place + length], data[other : other + length] = (
                data[other : other + length],
                data[place : place + length],
            )
    return bytes(data)


def changed_json(draw: random.Random, values: Any) -> Any:
    """A copy of nested values with a few of them replaced, dropped, renamed, doubled or exchanged."""
    values = copy.deepcopy(values)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        place = _place(draw, values)
        if place is None:
            return draw.choice(EXTREMES)
        holder, key = place
        kind = draw.randrange(6)
        if kind <= 2:
            holder[key] = _other(draw, holder[key])
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            other = _place(draw, values)
            if other is not None:
                holder[key] = copy.deepcopy(other[0][other[1]])
        elif isinstance(holder, dict):
            holder[draw.choice([*holder, "x", "", "__class__", "training", "a.b", "weight"])] = holder.pop(
                key
            )
        else:
            holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    return values


def _place(draw: random.Random, values: Any) -> tuple[Any, Any] | None:
    """A list or mapping somewhere inside, and one of its keys; deep places are as likely as flat ones."""
    place = None
    while isinstance(values, dict | list) and values:
        key = draw.choice(list(values)) if isinstance(values, dict) else draw.randrange(len(values))
        place = values, key
        if draw.random() < 0.15:
            break
        values = values[key]
    return place


def _other(draw: random.Random, value: Any) -> Any:
    if type(value) is int and draw.random() < 0.6:
        return draw.choice((value + 1, value - 1, -value, value * 2, value * 1000, value ^ 1))
    if isinstance(value, float) and draw.random() < 0.6:
        return draw.choice((-value, value * 10, value + 1e-9))
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) and value and draw.random() < 0.5:
        place = draw.randrange(len(value))
        return value[:place] + draw.choice(("", "x", ".", "0", "é")) + value[place + 1 :]
    return copy.deepcopy(draw.choice(EXTREMES))


def bomb(draw: random.Random) -> bytes:
    """A small JSON text that asks for much: deep, long numbers, many entries."""
    return draw.choice(
        (
            b"[" * 100_000 + b"]" * 100_000,
            b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            b'{"format": ' + b"9" * 100_000 + b"}",
            b'{"format": 2, "pruned": {' + b",".join(b'"%d": 1' % n for n in range(20_000)) + b"}}",
            json.dumps({"format": 2, "sizes": {"x": [0] * 100_000}}).encode(),
        )
    )
