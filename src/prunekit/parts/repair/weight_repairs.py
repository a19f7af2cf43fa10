"""Repair: what is done to the survivors at once, with no gradient step; that of single weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from prunekit.distributed import shared_layers
from prunekit.errors import DataError
from prunekit.graph.rows import from_rows, row_layers, rows_of
from prunekit.obs import damped, inverse_of, refit, shared_update
from prunekit.obs.least_squares import BUDGET_BYTES as REFIT_BYTES
from prunekit.obs.mask_search import choose_mask, left_to_right
from prunekit.obs.rates import Rates
from prunekit.parts.base import Part
from prunekit.parts.context import StepContext
from prunekit.parts.input_matrices import damped_inputs, factor_of, swept_weights
from prunekit.settings import LARGE
from prunekit.statistics import GaussNewton, LayerHessian, LayerInputMean
from prunekit.statistics.curvature import check_size


class Repair(Part):
    """Changes the weights that are left so that less is lost.

    Attributes:
        changes: whether it changes anything at all.
    """

    home: ClassVar[str] = "prunekit.parts.repair"
    changes: ClassVar[bool] = True

    def check(self, context: StepContext) -> None:
        """Refuse a model that cannot be repaired, before anything is done to it.

        Args:
            context: as it is before the first step, without statistics.

        Raises:
            ModelError: naming the layer.
        """
        return

    @abstractmethod
    def __call__(self, context: StepContext) -> None:
        """Change the model's surviving weights in place; the masks are applied afterwards."""


class NoRepair(Repair):
    """The survivors stay as they are."""

    name = "none"
    changes = False

    def __call__(self, context: StepContext) -> None:
        """Nothing."""
        return


@dataclass(frozen=True, eq=False)
class RowGroup:
    """The weights of one group of a layer, of which some go.

    Attributes:
        matrix: (columns, columns) second moments of the inputs, damped.
        rows: (rows, columns) float64, before the step.
        kept: of the same shape, True = kept after the step.
        removed: True for what goes at this step.
        factor: gives the matrix's `inverse_factor`.
        swept: gives the weights that a selection has found by `left_to_right` with this mask, or None.
    """

    matrix: Tensor
    rows: Tensor
    kept: Tensor
    removed: Tensor
    factor: Callable[[], Tensor]
    swept: Callable[[], Tensor | None]


class WeightRepair(Repair):
    """A repair of each layer that loses weights at a step, by the second moments of its inputs.

    Every layer is repaired for what it was given when the statistics were taken, also where several layers
    lose weights in one step: with the order `forward` each one sees the repaired layers before it.

    Attributes:
        damp: added to the Hessian's diagonal, relative to its mean over the live inputs: a penalty on changes
            in directions that the calibration data hardly show.
    """

    works_on = ("weights", "patterns")
    needs = (LayerHessian(), LayerInputMean())
    by_owner = True
    damp: float = Field(default=0.01, ge=0, le=LARGE)

    def check(self, context: StepContext) -> None:
        """Only linear and convolution layers can be fitted to their inputs.

        Raises:
            ModelError: naming another one.
        """
        row_layers(context.model, context.weights)

    @torch.no_grad()
    def __call__(self, context: StepContext) -> None:
        """Repair each layer that changes at this step; what is removed is exactly zero afterwards."""
        changed = [
            name
            for name, kept in context.kept_after.items()
            if kept is not context.kept[name] and not torch.equal(kept, context.kept[name])
        ]
        # one process alone has the wide rows of one layer in memory at a time
        for names in [changed] if context.owners else [[name] for name in changed]:
            self._repair(context, names)

    def _repair(self, context: StepContext, names: list[str]) -> None:
        before = {name: self._rows(context, name) for name in names}
        after = shared_layers(
            names,
            context.owners,
            lambda name: self._updated(context, name, before[name]),
            lambda name: torch.empty_like(before[name]),
        )
        for name in names:
            layer: Any = context.layer(name)
            if getattr(layer, "bias", None) is not None:
                mean = context.statistics[LayerInputMean()][name]
                shift = ((before[name] - after[name]) @ mean.unsqueeze(2)).flatten()
                layer.bias.copy_(layer.bias.double() + shift)
            layer.weight.copy_(from_rows(after[name], layer))

    @staticmethod
    def _rows(context: StepContext, name: str) -> Tensor:
        layer: Any = context.layer(name)
        return rows_of(layer.weight, layer).double()

    def _updated(self, context: StepContext, name: str, rows: Tensor) -> Tensor:
        """(groups, rows, columns) the new weights of a layer, from those before."""
        layer = context.layer(name)
        on, was = rows_of(context.kept_after[name], layer), rows_of(context.kept[name], layer)
        matrices, gone = damped_inputs(context, name, self.damp), was & ~on
        try:
            updated = [
                self.update(
                    RowGroup(
                        matrix,
                        group,
                        kept,
                        going,
                        partial(factor_of, context, matrix),
                        partial(swept_weights, context, name, matrix, kept),
                    )
                )
                for matrix, group, kept, going in zip(matrices, rows, on, gone, strict=True)
            ]
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        return torch.stack(updated) * on

    @abstractmethod
    def update(self, group: RowGroup) -> Tensor:
        """The new weights (rows, columns) of one group of a layer; what is not kept is cut off afterwards."""


