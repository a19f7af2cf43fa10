"""The rules by the operator's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prunekit.graph.walker import Walker

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function `(walker, *args, **kwargs)` for operators of ATen, named without overload.

    Tensors among the arguments come as values (tuples of axes) where they stand by themselves.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


__all__ = ["RULES", "Rule", "Walker", "rule"]
