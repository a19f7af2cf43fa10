"""Taking residual branches out of a network, proven to compute what the masked one does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from prunekit.batches import Inputs, arguments
from prunekit.errors import InputError, ModelError, shown
from prunekit.graph.any_size import any_size
from prunekit.graph.branches import Branch, branches_of, modules_of, residual_blocks, unread_of
from prunekit.graph.cache_places import close_gaps
from prunekit.graph.capture import canonical, captured
from prunekit.graph.captured_graph import Captured, GraphModel, is_written
from prunekit.graph.copies import copy_of, masked_copy
from prunekit.graph.layer_lists import FewerLayers, fewer_layers, whole_layers
from prunekit.graph.proof import UNTOUCHED, masked_reference, proven
from prunekit.graph.reference_run import VerificationError
from prunekit.graph.shrinking import GroupSize, ShrinkResult
from prunekit.graph.surgery import Cut, own_module, put_modules
from prunekit.masks import Masks
from prunekit.models import Absent
from prunekit.models.absent import PASSED, ZERO, ZEROS, absent_for
from prunekit.modes import evaluating
from prunekit.targets import count_parameters


@torch.inference_mode(False)  # parameters made in it could not be trained
def shrink_branches(model: nn.Module, example_inputs: Inputs, masks: Masks) -> ShrinkResult:
    """Take the residual branches that masks remove whole out of a network, if that computes the same.

    Modules that work for them alone become `Absent`: the network keeps its class and the names of what is
    left. A network of the library transformers loses layers that go as a whole, where its configuration
    counts them: those behind move up, and what the library's own `save_pretrained` writes is read by
    `from_pretrained`. Layers write to their cache without gaps, and the way with it is part of the proof.
    Where the network's own code cannot go on without the modules, as where it takes heads apart by itself,
    the captured graph without the branches takes its place. Compared are outputs and gradients with those of
    the masked network, as in `shrink`.

    Args:
        model: the network, which is changed in place where its form is that of modules.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        masks: of its parameters.

    Raises:
        InputError: if no branch was removed.
        ModelError: where the network cannot be exported, or what a call leaves behind in it changes what the
            next one gives, as a cache in its modules does.
        VerificationError: if the smaller network computes something else. In every case the model is as it
            was.
    """
    model = own_module(model)
    masks.parameters(model)
    graphs = captured(model, example_inputs)
    for graph in graphs:
        if graph.by_calls:
            raise ModelError(f"blocks cannot be taken out: {graph.by_calls[0]}, which would not be proven")
    gone = {name for name, mask in masks.items() if not bool(mask.any())}
    own = dict(model.named_parameters())
    removed = [
        branch
        for block in residual_blocks(model, graphs[0], example_inputs)
        for branch in block.branches
        if all(name in gone for name in branch.tensors if name in own and own[name].dim())
    ]
    if not removed:
        raise InputError("no residual branch was removed, so there is nothing to take out")
    whole = masked_copy(model, masks)
    reference = masked_reference(whole, {}, example_inputs)
    prove = partial(proven, reference, cut=Cut({}, {}), inputs=example_inputs, training=len(graphs) > 1)
    before, result, reason = count_parameters(model), None, ""
    fewer: FewerLayers | None = None
    for edit in _edits(model, graphs[0], removed, example_inputs):
        small = copy_of(whole)
        try:
            absent = edit.absent(small)
            edit.finish(small)
            deviation = prove(small, names=edit.names(small))
        except VerificationError as error:
            if edit.fewer is None:
                reason = reason or str(error).splitlines()[0].removesuffix(UNTOUCHED)
            continue
        masks.apply(model)
        put_modules(model, absent)
        edit.finish(model)
        result, reason, fewer = model, "", edit.fewer
        break
    if result is None:
        result = graph_without(whole, graphs, removed)
        deviation = prove(result)

        def graphs_for(inputs: Inputs) -> tuple[Captured, ...]:
            return tuple(_without(graph, removed, whole) for graph in captured(model, inputs))

        result = any_size(result, model, example_inputs, graphs_for)
    names = set(dict(result.named_parameters()))
    return ShrinkResult(
        result,
        "modules" if result is model else "graph",
        tuple(GroupSize(branch.name, 1, 0) for branch in removed),
        before,
        count_parameters(result),
        deviation,
        Masks({name: mask for name, mask in _renamed(masks, fewer) if name in names}),
        reason=reason,
    )


@dataclass(frozen=True)
class _Edit:
    """How branches are taken out of a network in the form of modules.

    Attributes:
        branches: those in whose place `Absent` modules stand.
        fewer: the layers that go as a whole.
        graph: of the network, in evaluation mode.
        example_inputs: of the graph.
        form: what absent modules give.
    """

    branches: tuple[Branch, ...]
    fewer: FewerLayers | None
    graph: Captured
    example_inputs: Inputs
    form: Form

    def absent(self, model: nn.Module) -> dict[str, nn.Module]:
        """As `put_absent`, for those that do not go with their layer."""
        return (
            {}
            if not self.branches
            else put_absent(model, self.graph, self.branches, self.example_inputs, self.form)
        )

    def finish(self, model: nn.Module) -> None:
        """Where `Absent` modules are in their places, take the layers out, and let caches have no gaps."""
        if self.fewer is not None:
            self.fewer.apply(model)
        close_gaps(model)

    def names(self, small: nn.Module) -> dict[str, str]:
        """By the new name of each parameter of the smaller network, the old one where it is another."""
        own = [name for name, _ in small.named_parameters()]
        return {} if self.fewer is None else self.fewer.names_before(own)


def _edits(
    model: nn.Module, graph: Captured, removed: Sequence[Branch], example_inputs: Inputs
) -> Iterator[_Edit]:
    """The ways to take branches out, in the order in which they are tried: with layers that go as a whole."""
    gone = whole_layers(model, {name for branch in removed for name in branch.tensors})
    fewer = fewer_layers(model, gone)
    parameters = {name for name, _ in model.named_parameters()}
    for each in (None,) if fewer is None else (fewer, None):
        left = tuple(
            branch
            for branch in removed
            if each is None or any(each.name(name) for name in parameters.intersection(branch.tensors))
        )
        for form in FORMS if left else FORMS[:1]:
            yield _Edit(left, each, graph, example_inputs, form)


def _renamed(masks: Masks, fewer: FewerLayers | None) -> Iterator[tuple[str, Tensor]]:
    for name, mask in masks.items():
        after = name if fewer is None else fewer.name(name)
        if after is not None:
            yield after, mask


def without_branches(
    model: nn.Module, graphs: Sequence[Captured], removed: Sequence[Branch], example_inputs: Inputs
) -> nn.Module:
    """A copy of a network without some branches, to be counted or timed: what is left is not proven.

    Args:
        model: the network, which stays as it is.
        graphs: of it, in evaluation mode, and in training mode if it has another one there.
        removed: of the first of them.
        example_inputs: on which the copy must run; where its own code does not, its graphs do.
    """
    args, kwargs = arguments(example_inputs)
    for form in FORMS:
        copied = copy_of(model)
        try:
            put_absent(copied, graphs[0], removed, example_inputs, form)
            with evaluating(copied), torch.no_grad():
                copied(*args, **kwargs)
        except Exception:  # whatever a forward raises that takes what it is given apart
            continue
        return copied
    return graph_without(model, graphs, removed)


Form = Literal["passed", "zero", "zeros"]
FORMS: tuple[Form, ...] = ("passed", "zero", "zeros")
"""What modules give that are taken out, in the order in which it is tried.

