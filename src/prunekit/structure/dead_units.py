"""Dead units of a chain: nothing reads them, or what they put out is a constant that a bias can take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.graph.chain import Chain, UnitGroup
from prunekit.graph.chain_stages import Applied, Kind, Stage
from prunekit.graph.chain_view import chain_of
from prunekit.graph.deviation import rounding
from prunekit.graph.ops.registry import argument
from prunekit.graph.rows import LAYERS
from prunekit.graph.shrinking import ShrinkResult
from prunekit.graph.surgery import masked_copy, own_module
from prunekit.masks import Masks
from prunekit.modes import evaluating
from prunekit.structure.shrinking import checked_examples, replace_by_smaller
from prunekit.targets import unwrap

_FOLDINGS = 16  # units in the last place for each layer, which a rounded bias may grow to on its way


@dataclass(frozen=True)
class DeadUnits:
    """Units that can go without a change of the function.

    Attributes:
        kept: for each group that loses units, (units,) flags, True = kept.
        biases: what the biases, by full name, must become for that: the constants that removed units put out
            are folded into them.
    """

    kept: dict[str, Tensor]
    biases: dict[str, Tensor]


def dead_units(model: nn.Module, chain: Chain, masks: Masks | None = None) -> DeadUnits:
    """Find the units that nothing reads, and those whose output is a constant that can be folded.

    Nothing reads a unit if all its outgoing weights are zero, or go to units that are dead themselves. Its
    output is a constant if all its incoming weights are zero, or come from such units. The constant is folded
    into the next layer's bias, where that is exact: for linear layers, for convolutions without zero padding,
    and for any layer if the constant is zero. A layer without a bias takes no other constant. Every group
    keeps at least one unit. The model is not changed.

    Args:
        model: the network.
        chain: its chain; with `inputs=True` unread input features are found, too.
        masks: masks of single weights; without them the zeros in the weights count.

    Raises:
        InputError: if the masks are another model's.
    """
    model = unwrap(model)
    search = _Search(model, chain, masks or Masks({}))
    for group in chain.groups:
        search.fold_constants(group)
    for group in reversed(chain.groups):
        search.drop_unread(group)
    return DeadUnits(
        {name: flags for name, flags in search.kept.items() if not bool(flags.all())}, search.folded
    )


def shrink_dead(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    masks: Masks | None = None,
    tolerance: float | None = None,
) -> ShrinkResult:
    """Take all dead units out of a network, in place, and prove that its function stays the same.

    Args:
        model: a network that `chain_of` can read.
        example_inputs: (N, ...) inputs.
        masks: masks of single weights; removed ones are set to zero first.
        tolerance: see `same_function`; by default, where constants are folded into biases, 16 units in the
            last place of the biases' precision for each layer.

    Raises:
        InputError, ModelError, VerificationError: as `shrink`; the model is then exactly as it was.
    """
    model = own_module(model)
    masks = masks or Masks({})
    reference = masked_copy(model, masks)
    example_inputs = checked_examples(example_inputs)
    chain = chain_of(model, example_inputs)
    dead = dead_units(model, chain, masks)
    if tolerance is None and dead.biases:
        # a sum in a bias is rounded to the bias's own precision, which the proof's float64 sees
        dtype = max(
            (model.get_parameter(name).dtype for name in dead.biases), key=lambda d: torch.finfo(d).eps
        )
        tolerance = rounding(model, dtype, _FOLDINGS)
    return replace_by_smaller(
        model,
        chain,
        dead.kept,
        reference,
        example_inputs,
        masks=masks,
        values=dead.biases,
        tolerance=tolerance,
    )


class _Search:
    """The state of a search: which units stay, and the biases so far."""

    def __init__(self, model: nn.Module, chain: Chain, masks: Masks) -> None:
        masks.parameters(model)
        self._model = model
        self._chain = chain
        self._masks = masks
        self.kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in chain.groups}
        self.folded: dict[str, Tensor] = {}

    def fold_constants(self, group: UnitGroup) -> None:
        """Remove the units of a group whose output is a constant that the next layer can do without."""
        if group.producer is None or group.fixed:
            return
        constant = ~self._incoming(group.producer).any(1)
        if not bool(constant.any()):
            return
        values = constant_inputs(self._model, self._chain, group, self._bias(group.producer, group.units))
        if values is None:
            return
        read = self._weight(group.consumer)
        per_unit = values.view(group.units, group.repeat)
        harmless = (per_unit == 0).all(1)
        if self._takes_constants(group.consumer):
            harmless = per_unit.isfinite().all(1)
        removed = self._remove(group, constant & harmless)
        added = read.flatten(2).sum(2) if read.dim() > 2 else read
        added = added[:, removed.repeat_interleave(group.repeat)] @ per_unit[removed].flatten()
        if bool((added != 0).any()):
            bias = self._bias(group.consumer, len(added))
            self.folded[f"{group.consumer}.bias"] = bias + added

    def drop_unread(self, group: UnitGroup) -> None:
        """Remove the units of a group whose outgoing weights are all zero."""
        if group.fixed:
            return
        read = self._outgoing(group.consumer).any(0)
        self._remove(group, ~read.view(group.units, group.repeat).any(1))

    def _remove(self, group: UnitGroup, dead: Tensor) -> Tensor:
        """Take units out, but for one that a group needs; which were taken."""
        before = self.kept[group.name]
        if not bool((before & ~dead).any()):
            dead = dead.clone()
            dead[before.nonzero()[0]] = False
        self.kept[group.name] = before & ~dead
        return before & dead

    def _incoming(self, layer: str) -> Tensor:
        """(outputs, inputs): which weights are not zero and come from units that are still there."""
        there = self._nonzero(layer)
        for group in self._chain.groups:
            if group.consumer == layer:
                there &= self.kept[group.name].repeat_interleave(group.repeat)
        return there

    def _outgoing(self, layer: str) -> Tensor:
        """(outputs, inputs): which weights are not zero and go to units that are still there."""
        there = self._nonzero(layer)
        for group in self._chain.groups:
            if group.producer == layer:
                there &= self.kept[group.name][:, None]
        return there

    def _nonzero(self, layer: str) -> Tensor:
        there = self._weight(layer) != 0
        return there.flatten(2).any(2) if there.dim() > 2 else there

    def _weight(self, layer: str) -> Tensor:
        return self._masked(f"{layer}.weight")

    def _bias(self, layer: str, units: int) -> Tensor:
        """The bias of a layer, with what was folded into it so far; zeros if it has none."""
        name = f"{layer}.bias"
        if name in self.folded:
            return self.folded[name]
        if self._model.get_submodule(layer)._parameters["bias"] is None:
            return torch.zeros(units, dtype=torch.float64)
        return self._masked(name)

    def _masked(self, name: str) -> Tensor:
        """A parameter's values in float64 on the CPU, removed ones zero."""
        values = self._model.get_parameter(name).detach().cpu().double()
        return values.masked_fill(~self._masks[name].cpu(), 0) if name in self._masks else values

    def _takes_constants(self, layer: str) -> bool:
        """Whether a constant input of a layer is the same as another bias, at every position."""
        module = self._model.get_submodule(layer)
        if module._parameters["bias"] is None or f"{layer}.bias" in self._masks:
            return False
        if isinstance(module, nn.Linear):
            return True
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return module.padding_mode != "zeros" or module.padding == "valid" or not _padded(module.padding)


