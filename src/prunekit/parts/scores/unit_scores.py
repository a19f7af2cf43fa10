"""Scores of whole units: neurons, filters and pieces of maxout units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph import Coupled
from prunekit.graph.members import group_norm_scales, group_outgoing_norms, unit_rows
from prunekit.losses import misfit, out_of_range
from prunekit.parts.base import Level
from prunekit.parts.context import Score, Scores, StepContext
from prunekit.settings import LARGE, WHOLE
from prunekit.statistics import (
    ActivationStats,
    ChannelMagnitude,
    ExampleMagnitude,
    FirstOrderTaylor,
    InputSquares,
    LayerHessian,
    MaxoutMaxima,
    OracleChange,
    Relevance,
    Statistic,
    TaylorChange,
    UnitMacs,
)
from prunekit.statistics.activity import FeatureMapStatistic
from prunekit.statistics.inputs import Consumer, consumers
from prunekit.statistics.moments import contribution_products
from prunekit.statistics.unit_statistics import Error
from prunekit.units.gains import NO_RECURSION


class UnitScore(Score):
    """A score with one number per unit."""

    works_on: ClassVar[tuple[Level, ...]] = ("units",)

    def __call__(self, context: StepContext) -> Scores:
        """The first statistic's values; units that are off, which have none, count as zero."""
        return {name: value.nan_to_num(0.0) for name, value in context.statistics[self.needs[0]].items()}


class Oracle(UnitScore):
    """The exact change of the error when the unit is switched off; the lowest signed change goes first."""

    name = "oracle"
    paper = "Wolfe, Sharma, Raj 2017, arXiv 1701.04465"
    works_on = ("units", "blocks")
    comparable = ("units", "blocks")
    error: Error = "squared_error"

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """E(off) - E(now)."""
        return (OracleChange(self.error),)


class UnitTaylor(UnitScore):
    """The change that a Taylor series in the unit's gain predicts for switching it off.

    Attributes:
        order: 1, or 2 with half of the second derivative.
        form: of the second derivative: exact, or as published, with the diagonal terms only.
    """

    name = "unit_taylor"
    paper = "Wolfe, Sharma, Raj 2017, arXiv 1701.04465"
    works_on = ("units", "blocks")
    comparable = ("units", "blocks")
    order: Literal[1, 2] = 2
    form: Literal["exact", "published"] = "exact"
    error: Error = "squared_error"

    def check(self, context: StepContext) -> None:
        """The published form is for chains.

        Raises:
            InputError: for it on another network, with the reason.
        """
        is_path = context.coupled is not None and context.coupled.chain is not None
        if self.order == 2 and self.form == "published" and not is_path:
            raise InputError(NO_RECURSION)

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The predicted E(off) - E(now)."""
        return (TaylorChange(self.error, self.order, self.form == "published"),)


class Skeletonization(UnitScore):
    """Relevance: -dE/dgain of the linear error sum |t - o|, as a running average over batches.

    For class numbers o are the classes' probabilities: outputs that leave [0, 1] go through a softmax.
    """

    name = "skeletonization"
    paper = "Mozer, Smolensky 1989, NIPS 1"
    works_on = ("units", "blocks")
    comparable = ("units", "blocks")
    batch_size: int = Field(default=100, ge=1, le=WHOLE)

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The running average."""
        return (Relevance(self.batch_size),)


