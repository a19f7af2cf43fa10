"""Optimal brain surgeon's repair: all weights of a small network make up for those that go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn

from prunekit.limits import LARGE
from prunekit.obs import damped, refit
from prunekit.parts.context import StepContext
from prunekit.parts.repair.base import Repair
from prunekit.statistics import GaussNewton, row_layers
from prunekit.statistics.curvature import check_size
from prunekit.structure import Chain


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

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """The Hessian of all weights must fit.

        Raises:
            InputError: naming the number of weights.
            ModelError: naming a layer that is neither linear nor a convolution.
        """
        row_layers(model, names)
        check_size(model, names)

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
        matrix, _ = damped(torch.cat(list(rows.values())), self.damp)
        found = refit(matrix, values.unsqueeze(0), kept.unsqueeze(0))[0]
        for parameter, new in zip(
            parameters.values(), torch.split(found, [len(each) for each in rows.values()]), strict=True
        ):
            parameter.copy_(new.view(parameter.shape))
