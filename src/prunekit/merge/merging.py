"""Fewer layers: blocks of a network become single convolutions, fitted to what the blocks gave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.batches import Batch, as_batches, feed, joined
from prunekit.errors import InputError, ModelError, explaining, instead, naming
from prunekit.graph.capture import captured_in
from prunekit.graph.copies import copy_of
from prunekit.graph.surgery import own_module, put_modules
from prunekit.measure import count, human_count, human_seconds, layer_times, plain_table
from prunekit.measure.layer_times import OTHER
from prunekit.merge.batch_norm import Fold, apply_folds, folds_of
from prunekit.merge.blocks import BlockKind, Kernel, Mergeable, blocks_of
from prunekit.merge.fit import fit_convolution, relative_error
from prunekit.merge.layer_calls import LayerCalls
from prunekit.models.absent import EMPTY, PASSED, Absent
from prunekit.models.merged_conv import MergedConv2d
from prunekit.modes import Snapshot, evaluating
from prunekit.settings import WHOLE, whole
from prunekit.statistics.collect import watched_calls
from prunekit.targets import count_parameters, device_of
from prunekit.task import PLAIN, Task
from prunekit.training import Loop, Training, TrainingLike, given_of, train

FASTER = 10.0
"""By so much new layers learn faster than the rest, as in the paper."""
_CHUNK = 64
"""The examples that a network is run on at once."""


@dataclass(frozen=True)
class MergedBlock:
    """A block that became one convolution.

    Attributes:
        kind: `streamline` or `branch`.
        convolution: the full name of the new one.
        absorbed: the full names of the layers that are gone.
        least_squares_error: of the block's outputs after the closed form, relative to their variance.
        error: the same after the training of the block.
    """

    kind: BlockKind
    convolution: str
    absorbed: tuple[str, ...]
    least_squares_error: float
    error: float


@dataclass(frozen=True)
class MergeSizes:
    """What a network takes: MACs of an example, parameters, and seconds of a pass by kinds of layers."""

    macs: int
    parameters: int
    times: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Of the whole pass."""
        return sum(self.times.values())


@dataclass(frozen=True)
class MergeResult:
    """What was merged, and what the network took before and takes after it.

    Attributes:
        model: the network, the one that was given.
        folds: batch norms that went into layers beside them.
        blocks: in the order in which they were merged.
        refused: for what was found and left, by full name, the reason.
        new: the full names of new parameters.
        before, after: the sizes; the times are those of a pass of the examples that they were measured on.
    """

    model: nn.Module
    folds: tuple[Fold, ...]
    blocks: tuple[MergedBlock, ...]
    refused: Mapping[str, str]
    new: tuple[str, ...]
    before: MergeSizes
    after: MergeSizes

    def loop(self, faster: float = FASTER, **settings: Any) -> Loop:
        """A training loop in which the new layers learn so much faster than the rest, for fine-tuning.

        Args:
            faster: the factor.
            settings: others of `Loop`.
        """
        return Loop(relative_lr=_faster(self.new, faster), **settings)

    def block_table(self) -> Table:
        """One line for each block: what it was, and the errors that were left."""
        table = plain_table()
        table.add_column("new convolution", overflow="fold")
        table.add_column("kind")
        table.add_column("layers gone", overflow="fold")
        table.add_column("least squares", justify="right")
        table.add_column("trained", justify="right")
        for each in self.blocks:
            errors = (f"{100 * error:.2f}%" for error in (each.least_squares_error, each.error))
            table.add_row(each.convolution, each.kind, ", ".join(each.absorbed), *errors)
        return table

    def time_table(self) -> Table:
        """The time of a pass by kinds of layers, and MACs and parameters, before and after."""
        table = plain_table()
        table.add_column("layers")
        for heading in ("before", "after"):
            table.add_column(heading, justify="right")
        kinds = dict.fromkeys((*self.before.times, *self.after.times))
        for kind in sorted(kinds, key=lambda kind: kind == OTHER):
            times = (each.times.get(kind) for each in (self.before, self.after))
            table.add_row(kind, *("-" if each is None else human_seconds(each) for each in times))
        both = self.before, self.after
        table.add_row("all", *(human_seconds(each.seconds) for each in both))
        table.add_row("MACs", *(human_count(each.macs) for each in both))
        table.add_row("parameters", *(human_count(each.parameters) for each in both))
        return table


