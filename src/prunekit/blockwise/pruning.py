"""Pruning of a network that is larger than memory: block after block, from its files to new ones."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from prunekit.blockwise.block_network import BlockCall, BlockNetwork, BlockOnStream, causal_model
from prunekit.blockwise.memory import MemoryNeed, give_back_memory, needed
from prunekit.blockwise.run_progress import PROGRESS, BlockKept, LayerSummary, RunProgress
from prunekit.blockwise.shards import INDEX, Shards, write_index, write_shard
from prunekit.blockwise.smaller_blocks import smaller_form, take_out, write_settings
from prunekit.blockwise.text_activations import Medium, SequenceBatches, StreamStore
from prunekit.digests import digest_of_tensors
from prunekit.errors import InputError, naming
from prunekit.masks import Masks
from prunekit.parts.allocation import PerLayer, Recorded, SummaryAllocation
from prunekit.parts.base import LEVELS
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Unit
from prunekit.parts.schedule import AllocationDecides, Step
from prunekit.pruning.session import Session, prune
from prunekit.recipe import Recipe, recipe_refusal
from prunekit.seeds import derive
from prunekit.settings import checked_seed, whole
from prunekit.statistics import ActivationStats, InputStatistic

FORMAT = 3
REST = 2 << 30
"""Bytes of values outside of blocks that are copied at a time."""

Inputs = Literal["pruned", "dense"]
"""What statistics are taken behind: blocks that are pruned already, or dense ones."""

Report = Callable[[int, int], None]
"""Takes how many times the text has gone through a block, and how many times it will have in the end: once
for each block, or twice where all of them are measured before the first is pruned."""

Finding = TypeVar("Finding")

Worked = tuple[Finding, Sequence[Tensor]]
"""What is found of a block, and the activations before the next one."""


def prune_blocks(
    source: Path | str,
    recipe: Recipe,
    tokens: Tensor,
    out: Path | str,
    *,
    inputs: Inputs = "pruned",
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

    Args:
        source: a folder of transformers with its config, or of `model`'s values alone.
        recipe: removes single weights, each layer by itself, without training: `wanda`, `ria`, `sparsegpt`,
            `alps`, `exact_layer_obs` with the allocation `per_layer`, N:M patterns. With an allocation that
            compares layers by a number of each, `owl`, all dense blocks are measured before the first is
            pruned. Or it removes heads and widths, the same share of every block, as `minitron` and `flap`
            with `even`: they are taken out, and the configuration says the new sizes.
        tokens: (sequences, length) token numbers of the calibration text, without padding.
        out: the new folder.
        inputs: what a layer's statistics are taken of: behind the blocks that are `pruned` already, as Wanda
            and SparseGPT are published, or behind the `dense` ones, as in pruning the whole network at once.
        blocks: the name of the list of blocks, such as `model.layers`; by default the longest list.
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
            that holds something else, too little memory, with the sum, tokens that the network does not have.
        ModelError: before anything is written, where units cannot be taken out of the first block, or no
            configuration says its new sizes; behind a block whose sizes differ from those.
        DataError: if a file is damaged; before anything is written, if a tensor of any block has another
            shape or kind than in the network.

    Source: the loop of SparseGPT (arXiv 2301.00774), Wanda (arXiv 2306.11695) and FLAP (arXiv 2312.11983).
    """
    _check_recipe(recipe)
    largest = _largest(tokens)
    _check_word("inputs", inputs, Inputs)
    _check_word("activations", activations, Medium)
    if memory is not None:
        whole("memory", memory, 0, 1 << 60)
    source, out, seed = Path(source), Path(out), checked_seed(seed)
    network = BlockNetwork(causal_model(source) if model is None else model, Shards.of(source), blocks)
    run = _BlockwiseRun(network, recipe, tokens, out, inputs, seed, activations, report)
    stream, calls = network.calls(largest)
    _, length, width = stream.shape
    needed(network, recipe, len(tokens), length, width, activations).check(memory)
    return run.go_on(calls)