`passed`: zeros without dimensions, and the first argument where a module adds up branches, too; `zero`: the
same, where modules that add stay; `zeros`: of the shape of the first argument, which an addition may write
into."""


def put_absent(
    model: nn.Module, graph: Captured, removed: Sequence[Branch], example_inputs: Inputs, form: Form
) -> dict[str, nn.Module]:
    """Put `Absent` in the places of the modules that work for removed branches alone: the outermost of them.

    Args:
        model: the network, which is run once and changed.
        graph: of it in evaluation mode.
        removed: some of its branches.
        example_inputs: those that it was captured with.
        form: what they give.

    Returns:
        What was put, by the full names.

    Raises:
        VerificationError: if something of the branches would be left to compute.
    """
    gone = {node for branch in removed for node in branch.nodes} | unread_of(graph)
    sums = {branch.addition for branch in removed} if form == "passed" else set()
    working, adding, other = set[str](), set[str](), set[str]()
    for node in graph.graph.nodes:
        kind = working if node in gone else adding if node in sums else other
        kind.update(modules_of(node) if node.op == "call_function" else ())
    results = _results_of(model, (working | adding) - other, example_inputs)
    made: dict[str, Absent] = {}
    for name in sorted(results):  # a module comes before those in it
        if any(name.startswith(f"{outer}.") for outer in made):
            continue
        code = ZEROS if form == "zeros" else PASSED if name in adding else ZERO
        found = [absent_for(*each, code) for each in results[name]]
        if found[0] is not None and len({str(each) for each in found}) == 1:
            made[name] = found[0]
    _check_gone(model, removed, made.keys(), products=form == "zeros")
    first = {id(model.get_submodule(name)): absent for name, absent in made.items()}
    every = list(model.named_modules(remove_duplicate=False))
    placed: dict[str, nn.Module] = {name: first[id(module)] for name, module in every if id(module) in first}
    put_modules(model, placed)
    return placed


def _check_gone(
    model: nn.Module, removed: Sequence[Branch], made: AbstractSet[str], *, products: bool
) -> None:
    """Refuse, with a `VerificationError`, to leave a matrix of a branch, or, if asked for, a product."""
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    for branch in removed:
        for name in matrices.intersection(branch.tensors):
            if not any(name.startswith(f"{outer}.") for outer in made):
                raise VerificationError(f"{name} is no module's that works for {branch.name} alone")
        for node in branch.nodes if products else ():
            of_branch = set(node.all_input_nodes) & {branch.shortcut, *branch.nodes}
            if made.isdisjoint(modules_of(node)) and len(of_branch) > 1:
                raise VerificationError(f"{node.name} of {branch.name} is computed outside of its modules")


def _results_of(
    model: nn.Module, names: Collection[str], example_inputs: Inputs
) -> dict[str, list[tuple[Any, Any]]]:
    """By module the first argument and the results of each of its calls."""
    found: dict[str, list[tuple[Any, Any]]] = {}

    def note(name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], given: Any) -> None:
        found.setdefault(name, []).append((args[0] if args else next(iter(kwargs.values()), None), given))

    handles = [
        model.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True)
        for name in names
    ]
    args, kwargs = arguments(example_inputs)
    try:
        with evaluating(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def graph_without(model: nn.Module, graphs: Sequence[Captured], removed: Sequence[Branch]) -> GraphModel:
    """The graphs of a network without some branches, and a copy of the parameters that are left.

    Raises:
        ModelError: where a graph of training mode has no such branches.
    """
    copied = copy_of(model)
    gone = {name for branch in removed for name in branch.tensors}
    left = tuple(_without(graph, removed, copied) for graph in graphs)
    for name, first in canonical(copied).items():
        if first in gone:
            place, _, short = name.rpartition(".")
            owner = copied.get_submodule(place)
            (owner._parameters if short in owner._parameters else owner._buffers).pop(short)
    return GraphModel(copied, left)


def _without(graph: Captured, removed: Sequence[Branch], model: nn.Module) -> Captured:
    """A copy of a graph in which the additions of branches give their other operand."""
    wanted = {branch.tensors for branch in removed}
    parameters = dict(model.named_parameters())
    copied = replace(graph, graph=copy.deepcopy(graph.graph))
    by_parameters = {
        tuple(name for name in branch.tensors if name in parameters): branch
        for branch in branches_of(copied, parameters)
    }
    erased: dict[fx.Node, None] = {}
    instead: dict[fx.Node, fx.Node] = {}
    for tensors in wanted:
        branch = by_parameters.get(tuple(name for name in tensors if name in parameters))
        if branch is None:
            raise ModelError(f"the branch of {tensors[0]} is no branch in training mode")
        erased |= dict.fromkeys((*branch.nodes, branch.addition))
        passed = instead.get(branch.shortcut, branch.shortcut)  # the sum of another branch may be gone
        if any(is_written(user) and user.args[0] is branch.addition for user in branch.addition.users):
            with copied.graph.inserting_after(branch.addition):
                passed = copied.graph.call_function(torch.ops.aten.clone.default, (branch.shortcut,))
                passed.meta = dict(branch.addition.meta)
        branch.addition.replace_all_uses_with(passed)
        instead = {each: passed if value is branch.addition else value for each, value in instead.items()}
        instead[branch.addition] = passed
    for node in copied.graph.nodes:  # what nothing reads, but reads them
        if (
            node not in erased
            and any(each in erased for each in node.all_input_nodes)
            and node.op != "output"
        ):
            erased[node] = None
    kept = [node not in erased for node in copied.placeholders]
    (output,) = copied.graph.find_nodes(op="output")
    stays = [not (isinstance(each, fx.Node) and each in erased) for each in output.args[0]]
    output.args = (tuple(each for each, stay in zip(output.args[0], stays, strict=True) if stay),)
    inputs = tuple(each for each, stay in zip(graph.inputs, kept, strict=True) if stay)
    constants = {name for kind, name in inputs if kind == "constant"}
    for node in reversed([node for node in copied.graph.nodes if node in erased]):
        copied.graph.erase_node(node)
    return replace(
        graph,
        graph=copied.graph,
        inputs=inputs,
        outputs=tuple(each for each, stay in zip(graph.outputs, stays, strict=True) if stay),
        constants={name: value for name, value in graph.constants.items() if name in constants},
    )


def replace_with_absent(model: nn.Module, absent: Mapping[str, Tensor]) -> Callable[[], None]:
    """Put `Absent` in the places of modules, as a network was saved.

    Args:
        model: the network, which is changed.
        absent: by the full name of the module what is given in its place.

    Returns:
        What makes the network as it was.

    Raises:
        ModelError: naming a module that is not there, or is within another one; the network is as it was.
    """
    every = dict(model.named_modules(remove_duplicate=False))
    for name in absent:
        outer = [name[:place] for place, each in enumerate(name) if each == "."]
        if not name or name not in every or any(each in absent for each in outer):
            raise ModelError(f"the model has no module {shown(name)} that could be absent")
    back = put_modules(model, {name: Absent(value) for name, value in absent.items()})
    places = close_gaps(model)

    def undo() -> None:
        places()
        back()

    return undo