def merge_layers(
    model: nn.Module,
    data: Any,
    *,
    kinds: Sequence[BlockKind] = get_args(BlockKind),
    only: Sequence[str] | None = None,
    kernel: Kernel = "same",
    examples: int = 512,
    training: TrainingLike = None,
    faster: float = FASTER,
    task: Task | None = None,
    seed: int = 0,
    batch: int = 1,
) -> MergeResult:
    """Merge layers of a network into fewer convolutions, in place: DeepRebirth.

    Li, Wang, Kong 2018, arXiv 1708.04728. Batch norms are folded first, which is exact. A **streamline**, a
    convolution and what follows it without products (pooling, local response normalisation, batch norms that
    could not be folded), becomes one convolution, whose stride is multiplied by that of the poolings; a ReLU
    in between stays. **Branches** of a concatenation that are 1x1 convolutions or poolings go into a
    neighbouring branch, whose last convolution, 3x3 or larger, becomes as much wider: the concatenation stays
    as it was. Layers that are gone become `Absent`; the network keeps its class.

    From front to back each new convolution is fitted to what the block gave in the network as it was, from
    what reaches the block now: by least squares in closed form, then by training of the block, in which other
    layers of it learn slowly; what is worse than the closed form is not kept. Fine-tune the network behind
    it: `train(model, data, training, loop=result.loop())`. What the paper does not have: the closed form, and
    that least squares knows of the ReLU.

    Args:
        model: the network.
        data: training examples; see `prunekit.batches.as_batches`. The targets are not looked at.
        kinds: of blocks: `streamline`, `branch`.
        only: the full names of the convolutions whose blocks are merged; all by default.
        kernel: of a streamline's new convolution: `same` as the old one's, as published, or `whole`, all that
            the block's outputs depend on, which fits better and costs more.
        examples: that are fitted to.
        training: of each block; by default 20 epochs of batches of 32 with a rate of 0.0001, falling as a
            cosine. `{"epochs": 0}` leaves it out.
        faster: by how much new layers learn faster than the rest of a block.
        task: how the network is fed.
        seed: of the examples and the trainings.
        batch: the examples of the passes that are timed.

    Raises:
        InputError: for a setting out of range, or a name in `only` that is no block's, with the reason.
        ModelError: where there is nothing to merge, with what was looked for and what was refused; where the
            network cannot be exported. In every case the model is as it was.
        TrainingError: where the training of a block fails; likewise.
    """
    _check(kinds, only, kernel)
    settings = _training(training)
    task, seed = task or PLAIN, whole("seed", seed, 0, WHOLE)
    model = own_module(model)
    batches = as_batches(data, lambda each: task.read(each, model))
    count_of = whole("examples", examples, 1, WHOLE)
    sample = joined(list(batches.sample(count_of, _CHUNK, seed))).to(device_of(model))
    timed = sample.examples(0, whole("batch", batch, 1, WHOLE)).inputs
    calls = LayerCalls(model, captured_in(model, sample.examples(0, 2).inputs, "eval"))
    folds, refused = folds_of(calls)
    blocks, others = blocks_of(calls, kinds, kernel)
    refused |= others
    if only is not None:
        blocks = _chosen(blocks, only, refused)
    if not blocks:
        raise ModelError(_nothing(kinds, refused, folds))
    given, snapshot = copy_of(model), Snapshot(model)
    undo: list[Callable[[], None]] = []
    merged, new = [], list[str]()
    try:
        undo.append(apply_folds(model, folds))
        original = copy_of(model)
        for block in blocks:
            undo.append(_put(model, block))
            new += [f"{block.convolution}.{short}" for short in ("weight", "bias")]
            with naming(block.convolution):
                merged.append(_fitted(model, original, block, sample, settings, faster, seed))
        with explaining(ModelError, lambda: "the merged network cannot be run"):
            _check_form(given, model, timed)
            before, after = (_sizes(each, timed) for each in (given, model))  # in a row: the load changes
    except BaseException:
        for each in reversed(undo):
            each()
        snapshot.restore()
        raise
    return MergeResult(model, folds, tuple(merged), refused, tuple(dict.fromkeys(new)), before, after)


# ---- what is asked for -------------------------------------------------------------------------------------


def _check(kinds: Sequence[str], only: Sequence[str] | None, kernel: str) -> None:
    for name, several in (("kinds", kinds), ("only", only)):
        if isinstance(several, str) or (several is not None and not several):
            raise InputError(f"{name} must be a list of one or more names, not {several!r}")
    for name, value, allowed in (
        *(("kinds", each, get_args(BlockKind)) for each in kinds),
        ("kernel", kernel, get_args(Kernel)),
    ):
        if value not in allowed:
            raise InputError(f"{name}: there is no {value!r}{instead(value, allowed)}")


def _training(training: TrainingLike) -> Training:
    """The settings of a block's training, whose loss is the squared error."""
    if not isinstance(training, Training):
        defaults = {"epochs": 20, "batch_size": 32, "lr": 1e-4, "decay": "cosine"}
        given = given_of(training)
        if "iterations" in given:
            del defaults["epochs"]
        training = Training.parse({**defaults, **given})
    return training.model_copy(update={"loss": "squared_error"})


def _chosen(
    blocks: Sequence[Mergeable], only: Sequence[str], refused: Mapping[str, str]
) -> tuple[Mergeable, ...]:
    """The blocks of these convolutions."""
    known = {block.convolution for block in blocks}
    for name in only:
        if name not in known and name in refused:
            raise InputError(f"only: {name!r} is no convolution that a block can become: {refused[name]}")
        if name not in known:
            raise InputError(f"only: there is no block {name!r}{instead(name, sorted(known), 'blocks')}")
    return tuple(block for block in blocks if block.convolution in only)


_LOOKED_FOR = {
    "streamline": "convolutions with pooling, local response or batch norms behind them",
    "branch": "concatenations of 1x1 or pooling branches with wider convolutions beside them",
}


