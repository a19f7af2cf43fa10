"""Allocations by rule: each layer's amount follows from its size, its shape or its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from prunekit.errors import InputError
from prunekit.limits import LARGE
from prunekit.parts.allocation.base import DECIDED, Allocation
from prunekit.parts.context import StepContext
from prunekit.parts.schedule import Sparsity
from prunekit.targets import Target, matches

__all__ = ["ERK", "Given", "Nothing", "PerLayer", "Threshold"]


class PerLayer(Allocation):
    """The same fraction of every layer.

    Attributes:
        output_rate: how fast the last layer is pruned, as a share of the others' rate; with 0.5 a step that
            takes 20 % of what is left elsewhere takes 10 % there, as the lottery-ticket paper does.
    """

    name = "per_layer"
    local = True
    output_rate: float = Field(default=1.0, ge=0, le=1)

    @property
    def even(self) -> bool:  # type: ignore[override]
        """Unless the output layer is treated apart."""
        return self.output_rate == 1

    def amounts(self, context: StepContext) -> dict[str, int]:
        """round(sparsity * size) for each layer."""
        amounts = {name: round(context.sparsity * scores.numel()) for name, scores in context.scores.items()}
        if self.output_rate < 1:
            last = list(amounts)[-1]
            kept = int(context.kept[last].sum())
            rate = 1 - (1 - context.sparsity) / (1 - context.step.previous)
            amounts[last] = context.kept[last].numel() - kept + round(kept * rate * self.output_rate)
        return amounts

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Every layer's floor must allow the fraction."""
        for target in targets:
            most = self.capacity(target.size, target.least)
            if sparsity is not None and round(sparsity * target.size) > most:
                raise InputError(
                    f"sparsity {sparsity:g} leaves {target.name} fewer than the floor of {self.floor:g}: "
                    "lower the sparsity or the allocation's floor"
                )


class ERK(Allocation):
    """Erdős-Rényi-Kernel: a layer's density is proportional to (sum of its dimensions) / (their product).

    Narrow and small layers stay denser; a layer that would exceed density 1 is kept whole.
    """

    name = "erk"
    paper = "Evci et al. 2020 (RigL), arXiv 1911.11134"
    local = True

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Densities scaled so that the total is exactly round(sparsity * total)."""
        sizes = {name: scores.numel() for name, scores in context.scores.items()}
        total = round(context.sparsity * sum(sizes.values()))
        density = self._densities(context.scores, sum(sizes.values()) - total)
        wanted = {name: (1 - density[name]) * size for name, size in sizes.items()}
        return self.share_out(total, wanted, context)

    @staticmethod
    def _densities(layers: Mapping[str, Tensor], keep: int) -> dict[str, float]:
        raw = {name: sum(layer.shape) / layer.numel() for name, layer in layers.items()}
        dense: set[str] = set()
        while True:
            left = keep - sum(layers[name].numel() for name in dense)
            weight = sum(raw[name] * layers[name].numel() for name in layers if name not in dense)
            scale = left / weight if weight else 0.0
            over = {name for name in layers if name not in dense and scale * raw[name] > 1}
            if not over:
                return {name: 1.0 if name in dense else scale * raw[name] for name in layers}
            dense |= over


class Given(Allocation):
    """A dictionary from layers to sparsities; layers that it does not name are left whole.

    Keys are names, globs or `re:` patterns, which may not give a layer two sparsities; the schedule is
    `rounds`, which reaches the sparsities in equal steps.
    """

    name = "given"
    local = True
    requires = (DECIDED,)
    sparsities: dict[str, Sparsity] = Field(min_length=1)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """round(sparsity of the layer * round / rounds * size)."""
        share = context.step.round / context.step.rounds
        return {
            name: round(self._sparsity(name) * share * scores.numel())
            for name, scores in context.scores.items()
        }

    def check(self, targets: Sequence[Target], sparsity: float | None) -> None:
        """Every key must match a layer, and no layer falls below its floor."""
        for pattern in self.sparsities:
            if not any(_fits(pattern, target.name) for target in targets):
                known = ", ".join(target.layer or target.name for target in targets)
                raise InputError(f"sparsities: {pattern!r} matches no pruned layer; layers are: {known}")
        for target in targets:
            self._check_one(target)
            if round(self._sparsity(target.name) * target.size) > self.capacity(target.size, target.least):
                raise InputError(
                    f"sparsity {self._sparsity(target.name):g} leaves {target.name} fewer than the floor of "
                    f"{self.floor:g}: lower the sparsity or the allocation's floor"
                )

    def _check_one(self, target: Target) -> None:
        """Keys have no order (equal recipes have equal hashes), so that none of them can come first."""
        said = [(pattern, value) for pattern, value in self.sparsities.items() if _fits(pattern, target.name)]
        for pattern, value in said[1:]:
            if value != said[0][1]:
                raise InputError(
                    f"sparsities: {said[0][0]!r} and {pattern!r} both match {target.layer or target.name}, "
                    f"with {said[0][1]:g} and {value:g}: let only one of them match"
                )

    def _sparsity(self, name: str) -> float:
        return next((value for pattern, value in self.sparsities.items() if _fits(pattern, name)), 0.0)


def _fits(pattern: str, parameter: str) -> bool:
    return matches(pattern, parameter) or matches(pattern, parameter.rpartition(".")[0])


class Threshold(Allocation):
    """Whatever scores below q times the standard deviation of its layer's weights.

    Meant for the magnitude score. The deviation is taken over the weights that are left, so every further
    round removes some more; the schedule is `rounds`.
    """

    name = "threshold"
    paper = "Han et al. 2015, arXiv 1506.02626"
    local = True
    works_on = ("weights", "patterns")
    requires = (DECIDED,)
    q: float = Field(gt=0, le=LARGE)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """The number of scores below the threshold, at most down to the floor."""
        amounts = {}
        for name, scores in context.scores.items():
            survivors = context.weights[name][context.kept[name]].double()
            threshold = self.q * float(survivors.std(correction=0)) if survivors.numel() else 0.0
            amounts[name] = min(int((scores.double() < threshold).sum()), self.max_removable(name, context))
        return amounts


class Nothing(Allocation):
    """Removes nothing: the control that is retrained as long as the others. The schedule is `rounds`."""

    name = "none"
    local = True
    requires = (DECIDED,)

    def amounts(self, context: StepContext) -> dict[str, int]:
        """Zero everywhere."""
        return dict.fromkeys(context.scores, 0)
