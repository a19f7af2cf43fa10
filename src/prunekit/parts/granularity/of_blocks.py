"""Granularity of whole blocks: residual branches, which a network can do without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.batches import Inputs
from prunekit.errors import ModelError
from prunekit.graph import (
    BLOCKS,
    Branches,
    Captured,
    Combine,
    Coupled,
    CouplingGraph,
    GroupPlan,
    Pool,
    captured,
    captured_blocks,
    group_of,
    without_branches,
)
from prunekit.graph.capture import made_up_inputs
from prunekit.masks import Masks
from prunekit.parts.granularity.of_units import Units
from prunekit.parts.granularity.of_weights import Elements, Weight
from prunekit.targets import Known, Target, check_patterns, check_plain, check_whole, types_of, unwrap


class Block(Weight):
    """Residual branches, each as one unit: x + f(x) becomes x.

    A branch is what is computed from x, by parameters of its own, for an addition to x as it is: that of a
    basic block or a bottleneck, the attention or the MLP of a transformer's block. It is found in the graph
    of a run on an example, and is no unit if others are within it, or if it gives anything else than zeros
    once all of its own parameters are zero, which is what a removed branch is. Where the shape changes, so
    that the shortcut is a projection, nothing would be left of x: such a block stays. What follows the
    addition, as an activation or the norm of a post-norm transformer, is no part of the branch and stays.

    All blocks are units of one group, `blocks`, of which an allocation leaves one unless its floor is 0. A
    score of weights is taken over the matrices and kernels of a block.

    Attributes:
        whole: whether the branches that one element of an `nn.Sequential` or `nn.ModuleList` adds up go
            together, as attention and MLP of a transformer's block.
        pool: how scores of weights become one of the block, within each parameter.
        combine: how its parameters count.
    """

    name = "block"
    level = "blocks"
    paper = "Wen et al. 2016 (SSL), arXiv 1608.03665; Men et al. 2024 (ShortGPT), arXiv 2403.03853"
    counts = "units"
    by_example = True
    one_target = True
    whole: bool = False
    pool: Pool = "sum"
    combine: Combine = "sum"

    def elements(
        self,
        model: nn.Module,
        targets: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        example_inputs: Inputs | None = None,
    ) -> Blocks:
        """The blocks that fit the patterns: by their name, or by the name or type of a module within.

        Without `example_inputs` some are made up where that is possible.

        Raises:
            InputError: if a pattern matches nothing.
            ModelError: if the network cannot be exported, or has no residual branch, or none is left.
        """
        model = unwrap(model)
        check_whole(model)
        if example_inputs is None:
            example_inputs = made_up_inputs(model)
        graph, found = captured_blocks(model, example_inputs, whole=self.whole)
        known = {block.name: _known(model, block) for block in found}
        check_patterns([*(targets or ()), *ignore], list(known.items()), "block; blocks")
        chosen = [
            block
            for block in found
            if (targets is None or known[block.name].fits(targets)) and not known[block.name].fits(ignore)
        ]
        if not chosen:
            raise ModelError("the recipe chooses no residual branch: `ignore` leaves all of them out")
        group = group_of(model, chosen)
        elements = Blocks(
            model,
            (Target(BLOCKS, BLOCKS, "units", torch.Size([group.units])),),
            Coupled(
                model,
                CouplingGraph(GroupPlan((group,)), (graph,), ()),
                (BLOCKS,),
                example_inputs,
                self.combine,
            ),
            tuple(chosen),
        )
        check_plain(model, elements.parameters)
        return elements

    def pooled(self, scores: Mapping[str, Tensor], elements: Elements) -> dict[str, Tensor]:
        """Within each parameter of a block by `pool`, and over parameters by `combine`."""
        found = elements.coupled
        assert found is not None
        return {BLOCKS: found.pooled(scores, found.group(BLOCKS), self.pool)}


@dataclass(frozen=True)
class Blocks(Units):
    """The blocks of a network, as the units of one group.

    Attributes:
        blocks: in order.
    """

    blocks: tuple[Branches, ...]

    def smaller(self, kept: Masks) -> nn.Module:
        """A copy without the branches of removed blocks."""
        removed = [
            branch
            for block, stays in zip(self.blocks, kept[BLOCKS].tolist(), strict=True)
            for branch in block.branches
            if not stays
        ]
        inputs = self.found.example_inputs
        graphs: tuple[Captured, ...] = captured(self.model, inputs)
        return without_branches(self.model, graphs, removed, inputs)

    def shielded(self, name: str, scores: Tensor) -> Tensor:
        """As they are: each block can go alone."""
        return scores


def _known(model: nn.Module, block: Branches) -> Known:
    """By its own name, and by the modules within."""
    known = Known({block.name, *(branch.name for branch in block.branches)})
    for tensor in block.tensors:
        layer = tensor.rpartition(".")[0]
        known.names.update((tensor, layer))
        known.types.update(types_of(model.get_submodule(layer)))
    for branch in block.branches:
        known.names.add(branch.within)
        known.types.update(types_of(model.get_submodule(branch.within)))
    return known