def _nothing(kinds: Sequence[str], refused: Mapping[str, str], folds: Sequence[Fold]) -> str:
    wanted = "; ".join(_LOOKED_FOR[kind] for kind in kinds)
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    return (
        f"there is nothing to merge: looked for {wanted}"
        + (f" (refused: {reasons})" if reasons else "")
        + ("; fold_batch_norms folds batch norms alone" if folds else "")
    )


def _sizes(model: nn.Module, inputs: Any) -> MergeSizes:
    return MergeSizes(count(model, inputs).macs, count_parameters(model), layer_times(model, inputs))


def _check_form(given: nn.Module, merged: nn.Module, inputs: Any) -> None:
    """Refuse a merged network that gives outputs of other shapes.

    Raises:
        ModelError: if it does.
    """
    forms = []
    for each in (given, merged):
        with evaluating(each), torch.no_grad():
            forms.append(
                [list(one.shape) for one in tree_leaves(feed(each, inputs)) if isinstance(one, Tensor)]
            )
    if forms[0] != forms[1]:
        raise ModelError(f"the merged network would give outputs of {forms[1]} in place of {forms[0]}")


# ---- one block ---------------------------------------------------------------------------------------------


def _put(model: nn.Module, block: Mergeable) -> Callable[[], None]:
    """Put the new convolution and absent layers in their places; what is returned puts the old ones back."""
    device = device_of(model)
    absent = {
        name: Absent(torch.tensor(code, dtype=torch.uint8, device=device))
        for names, code in ((block.passed, PASSED), (block.emptied, EMPTY))
        for name in names
    }
    for each in absent.values():
        each.training = model.training
    return put_modules(model, {block.convolution: _new(model, block), **absent})


@torch.no_grad()
def _new(model: nn.Module, block: Mergeable) -> MergedConv2d:
    """The new convolution, with the old weights in the rows that stay and zeros in the others."""
    old = model.get_submodule(block.convolution)
    assert isinstance(old, nn.Conv2d)
    geometry = torch.tensor([*block.stride, *block.padding, *block.dilation])
    made = MergedConv2d(old, (block.width, old.in_channels, *block.kernel), geometry)
    assert made.bias is not None
    for values in (made.weight, made.bias):
        values.zero_()
    if block.kept is not None:
        own = slice(block.kept.start, block.kept.stop)
        made.weight[own] = old.weight
        if old.bias is not None:
            made.bias[own] = old.bias
    return made


def _fitted(
    model: nn.Module,
    original: nn.Module,
    block: Mergeable,
    sample: Batch,
    training: Training,
    faster: float,
    seed: int,
) -> MergedBlock:
    """Fit a new convolution that is in its place to the outputs of the old block."""
    first, conv = block.new.layers[0], model.get_submodule(block.convolution)
    assert isinstance(conv, nn.Conv2d)
    with explaining(ModelError, lambda: "the network cannot be run with the new convolution"):
        given, reached = (_inputs(each, first, sample) for each in (original, model))
    with evaluating(original), torch.no_grad():
        wanted = torch.cat([_row(original, way.layers)(given) for way in block.old], 1)
    row = _row(model, block.new.layers)
    place = block.new.layers.index(block.convolution)
    with evaluating(model), torch.no_grad():
        read = row[:place](reached)
        fresh = torch.tensor([each for each in range(block.width) if each not in (block.kept or ())])
        fit_convolution(conv, read, wanted[:, fresh], rows=fresh.to(read.device), rectified=block.rectified)
    error = least = _error(row, reached, wanted)
    if training.length(as_batches((reached, wanted))):
        before = Snapshot(row)
        new = {f"{place}.weight", f"{place}.bias"}
        train(row, (reached, wanted), training, loop=Loop(relative_lr=_faster(new, faster)), seed=seed)
        error = _error(row, reached, wanted)
        if not error <= least:
            before.restore()
            error = least
    return MergedBlock(block.kind, block.convolution, block.absorbed, least, error)


def _faster(new: Sequence[str] | set[str], faster: float) -> Callable[[str], float]:
    return lambda name: faster if name in new else 1.0


def _row(model: nn.Module, layers: Sequence[str]) -> nn.Sequential:
    """The layers of these names in a row, the network's own; an empty one is a ReLU."""
    return nn.Sequential(*(model.get_submodule(name) if name else nn.ReLU() for name in layers))


@torch.no_grad()
def _error(row: nn.Sequential, given: Tensor, wanted: Tensor) -> float:
    with evaluating(row):
        return relative_error(torch.cat([row(some) for some in torch.split(given, _CHUNK)]), wanted)


def _inputs(model: nn.Module, layer: str, sample: Batch) -> Tensor:
    """What a layer is given of all examples."""
    found: list[Tensor] = []

    def see(_: str, given: Tensor, output: Tensor) -> None:
        found.append(given.detach().clone())

    with evaluating(model), torch.no_grad(), watched_calls({layer: model.get_submodule(layer)}, see):
        for part in sample.parts(_CHUNK):
            feed(model, part.inputs)
    return torch.cat(found)