class MaskedLeastSquares(WeightRepair):
    """The survivors of each row, and the bias, are fitted to give what the layer gave before the step.

    H_SS w'_S = (H w)_S on the support S of each row: the values to which exact OBS leads, for a mask from
    anywhere, N:M patterns included.
    """

    name = "masked_least_squares"
    paper = "Frantar, Singh, Alistarh 2022, arXiv 2208.11580"

    def solving_seconds(self, rows: int, columns: int, sparsity: float, rates: Rates) -> float:
        """A factorisation for each row, of what is kept or of what is not, whichever is less."""
        support = columns * min(sparsity, 1 - sparsity)
        return (rows * support**3 / 3 + columns**3 * 4 / 3) / rates.factorised

    def working_bytes(self, rows: int, columns: int) -> int:
        """Matrices on the supports of rows that go together, at least one, three times; a support is
        what is kept or what is not, whichever is less."""
        together = max(3 * 8 * (columns // 2) ** 2, REFIT_BYTES)
        return 8 * (3 * columns**2 + 8 * rows * columns) + together

    def update(self, group: RowGroup) -> Tensor:
        """Least squares on the support."""
        return refit(group.matrix, group.rows, group.kept)


class OBSUpdate(WeightRepair):
    """The published update of layer-wise OBS: each removed weight is made up for by itself.

    -(w_q / [H^-1]_qq) H^-1 e_q for each removed q, with one inverse for all rows, and all updates of a step
    added. Exact for one removal per row and step; for many, take small steps (schedule `fixed_count`), or
    `masked_least_squares`, the joint solution. The bias is put to its best value.

    Attributes:
        in_turn: whether the removals of a row come one after the other, the least saliency first, each with
            the value w_q that the updates before it have left, as in the authors' code; otherwise with that
            before the step.
    """

    name = "obs_update"
    paper = "Dong, Chen, Pan 2017, arXiv 1705.07565"
    in_turn: bool = False

    def update(self, group: RowGroup) -> Tensor:
        """The sum of the updates."""
        inverse = inverse_of(group.matrix)
        return shared_update(inverse, group.rows, group.removed, in_turn=self.in_turn)


class SparseGPTUpdate(WeightRepair):
    """The left-to-right pass of SparseGPT for any mask: each column is made up for by those behind it.

    With the selection `sparsegpt` it is the published algorithm. `masked_least_squares` lets all weights of a
    row make up for each other instead and is the better repair wherever its cost can be afforded.
    """

    name = "sparsegpt"
    paper = "Frantar, Alistarh 2023, arXiv 2301.00774"

    def solving_seconds(self, rows: int, columns: int, sparsity: float, rates: Rates) -> float:
        """A pass over the columns, unless the selection `sparsegpt` has made it."""
        return rows * columns**2 / rates.double

    def update(self, group: RowGroup) -> Tensor:
        """One pass over the columns, unless the selection has made it."""
        swept = group.swept()
        if swept is not None:
            return swept
        choose = choose_mask(group.kept)
        return left_to_right(group.matrix, group.rows, choose, upper=group.factor())[0]


class OBSRefit(Repair):
    """All survivors and the biases move to where the loss's second-order model is least, given the zeros.

    H_SS w'_S = (H w)_S over all layers together, with the Gauss-Newton Hessian at the weights before the
    step: the sum of the paper's updates, one weight at a time. For networks of at most 5,000 weights.

    Attributes:
        damp: added to the Hessian's diagonal, relative to its mean.
    """

    name = "obs"
    paper = "Hassibi, Stork 1993, NIPS 5"
    works_on = ("weights", "patterns")
    needs = (GaussNewton(),)
    damp: float = Field(default=1e-4, ge=0, le=LARGE)

    def check(self, context: StepContext) -> None:
        """The Hessian of all weights must fit.

        Raises:
            InputError: naming the number of weights.
            ModelError: naming a layer that is neither linear nor a convolution.
        """
        row_layers(context.model, context.weights)
        check_size(context.model, list(context.weights))

    @torch.no_grad()
    def __call__(self, context: StepContext) -> None:
        """Solve for all at once."""
        rows = context.statistics[GaussNewton()]
        parameters = {name: context.model.get_parameter(name) for name in rows}
        values = torch.cat([parameter.flatten() for parameter in parameters.values()]).double()
        kept = torch.cat(
            [
                context.kept_after[name].flatten()
                if name in context.kept_after
                else torch.ones_like(parameter, dtype=torch.bool).flatten()
                for name, parameter in parameters.items()
            ]
        )
        matrix, _ = damped(torch.cat(list(rows.values())), self.damp, of="weights")
        found = refit(matrix, values.unsqueeze(0), kept.unsqueeze(0))[0]
        for parameter, new in zip(
            parameters.values(), torch.split(found, [len(each) for each in rows.values()]), strict=True
        ):
            parameter.copy_(new.view(parameter.shape))