def _padded(padding: str | tuple[int, ...]) -> bool:
    return isinstance(padding, str) or any(padding)


_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def constant_inputs(model: nn.Module, chain: Chain, group: UnitGroup, constants: Tensor) -> Tensor | None:
    """Follow constants from the layer that makes them to the one that reads them, in evaluation mode.

    Args:
        model: the network.
        chain: its chain.
        group: the units.
        constants: (units,) what each unit would put out, the same for all inputs and at all positions.

    Returns:
        (units * repeat,) what arrives, in float64 on the CPU; None if something on the way does not turn a
        constant into a constant, such as an average that counts padding, or learns from it, such as a slope
        that all units share.
    """
    before, _, _ = chain.split(group)
    names = [stage.name if stage.module is not None else "" for stage in before]
    assert group.producer is not None
    start = names.index(group.producer)
    producer = model.get_submodule(group.producer)
    assert isinstance(producer, LAYERS)
    positions = 0 if isinstance(producer, nn.Linear) else len(producer.kernel_size)
    values = constants.to(producer.weight).view(1, group.units, *[1] * positions)
    with evaluating(model), torch.no_grad():
        for stage in before[start + 1 :]:
            if stage.kind is Kind.FLATTEN:
                if values.dim() > 2:
                    values = values.flatten(1).repeat_interleave(group.repeat, 1)
            elif stage.kind is Kind.POOL:
                if not _keeps_constants(stage):
                    return None
            elif _has_no_statistics(stage) or _learns_from_all(stage):
                return None
            else:
                values = stage.run(values)
    return values.flatten().double().cpu()


def _has_no_statistics(stage: Stage) -> bool:
    """Whether a batch norm normalises by the batch in evaluation mode as well."""
    return stage.kind is Kind.NORM and stage.module is not None and stage.module.running_mean is None


def _learns_from_all(stage: Stage) -> bool:
    """Whether the units share a parameter, such as a PReLU's slope, which learns from the constant ones."""
    return (
        stage.module is not None
        and stage.kind is not Kind.NORM
        and any(True for _ in stage.module.parameters())
    )


def _keeps_constants(stage: Stage) -> bool:
    """Whether a pooling gives the constant that it is given; averages over counted padding do not."""
    if isinstance(stage.module, _AVERAGES):
        padding = stage.module.padding
        padded = any(padding) if isinstance(padding, tuple) else bool(padding)
        odd = getattr(stage.module, "divisor_override", None) is not None
        return not odd and not (padded and stage.module.count_include_pad)
    if isinstance(stage.run, Applied) and stage.run.target.startswith("avg_pool"):
        padding, counted, divisor = (
            argument(stage.run.nodes[0], place, name, default)
            for place, name, default in (
                (3, "padding", ()),
                (5, "count_include_pad", True),
                (6, "divisor_override", None),
            )
        )
        return divisor is None and not (counted and any(padding))
    return True