def memory_needed(
    source: Path | str,
    recipe: Recipe,
    tokens: Tensor,
    *,
    blocks: str | None = None,
    model: nn.Module | None = None,
    activations: Medium = "memory",
) -> MemoryNeed:
    """The memory that `prune_blocks` takes at its peak, with what each part of it is for."""
    _check_word("activations", activations, Medium)
    source, largest = Path(source), _largest(tokens)
    network = BlockNetwork(causal_model(source) if model is None else model, Shards.of(source), blocks)
    stream, _ = network.calls(largest)
    _, length, width = stream.shape
    return needed(network, recipe, len(tokens), length, width, activations)


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
        "a statistic needs the loss of the whole network, as scores by gradients do": any(
            need.needs_loss
            or need.takes_loss
            or (units and not isinstance(need, InputStatistic | ActivationStats))
            for need in recipe.needs
        ),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"the recipe cannot prune block by block: {reason}")


class _BlockwiseRun:
    """One pruning: its folder, and what is done of it."""

    def __init__(
        self,
        network: BlockNetwork,
        recipe: Recipe,
        tokens: Tensor,
        out: Path,
        inputs: Inputs,
        seed: int,
        medium: Medium,
        report: Report | None,
    ) -> None:
        self._network, self._recipe, self._tokens, self._out = network, recipe, tokens, out
        self._inputs, self._seed, self._report = inputs, seed, report
        self._store = StreamStore(out, medium, len(tokens))
        self._types: dict[str, torch.dtype] = {}
        self._calls: Sequence[BlockCall] = ()
        about = {
            "format": FORMAT,
            "recipe": recipe.to_dict(),
            "tokens": digest_of_tensors({"tokens": tokens}),
            "source": network.shards.samples(),
            "blocks": network.name,
            "inputs": inputs,
            "seed": seed,
        }
        self._progress = RunProgress.of(out, about)

    def go_on(self, calls: Sequence[BlockCall]) -> list[BlockKept]:
        """The blocks that are not done, then what is outside of them, then the index."""
        progress, allocation = self._progress, self._recipe.allocation
        self._calls = calls
        if isinstance(allocation, SummaryAllocation) and not progress.done:
            self._through(progress.measured, self._measured)
        self._through(progress.done, self._pruned)
        self._told()
        self._finish(progress.shards)
        self._store.clear()
        return progress.done

    def _through(self, done: list[Finding], work: Callable[[int, Sequence[Tensor]], Worked[Finding]]) -> None:
        """Take the text through the blocks that are not done, and write after each how far it is.

        Args:
            done: what was found of the blocks so far; the others are added.
            work: from a block's number and the activations before it to what is found of it, and the
                activations before the next one.
        """
        network, progress, store = self._network, self._progress, self._store
        count = len(network.blocks)
        if len(done) == count:
            return
        if progress.stream is None:
            streams = store.kept(0, network.streams(self._tokens))
        else:
            streams = store.read(len(done), progress.stream)
        for number in range(len(done), count):
            self._told()
            with naming(f"{network.name}.{number}"):
                self._types = network.load(number)
                found, streams = work(number, streams)
            network.empty(number)
            give_back_memory()
            done.append(found)
            progress.stream = None if number + 1 == count else store.saved(number + 1, streams)
            self._progress.write()
            store.remove(number)

    def _told(self) -> None:
        if self._report is not None:
            passes = 2 if isinstance(self._recipe.allocation, SummaryAllocation) else 1
            done = len(self._progress.measured) + len(self._progress.done)
            self._report(done, passes * len(self._network.blocks))

    def _measured(self, number: int, streams: Sequence[Tensor]) -> Worked[dict[str, LayerSummary]]:
        """What an allocation that compares layers looks at, of each layer of a dense block."""
        allocation = self._recipe.allocation
        assert isinstance(allocation, SummaryAllocation)
        block, recipe = self._on_stream(number), self._of_block({"allocation": PerLayer(), "order": "all"})
        session = Session(block, recipe, data=SequenceBatches(streams), seed=self._block_seed(number))
        summaries = {
            name: LayerSummary(allocation.summarised(scores), scores.numel())
            for name, scores in session.scores().items()
        }
        return summaries, self._behind(number, block, streams)

    def _pruned(self, number: int, streams: Sequence[Tensor]) -> Worked[BlockKept]:
        """Prune a block and write it."""
        block = self._on_stream(number)
        behind: Sequence[Tensor] = []
        if self._inputs == "dense":
            behind = self._behind(number, block, streams)
        recipe = self._of_block(self._amounts(number))
        pruned = prune(block, recipe, SequenceBatches(streams), seed=self._block_seed(number))
        flags = {name.removeprefix("block."): each for name, each in pruned.kept.items()}
        kept = BlockKept(
            {name: int(each.sum()) for name, each in flags.items()},
            {name: each.numel() for name, each in flags.items()},
        )
        if pruned.coupled is not None:
            self._take_out(number, block, pruned.kept, streams[0])
        if self._inputs == "pruned":
            behind = self._behind(number, block, streams)
        give_back_memory()
        if not self._progress.shards:  # a folder that holds anything says what it is
            self._progress.write()
        self._progress.shards[_file(number)] = self._write_block(number)
        return kept, behind

    def _take_out(self, number: int, block: BlockOnStream, kept: Masks, stream: Tensor) -> None:
        """Make a block smaller, to the form of the first one."""
        take_out(block, kept, stream)
        if self._progress.form is None:
            self._progress.form = smaller_form(self._network, number, block, stream)
        self._progress.form.check(block.block)

    def _on_stream(self, number: int) -> BlockOnStream:
        return BlockOnStream(self._network.blocks[number], self._calls[number]).eval()

    def _behind(self, number: int, block: nn.Module, streams: Sequence[Tensor]) -> Sequence[Tensor]:
        """The activations behind a block, if there is another one."""
        if number + 1 == len(self._network.blocks):
            return []
        with torch.no_grad():
            return self._store.kept(number + 1, (block(stream) for stream in streams))

    def _of_block(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe as that of a block, which sees all sequences."""
        return self._recipe.model_copy(update={"calibration": len(self._tokens), **changes})

    def _amounts(self, number: int) -> dict[str, Any]:
        """What an allocation that compares layers takes of those of a block, once all are measured."""
        allocation = self._recipe.allocation
        if not isinstance(allocation, SummaryAllocation):
            return {}
        layers = {
            f"{block} {name}": layer
            for block, found in enumerate(self._progress.measured)
            for name, layer in found.items()
        }
        # the sizes count, for which no memory is taken
        kept = {name: torch.ones((), dtype=torch.bool).expand(layer.size) for name, layer in layers.items()}
        amounts = allocation.amounts_by(
            {name: layer.summary for name, layer in layers.items()},
            StepContext(step=Step(sparsity=self._recipe.schedule.sparsities()[0]), kept=Masks(kept)),
        )
        own = {name: amounts[f"{number} {name}"] for name in self._progress.measured[number]}
        return {"allocation": Recorded(removed=(own,)), "schedule": AllocationDecides()}

    def _block_seed(self, number: int) -> int:
        return derive(self._seed, "block", str(number))

    def _write_block(self, number: int) -> str:
        block, keys = self._network.blocks[number], self._network.keys_of(number)
        values = block.state_dict()
        tensors = {key: values[name].to(self._types[name]) for name, key in keys.items()}
        return write_shard(self._out / _file(number), tensors)

    def _finish(self, shards: dict[str, str]) -> None:
        """Copy what is outside of the blocks, and the files beside the values; the index comes last."""
        network = self._network
        portions = {f"model-rest-{n:05}.safetensors": names for n, names in enumerate(_portions(network))}
        for number in range(len(network.blocks)):
            portions[_file(number)] = sorted(network.keys_of(number).values())
        for name, keys in portions.items():
            if name not in shards:
                write_shard(self._out / name, network.shards.read(keys))
        file_of = {key: name for name, keys in portions.items() for key in keys}
        sizes = Shards(self._out, file_of).sizes(file_of).values()
        size = sum(dtype.itemsize * math.prod(shape) for shape, dtype in sizes)
        for path in sorted(network.shards.folder.iterdir()):
            other = path.suffix in (".json", ".txt", ".model", ".jinja") and path.name not in (
                INDEX,
                PROGRESS,
            )
            if other and path.is_file() and not path.is_symlink():
                shutil.copyfile(path, self._out / path.name)
        if self._progress.form is not None and self._progress.form.changes:
            name = "config.json"
            write_settings(network.shards.folder / name, self._out / name, self._progress.form.changes)
        write_index(self._out, file_of, size)


def _file(number: int) -> str:
    return f"model-block-{number:05}.safetensors"


def _portions(network: BlockNetwork) -> list[list[str]]:
    """The names outside of the blocks, so many at a time as fit into `REST` bytes."""
    names = sorted(network.keys_of_rest())
    portions: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype) in network.shards.sizes(names).items():
        own = dtype.itemsize * math.prod(shape)
        if portions[-1] and size + own > REST:
            portions.append([])
            size = 0
        portions[-1].append(name)
        size += own
    return [each for each in portions if each]
