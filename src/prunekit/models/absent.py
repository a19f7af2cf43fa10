"""What stands in the place of a module that was taken out, as its results are known without it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError

NOTHING, ZERO, PASSED, ZEROS, EMPTY = range(5)
"""What is given in the place of a result: None, zero, what is taken first, zeros of its form, or none of its
channels."""


class Absent(nn.Module):
    """A module without parameters that stands where one was whose results were zeros, or its own input.

    A zero has no dimensions: added to anything it leaves that as it is, without a pass through memory.

    Args:
        absent: uint8, what is given: () for a single result, (results,) for a tuple; 0 for None, 1 for zero,
            2 for the first argument, 3 for zeros of its shape, which may be written into, 4 for the first
            argument without its channels, (n, 0, ...), of which a concatenation has nothing.

    Raises:
        ModelError: for anything else.
    """

    absent: Tensor

    def __init__(self, absent: Tensor) -> None:
        super().__init__()
        if absent.dtype != torch.uint8 or absent.dim() > 1 or bool((absent > EMPTY).any()):
            raise ModelError("what an absent module gives is told by numbers from 0 to 4 (uint8)")
        self.register_buffer("absent", absent.detach().clone())
        self._gives = absent.tolist()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What is given in the place of the module's results."""
        if isinstance(self._gives, list):
            return tuple(self._result(code, args, kwargs) for code in self._gives)
        return self._result(self._gives, args, kwargs)

    def _result(self, code: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if code in (PASSED, ZEROS, EMPTY):
            taken = args[0] if args else next(iter(kwargs.values()))
            if code == EMPTY:
                return taken[:, :0]
            return taken if code == PASSED else torch.zeros_like(taken)
        return torch.zeros((), device=self.absent.device) if code == ZERO else None

    def extra_repr(self) -> str:
        """What it gives."""
        words = {NOTHING: "None", ZERO: "0", PASSED: "its input", ZEROS: "zeros", EMPTY: "no channels"}
        if isinstance(self._gives, list):
            return ", ".join(words[code] for code in self._gives)
        return words[self._gives]


def absent_for(taken: Any, given: Any, code: int) -> Absent | None:
    """What can stand in the place of a module.

    Args:
        taken: its first argument.
        given: its results.
        code: what is to be given for those that are tensors of real numbers: `ZERO`, `PASSED` or `ZEROS`.

    Returns:
        None where the results are nested or no tensors, or where the first argument is needed and is none, or
        of another shape than what it is to be passed on for.
    """
    results = given if type(given) is tuple else (given,)
    fits = [
        each is None
        or (
            (isinstance(each, Tensor) and each.is_floating_point())
            and (code == ZERO or (isinstance(taken, Tensor) and (code == ZEROS or each.shape == taken.shape)))
        )
        for each in results
    ]
    codes = [NOTHING if each is None else code for each in results]
    if not all(fits) or not any(codes):
        return None
    return Absent(torch.tensor(codes if type(given) is tuple else codes[0], dtype=torch.uint8))
