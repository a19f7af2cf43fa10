"""The outcome of a pruning: one record per step, and the pruned network with its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn

from prunekit import graph
from prunekit.display import Displayed
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.context import ASKED, REACHED
from prunekit.parts.granularity import FilterShape
from prunekit.parts.stopping import Stopped
from prunekit.recipe import Recipe


@dataclass(frozen=True)
class Record:
    """What a step achieved.

    Attributes:
        step: its number, from 1.
        sparsity: the fraction of the prunable weights (or units) that is removed, as counted.
        kept: the prunable weights (or units) that are left, of `total`.
        layers: what is kept per parameter (or group of units).
        compression_ratio: original over remaining prunable weights; where units go, all parameters of the
            network over those that do not go with them.
        train_loss: the mean loss of the last epoch of retraining; None without retraining.
        seconds: wall time of the step.
        measured: what `evaluate` returned.
        levels: by the names of weights that the recipe's `quantize` has given few values, how many values
            beside zero each has; none before it.
        bits: the entropy of the values of these weights, zeros included, in bits per weight: each layer's by
            how often each value is there, averaged over all weights.
        asked: where the allocation is a budget, the most of its cost that the step may leave, in MACs,
            parameters, bytes, seconds or the user's own metric.
        reached: what it has left of that cost.
    """

    step: int
    sparsity: float
    kept: int
    total: int
    layers: Mapping[str, int]
    compression_ratio: float
    train_loss: float | None
    seconds: float
    measured: Mapping[str, float] = field(default_factory=dict)
    levels: Mapping[str, int] = field(default_factory=dict)
    bits: float | None = None
    asked: float | None = None
    reached: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for files; without `asked` and `reached` where there is no budget."""
        values = asdict(self)
        return {key: each for key, each in values.items() if key not in (ASKED, REACHED) or each is not None}


