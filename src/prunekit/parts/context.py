"""The context of a step: all that a score, a selection, an allocation and a repair are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph import Chain, Coupled
from prunekit.graph.capture import Inputs
from prunekit.masks import Masks
from prunekit.parts.granularity import Granularity, Weight
from prunekit.statistics import Found
from prunekit.targets import owner_of


@dataclass(frozen=True)
class Step:
    """One step of a pruning.

    Attributes:
        number: from 1.
        sparsity: the fraction of the original count to be removed after it; None if the allocation decides.
        previous: the same of the level before; 0 at the first.
        round: the level of the schedule, from 1, and `rounds` how many there are.
        layers: the parameters that it may change; all, or one with an order.
    """

    number: int = 1
    sparsity: float | None = None
    previous: float = 0.0
    round: int = 1
    rounds: int = 1
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostModel:
    """How to look at the network that would be left.

    Attributes:
        whole: flags that keep every unit, as there were in the beginning.
        chosen: from the units that layers have lost to the flags that a step would choose, rounded as its
            granularity says.
        smaller: from flags to a network without these units.
        example_inputs: what it can be run on.
    """

    whole: Masks
    chosen: Callable[[Mapping[str, int]], Masks]
    smaller: Callable[[Masks], nn.Module]
    example_inputs: Inputs | None


@dataclass(frozen=True)
class StepContext:
    """What a part may look at, at one step of a pruning.

    "Elements" are what the recipe counts: weights, units or pieces. Nothing of it is to be changed, but for
    the part's own state, and for the network by a repair.

    Attributes:
        weights: the parameters by full name.
        statistics: what was measured before the step, by the requests of `needs`.
        model: the network, without wrappers; in a repair, what is to be removed still has its values.
        step: where the schedule is.
        kept: flags of the elements that are kept before the step: by group (units,), or masks of weights.
        generator: the source of random numbers, seeded for the part and the step (and layer, in a selection).
        coupled: the groups whose units are counted.
        chain: the network as a chain of layers, where it is one and units are counted: some things are faster
            on it.
        granularity: what goes together.
        states: what the recipe's parts carry from step to step, by their keys and names of their own.
        state: that of the part that is asked.
        scores: (from the allocation on) of all elements; minus infinity for what is removed already.
        loss_with: (allocation) the loss on calibration data if only these were kept; None without data.
        pruned: (allocation) the elements that each layer has lost for good; it cannot be given back less.
        frozen: (allocation) the layers that this level of the schedule is through with, where an order takes
            them one after the other; they stay at what they have lost.
        min_kept: (allocation) how many elements of each layer have to stay, whatever the floor is.
        cost_model: (allocation) how to look at the network that would be left; None where it cannot be built.
        kept_after: (repair) flags of the elements that are kept after the step.
        masks: (repair) the same as masks over the parameters.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Found = field(default_factory=dict)
    model: nn.Module = field(default_factory=nn.Module)
    step: Step = field(default_factory=Step)
    kept: Masks = field(default_factory=lambda: Masks({}))
    generator: torch.Generator = field(default_factory=torch.Generator)
    chain: Chain | None = None
    coupled: Coupled | None = None
    granularity: Granularity = field(default_factory=Weight)
    states: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    loss_with: Callable[[Masks], float] | None = None
    pruned: Mapping[str, int] = field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    min_kept: Mapping[str, int] = field(default_factory=dict)
    cost_model: CostModel | None = None
    kept_after: Masks = field(default_factory=lambda: Masks({}))
    masks: Masks = field(default_factory=lambda: Masks({}))

    def told(self, key: str, **more: Any) -> StepContext:
        """The context for the part of this key, which it sees its own state in, and what else is known."""
        return replace(self, state=self.states.get(key, {}), **more)

    @property
    def of_units(self) -> bool:
        """Whether units are counted, of a chain or of coupled groups."""
        return self.coupled is not None

    @property
    def elements(self) -> Mapping[str, Tensor]:
        """What is counted, one tensor each: the weights, or the flags of the units."""
        return self.kept if self.of_units else self.weights

    @property
    def pattern(self) -> tuple[int, int] | None:
        """(n, m) where n of every m consecutive inputs of an output stay; None for no pattern."""
        return self.granularity.pattern

    @property
    def sparsity(self) -> float:
        """The fraction of the original count that the schedule states for this step."""
        assert self.step.sparsity is not None
        return self.step.sparsity

    def layer(self, name: str) -> nn.Module:
        """The module that owns a parameter, by the parameter's full name."""
        return owner_of(self.model, name)
