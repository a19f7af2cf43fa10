"""Dead units: nothing reads them, or what they put out is a constant that biases can take."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunekit.batches import Inputs
from prunekit.graph.capture import canonical, tensors_of
from prunekit.graph.captured_graph import leading_to, op_name
from prunekit.graph.constant_run import FOLDING, ConstantReaders, depending_on_input, grouped, units_at
from prunekit.graph.copies import copy_of, masked_copy
from prunekit.graph.coupling_graph import CouplingGraph, Group, Member
from prunekit.graph.members import of_units
from prunekit.graph.ops import operator_of
from prunekit.graph.plan import traced
from prunekit.graph.proof import run_both
from prunekit.graph.reference_run import VerificationError, layers_in, rounding
from prunekit.graph.shrinking import ShrinkResult, shrink
from prunekit.graph.surgery import alike, own_module, staying, unit_masks
from prunekit.masks import Masks
from prunekit.targets import unwrap

_FOLDINGS = 16  # units in the last place for each layer, which a rounded bias may grow to on its way


@dataclass(frozen=True)
class DeadUnits:
    """Units that can go without a change of the function in evaluation mode.

    Attributes:
        kept: for each group that loses units, (units,) flags, True = kept.
        biases: what the biases, by full name, must become for that: the constants that removed units put out
            are folded into them.
        training: whether the function in training mode stays, too: a constant may be another one there, as
            behind a batch norm.
    """

    kept: dict[str, Tensor]
    biases: dict[str, Tensor]
    training: bool


def dead_units(
    model: nn.Module,
    found: CouplingGraph,
    masks: Masks | None = None,
    *,
    over_units: bool = False,
    constants: bool = True,
    among: Collection[str] | None = None,
    statistics_stay: bool = False,
) -> DeadUnits:
    """Find the units that nothing reads, and those whose output is a constant that can be folded.

    Nothing reads a unit if all weights that read it are zero, or go to units that are dead themselves. Its
    output is a constant if all weights that make it are zero, or come from such units, or if something on the
    way multiplies it by zero, as the scale of a batch norm. The constant is followed through the graph of
    evaluation mode, and goes into the bias of each layer that reads it, where that is exact: for linear
    layers, for convolutions without zero padding, and for any reader if the constant is zero. A layer without
    a bias takes no other constant, and neither does one whose bias is masked. No constant is folded that a
    parameter would learn from which stays, such as a slope that all units share. Of the units that reach into
    the same tensors one stays at least. The model is not changed.

    Args:
        model: the network.
        found: its plan with its graphs; with the group `input` unread input features are found, too.
        masks: of single weights; without them the zeros in the weights count.
        over_units: whether groups count in whose norms the statistics run over the units, zeros included: the
            network without such units has those of the kept ones, as with the granularity `group`.
        constants: whether constants other than zero are looked for.
        among: the names of the groups that are looked at; all by default.
        statistics_stay: whether of units that statistics run over those alone go that are zero, so that the
            statistics stay as they are.

    Raises:
        InputError: if the masks are another model's.
    """
    search = _Search(unwrap(model), found, masks or Masks({}), over_units, among, statistics_stay)
    before = -1
    while (left := _count(search.kept)) != before:  # what dead units alone read may be folded then
        before = left
        search.take(search.constants() if constants else search.nothing_makes())
        search.take_unread()
    kept = {name: flags for name, flags in search.kept.items() if not bool(flags.all())}
    return DeadUnits(kept, search.biases(), search.training)


def shrink_dead(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    masks: Masks | None = None,
    tolerance: float | None = None,
    over_units: bool = False,
    among: Collection[str] | None = None,
) -> ShrinkResult:
    """Take all dead units out of a network, in place, and prove that its function stays the same.

    Args:
        model: any network that PyTorch can export.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        masks: of single weights; removed ones are set to zero first, and the masks get smaller along.
        tolerance: see `same_function`; by default, where constants are folded into biases, 16 units in the
            last place of the biases' precision for each layer.
        over_units, among: as in `dead_units`.

    Raises:
        InputError, ModelError, VerificationError: as `shrink`; the model is then exactly as it was.
    """
    model = own_module(model)
    masks = masks or Masks({})
    found = traced(model, example_inputs, residual=True)
    dead = dead_units(model, found, masks, over_units=over_units, among=among)
    if tolerance is None and dead.biases:
        # a sum in a bias is rounded to the bias's own precision, which the proof's float64 sees
        dtype = max(
            (model.get_parameter(name).dtype for name in dead.biases), key=lambda each: torch.finfo(each).eps
        )
        tolerance = rounding(layers_in(model), dtype, _FOLDINGS)

    def shrunk(dead: DeadUnits) -> ShrinkResult:
        return shrink(
            model,
            example_inputs,
            dead.kept,
            masks=masks,
            found=found,
            values=dead.biases,
            tolerance=tolerance,
            training=dead.training,
        )

    try:
        return shrunk(dead)
    except VerificationError:
        whole = masked_copy(model, masks)
        dead = dead_units(model, found, masks, over_units=over_units, constants=False, among=among)
        kept = {
            name: flags
            for name, flags in dead.kept.items()
            if _same(whole, found, {name: flags}, example_inputs)
        }
        return shrunk(DeadUnits(kept, {}, training=True))


@torch.no_grad()
def zero_dead(model: nn.Module, example_inputs: Inputs, *, masks: Masks | None = None) -> int:
    """The number of dead units, of which everything becomes zero, in place; nothing is taken out.

    Constants that they put out go into the biases of what reads them, as where `shrink_dead` takes them out.
    Units stay that a layer may read which the example inputs do not reach.

    Args:
        model: any network that PyTorch can export.
        example_inputs: as of `shrink_dead`.
        masks: of single weights; removed ones are set to zero first.

    Raises:
        InputError, ModelError, VerificationError: as `shrink_dead`; the model is then exactly as it was.
    """
    model = unwrap(model)
    found = traced(model, example_inputs, residual=True)
    unseen = found.out_of_sight(model)
    among = {group.name for group in found.plan.groups if group.name not in unseen} if unseen else None
    result = shrink_dead(copy_of(model), example_inputs, masks=masks, among=among)
    if not result.lost:
        return 0
    smaller = dict(result.model.named_parameters())
    for name, parameter in model.named_parameters():
        stays = staying(parameter.shape, result.axes.get(name, {})).to(parameter.device)
        values = torch.zeros_like(parameter)
        values[stays] = smaller[name].flatten()
        parameter.copy_(values)
    return sum(group.before - group.after for group in result.lost)


def _same(model: nn.Module, found: CouplingGraph, kept: Mapping[str, Tensor], inputs: Inputs) -> bool:
    """Whether the network computes the same with everything of these units at zero."""
    masked = copy_of(model)
    unit_masks(masked, found.plan, kept).apply(masked)
    return run_both(model, masked, inputs).accepted


class _Search:
    """The state of a search.

    Attributes:
        kept: for each group (units,) flags: what stays so far.
        training: whether all constants that were found are the same in training mode.
    """

    def __init__(
        self,
        model: nn.Module,
        found: CouplingGraph,
        masks: Masks,
        over_units: bool,
        among: Collection[str] | None,
        statistics_stay: bool,
    ) -> None:
        masks.parameters(model)
        first = canonical(model)
        self._found = found
        self._parameters = {name for name, _ in model.named_parameters()}
        self._masked = {first[name] for name in masks}
        self._tensors = {
            name: tensor.detach().double() if tensor.is_floating_point() else tensor
            for name, tensor in tensors_of(model).items()
        }
        for name, mask in masks.items():
            tensor = self._tensors[first[name]]
            self._tensors[first[name]] = tensor.masked_fill(~mask.to(tensor.device), 0)
        self._groups = [
            group
            for group in found.plan.prunable
            if (over_units or not group.normalised) and (among is None or group.name in among)
        ]
        self._statistics_stay = statistics_stay
        self._both = _made_and_read(found)
        self._folded: set[str] = set()
        self.kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in self._groups}
        self.training = True

    def biases(self) -> dict[str, Tensor]:
        """The biases that something was folded into."""
        return {name: self._tensors[name] for name in self._folded}

    def nothing_makes(self) -> dict[str, Tensor]:
        """For each group the units that stay so far though all that makes them or goes along is zero."""
        found = {}
        for group in self._groups:
            flags = self._unmade(group) & self.kept[group.name]
            _leave_one(group, flags, self.kept[group.name])
            found[group.name] = flags
        return found

    def constants(self) -> dict[str, Tensor]:
        """For each group the units that are constant and can go; the constants are folded into biases."""
        found = {name: torch.zeros_like(flags) for name, flags in self.kept.items()}
        if not any(self._zero_slices(group) for group in self._groups):
            return found
        silent = {group.name: self._unmade(group) for group in self._groups}
        shared = self._shared()
        candidates = {
            group.name: self.kept[group.name]
            & ~self._last(group)
            & (silent[group.name] if group.normalised or group.name in shared else True)
            for group in self._groups
        }
        readers = ConstantReaders(self._found, silent, self._bias_of())
        shifts: dict[str, Tensor] = {}
        while candidates:
            constant, spared = self._narrowed(readers, candidates)
            if _count(constant) > _count(found):
                found, shifts = constant, dict(readers.shifts)
            elif _count(found):
                break
            candidates = self._with_spared(found, spared)
        for group in self._groups:
            steady = silent[group.name] | self._unread(group) | ~found[group.name]
            self.training &= bool(steady.all())
        for name, shift in shifts.items():
            if bool(shift.any()):
                self._tensors[name] = self._tensors[name] + shift
                self._folded.add(name)
        return found

    def _narrowed(
        self, readers: ConstantReaders, candidates: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Those of the candidates that are constant without the others, and those that live nevertheless.

        One group at a time, front to back, lets a unit live where nothing would stay: others may read it.
        """
        constant = {name: flags.clone() for name, flags in candidates.items()}
        spared = {name: torch.zeros_like(flags) for name, flags in candidates.items()}
        while _count(constant):
            readers.look(constant, self._tensors)
            before = {name: flags.clone() for name, flags in constant.items()}
            for name, flags in constant.items():
                flags &= readers.fine[name]
            if _count(constant) < _count(before):
                continue
            for group in self._groups:
                if _leave_one(group, constant[group.name], self.kept[group.name]):
                    spared[group.name] |= before[group.name] & ~constant[group.name]
                    break
            else:
                break
        return constant, spared

    def _with_spared(self, constant: Mapping[str, Tensor], spared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The constant units with those that may go after all, since something else stays; empty if none."""
        found = {name: flags.clone() for name, flags in constant.items()}
        for group in self._groups:
            stays = self.kept[group.name] & ~constant[group.name] & ~spared[group.name]
            for units in alike(group):
                if bool(stays[units].any()):
                    found[group.name][units] |= spared[group.name][units]
        return found if _count(found) > _count(constant) else {}

    def take(self, dead: Mapping[str, Tensor]) -> None:
        """Take units out: all their slices are zero then."""
        for group in self._groups:
            self.kept[group.name] &= ~dead[group.name]
            units = dead[group.name].nonzero().flatten().tolist()
            for member in group.members if units else ():
                index = torch.tensor([at for unit in units for at in member.indices[unit]], dtype=torch.int64)
                tensor = self._tensors[member.tensor]
                self._tensors[member.tensor] = tensor.index_fill(member.dim, index.to(tensor.device), 0)

    def take_unread(self) -> None:
        """Take out what nothing reads, and what only such units read."""
        while True:
            dead = {group.name: self._unread(group) & self.kept[group.name] for group in self._groups}
            for group in self._groups:
                _leave_one(group, dead[group.name], self.kept[group.name])
            if not _count(dead):
                break
            self.take(dead)

    def _any(self, group: Group, *roles: str) -> Tensor:
        """(units,) flags: whether something in a unit's slices of these roles is not zero."""
        found = torch.zeros(group.units, dtype=torch.bool)
        for member in self._members(group, *roles):
            found |= of_units(self._tensors[member.tensor] != 0, member, "max").cpu() > 0  # NaN: no entries
        return found

    def _unmade(self, group: Group) -> Tensor:
        return ~self._any(group, "producer", "along") & bool(self._members(group, "producer", "along"))

    def _unread(self, group: Group) -> Tensor:
        unread = ~self._any(group, "consumer") & bool(self._members(group, "consumer"))
        return unread & self._unmade(group) if self._statistics_stay and group.normalised else unread

    def _zero_slices(self, group: Group) -> bool:
        """Whether all of some unit's slice is zero in a tensor that makes or scales units."""
        return any(
            bool((of_units(self._tensors[member.tensor] != 0, member, "max") == 0).any())
            for member in self._members(group, "producer", "along")
            if not member.tensor.endswith("bias")
        )

    def _members(self, group: Group, *roles: str) -> list[Member]:
        """The parameters of these roles, and those of several."""
        return [
            each
            for each in group.members
            if (each.role in roles or each.tensor in self._both) and each.tensor in self._parameters
        ]

    def _last(self, group: Group) -> Tensor:
        """(units,) flags: those that must stay, the last of the units that reach into the same tensors."""
        found = torch.zeros(group.units, dtype=torch.bool)
        for units in alike(group):
            left = [unit for unit in units if bool(self.kept[group.name][unit])]
            found[left] = len(left) == 1
        return found

    def _shared(self) -> set[str]:
        """The groups whose units meet parameters that are not their own between producers and readers."""
        graph, groups = self._found.graphs[0], self._found.plan.groups
        computed = depending_on_input(graph)
        shared = set()
        for node in graph.graph.nodes:
            given = [source for source in node.all_input_nodes if source not in computed]
            names = {graph.tensors.get(each.name) for source in given for each in leading_to(source)}
            if node in computed and names & self._parameters:
                at = np.concatenate([units_at(each, node.name) >> 32 for each in self._found.labellings])
                for number in set(at.tolist()) - {-1}:
                    own = {member.tensor for member in groups[number].members}
                    if not (names & self._parameters) <= own:
                        shared.add(groups[number].name)
        return shared

    def _bias_of(self) -> dict[fx.Node, str]:
        """The layers that take constants into their bias, with its name."""
        graph = self._found.graphs[0]
        found: dict[fx.Node, str] = {}
        for node in graph.graph.nodes:
            record = operator_of(node)
            if op_name(node) not in FOLDING or node.kwargs or record.addend is None or grouped(node):
                continue
            bias: Any = node.args[record.addend] if record.addend < len(node.args) else None
            name = graph.tensors.get(bias.name) if isinstance(bias, fx.Node) else None
            padded = record.by_extent is not None and record.by_extent(node)
            if name is None or padded or bias.meta["val"].dim() != 1:
                continue
            if name in self._parameters - self._masked and len(bias.users) == 1:
                found[node] = name
        return found


def _made_and_read(found: CouplingGraph) -> set[str]:
    """The parameters that operators of several kinds take: tied ones make units, and read them elsewhere."""
    kinds: dict[str, set[str]] = {}
    for graph in found.graphs:
        for node, (_, name) in graph.placeholders.items():
            kinds.setdefault(name, set()).update(map(op_name, node.users))
    return {name for name, own in kinds.items() if len(own) > 1}


def _count(flags: Mapping[str, Tensor]) -> int:
    return sum(int(each.sum()) for each in flags.values())


def _leave_one(group: Group, dead: Tensor, kept: Tensor) -> bool:
    """Let a unit live where nothing would stay of those that reach into the same tensors; whether it did."""
    changed = False
    for units in alike(group):
        left = [unit for unit in units if bool(kept[unit])]
        if left and bool(dead[left].all()):
            dead[left[0]], changed = False, True
    return changed
