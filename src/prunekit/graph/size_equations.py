"""New values of the attributes that count units, from what smaller operators have to be given.

Each argument that is known as an expression of attributes and of sizes of tensors is an equation: the sizes
of the smaller tensors are known, the attributes are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prunekit.graph.size_run import OPERATIONS, Computed, Expression, Extent, Read

Equation = tuple[Expression, int]
"""An expression, and the value that it has to have."""


def solved(
    equations: Sequence[Equation], before: Mapping[Read, int], extent: Callable[[Extent], int]
) -> dict[Read, int]:
    """The attributes that change, with values that meet as many equations as they can.

    What is read by itself is settled first. Where equations contradict each other an attribute stays, so that
    the operator whose equation is not met is the one whose units cannot go.

    Args:
        equations: of the smaller network.
        before: what the attributes are.
        extent: the size of an axis in the smaller network.
    """
    known: dict[Read, int] = {}
    waiting = [(expression, value, reads_of(expression)) for expression, value in equations]
    waiting = [each for each in waiting if each[2]]
    alone = [each for each in waiting if isinstance(each[0], Read)]
    rest = [each for each in waiting if not isinstance(each[0], Read)]
    _settle(alone, known, before, extent)
    while _settle(rest, known, before, extent):
        pass
    for expression, value, reads in rest:  # of several unknowns, as in `self.heads * self.width`, one changes
        # in their order there, as that of a set is another in every process
        free = sorted(reads - known.keys(), key=lambda read: repr(expression).find(repr(read)))
        if evaluated(expression, {**before, **known}, extent) != value:
            for read in free:
                found = inverted(expression, value, read, {**before, **known}, extent)
                if found is not None:
                    known[read] = found
                    break
    return {read: value for read, value in known.items() if value != before[read]}


def _settle(
    equations: Sequence[tuple[Expression, int, set[Read]]],
    known: dict[Read, int],
    before: Mapping[Read, int],
    extent: Callable[[Extent], int],
) -> bool:
    """Settle what is the only unknown of an equation; whether there was any."""
    found: dict[Read, list[int]] = {}
    for expression, value, reads in equations:
        free = reads - known.keys()
        if len(free) == 1:
            read = next(iter(free))
            values = {**before, **known}
            if evaluated(expression, values, extent) == value:
                found.setdefault(read, []).append(before[read])
            else:
                other = inverted(expression, value, read, values, extent)
                if other is not None:
                    found.setdefault(read, []).append(other)
    for read, values_found in found.items():
        agree = len(set(values_found)) == 1
        known[read] = values_found[0] if agree else before[read]
    return bool(found)


def reads_of(expression: Expression) -> set[Read]:
    """The attributes in an expression."""
    if isinstance(expression, Computed):
        return reads_of(expression.first) | reads_of(expression.second)
    return {expression} if isinstance(expression, Read) else set()


def evaluated(
    expression: Expression, values: Mapping[Read, int], extent: Callable[[Extent], int]
) -> int | None:
    """The value of an expression; None where it has none."""
    if isinstance(expression, int):
        return expression
    if isinstance(expression, Read):
        return values[expression]
    if isinstance(expression, Extent):
        return extent(expression)
    first, second = (evaluated(each, values, extent) for each in (expression.first, expression.second))
    if first is None or second is None or (expression.operation in ("//", "%") and second == 0):
        return None
    return OPERATIONS[expression.operation](first, second)


def inverted(
    expression: Expression,
    value: int,
    read: Read,
    values: Mapping[Read, int],
    extent: Callable[[Extent], int],
) -> int | None:
    """What an attribute has to be for an expression to have a value; None where there is none above 0.

    Args:
        expression: in which the attribute stands once.
        value: of the expression.
        read: the attribute.
        values: of all attributes.
        extent: the size of an axis.
    """
    while not isinstance(expression, Read):
        if not isinstance(expression, Computed):
            return None
        inside = [read in reads_of(each) for each in (expression.first, expression.second)]
        if all(inside):
            return None
        known, expression, operation = (
            (expression.second, expression.first, expression.operation)
            if inside[0]
            else (expression.first, expression.second, expression.operation)
        )
        other = evaluated(known, values, extent)
        found = None if other is None else _undone(operation, value, other, first=inside[0])
        if found is None:
            return None
        value = found
    return value if expression == read and value > 0 else None


def _undone(operation: str, value: int, other: int, *, first: bool) -> int | None:
    """The first, or else the second, operand of an operation from its value and the other operand."""
    if operation == "+":
        return value - other
    if operation == "-":
        return value + other if first else other - value
    if operation == "*":
        return value // other if other and value % other == 0 else None
    if operation == "//" and first:
        return value * other
    if operation == "//":
        return other // value if value and other % value == 0 else None
    return None
