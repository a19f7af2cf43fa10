"""What a shrinking did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.graph.deviation import Deviation
from prunekit.masks import Masks


@dataclass(frozen=True)
class GroupSize:
    """How many units a group had and has."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class ShrinkResult:
    """What was taken out of a network, and how well the smaller one agrees with the masked one.

    Attributes:
        groups: every group of units, front to back.
        parameters_before: of the whole network.
        parameters_after: likewise.
        deviation: the largest difference seen, among outputs and gradients, on the example inputs and on
            random ones.
        masks: the given weight masks, for the smaller layers.
        kept_inputs: the positions of the input features that the network still takes, if the group `input`
            was named: of images their channels, else the numbers that the first layer reads, flattened.
        form: "graph" where the exported graph took the place of the network's own code.
        reason: why it did.
    """

    groups: tuple[GroupSize, ...]
    parameters_before: int
    parameters_after: int
    deviation: Deviation
    masks: Masks
    kept_inputs: Tensor | None = None
    form: Literal["modules", "graph"] = "modules"
    reason: str = ""

    def __str__(self) -> str:
        width = min(40, max([len("parameters"), *(len(group.name) for group in self.groups)]))
        lines = [f"{'units':<{width}}  {'before':>12}  {'after':>12}  {'left':>7}"]
        rows = [*self.groups, GroupSize("parameters", self.parameters_before, self.parameters_after)]
        for row in rows:
            share = 100 * row.after / max(1, row.before)
            name = row.name if len(row.name) <= width else "…" + row.name[1 - width :]
            lines.append(f"{name:<{width}}  {row.before:>12,}  {row.after:>12,}  {share:>6.1f}%")
        lines.append(f"same function: largest relative difference {self.deviation.relative:.1e}")
        return "\n".join(lines)
