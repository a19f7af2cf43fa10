"""Pruning of a network that is larger than memory: block after block, from its files to new ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from prunekit.blockwise.allocator import freed_at_once, give_back_memory
from prunekit.blockwise.backward_run import BackwardRun
from prunekit.blockwise.block_network import BlockNetwork, causal_model
from prunekit.blockwise.block_run import Inputs, Report
from prunekit.blockwise.forward_run import ForwardRun
from prunekit.blockwise.memory import MemoryNeed, needed
from prunekit.blockwise.run_progress import BlockKept
from prunekit.blockwise.shards import Shards
from prunekit.blockwise.text_activations import Medium
from prunekit.errors import InputError
from prunekit.files import path_of
from prunekit.folder_lock import only_run
from prunekit.garbage import old_objects_left_alone
from prunekit.parts.allocation import SummaryAllocation
from prunekit.parts.base import LEVELS
from prunekit.parts.granularity import Unit
from prunekit.recipe import Recipe, recipe_refusal
from prunekit.settings import checked_seed, whole
from prunekit.statistics import ActivationStats, InputStatistic, MeanGradient


def prune_blocks(
    source: Path | str,
    recipe: Recipe,
    tokens: Tensor,
    out: Path | str,
    *,
    inputs: Inputs | None = None,
    blocks: str | None = None,
    model: nn.Module | None = None,
    activations: Medium = "memory",
    memory: int | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> list[BlockKept]:
    """Prune a network in safetensors files block by block, and write files of the same form.

    A block is read, given the activations of the calibration sequences, pruned by the recipe as a network
    of its own, and written; then the activations behind it are worked out, and it is forgotten. Memory grows
    with the block and the activations, not with the depth. What is outside of the blocks (embeddings, head)
    stays. An interrupted run goes on behind the last block that was written, to the same files.

    For scores by gradients the text goes through all dense blocks first, to the loss of its next tokens, and
    blocks are pruned from the last to the first, as the gradient comes back to them. The activations before
    each are on disk until then: length times width numbers for each sequence and block.

    Args:
        source: a folder of transformers with its config, or of `model`'s values alone.
        recipe: removes single weights, each layer by itself, without training: `wanda`, `ria`, `sparsegpt`,
            `alps`, `exact_layer_obs` with the allocation `per_layer`, N:M patterns. With an allocation that
            compares layers by a number of each, `owl`, all dense blocks are measured before the first is
            pruned. Or it removes heads and widths, the same share of every block, as `minitron` and `flap`
            with `even` and `llm_pruner`: they are taken out, and the configuration says the new sizes.
        tokens: (sequences, length) token numbers of the calibration text, without padding.
        out: the new folder.
        inputs: what a layer's statistics are taken of: behind the blocks that are `pruned` already, as Wanda
            and SparseGPT are published, the default, or behind the `dense` ones, as in pruning the whole
            network at once. Gradients are always those of the dense network.
        blocks: the name of the list of blocks, such as `model.layers`; by default the longest in no other.
        model: the network, made within `without_values()`, where it is not a causal model of transformers.
        activations: where those of the text are kept: in `memory`, or on `disk`, in the new folder, so that
            memory does not grow with the text. The result is the same.
        memory: bytes that may be taken; what is free by default.
        seed: of everything random.
        report: told how far it is.

    Returns:
        What is left of each block.

    Raises:
        InputError: before anything is written: a recipe that needs more than one block at a time, a folder
            that holds something else, or where another run is at work, too little memory, with the sum,
            tokens that the network does not have, a `model` with values, `targets` or `ignore` that fit
            nothing.
        ModelError: before anything is written, where the blocks are no chain, each called once with what the
            one before it gives, and otherwise with the same for any text; where units cannot be taken out of
            the first block, or no configuration says its new sizes; behind a block whose sizes differ.
        DataError: if a file is damaged; before anything is written, if a tensor of any block has another
            shape or kind than in the network.

    Source: the loop of SparseGPT (arXiv 2301.00774), Wanda (arXiv 2306.11695) and FLAP (arXiv 2312.11983).
    """
    pruning = BlockwisePruning(source, recipe, tokens, blocks=blocks, model=model, activations=activations)
    return pruning.run(out, inputs=inputs, memory=memory, seed=seed, report=report)


def memory_needed(
    source: Path | str,
    recipe: Recipe,
    tokens: Tensor,
    *,
    blocks: str | None = None,
    model: nn.Module | None = None,
    activations: Medium = "memory",
) -> MemoryNeed:
    """The memory that `prune_blocks` takes at its peak, with what each part of it is for.

    The interpreter and its packages come on top, and so does attention that lays out its weights of all heads
    at a time, unless the configuration says so (`eager`). Raises what `prune_blocks` raises for these
    arguments.
    """
    return BlockwisePruning(
        source, recipe, tokens, blocks=blocks, model=model, activations=activations
    ).memory


class BlockwisePruning:
    """A pruning block by block that can begin: the network is opened, and what it will take is known.

    Attributes:
        memory: that it takes at its peak.
    """

    def __init__(
        self,
        source: Path | str,
        recipe: Recipe,
        tokens: Tensor,
        *,
        blocks: str | None = None,
        model: nn.Module | None = None,
        activations: Medium = "memory",
    ) -> None:
        """Open the network; arguments and what is raised are those of `prune_blocks`."""
        _check_recipe(recipe)
        largest = _largest(tokens)
        _check_word("activations", activations, Medium)
        source = path_of("source", source)
        self._recipe, self._tokens, self._medium = recipe, tokens, activations
        self._begun = False
        with freed_at_once(), old_objects_left_alone():
            model = causal_model(source) if model is None else model
            self._network = BlockNetwork(model, Shards.of(source), blocks)
            give_back_memory()
            stream, self._calls = self._network.calls(largest)
            if recipe.by_gradient:
                self._network.loss_gradient(stream, largest[0])
        _, length, width = stream.shape
        self.memory = needed(self._network, recipe, len(tokens), length, width, activations)

    def run(
        self,
        out: Path | str,
        *,
        inputs: Inputs | None = None,
        memory: int | None = None,
        seed: int = 0,
        report: Report | None = None,
    ) -> list[BlockKept]:
        """Prune the blocks that are not done; arguments, result and what is raised as of `prune_blocks`.

        It is run once: the network may have lost units then.
        """
        if self._begun:
            raise InputError("this pruning has begun: open another BlockwisePruning")
        out, seed = path_of("out", out), checked_seed(seed)
        inputs = self._inputs_of(inputs)
        if memory is not None:
            whole("memory", memory, 0, 1 << 60)
        way = BackwardRun if self._recipe.by_gradient else ForwardRun
        run = way(self._network, self._recipe, self._tokens, out, inputs, seed, self._medium, report)
        self.memory.check(memory)
        self._begun = True
        give_back_memory()
        with only_run(out), freed_at_once(), old_objects_left_alone():
            return run.go_on(self._calls)

    def _inputs_of(self, inputs: Inputs | None) -> Inputs:
        if inputs is None:
            return "dense" if self._recipe.by_gradient else "pruned"
        _check_word("inputs", inputs, Inputs)
        if inputs == "pruned" and self._recipe.by_gradient:
            raise InputError(
                "inputs = 'pruned': gradients come back through dense blocks, so that the recipe can only be "
                "given 'dense'"
            )
        return inputs


def _largest(tokens: Tensor) -> Tensor:
    """(1, length) the sequence of the largest token number, which a network that takes any must take.

    Raises:
        InputError: if they are no token numbers.
    """
    form = "must be a tensor of whole numbers (sequences, length) of at least 0"
    if not isinstance(tokens, Tensor):
        raise InputError(f"tokens: {form}, not {type(tokens).__name__}")
    kind = str(tokens.dtype).removeprefix("torch.")
    if tokens.dim() != 2 or not tokens.numel() or tokens.dtype not in (torch.int64, torch.int32):
        raise InputError(f"tokens: {form}, int64 or int32, not {list(tokens.shape)} of {kind}")
    if int(tokens.min()) < 0:
        raise InputError(f"tokens: {form}, and the smallest is {int(tokens.min())}")
    return tokens[int(tokens.amax(dim=1).argmax())][None]


def _check_word(name: str, value: str, words: Any) -> None:
    """InputError if an argument is none of the words of a `Literal`."""
    if value not in get_args(words):
        raise InputError(f"{name} = {value!r}: must be {' or '.join(map(repr, get_args(words)))}")


def _check_recipe(recipe: Recipe) -> None:
    """InputError for what is no recipe, or needs more than one block at a time."""
    if not isinstance(recipe, Recipe):
        raise recipe_refusal(recipe)
    allocation, granularity = recipe.allocation, recipe.granularity
    compared = isinstance(allocation, SummaryAllocation)
    units = granularity.level == "units"
    compares = f"the allocation {allocation.name!r} compares layers"
    reasons = {
        f"it removes {LEVELS[granularity.level]}": granularity.level not in ("weights", "patterns", "units"),
        "it removes parts of the stream, which goes through all blocks": (
            isinstance(granularity, Unit) and (granularity.residual or granularity.inputs)
        ),
        "it trains": recipe.trains,
        f"{compares}, and blocks of one configuration have one width: use 'per_layer'": (
            units and not allocation.even
        ),
        compares: not (allocation.local or compared),
        f"{compares} at each of several steps": compared and len(recipe.schedule.sparsities()) > 1,
        f"the stop {recipe.stop.name!r} measures the whole network": recipe.stop.needs_data,
        f"the quantize {recipe.quantize.name!r} gives values to the whole network": recipe.quantize.changes,
        "a statistic needs more of the loss of the whole network than gradients of weights": any(
            need.takes_loss
            or (need.needs_loss and not isinstance(need, MeanGradient))
            or (units and not isinstance(need, InputStatistic | ActivationStats | MeanGradient))
            for need in recipe.needs
        ),
    }
    if recipe.by_gradient:
        dense = "gradients come back through dense blocks"
        reasons |= {
            f"{compares}, which are measured before the first is pruned, and {dense}": compared,
            f"{dense}, and the schedule has several steps": len(recipe.schedule.sparsities()) > 1,
            f"{dense}, and the order {recipe.order!r} measures layers behind those that are pruned": (
                recipe.order != "all"
            ),
        }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"the recipe cannot prune block by block: {reason}")