class Activation(UnitScore):
    """How the unit's output behaves on data: units that are silent, constant or replaceable go first.

    Attributes:
        what: `nonzeros` is 1 - APoZ, the share of outputs behind the activation that are not zero; `mean`
            the mean output; `variance` its variance; `irreplaceable` 1 - max r^2 over the other units of the
            layer, the part of its variance that the best stand-in misses.
    """

    name = "activation"
    paper = "Hu et al. 2016 (APoZ), arXiv 1607.03250; correlation: Sietsma, Dow 1988"
    comparable = ()  # each layer has its own share of zeros: the paper goes through them one by one
    what: Literal["nonzeros", "mean", "variance", "irreplaceable"] = "nonzeros"

    @property
    def compared_if_named(self) -> tuple[Level, ...]:  # type: ignore[override]
        """Shares; means and variances are as large as the layer's outputs."""
        return ("units",) if self.what in ("nonzeros", "irreplaceable") else ()

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The behaviour."""
        return (ActivationStats("zeros" if self.what == "nonzeros" else self.what),)

    def __call__(self, context: StepContext) -> Scores:
        """The value, as a score: higher = keep."""
        found = super().__call__(context)
        return {name: 1 - zeros for name, zeros in found.items()} if self.what == "nonzeros" else found


class OutgoingNorm(Score):
    """The L1 or L2 norm of the weights that read the unit; for incoming weights use `magnitude`."""

    name = "outgoing_norm"
    works_on = ("units",)
    comparable = ()  # it grows with the number of layers and units that read
    order: Literal[1, 2] = 1

    def __call__(self, context: StepContext) -> Scores:
        """One norm per unit."""
        assert context.coupled is not None
        return {name: group_outgoing_norms(context.coupled, name, self.order) for name in context.kept}


class MaxoutWins(Score):
    """How often the piece is its unit's maximum: the least used goes first."""

    name = "maxout_wins"
    paper = "Rueda, Grzeszick, Fink 2017, arXiv 1707.06838"
    works_on = ("pieces",)
    comparable = ()  # a layer counts as many maxima as it has positions
    needs = (MaxoutMaxima(),)

    def __call__(self, context: StepContext) -> Scores:
        """The counts, (units, pieces) each."""
        return dict(context.statistics[MaxoutMaxima()])


class FeatureTaylor(UnitScore):
    """The mean over examples of |the mean over positions of output times gradient| of the unit.

    The positions are those of the feature map behind the activation, before any pooling (the paper's equation
    8). A pool hands back as much as it is given, so that over the norm of a layer they do not matter.

    Attributes:
        error: what is differentiated.
        normalize: each layer is divided by its L2 norm, which makes layers comparable.
        macs: what is taken off per million multiply-accumulate operations that go with the unit, its own and
            those of the next layer: the paper's regularisation by FLOPs, with 1e-3 as its choice.
    """

    name = "feature_taylor"
    paper = "Molchanov et al. 2017, arXiv 1611.06440"
    error: Error = "cross_entropy"
    normalize: bool = True
    macs: float = Field(default=0.0, ge=0, le=LARGE)

    @property
    def comparable(self) -> tuple[Level, ...]:  # type: ignore[override]
        """Where it is normalised, as the paper says it has to be."""
        return ("units",) if self.normalize else ()

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The unnormalised criterion, and the cost of units if it counts."""
        return (FirstOrderTaylor(self.error), *((UnitMacs(),) if self.macs else ()))

    def __call__(self, context: StepContext) -> Scores:
        """The criterion over the norm of its layer, less the price of the unit."""
        found = super().__call__(context)
        if self.normalize:
            found = _over_norms(found)
        if self.macs:
            macs = context.statistics[UnitMacs()]
            found = {name: value - self.macs * macs[name] / 1e6 for name, value in found.items()}
        return found


class GradCAM(UnitScore):
    """The mean over examples of |the mean over positions of dy/dA|: the weight of a filter in Grad-CAM.

    By these weights Grad-CAM sums feature maps. y is the network's output for the class that the target
    names, before the softmax, and A the map behind the activation, before any pooling. For a neuron it is the
    derivative itself. A network that ends in a softmax of its own is differentiated behind it.

    Attributes:
        normalize: each layer is divided by its L2 norm, which makes layers comparable; the weights themselves
            are smaller the more positions a map has.
    """

    name = "grad_cam"
    paper = "Selvaraju et al. 2017 (Grad-CAM), arXiv 1610.02391"
    normalize: bool = False

    @property
    def comparable(self) -> tuple[Level, ...]:  # type: ignore[override]
        """Where it is normalised."""
        return ("units",) if self.normalize else ()

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The weights."""
        return (ClassWeights(),)

    def __call__(self, context: StepContext) -> Scores:
        """The mean magnitudes, of a layer over their norm if asked for."""
        found = super().__call__(context)
        return _over_norms(found) if self.normalize else found


