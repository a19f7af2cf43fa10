"""Block influence: how far a block turns what goes through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunekit.batches import Batch, arguments, without_padding
from prunekit.distributed import sum_over_processes
from prunekit.errors import InputError
from prunekit.graph import BLOCKS, Branch, Captured, Coupled, GraphModel
from prunekit.graph.branches import branches_by_unit
from prunekit.graph.capture import captured_in
from prunekit.graph.captured_graph import op_name
from prunekit.graph.reference_run import Interpreter
from prunekit.modes import evaluating
from prunekit.statistics.collect import Collector, StatContext
from prunekit.statistics.unit_statistics import UnitStatistic


@dataclass(frozen=True)
class CosineDistance(UnitStatistic):
    """1 - cos(x, x + f(x)), the mean over examples and positions; by group (blocks,) float64.

    x is what the first branch of a block adds to, x + f(x) the sum that the last one gives, both as vectors
    over the channels: along the second axis where the branch has a convolution, along the last otherwise.
    Padded positions do not count. Two zero vectors are the same, one is orthogonal to any other.
    """

    def watch(self, subject: StatContext, coupled: Coupled) -> Collector:
        """A collector that runs the network's graph by itself.

        Raises:
            InputError: if the recipe's granularity is not `block`.
        """
        if [group.kind for group in coupled.groups] != [BLOCKS]:
            raise InputError(
                "block influence is that of whole blocks: give the recipe the granularity 'block'"
            )
        return _Influence(subject, coupled)


class _Influence(Collector):
    def __init__(self, subject: StatContext, coupled: Coupled) -> None:
        self._model, self._task = subject.model, subject.task
        (self._group,) = coupled.groups
        self._graphs: dict[object, tuple[GraphModel, dict[int, tuple[Branch, Branch]]]] = {}
        device = next(self._model.parameters()).device
        self._total = torch.zeros(2, self._group.units, dtype=torch.float64, device=device)

    @torch.no_grad()
    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        """Run the graph on the batch."""
        args, kwargs = arguments(batch.inputs)
        shapes = tuple(
            each.shape if isinstance(each, Tensor) else each for each in pytree.tree_leaves((args, kwargs))
        )
        if shapes not in self._graphs:
            graph = captured_in(self._model, batch.inputs, "eval")
            self._graphs[shapes] = GraphModel(self._model, [graph]), self._ends_in(graph)
        model, ends = self._graphs[shapes]
        with evaluating(model):
            run: list[_Ends] = []

            def call(number: int, module: fx.GraphModule, given: list[object]) -> object:
                run.append(_Ends(module, ends))
                return run[0].run(*given)

            model.run(args, kwargs, call)
        real = self._task.real_positions(batch, self._model)
        for unit, (before, after) in run[0].found.items():
            axis = 1 if any("conv" in op_name(node) for node in ends[unit][0].nodes) else -1
            influence = _influence(without_padding(before, real), without_padding(after, real), axis)
            self._total[:, unit] += torch.stack([influence.sum(), influence.new_tensor(influence.numel())])

    def _ends_in(self, graph: Captured) -> dict[int, tuple[Branch, Branch]]:
        """The first and the last branch of each block."""
        blocks: dict[int, list[Branch]] = {}
        for unit, branch in branches_by_unit(graph, self._group, dict(self._model.named_parameters())):
            blocks.setdefault(unit, []).append(branch)
        return {unit: (each[0], each[-1]) for unit, each in blocks.items()}

    def finish(self) -> dict[str, Tensor]:
        sum_over_processes([self._total])
        return {self._group.name: self._total[0] / self._total[1]}


class _Ends(Interpreter):
    """Runs a graph and keeps what goes into and comes out of blocks.

    Attributes:
        found: by block what goes in, and what comes out.
    """

    def __init__(self, module: fx.GraphModule, ends: Mapping[int, tuple[Branch, Branch]]) -> None:
        super().__init__(module)
        self._first = {first.addition.name: (unit, first.shortcut.name) for unit, (first, _) in ends.items()}
        self._last = {last.addition.name: unit for unit, (_, last) in ends.items()}
        self._before: dict[int, Tensor] = {}
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def run_node(self, node: fx.Node) -> object:
        """Copies, as what comes later may be written into the same memory."""
        if node.name in self._first:
            unit, shortcut = self._first[node.name]
            source = next(each for each in node.all_input_nodes if each.name == shortcut)
            self._before[unit] = self.env[source].detach().clone()
        value = super().run_node(node)
        if node.name in self._last:
            unit = self._last[node.name]
            self.found[unit] = self._before.pop(unit), value.detach().clone()
        return value


def _influence(before: Tensor, after: Tensor, axis: int) -> Tensor:
    """1 - the cosine of the angle between two vectors along an axis, at every other position."""
    before, after = before.double(), after.double()
    same = (before == after).all(axis)
    return torch.where(same, 0.0, 1 - F.cosine_similarity(before, after, axis, eps=1e-300))
