"""What a level costs at its place, in bits: a model of the coder, held still while weights change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Magnitudes = Literal["geometric", "counted"]

PRIOR = 2.0
"""How many places of the whole layer's density are added to those of a row or a column."""


@dataclass(frozen=True, eq=False)
class SymbolCosts:
    """Bits of each level at each place of a layer, by how the levels of the layer are now.

    A level k costs a flag that says whether it is zero, and, where it is not, one bit for its sign and
    -log2 p(|k|). The flag of a place is predicted from the others in its row and in its column: the logit of
    their density is that of the row, plus that of the column, less that of the layer. Magnitudes are
    predicted by how often each is there, beside a prior of 2^-|k| that counts as one weight, or by the
    geometric distribution of the same mean: by it a lower magnitude never costs more, so that the way to zero
    is open also where all are about 2.

    Attributes:
        zero: (rows, columns) bits of a level 0.
        nonzero: (rows, columns) bits of the flag of any other.
        magnitudes: (levels + 1,) bits of sign and magnitude, from 0 on, where it is 0, to two magnitudes past
            the greatest that is there.
    """

    zero: Tensor
    nonzero: Tensor
    magnitudes: Tensor

    @classmethod
    def of(
        cls,
        levels: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        magnitudes: Magnitudes = "geometric",
    ) -> SymbolCosts:
        """The costs by the levels of a layer.

        Args:
            levels: (rows, columns) whole numbers, of any type.
            dtype: of the costs.
            magnitudes: how they are predicted.
        """
        present = (levels != 0).to(torch.float64)
        rows, columns = present.shape
        overall = (present.sum() + 0.5) / (present.numel() + 1)
        # a place is predicted without itself: a weight alone in its column costs what it would to a decoder
        row = (present.sum(1, keepdim=True) - present + PRIOR * overall) / (columns - 1 + PRIOR)
        column = (present.sum(0, keepdim=True) - present + PRIOR * overall) / (rows - 1 + PRIOR)
        logit = row.logit() + column.logit() - overall.logit()
        sizes = levels.flatten().abs().long()
        counts = F.pad(torch.bincount(sizes, minlength=2).to(torch.float64)[1:], (0, 2))
        number = torch.arange(1, len(counts) + 1, device=levels.device, dtype=torch.float64)
        if magnitudes == "geometric":
            mean = (2 + sizes.sum()) / (1 + counts.sum())  # the prior's is 2
            shares = (1 - 1 / mean) ** (number - 1) / mean
        else:
            shares = (counts + 0.5**number) / (counts.sum() + 1)
        return cls(
            (F.softplus(logit) / math.log(2)).to(dtype),
            (F.softplus(-logit) / math.log(2)).to(dtype),
            F.pad(1 - shares.log2(), (1, 0)).to(dtype),
        )

    def bits(self, levels: Tensor) -> Tensor:
        """The bits of each level at its place; magnitudes past the table cost as its last."""
        size = levels.abs().long().clamp_max(len(self.magnitudes) - 1)
        return torch.where(size == 0, self.zero, self.nonzero) + self.magnitudes[size]

    def steps(self) -> tuple[Tensor, Tensor]:
        """What a magnitude more costs.

        Returns:
            (rows, columns) from 0 to 1, and (levels,) from each magnitude to the next, whose first is not of
            use.
        """
        return self.nonzero + self.magnitudes[1] - self.zero, self.magnitudes.diff()
