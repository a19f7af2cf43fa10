"""Allocations that follow from scores, sizes and shapes, and how whole numbers of removals are shared out."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit import graph
from prunekit.errors import InputError
from prunekit.masks import lowest
from prunekit.parts.base import Requirement
from prunekit.parts.context import Allocation, StepContext
from prunekit.parts.schedule import Sparsity, Step
from prunekit.parts.scores.weight_scores import Magnitude
from prunekit.settings import LARGE, WHOLE
from prunekit.targets import Target, check_layers, fits_layer, value_of_layer

DECIDED = Requirement(
    "schedule",
    lambda schedule: not schedule.stated,
    "{part} decides the amount itself: use the schedule 'allocation_decides', not {value}",
)
"""The allocation states the amount by itself."""


GRID = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Sparsities at which a layer alone is tried."""

Ramp = Literal["linear", "cubic"]
"""How rounds reach what is wanted: in equal steps, or as the schedule `cubic`, fast at first."""


def share_of_round(step: Step, ramp: Ramp) -> float:
    """How much of the way to its end a pruning has gone after round k of K: k / K, or 1 - (1 - k / K)^3."""
    share = step.round / step.rounds
    return 1 - (1 - share) ** 3 if ramp == "cubic" else share


def share_out(
    total: int,
    wanted: Mapping[str, float],
    capacity: Mapping[str, int],
    least: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Whole numbers near `wanted` that add up to `total` exactly, each between `least` and its capacity.

    What overflows a layer goes to the others in proportion to the room they have left; the last units go
    by largest remainder, ties to the earlier layer.
    """
    least = least or dict.fromkeys(wanted, 0)
    amounts = {
        name: min(max(value, float(least[name])), float(capacity[name])) for name, value in wanted.items()
    }
    missing = total - sum(amounts.values())
    room = {
        name: capacity[name] - value if missing > 0 else value - least[name]
        for name, value in amounts.items()
    }
    available = sum(room.values())
    if available > 0:
        amounts = {name: value + missing * room[name] / available for name, value in amounts.items()}
    whole = {name: min(math.floor(value + 1e-9), capacity[name]) for name, value in amounts.items()}
    by_remainder = sorted(amounts, key=lambda name: whole[name] - amounts[name])
    for name in [*by_remainder, *by_remainder]:
        if sum(whole.values()) < total and whole[name] < capacity[name]:
            whole[name] += 1
    return whole


def shared_out(
    allocation: Allocation, total: int, wanted: Mapping[str, float], context: StepContext
) -> dict[str, int]:
    """`share_out` between what each layer has lost and what its floor allows."""
    pruned = {name: context.pruned.get(name, 0) for name in wanted}
    capacity = {
        name: lost if name in context.frozen else max(allocation.max_removable(name, context), lost)
        for name, lost in pruned.items()
    }
    return share_out(total, wanted, capacity, pruned)


class Global(Allocation):
    """All weights of all layers compete in one ranking; a layer keeps what wins, and at least its floor."""

    name = "global"
    compares = True

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Rank once; exactly round(sparsity * total) are marked, ties in the model's order."""
        flat = [self._protected(name, context) for name in context.scores]
        ranked = torch.cat([scores.to(flat[0].device) for scores in flat])
        removed = lowest(ranked, round(context.sparsity * ranked.numel()))
        parts = removed.split([scores.numel() for scores in flat])  # type: ignore[no-untyped-call]
        return {name: int(part.sum()) for name, part in zip(context.scores, parts, strict=True)}

    def _protected(self, name: str, context: StepContext) -> Tensor:
        """The best of a layer, as many as its floor, are out of reach."""
        scores = context.scores[name].flatten()
        scores = scores if scores.dtype == torch.float64 else scores.float()
        settled = name in context.frozen
        within_reach = lowest(scores, context.pruned[name] if settled else self.max_removable(name, context))
        # an infinite score of a layer's own is not to be mixed up with the floor
        return scores.clamp(max=torch.finfo(scores.dtype).max).masked_fill(~within_reach, float("inf"))


class BelowMean(Allocation):
    """Whatever scores below tau * mean - deviations * standard deviation of its layer's scores.

    Both are taken over what is left of the layer, so that every further round removes some more; the schedule
    is `allocation_decides`. N2PS takes what is below the mean (tau 1); APoZ what has more zeros than
    mean + 1 standard deviation, which is a share of non-zeros below mean - 1 standard deviation.

    Attributes:
        tau: the multiple of the mean.
        deviations: how many standard deviations (of the layer's scores, divisor n) below that.
    """

    name = "below_mean"
    paper = "Augasta, Kathirvalavakumar 2011, doi 10.1007/s11063-011-9196-7; Hu et al. 2016, arXiv 1607.03250"
    local = True
    requires = (DECIDED,)
    tau: float = Field(default=1.0, ge=0, le=LARGE)
    deviations: float = Field(default=0.0, ge=0, le=LARGE)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """What is gone and what is below the bound, at most down to the floor."""
        amounts = {}
        for name, scores in context.scores.items():
            lost, kept = context.pruned.get(name, 0), context.kept[name]
            if name in context.frozen or not bool(kept.any()):
                amounts[name] = lost
                continue
            left = scores[kept].double()
            # of equal scores none is below the mean, however the sum is rounded
            mean = left.mean().clamp(left.min(), left.max())
            bound = self.tau * mean - self.deviations * left.std(correction=0)
            below = int((left < bound).sum())
            amounts[name] = max(
                lost, min(kept.numel() - left.numel() + below, self.max_removable(name, context))
            )
        return amounts


class SummaryAllocation(Allocation):
    """An allocation by one number of each layer's scores, and by the layers' sizes.

    Scores of several layers are not needed at a time: a network may be measured in parts.
    """

    @abstractmethod
    def summarised(self, scores: Tensor) -> float:
        """What is looked at of a layer's scores."""

    @abstractmethod
    def amounts_by(self, summaries: Mapping[str, float], context: StepContext) -> dict[str, int]:
        """As `amounts`, from the summaries of all layers."""


class OWL(SummaryAllocation):
    """A layer's sparsity falls with its share of outliers, scores far above the layer's mean.

    Made for the scores |w| ||x|| (`wanda` with `within: layer`). With D the share of a layer's scores above
    `outlier` times their mean, its sparsity is that of the network plus `spread` times what D, scaled to
    [0, 2] over the layers, lies below its mean over the weights. The layers' sparsities thus lie within 2λ
    of each other, as in the authors' code; within [S - λ, S + λ], as the paper has it, they need not lie,
    where their mean is to be S. With an order of layers D is that of all layers at the beginning of a round,
    before the first of them is pruned.

    Attributes:
        outlier: M, how many times the mean a score must reach to count as an outlier.
        spread: λ, half of how far the sparsities of layers may differ.
    """

    name = "owl"
    paper = "Yin et al. 2024, arXiv 2310.05175"
    outlier: float = Field(default=5.0, gt=1, le=LARGE)
    spread: float = Field(default=0.08, ge=0, lt=1)

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """The shares of outliers at the beginning of a round."""
        return {name: torch.zeros((), dtype=torch.float64) for name in names}

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Sparsities shifted so that the total is exactly round(sparsity * total)."""
        shares = {}
        for name, scores in context.scores.items():
            state = context.state.get(name)  # of weights; units are pruned all at once
            if state is None or not context.frozen:
                shares[name] = self.summarised(scores)
            if state is not None:
                shares[name] = float(state if context.frozen else state.fill_(shares[name]))
        return self.amounts_by(shares, context)

    def summarised(self, scores: Tensor) -> float:
        """D, the share of outliers."""
        finite = scores.double().clamp(min=0)  # what is removed already is minus infinity
        return float((finite > self.outlier * finite.mean()).double().mean())

    def amounts_by(self, summaries: Mapping[str, float], context: StepContext) -> dict[str, int]:
        """From the shares of outliers."""
        sizes = {name: context.kept[name].numel() for name in summaries}
        low, high = min(summaries.values()), max(summaries.values())
        width = high - low if high > low else 1.0
        scaled = {name: 2 * self.spread * (share - low) / width for name, share in summaries.items()}
        total = sum(sizes.values())
        mean = sum(scaled[name] * size for name, size in sizes.items()) / total
        wanted = {name: (context.sparsity - scaled[name] + mean) * size for name, size in sizes.items()}
        return shared_out(self, round(context.sparsity * total), wanted, context)


class PerLayer(Allocation):
    """The same fraction of every layer.

    Attributes:
        output_rate: how fast the last layer is pruned, as a share of the others' rate; with 0.5 a step that
            takes 20 % of what is left elsewhere takes 10 % there, as the lottery-ticket paper does.
    """

    name = "per_layer"
    local = True
    by_size = True
    output_rate: float = Field(default=1.0, ge=0, le=1)

    @property
    def even(self) -> bool:  # type: ignore[override]
        """Unless the output layer is treated apart."""
        return self.output_rate == 1

    def amounts(self, context: StepContext) -> dict[str, int]:
        """round(sparsity * size) for each layer."""
        amounts = {name: round(context.sparsity * kept.numel()) for name, kept in context.kept.items()}
        if self.output_rate < 1:
            last = list(amounts)[-1]
            kept = int(context.kept[last].sum())
            rate = 1 - (1 - context.sparsity) / (1 - context.step.previous)
            amounts[last] = context.kept[last].numel() - kept + round(kept * rate * self.output_rate)
        return amounts

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Every layer's floor must allow the fraction."""
        for target in targets:
            if sparsity is not None:
                _check_floor(self, target, sparsity)


def _check_floor(allocation: Allocation, target: Target, sparsity: float) -> None:
    size = target.shape.numel()
    if round(sparsity * size) > allocation.capacity(size, target.least):
        raise InputError(
            f"sparsity {sparsity:g} leaves {target.name!r} fewer than the floor of {allocation.floor:g}: "
            "lower the sparsity or the allocation's floor"
        )


class ERK(Allocation):
    """Erdős-Rényi-Kernel: a layer's density is proportional to (sum of its dimensions) / (their product).

    Narrow and small layers stay denser; a layer that would exceed density 1 is kept whole.

    Attributes:
        dense: patterns of the layers that are kept whole in any case, such as the last one, of which the rule
            leaves little where the others are large.
    """

    name = "erk"
    paper = "Evci et al. 2020 (RigL), arXiv 1911.11134"
    local = True
    by_size = True
    dense: tuple[str, ...] = ()

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Densities scaled so that the total is exactly round(sparsity * total)."""
        sizes = {name: kept.numel() for name, kept in context.kept.items()}
        total = round(context.sparsity * sum(sizes.values()))
        whole = {name for name in sizes if self._whole(name)}
        density = self._densities(context.kept, sum(sizes.values()) - total, whole)
        wanted = {name: (1 - density[name]) * size for name, size in sizes.items()}
        return shared_out(self, total, wanted, replace(context, frozen=context.frozen | whole))

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Patterns must match, and the other layers must allow the sparsity."""
        check_layers("dense", self.dense, targets)
        if not self.dense or sparsity is None:
            super().check(targets, sparsity)
            return
        total = sum(target.shape.numel() for target in targets)
        others = [target for target in targets if not self._whole(target.name)]
        reachable = sum(self.capacity(target.shape.numel(), target.least) for target in others)
        if round(sparsity * total) > reachable:
            raise InputError(
                f"sparsity {sparsity:g} removes {round(sparsity * total):,} of {total:,} weights, but beside "
                f"the layers kept dense ({', '.join(self.dense)}) and the floor of {self.floor:g} per layer "
                f"only {reachable:,} can go: lower the sparsity or the floor, or keep fewer layers dense"
            )

    def _whole(self, name: str) -> bool:
        return any(fits_layer(pattern, name) for pattern in self.dense)

    @staticmethod
    def _densities(layers: Mapping[str, Tensor], keep: int, whole: set[str]) -> dict[str, float]:
        raw = {name: sum(layer.shape) / layer.numel() for name, layer in layers.items()}
        dense = set(whole)
        while True:
            left = keep - sum(layers[name].numel() for name in dense)
            weight = sum(raw[name] * layers[name].numel() for name in layers if name not in dense)
            scale = left / weight if weight else 0.0
            over = {name for name in layers if name not in dense and scale * raw[name] > 1}
            if not over:
                return {name: 1.0 if name in dense else scale * raw[name] for name in layers}
            dense |= over


class Manual(Allocation):
    """A dictionary from layers to sparsities; layers that it does not name are left whole.

    Keys are names, globs or `re:` patterns, which may not give a layer two sparsities; the schedule is
    `allocation_decides`, which reaches the sparsities round by round.

    Attributes:
        sparsities: what goes of each layer in the end.
        ramp: in equal steps, or as the schedule `cubic` has it: fast at first, slow at the end.
    """

    name = "manual"
    local = True
    by_size = True
    requires = (DECIDED,)
    sparsities: dict[str, Sparsity] = Field(min_length=1)
    ramp: Ramp = "linear"

    def amounts(self, context: StepContext) -> dict[str, int]:
        """round(sparsity of the layer * share * size), with the share of the way that the round has gone."""
        share = share_of_round(context.step, self.ramp)
        return {
            name: round(self._sparsity(name) * share * kept.numel()) for name, kept in context.kept.items()
        }

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Every key must match a layer, and no layer falls below its floor."""
        check_layers("sparsities", self.sparsities, targets)
        for target in targets:
            value_of_layer("sparsities", self.sparsities, target)
            _check_floor(self, target, self._sparsity(target.name))

    def _sparsity(self, name: str) -> float:
        return next((value for pattern, value in self.sparsities.items() if fits_layer(pattern, name)), 0.0)


class Threshold(Allocation):
    """Whatever scores below q times the standard deviation of its layer's weights.

    The scores must be magnitudes, as the deviation is. It is taken over the weights that are left, so every
    further round removes some more; the schedule is `allocation_decides`.
    """

    name = "threshold"
    paper = "Han et al. 2015, arXiv 1506.02626"
    local = True
    works_on = ("weights", "patterns")
    requires = (
        DECIDED,
        Requirement(
            "score",
            lambda score: isinstance(score, Magnitude) and score.relative_to == "nothing",
            "{part} is a multiple of the deviation of weights, in which {value} is not measured: "
            "use the score 'magnitude' (relative_to 'nothing'), or the allocation 'below_mean'",
        ),
    )
    q: float = Field(gt=0, le=LARGE)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """The number of scores below the threshold, at most down to the floor."""
        amounts = {}
        for name, scores in context.scores.items():
            survivors = context.weights[name][context.kept[name]].double()
            threshold = self.q * float(survivors.std(correction=0)) if survivors.numel() else 0.0
            amounts[name] = min(int((scores.double() < threshold).sum()), self.max_removable(name, context))
        return amounts


class Zeros(Allocation):
    """Whatever scores zero: what a training with a penalty or with gates has brought to exactly zero.

    Of units, under any score, those that the network computes the same without: nothing reads them, or what
    they put out is a constant, as where all weights of a filter are zero but not its bias. The constant goes
    into the biases of the layers that read it, where that is exact (see `prunekit.graph.dead_units`): a unit
    stays whose readers have no bias, or pad with zeros, and one of a layer of zeros. Where a norm takes
    statistics over the units, as a layer norm does, those go that are zero themselves. Of blocks, those that
    are zero as a whole. The schedule is `allocation_decides`. Where nothing is zero, a warning says so.
    """

    name = "zeros"
    local = True
    works_on = ("weights", "patterns", "units", "blocks")
    requires = (DECIDED,)
    changes = True

    def before_step(self, context: StepContext) -> None:
        """Fold the constants of units into the biases of their readers; then nothing reads these units."""
        coupled = context.coupled
        if coupled is None or context.granularity.level != "units":
            return
        dead = graph.dead_units(
            coupled.model, coupled.traced, over_units=True, among=coupled.names, statistics_stay=True
        )
        for name, value in dead.biases.items():
            coupled.model.get_parameter(name).copy_(value)
        graph.unit_masks(coupled.model, coupled.traced.plan, dead.kept, allow_empty=True).apply(coupled.model)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """What is gone and what is zero, at most down to the floor."""
        amounts = {}
        for name in context.scores:
            lost = context.pruned.get(name, 0)
            most = lost if name in context.frozen else max(lost, self.max_removable(name, context))
            amounts[name] = min(lost + int((self._zeros(name, context) & context.kept[name]).sum()), most)
        if not any(amounts.values()):
            level = context.granularity.level
            what = {"units": "unit is without effect", "blocks": "block is exactly zero"}.get(
                level, "weight is exactly zero"
            )
            warnings.warn(
                f"allocation 'zeros': no {what}, so nothing is removed. The regularizers 'l0' and "
                "'group_lasso' bring exact zeros, where they are strong enough; 'l1' and 'l2' only make "
                "weights small: behind these use an allocation that ranks, such as 'global' or 'per_layer'",
                stacklevel=2,
            )
        return amounts

    @staticmethod
    def _zeros(name: str, context: StepContext) -> Tensor:
        if context.coupled is not None:
            return context.coupled.off(context.coupled.group(name)).to(context.kept[name].device)
        # a weight that is zero among others that are not scores minus infinity: it is gone already
        scores = context.scores[name]
        return (scores == 0) | (scores == -torch.inf)


class NoPruning(Allocation):
    """Removes nothing: the control that is retrained as long as the others.

    The schedule is `allocation_decides`.
    """

    name = "none"
    local = True
    by_size = True
    requires = (DECIDED,)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Zero everywhere."""
        return dict.fromkeys(context.kept, 0)


class Recorded(Allocation):
    """The numbers that each layer has lost after each round, as they are given: those of another pruning.

    What a random control needs to take as much of every layer as the method that it is compared with.

    Attributes:
        removed: by round, from the names of all layers (or groups of units) to how many are gone.
    """

    name = "recorded"
    local = True
    by_size = True
    requires = (DECIDED,)
    removed: tuple[dict[str, Annotated[int, Field(ge=0, le=WHOLE)]], ...] = Field(min_length=1)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """What is given for the round, or for the last; what cannot go there does not."""
        return dict(self.removed[min(context.step.round, len(self.removed)) - 1])

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Every layer must be given, and be large enough."""
        sizes = {target.name: target.shape.numel() for target in targets}
        for number, amounts in enumerate(self.removed, 1):
            odd = sorted(sizes.keys() ^ amounts.keys())
            if odd:
                raise InputError(
                    f"recorded: round {number} "
                    + (
                        f"says nothing of {odd[0]}"
                        if odd[0] in sizes
                        else f"names {odd[0]}, which is not pruned"
                    )
                )
            for name, lost in amounts.items():
                if lost > sizes[name]:
                    raise InputError(
                        f"recorded: round {number} takes {lost:,} of {name}, which has {sizes[name]:,}"
                    )
