"""Time and memory of pruning a network block by block, from its shapes and measured throughput."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from prunekit.blockwise.block_network import list_of_blocks
from prunekit.blockwise.memory import MemoryNeed, matrices_of, needed_for
from prunekit.errors import InputError
from prunekit.measure.human import human_bytes
from prunekit.obs.rates import Rates
from prunekit.parts.allocation import SummaryAllocation
from prunekit.pruning.time_ahead import in_words
from prunekit.recipe import Recipe


@dataclass(frozen=True)
class BlockCosts:
    """What each stage takes.

    Attributes:
        blocks: how many there are.
        seconds: of one block, by stage: `statistics` (passes of the calibration text and products of inputs),
            `solving` (scores, selection, repair), and `passing` (the text once more, through what is left, or
            gradients on their way back); before these `measuring`, where layers are compared (statistics and
            passing of dense blocks), or `forward`, where the text goes to the loss first.
        memory: at the peak.
    """

    blocks: int
    seconds: Mapping[str, float]
    memory: MemoryNeed

    @property
    def total(self) -> float:
        """Seconds of all blocks."""
        return self.blocks * sum(self.seconds.values())

    @property
    def table(self) -> str:
        """A line for each stage, and one for all."""
        rows = [(name, seconds, seconds * self.blocks) for name, seconds in self.seconds.items()]
        rows.append(("in all", sum(self.seconds.values()), self.total))
        lines = [f"{'':12}{'a block':>14}{f'{self.blocks} blocks':>14}"]
        lines += [f"{name:12}{in_words(one):>14}{in_words(every):>14}" for name, one, every in rows]
        return "\n".join([*lines, f"{human_bytes(self.memory.total)} of memory at the peak"])


def block_costs(
    model: nn.Module,
    recipe: Recipe,
    sequences: int,
    length: int,
    *,
    width: int,
    item: int = 2,
    blocks: str | None = None,
    rates: Rates | None = None,
) -> BlockCosts:
    """What `prune_blocks` takes for a network of which only the shapes are needed.

    Reading and writing files come on top; where layers are pruned one after the other, each is given a whole
    pass through the block, of which many end early in truth.

    Args:
        model: the network, made within `without_values()`.
        recipe: as of `prune_blocks`, with a schedule that states its sparsity.
        sequences: of the calibration text.
        length: tokens of each.
        width: of the stream of activations.
        item: bytes of a value in the files.
        blocks: the name of the list of blocks; by default the longest list in no other.
        rates: of the machine that will do it; by default those of this one, measured now.

    Raises:
        InputError: if there is no such list.
    """
    name = list_of_blocks(model) if blocks is None else blocks
    modules = dict(model.named_modules()).get(name)
    if not isinstance(modules, nn.ModuleList | nn.Sequential) or not len(modules):
        raise InputError(f"blocks = {name!r}: not a list of modules")
    rates = rates or Rates.measured()
    layers = matrices_of(modules[0])
    values = sum(value.numel() for value in modules[0].parameters())
    tokens = sequences * length
    one_pass = (2 * values * tokens + 4 * tokens * length * width) / rates.single
    in_turn = recipe.order != "all"
    pairs = any(getattr(part, "damp", None) is not None for part in recipe.parts.values())
    products = sum(tokens * inputs**2 for inputs, _ in layers) / rates.single if pairs else 0.0
    sparsity = recipe.schedule.sparsities()[-1] or 0.0
    solving = sum(
        part.solving_seconds(outputs, inputs, sparsity, rates)
        for inputs, outputs in layers
        for part in recipe.parts.values()
    )
    seconds = {
        "statistics": one_pass * (len(layers) if in_turn else 1) + products,
        "solving": solving,
        "passing": one_pass,
    }
    if recipe.by_gradient:  # the way back through a layer is two products of matrices, the way there is one
        seconds |= {"statistics": 3 * one_pass + products, "passing": 3 * one_pass}
        seconds = {"forward": one_pass, **seconds}
    if isinstance(recipe.allocation, SummaryAllocation):
        seconds = {"measuring": 2 * one_pass, **seconds}
    stored = item * max(sum(value.numel() for value in block.parameters()) for block in modules)
    need = needed_for(model, list(modules), stored, recipe, sequences, length, width)
    return BlockCosts(len(modules), seconds, need)