@dataclass(frozen=True)
class ClassWeights(FeatureMapStatistic):
    """The mean over examples of |the mean over positions of dy/dA|, y the output of the example's class."""

    def differentiated(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs of the targets' classes.

        Raises:
            InputError: for targets other than one class number for each example.
        """
        if targets.is_floating_point():
            raise InputError(
                "the score 'grad_cam' differentiates the output of each example's class, and the targets are "
                "real values: give class numbers (int64), or use 'feature_taylor'"
            )
        wrong = misfit("squared_error", outputs, targets)  # which knows of no positions
        wrong = wrong or out_of_range("squared_error", targets, outputs.shape[1])
        if wrong:
            raise InputError(f"the score 'grad_cam': {wrong}")
        return outputs.gather(1, targets.unsqueeze(1)).sum()

    def numbers(self, values: Tensor, derivatives: Tensor) -> Tensor:
        """The derivatives."""
        return derivatives


def _over_norms(found: Scores) -> Scores:
    """Each layer divided by its L2 norm."""
    return {name: value / _divisor(torch.linalg.vector_norm(value)) for name, value in found.items()}


def _divisor(value: Tensor) -> Tensor:
    """A norm or mean of a layer to divide by; 1 where it is 0."""
    return value if value > 0 else value.new_ones(())


class NormScale(UnitScore):
    """|γ| of the batch norm behind the unit (network slimming); made for nets trained with an L1 on γ."""

    name = "norm_scale"
    paper = "Liu et al. 2017 (network slimming), arXiv 1708.06519"
    comparable = ("units",)

    def __call__(self, context: StepContext) -> Scores:
        """One scale per unit."""
        assert context.coupled is not None
        return {name: group_norm_scales(context.coupled, name) for name in context.kept}


class GeometricMedian(UnitScore):
    """The sum of distances to the layer's other filters: those near the geometric median go first (FPGM)."""

    name = "geometric_median"
    paper = "He et al. 2019 (FPGM), arXiv 1811.00250"
    comparable = ()  # distances grow with the number of filters and of their weights

    def __call__(self, context: StepContext) -> Scores:
        """One sum per unit, in float64."""
        assert context.coupled is not None
        return {
            name: _coupled_distances(context.coupled, name, context.weights, kept)
            for name, kept in context.kept.items()
        }


def _coupled_distances(coupled: Coupled, name: str, weights: Mapping[str, Tensor], kept: Tensor) -> Tensor:
    """Over each parameter that makes the units, combined."""
    found = []
    for member in coupled.members(coupled.group(name)):
        if member.tensor in weights:
            rows, there = unit_rows(name, weights[member.tensor], member)
            sums = torch.full((len(kept),), torch.nan, dtype=torch.float64, device=kept.device)
            sums[there] = distances(rows, kept[there])
            found.append(sums)
    return coupled.together(found)


def distances(weight: Tensor, kept: Tensor) -> Tensor:
    """The sum of each filter's distances to the layer's other filters: small near their geometric median.

    He et al. 2019 (FPGM), arXiv 1811.00250: such a filter is the one that the others can replace.

    Args:
        weight: (units, ...).
        kept: (units,) flags; filters that are off are nobody's neighbours.

    Returns:
        (units,) float64; 0 for those that are off.
    """
    rows = weight.detach().double().flatten(1)
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    alive = rows[kept]
    # the direct form: the faster one loses the digits of small distances
    found[kept] = torch.cdist(alive, alive, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    return found


class ConsumerScore(UnitScore):
    """What is computed from the layers that read units, all of them together; each must be in rows."""

    def check(self, context: StepContext) -> None:
        """A layer must read the units of each group.

        Raises:
            InputError: naming a group that no layer reads.
            ModelError: naming a layer that reads units and is neither linear nor a convolution.
        """
        _by_group(context)


def _by_group(context: StepContext) -> dict[str, list[Consumer]]:
    """The layers that read the units of each group."""
    found = list(consumers(context.coupled, context.kept).values())
    by_group = {name: [each for each in found if name in each.units] for name in context.kept}
    for name, each in by_group.items():
        if not each:
            raise InputError(
                f"no layer of its own reads the units of {name!r}, so nothing is known of what it makes of "
                "them: name the group in `ignore`, or use a score of weights"
            )
    return by_group


def _totals(context: StepContext, add: Callable[[Tensor, Consumer, str], None]) -> dict[str, Tensor]:
    """By group (units,) float64, what is put together over all layers that read its units.

    Args:
        context: of the step.
        add: adds what one layer has to say of a group to its total so far.
    """
    totals = {}
    for name, each in _by_group(context).items():
        kept = context.kept[name]
        totals[name] = torch.zeros(len(kept), dtype=torch.float64, device=kept.device)
        for consumer in each:
            add(totals[name], consumer, name)
    return totals


def _by_input(by_column: Tensor, units: Tensor) -> Tensor:
    """(groups, inputs) sums over the positions of a kernel of what there is by column of a layer's rows."""
    return torch.unflatten(by_column, 1, (units.shape[1], -1)).sum(2)


class N2PS(ConsumerScore):
    """Significance: the mean of sum_j |output w_j|, relative to the mean of the unit's layer.

    After Augasta and Kathirvalavakumar, "A novel pruning algorithm for optimizing feedforward neural network
    of classification problems". **The paper's formula was not available to us**: its abstract says that the
    significance is computed from the sigmoidal activation of the node and all the weights of its outgoing
    connections, and the formula here is our reading of it. For input features the output is their value; for
    the positions of a filter it is the mean magnitude of what is read, and where several layers read a unit,
    the sum goes over the connections to all of them.
    """

    name = "n2ps"
    paper = "Augasta, Kathirvalavakumar 2011, doi 10.1007/s11063-011-9196-7"
    comparable = ("units",)
    needs = (ChannelMagnitude(consumers=True),)

    def __call__(self, context: StepContext) -> Scores:
        """Each group divided by its mean over the units that are left."""

        def add(total: Tensor, consumer: Consumer, name: str) -> None:
            units = consumer.units[name]
            outgoing = _by_input(consumer.rows().abs().sum(1), units)
            magnitude = context.statistics[self.needs[0]][consumer.weight].view_as(units)
            read = units >= 0
            total.index_add_(0, units[read], (magnitude * outgoing)[read])

        totals = _totals(context, add)
        return {name: total / _divisor(total[context.kept[name]].mean()) for name, total in totals.items()}


class ThiNet(ConsumerScore):
    """The place in the order in which units go, if each time the next layer's output is disturbed least.

    Where several layers read the units, the disturbances of all are added up. Places of different groups
    cannot be compared; the order `forward` sees what earlier removals did.
    """

    name = "thinet"
    paper = "Luo et al. 2017 (ThiNet), arXiv 1707.06342"
    comparable = ()  # places
    needs = (LayerHessian(centred=False, consumers=True),)

    def __call__(self, context: StepContext) -> Scores:
        """Places from 0; -1 for units that are off."""
        scores = {}
        for name, each in _by_group(context).items():
            kept = context.kept[name]
            products = torch.zeros(len(kept), len(kept), dtype=torch.float64, device=kept.device)
            for consumer in each:
                products += contribution_products(
                    consumer.rows(),
                    context.statistics[self.needs[0]][consumer.weight],
                    consumer.columns(consumer.units[name]),
                    len(kept),
                )
            scores[name] = greedy_order(products, kept).to(kept.device, torch.float64)
        return scores


class Fluctuation(ConsumerScore):
    """The variance of what the next layer reads of the unit, times the squares of the weights that read it.

    It is the mean square of what the next layer's outputs are off where the unit gives its mean instead, if
    its inputs vary by themselves. The mean is what the repair `fold_mean` puts into the next bias.

    Attributes:
        standardize: whether the products of a group's inputs are taken about their mean and divided by their
            standard deviation, so that groups of several layers can be compared. A unit of several inputs, as
            a head, has their mean.
    """

    name = "fluctuation"
    paper = "An et al. 2023 (FLAP), arXiv 2312.11983"
    needs = (InputSquares(centred=True, consumers=True),)
    standardize: bool = True

    @property
    def comparable(self) -> tuple[Level, ...]:  # type: ignore[override]
        """If they are standardized."""
        return ("units",) if self.standardize else ()

    def __call__(self, context: StepContext) -> Scores:
        """The mean over a unit's inputs; over all layers that read it, their sum."""

        def add(total: Tensor, consumer: Consumer, name: str) -> None:
            units = consumer.units[name]
            variance = context.statistics[self.needs[0]][consumer.weight]
            products = _by_input(variance * consumer.rows().square().sum(1), units)
            read = units >= 0
            unit, product = units[read], products[read]
            if self.standardize:
                left = product[context.kept[name][unit]]
                product = (product - left.mean()) / _divisor(left.std(correction=0))
            total += _mean_by_unit(product, unit, len(total))

        return _totals(context, add)


class ActivationNorm(ConsumerScore):
    """The norm of what the next layer reads of the unit: mean magnitudes over positions, L2 over examples.

    Of a unit of several inputs, as a head, it is the L2 norm over these as well.
    """

    name = "activation_norm"
    paper = "Muralidharan et al. 2024 (Minitron), arXiv 2407.14679"
    comparable = ()  # as large as the layer's outputs
    needs = (ExampleMagnitude(consumers=True),)

    def __call__(self, context: StepContext) -> Scores:
        """Over all layers that read a unit, the root of the sum of squares."""

        def add(total: Tensor, consumer: Consumer, name: str) -> None:
            units = consumer.units[name]
            read = units >= 0
            magnitude = context.statistics[self.needs[0]][consumer.weight].view_as(units)
            total.index_add_(0, units[read], magnitude[read].square())

        return {name: total.sqrt() for name, total in _totals(context, add).items()}


def _mean_by_unit(values: Tensor, unit: Tensor, units: int) -> Tensor:
    """(units,) the means of the values of each unit's inputs; 0 for a unit without."""
    zeros = torch.zeros(units, dtype=values.dtype, device=values.device)
    count = zeros.index_add(0, unit, torch.ones_like(values))
    return zeros.index_add(0, unit, values) / count.clamp(min=1)


def greedy_order(products: Tensor, alive: Tensor) -> Tensor:
    """The order in which units go: each time the one that adds least to the square of what is lost.

    Args:
        products: (units, units), see `contribution_products`.
        alive: (units,) flags; those that are off already are part of what is lost.

    Returns:
        (units,) int64: the place of each unit in the order; -1 for those that are off. Ties go by position.
    """
    places = torch.full((len(products),), -1, dtype=torch.int64)
    left = alive.cpu().clone()
    products = products.cpu()
    # the lost units' contributions at the start are zero: off units add nothing to the next layer
    lost = torch.zeros(len(products), dtype=products.dtype)
    for place in range(int(left.sum())):
        added = (products.diagonal() + 2 * lost).masked_fill(~left, torch.inf)
        unit = int(added.argmin())
        places[unit] = place
        left[unit] = False
        lost += products[:, unit]
    return places
