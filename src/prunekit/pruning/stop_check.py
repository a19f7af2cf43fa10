"""A recipe's `stop` at work: the error is measured after steps, and the network goes back where it must."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prunekit.errors import DataError
from prunekit.masked_optimizer import MaskedOptimizer
from prunekit.parts.stopping import Held, Stopped
from prunekit.pruning.step_work import StepWork
from prunekit.training import copy_state


@dataclass(eq=False)
class StopCheck:
    """Measures whether the pruned network is still within the limit of its recipe.

    Attributes:
        work: whose state says what was held and measured so far.
    """

    work: StepWork

    def hold(self, masked: MaskedOptimizer | None) -> None:
        """Keep what the network is, unless an earlier one is kept that was the last to be measured.

        Args:
            masked: as of `broken`.

        Raises:
            DataError: if the error before the first step is no number.
            InputError: if it is over the limit already.
        """
        state, stop = self.work.state, self.work.recipe.stop
        if state.allowed is None:
            # compared with errors after a training, or else after statistics were taken anew
            untrained = masked is None and self.work.recipe.retrain.plan is None
            before = self.work.calibration.error(stop, recalibrated=untrained)
            if not math.isfinite(before):
                raise DataError(f"stop {stop.name}: the error of the network before pruning is {before}")
            state.allowed = stop.allowed(before)
        if state.held is None:
            values = copy_state(self.work.inner) if stop.rolls_back else None
            state.held = Held(len(state.history), state.kept, values)

    def broken(self, step: int, masked: MaskedOptimizer | None) -> bool:
        """Whether the limit is broken, now or before; the network goes back then if the recipe says so.

        Args:
            step: the number of the last one.
            masked: the optimizer of a training loop of the user's.
        """
        state, stop = self.work.state, self.work.recipe.stop
        held = state.held
        if held is None or state.stopped is not None:
            return state.stopped is not None
        assert state.allowed is not None
        error = self.work.calibration.error(stop)
        state.held = None
        if error <= state.allowed:
            return False
        state.stopped = Stopped(step, error, state.allowed, stop.rolls_back)
        if held.state is not None:
            self.work.inner.load_state_dict(held.state)
            del state.history[held.steps :]
            self.work.keep(held.kept)
            if masked is not None:
                masked.update(self.work.state.masks)
                masked.forget()
        return True
