"""Scores of whole blocks."""

from __future__ import annotations

from typing import ClassVar

from prunekit.parts.base import Level
from prunekit.parts.scores.unit_scores import UnitScore
from prunekit.statistics import CosineDistance


class BlockInfluence(UnitScore):
    """1 - cos(in, out) of the block: what turns its input least goes first.

    The mean over examples and positions; the vectors are those over the channels, before and after the
    block's additions.
    """

    name = "block_influence"
    paper = "Men et al. 2024 (ShortGPT), arXiv 2403.03853"
    works_on: ClassVar[tuple[Level, ...]] = ("blocks",)
    comparable = ("blocks",)
    needs = (CosineDistance(),)
