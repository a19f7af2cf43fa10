"""The rule that ends a pruning early, and the network that it goes back to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import nn

from prunekit.errors import DataError
from prunekit.masks import Masks
from prunekit.parts.stopping import Held, Stop, Stopped
from prunekit.training import copy_state


class EarlyStopping:
    """Measures the error of a network between steps.

    Attributes:
        stopped: why the pruning has ended, once it has.
    """

    def __init__(self, stop: Stop, error: Callable[[Stop], float]) -> None:
        self.stopped: Stopped | None = None
        self._stop, self._error = stop, error
        self._allowed: float | None = None
        self._held: Held | None = None

    def hold(self, model: nn.Module, steps: int, kept: Masks) -> None:
        """Keep what the network is, unless an earlier one is kept that was the last to be measured.

        Args:
            model: the network, without wrappers.
            steps: that were taken.
            kept: what of it is kept.
        """
        if not self._stop.needs_data:
            return
        if self._allowed is None:
            before = self._error(self._stop)
            if not math.isfinite(before):
                raise DataError(
                    f"stop {self._stop.name}: the error of the network before pruning is {before}"
                )
            self._allowed = self._stop.allowed(before)
        if self._held is None:
            state = copy_state(model) if self._stop.rolls_back else None
            self._held = Held(steps, kept, state)

    def broken(self, step: int) -> Held | None:
        """The network that was held, if the limit is broken since; it is let go otherwise."""
        held = self._held
        if held is None or self.stopped is not None:
            return None
        assert self._allowed is not None
        error = self._error(self._stop)
        self._held = None
        if error <= self._allowed:
            return None
        self.stopped = Stopped(step, error, self._allowed, self._stop.rolls_back)
        return held

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain values and tensors."""
        return {
            "allowed": self._allowed,
            "held": None if self._held is None else self._held.to_dict(),
            "stopped": None if self.stopped is None else asdict(self.stopped),
        }

    def resume(self, allowed: float | None, held: Held | None, stopped: Stopped | None) -> None:
        """Go on from there."""
        self._allowed, self._held, self.stopped = allowed, held, stopped
