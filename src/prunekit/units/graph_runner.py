"""Runs of any network from the first thing on that a unit changes, by its captured graph.

What does not depend on a unit is computed once for all of its variants, and many variants are run at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain as joined
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunekit.batches import arguments
from prunekit.errors import InputError, ModelError
from prunekit.graph import Coupled, unit_masks
from prunekit.graph.capture import captured_in, tensors_of
from prunekit.graph.captured_graph import Captured, op_name
from prunekit.losses import Loss, one_tensor
from prunekit.modes import evaluating
from prunekit.units.chain_derivatives import along
from prunekit.units.program import Program, Suffix, bytes_of, called, read_last, without_writes, writes_shared
from prunekit.units.runner import BUDGET_BYTES, Run, Runner

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})  # `vmap` knows none of them
_BLOCK_BYTES = 2**23  # variants of a block on a processor: more do not stay in its caches


class GraphRunner(Runner):
    """Runs a network by its captured graph.

    Args:
        coupled: the groups.
        groups: the names of those that will be asked for, if not all.
        budget_bytes: memory for activations.
    """

    def __init__(
        self, coupled: Coupled, groups: Sequence[str] | None = None, budget_bytes: int = BUDGET_BYTES
    ):
        super().__init__(coupled, groups, budget_bytes)
        self._coupled = coupled
        self._model = coupled.model
        traced = coupled.traced.graphs[0]
        self._programs: dict[object, Program] = coupled.prepared.setdefault(GraphRunner, {})
        shapes = traced.shapes
        if shapes not in self._programs:
            self._programs[shapes] = self._program(traced, *arguments(coupled.example_inputs))
        program = self._programs[shapes]
        examples = max([shape[0] for shape in program.graph.shapes if shape] or [1])
        total = sum(bytes_of(node) for node in program.nodes if node.op != "placeholder")
        self.bytes_per_example = max(1, total // examples)

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode for the network."""
        return evaluating(self._model)

    def run(self, inputs: Any, targets: Tensor, error: Loss, kept: Mapping[str, Tensor]) -> GraphRun:
        """The values of the nodes on n examples."""
        args, kwargs = arguments(inputs)
        flat = [each.shape if isinstance(each, Tensor) else None for each in joined(args, kwargs.values())]
        shapes = tuple(None if shape is None else tuple(shape) for shape in flat)
        if shapes not in self._programs:
            graph = captured_in(self._model, inputs, "eval", decided=True)
            traced = self._coupled.traced.graphs[0]
            if [node.name for node in graph.graph.nodes] != [node.name for node in traced.graph.nodes]:
                raise ModelError(
                    "the network calls other operators on these examples than on those it was traced on: "
                    "trace it on a batch of the same size"
                )
            self._programs[shapes] = self._program(graph, args, kwargs)
        program = self._programs[shapes]
        given = program.graph.flattened(args, kwargs)
        found = GraphRun(self, program, given, targets, error, kept)
        if program.graph.by_data:
            whole = GraphRun(self, program, given, targets, error, {}) if kept else found
            self._check_decided(whole.outputs, program.graph, args, kwargs)
        return found

    def _check_decided(
        self, outputs: Tensor, graph: Captured, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Refuse examples whose values lead the network another way than those it was recorded on."""
        expected = one_tensor(self._model(*args, **kwargs), "units are judged by one output").detach()
        close = torch.finfo(outputs.dtype).eps ** 0.5
        if float((outputs - expected).abs().max()) > close * float(expected.abs().max()):
            raise ModelError(
                "the network computes something else on these examples than on those it was traced on: "
                f"values of its inputs decide what, {graph.by_data[0]}"
            )

    def _program(self, graph: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Program:
        if writes_shared(graph):
            given, tensors = iter(graph.flattened(args, kwargs)), self.tensors({})
            values = [
                next(given)
                if kind == "user"
                else graph.constants[name]
                if kind == "constant"
                else tensors[graph.tensors[node.name]]
                for node, (kind, name) in graph.placeholders.items()
            ]
            graph = without_writes(graph, values)
        return Program(self._coupled, graph)

    def tensors(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters and buffers, with zeros for what goes with units that are off."""
        model = self._model
        found = {name: each.detach() for name, each in tensors_of(model).items()}
        off = {name: flags.cpu() for name, flags in kept.items() if not bool(flags.all())}
        for name, mask in unit_masks(model, self._coupled.traced.plan, off).items():
            found[name] = found[name] * mask
        return found


class GraphRun(Run):
    """The values of a graph's nodes on n examples that units' variants start from.

    Args:
        runner: of the network.
        program: the graph on n examples.
        given: the user's inputs in a row.
        targets: (n, ...).
        error: the mean over the examples.
        kept: by group (units,) booleans.
    """

    def __init__(
        self,
        runner: GraphRunner,
        program: Program,
        given: list[Any],
        targets: Tensor,
        error: Loss,
        kept: Mapping[str, Tensor],
    ):
        super().__init__(runner, targets, error, kept)
        self._runner, self._program, self._given = runner, program, given
        self._coupled = runner._coupled
        needed = set().union(
            *(program.suffix(name, masked=masked).reads for name in self.names for masked in self._ways(name))
        )
        self._done = read_last(program.varying, needed | {program.result})
        self._start()

    def _ways(self, name: str) -> tuple[bool, ...]:
        return (False, True) if self._coupled.group(name).normalised else (False,)

    def _start(self) -> None:
        tensors, user = self._runner.tensors(self.kept), iter(self._given)
        graph = self._program.graph
        self.values = dict(self._program.fixed)
        for node, (kind, _) in self._program.given.items():
            if kind != "constant":
                self.values[node] = next(user) if kind == "user" else tensors[graph.tensors[node.name]]
        for node in self._program.varying:
            if node.op != "placeholder":
                self.values[node] = called(node, self.values.__getitem__)
            for before in self._done.get(node, ()):
                del self.values[before]
        self.outputs = self.values[self._program.result]
        if not isinstance(self.outputs, Tensor):
            raise InputError("units are judged by one output, a tensor")
        self.outputs = self.outputs.detach()

    def weighted(self, name: str, units: Tensor, strength: Tensor | None = None) -> Tensor:
        """See `Run.weighted`: gains where the units are read; where statistics run over units that are off,
        the masks."""
        masked = strength is None and bool(self._coupled.group(name).normalised)
        suffix = self._program.suffix(name, masked=masked)
        strength = torch.ones_like(units) if strength is None else strength
        n = len(self.outputs)
        on_cpu = self.outputs.device.type == "cpu"
        block_bytes = min(self.budget_bytes // 2, _BLOCK_BYTES) if on_cpu else self.budget_bytes // 2
        together = max(1, block_bytes // suffix.peak)
        found = torch.zeros(len(units), dtype=torch.float64, device=units.device)

        def variant(gains: Tensor) -> Tensor:
            return suffix(self.values, [gains] * len(suffix.sites))

        for start in range(0, len(units), together):
            which = slice(start, start + together)
            gains = torch.ones(
                len(units[which]), self.sizes[name], dtype=self.outputs.dtype, device=units.device
            )
            gains.scatter_(1, units[which, None], 1 - strength[which, None].to(gains.dtype))
            with sdpa_kernel(SDPBackend.MATH):  # the faster ones run one variant after the other
                outputs = self._batched(variant)(gains).flatten(2)  # (C, n, K)
            found[which] = self.judge.changes(outputs.transpose(1, 2).contiguous(), 0, n)
        return found

    def derivatives(self, names: Sequence[str], *, second: bool) -> dict[str, tuple[Tensor, Tensor | None]]:
        """See `Run.derivatives`: one backward pass for all groups, then each unit's own."""
        n, like, judge = len(self.outputs), self.outputs, self.judge
        gains = {name: torch.ones(self.sizes[name], dtype=like.dtype, device=like.device) for name in names}
        sites = {name: self._program.suffix(name).sites for name in names}
        every = Suffix(self._program, [site for name in names for site in sites[name]])
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            leaves = {name: each.requires_grad_() for name, each in gains.items()}
            outputs = every(self.values, [leaves[name] for name in names for _ in sites[name]])
            total = judge.error(outputs, judge.targets) * n
            firsts = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        seconds = [self._second(name) if second else None for name in names]
        return {
            name: (first.double(), curved) for name, first, curved in zip(names, firsts, seconds, strict=True)
        }

    def _second(self, name: str) -> Tensor:
        """(units,) float64: d2E/dgain2 of each unit, the others at gain 1."""
        suffix, like, judge = self._program.suffix(name), self.outputs, self.judge
        at = torch.ones(self.sizes[name], dtype=like.dtype, device=like.device)

        def function(gains: Tensor) -> Tensor:
            outputs = suffix(self.values, [gains] * len(suffix.sites))
            return judge.error(outputs, judge.targets) * len(like)

        together = max(1, self.budget_bytes // (4 * suffix.total))
        own = torch.backends.mkldnn.flags(enabled=False) if self._recurrent() else nullcontext()
        pieces = torch.split(torch.diag(at), together)
        with sdpa_kernel(SDPBackend.MATH), own:  # the library's recurrent layers have no forward derivatives
            found = []
            for some in pieces:
                found.append(along(function, at, some, self._batched))
                self.judged(len(some))
        return torch.cat(found)

    def _recurrent(self) -> bool:
        return any(op_name(node) in _RECURRENT for node in self._program.varying)

    def _batched(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The function for many arguments, stacked: at once, or one after the other."""
        if not self._recurrent():
            return torch.func.vmap(function)
        return lambda rows: torch.stack([function(row) for row in rows])

    def remove(self, name: str, unit: int) -> None:
        """See `Run.remove`: the network is run again."""
        self._start()