@dataclass
class Pruned(Displayed):
    """A pruned network; only `shrink` and `reorder` change it.

    Attributes:
        model: the model that was given, changed in place.
        masks: over its parameters, True = kept; those of a shrunk network fit its layers.
        history: what each step achieved.
        recipe: what was done.
        kept: what was chosen from, True = kept: the masks themselves, or by layer (units,) flags of units,
            or (units, pieces) flags of maxout pieces.
        shrunk: what `shrink` did, once it was called.
        stopped: why it ended before the last step of the schedule, if it did.
        coupled: the groups of units that were chosen from, with the plan that `shrink` carries out.
    """

    model: nn.Module
    masks: Masks
    history: tuple[Record, ...]
    recipe: Recipe
    kept: Masks
    shrunk: graph.ShrinkResult | None = None
    stopped: Stopped | None = None
    coupled: graph.Coupled | None = field(default=None, repr=False, compare=False)

    def shrink(self, example_inputs: Tensor, *, form: graph.Form = "modules") -> graph.ShrinkResult:
        """Take the removed units out of the model, in place, with the proof that it computes the same.

        Where single weights were removed, these are the units that died of it: nothing reads them, or what
        they put out is a constant that biases take (`prunekit.graph.shrink_dead`). Where filter shapes were,
        convolutions become layers that multiply with fewer columns (`prunekit.models.ColumnConv2d`), behind
        the units that died of it. Of blocks the modules go (`prunekit.graph.shrink_branches`).

        Where the model's own code cannot do without some of the units, as where sizes are written in it,
        these stay, without effect, and `shrunk.stayed` names them with the line of code; where it can do
        without none, `model` is its graph afterwards, which takes inputs of the shape of these examples only.

        Args:
            example_inputs: (N, ...) inputs to prove it on.
            form: "graph" for a graph without these units in place of the model with them; of units only.

        Raises:
            InputError: if single weights were removed and no unit died, a layer has lost all its units, or
                the units have been taken out already.
            ModelError: if the units of a group can be masked but not taken out.
            VerificationError: if the smaller network computes something else; the model is untouched then.
        """
        counted = self.recipe.granularity.counts
        if self.shrunk is not None:
            raise InputError(f"the removed {counted} have been taken out already")
        if isinstance(self.recipe.granularity, FilterShape):
            result = graph.shrink_columns(self.model, example_inputs, self.masks)
        elif self.recipe.granularity.level == "blocks":
            result = graph.shrink_branches(self.model, example_inputs, self.masks)
        elif counted == "weights":
            result = graph.shrink_dead(self.model, example_inputs, masks=self.masks)
            if not result.lost:
                raise InputError(
                    "single weights were removed, not units, and no unit died of it: there is nothing to "
                    "take out whole"
                )
        elif counted == "units":
            found = self.coupled.traced if self.coupled is not None else None
            result = graph.shrink(
                self.model,
                example_inputs,
                self.kept,
                masks=self.masks,
                found=found,
                form=form,
                residual=getattr(self.recipe.granularity, "residual", False),
            )
        else:
            result = graph.shrink_pieces(self.model, example_inputs, self.kept, masks=self.masks)
        if result.form == "graph":
            self.model = result.model
        self.shrunk = result
        self.masks = result.masks  # those of the larger layers would be refused by all that takes masks
        return result

    def reorder(self, example_inputs: Tensor) -> None:
        """Put the units in the order that takes fewest bytes in a packed file, in place; see `reorder_units`.

        Args:
            example_inputs: (N, ...) inputs to prove it on.

        Raises:
            InputError: if units were removed that are still there: `shrink` first; or if the weights lie in
                a pattern of neighbouring inputs, such as 2:4.
            ModelError: if the network cannot be traced.
        """
        of_weights = self.recipe.granularity.counts == "weights"
        if not of_weights and self.shrunk is None:
            raise InputError("the removed units are still there, at places that are known: shrink() first")
        if self.recipe.granularity.pattern is not None:
            n, m = self.recipe.granularity.pattern
            raise InputError(f"{n} of every {m} neighbouring inputs are kept, which another order would part")
        self.masks = graph.reorder_units(self.model, example_inputs, masks=self.masks)
        if of_weights and self.shrunk is None:
            self.kept = self.masks

    def random_control(self) -> Recipe:
        """The recipe of the control at this pruning's own densities: random elements, as many of each layer.

        See `prunekit.controls.random_control`. To be run on a copy of the network from before the pruning.
        """
        sizes = {name: mask.numel() for name, mask in self.kept.items()}
        removed = {
            record.step: {name: sizes[name] - left for name, left in record.layers.items()}
            for record in self.history
        }
        from prunekit.controls import random_control  # with the parts that it takes; prunings do without it

        return random_control(self.recipe, list(sizes), removed)

    @property
    def starved(self) -> tuple[str, ...]:
        """What is to be said of each layer of which almost nothing is left, while the network keeps more."""
        return self.kept.starved(self.recipe.granularity.counts)

    def __repr__(self) -> str:
        return f"<Pruned {type(self.model).__name__}: {self.achieved}>"

    @property
    def achieved(self) -> str:
        """How much of what was chosen from is removed, in words, with the ratio and the budget."""
        ratio = f"{self.history[-1].compression_ratio if self.history else 1.0:.4g}x"
        counts = self.recipe.granularity.counts
        return f"{self.kept.sparsity:.1%} of {self.kept.total:,} {counts} removed ({ratio}{self._budget})"

    @property
    def _budget(self) -> str:
        allocation, last = self.recipe.allocation, self.history[-1] if self.history else None
        if not allocation.of_cost or last is None or last.asked is None or last.reached is None:
            return ""
        return f"; {allocation.shown(last.reached)} left, at most {allocation.shown(last.asked)} asked"

    def __str__(self) -> str:
        if self.shrunk is not None:
            return f"{self.achieved} and taken out: next, save_pretrained(pruned, folder)."
        if self.kept.sparsity == 0:
            return f"{self.achieved}: the network is as it was."
        if self.recipe.granularity.counts != "weights" or isinstance(self.recipe.granularity, FilterShape):
            return (
                f"{self.achieved}. They are off, but still there: "
                "next, pruned.shrink(example_inputs) takes them out."
            )
        return (
            f"{self.achieved}. Zeros alone make nothing smaller or faster: "
            "next, save_pretrained(pruned, folder) writes a file without them."
        )
