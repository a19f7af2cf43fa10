"""Masks: which weights are kept by parameter name, how the lowest are chosen, and zeros that stay zero."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.distributed import local_part
from prunekit.errors import InputError, starved
from prunekit.targets import check_whole, is_shared_out, unwrap


def lowest(values: Tensor, count: int) -> Tensor:
    """A boolean tensor of the shape of `values` that marks exactly `count` of the lowest of them.

    Among equal values the one with the lower position (in row-major order) goes first, so the choice is the
    same on every machine. The threshold is found in linear time and without the size limit of
    `torch.quantile`.

    Args:
        values: any shape; minus infinity is allowed, NaN is not.
        count: 0 <= count <= values.numel().
    """
    flat = values.flatten()
    if not 0 <= count <= flat.numel():
        raise ValueError(f"cannot choose {count} of {flat.numel()} values")
    if count == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    threshold = _kth_lowest(flat, count)
    chosen = flat < threshold
    ties = (flat == threshold).nonzero().flatten()
    chosen[ties[: count - int(chosen.count_nonzero())]] = True
    return chosen.view(values.shape)


def _kth_lowest(flat: Tensor, count: int) -> Tensor:
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        # a partition without the positions, which `kthvalue` carries along: three times as fast
        return flat.new_tensor(np.partition(flat.detach().numpy(), count - 1)[count - 1])
    return flat.kthvalue(count).values


def stable_order(values: Tensor) -> Tensor:
    """(rows, n) int64: the places of the values (rows, n) of each row from the lowest, ties by position."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return values.argsort(dim=1, stable=True)
    # NumPy's sort that is not stable is three times as fast, and of different values it gives the same
    order = torch.from_numpy(np.argsort(values.detach().numpy(), axis=1))
    ordered = values.gather(1, order)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(1).nonzero().flatten()
    if len(tied):
        order[tied] = values[tied].argsort(dim=1, stable=True)
    return order


def lowest_per_row(values: Tensor, count: int) -> Tensor:
    """For a matrix, marks exactly `count` of the lowest values of every row, ties by position."""
    order = stable_order(values)[:, :count]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(1, order, True)


class Masks(Mapping[str, Tensor]):
    """One boolean tensor per pruned parameter, keyed by the parameter's full name; True = kept.

    The mapping is not changed after it is made: a step of a schedule makes new masks.

    Raises:
        InputError: if a mask is not a boolean tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        for name, mask in masks.items():
            if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
                raise InputError(f"the mask of {name} must be a boolean tensor (True = kept)")
        self._masks = dict(masks)
        self._counts: dict[str, tuple[int, int]] = {}  # by name (version of the tensor, weights kept)

    @classmethod
    def ones(cls, model: nn.Module, names: list[str] | tuple[str, ...]) -> Masks:
        """Masks that keep everything, on the devices of the parameters."""
        return cls({name: torch.ones_like(_parameter(model, name), dtype=torch.bool) for name in names})

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Masks):
            return NotImplemented
        return set(self) == set(other) and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} layers, {self.kept:,} of {self.total:,} kept)"

    @property
    def total(self) -> int:
        """The number of weights that can be pruned."""
        return sum(mask.numel() for mask in self._masks.values())

    @property
    def kept(self) -> int:
        """The number of weights that are kept."""
        return sum(map(self.count, self))

    def count(self, name: str) -> int:
        """The number of weights of a parameter that are kept; counted once, unless the mask is written to."""
        mask = self._masks[name]
        version = -1 if mask.is_inference() else mask._version
        known, count = self._counts.get(name, (-1, 0))
        if known == -1 or known != version:
            # of DTensors each process counts its part, and all of them have to ask
            count = _count_shards(name, mask) if is_shared_out(mask) else int(mask.count_nonzero())
            self._counts[name] = version, count
        return count

    @property
    def sparsity(self) -> float:
        """The fraction removed of the original count, in [0, 1]."""
        return 1 - self.kept / self.total if self.total else 0.0

    @property
    def compression_ratio(self) -> float:
        """Original over remaining count; infinite when nothing is left."""
        kept = self.kept
        return self.total / kept if kept else float("inf")

    def starved(self, counts: str) -> tuple[str, ...]:
        """What is to be said of each layer of which almost nothing is left, while the network keeps more.

        Args:
            counts: what is flagged, such as "weights".
        """
        share = 1 - self.sparsity
        return tuple(
            f"{self.count(name):,} of {mask.numel():,} {counts} of {name} are left, and {share:.0%} of the "
            "whole network: take the allocation 'per_layer' or a higher floor, or name the layer in `ignore`"
            for name, mask in self.items()
            if starved(mask.shape, self.count(name), share)
        )

    def replace(self, changed: Mapping[str, Tensor]) -> Masks:
        """New masks in which some layers are exchanged."""
        masks = Masks({**self._masks, **changed})
        masks._counts = {name: each for name, each in self._counts.items() if name not in changed}
        return masks

    @torch.no_grad()
    def apply(self, model: nn.Module, *, unless_in: Masks | None = None) -> None:
        """Set every removed weight of the model to exactly zero, in place.

        Args:
            model: the network, also in wrappers, or a copy of it, such as an average of its weights.
            unless_in: masks that have acted already: what has the same tensor in them is left as it is.

        Raises:
            InputError: if a parameter is missing or has another shape than its mask; nothing is changed then.
        """
        acted = {id(mask) for mask in unless_in.values()} if unless_in is not None else set()
        for parameter, mask in self.parameters(model):
            if id(mask) not in acted:
                parameter.masked_fill_(~mask.to(parameter.device), 0)

    def parameters(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """The model's parameters beside their masks.

        Raises:
            InputError: as `apply`.
        """
        network = self.network(model)
        return [(self._parameter(network, name), mask) for name, mask in self.items()]

    def network(self, model: nn.Module) -> nn.Module:
        """The module in a model's wrappers (data parallel, compiled, averaged) whose names the masks have.

        It is what is inside all that are known, if none has them.
        """
        if not isinstance(model, nn.Module):
            raise InputError(
                f"masks act on a torch.nn.Module, not on {type(model).__name__}: "
                "copy its values into the network first"
            )
        found: nn.Module | None = model
        while found is not None:
            if all(_has_parameter(found, name) for name in self):
                return found
            found = unwrap(found) if unwrap(found) is not found else _only_child(found)
        return unwrap(model)

    def _parameter(self, network: nn.Module, name: str) -> nn.Parameter:
        try:
            parameter = network.get_parameter(name)
        except AttributeError:
            raise InputError(
                f"the model ({type(network).__name__}) has no parameter {name!r} that the masks name: "
                "give the network that was pruned, or a copy or an average of it"
            ) from None
        if parameter.shape != self[name].shape:
            raise InputError(
                f"{name} has shape {tuple(parameter.shape)}, its mask {tuple(self[name].shape)}: "
                "the masks belong to another model, or the network was shrunk: a session that is attached to "
                "an optimizer ends with detach() before shrink()"
            )
        return parameter

    def state_dict(self) -> dict[str, Any]:
        """The masks as plain tensors, for a checkpoint."""
        return dict(self._masks)


def _count_shards(name: str, mask: Tensor) -> int:
    from prunekit.distributed.sharded_ranking import count_true

    return count_true({name: mask})[name]


def _parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter of this name, also of a network in wrappers, under which it has another one."""
    return (model if _has_parameter(model, name) else unwrap(model)).get_parameter(name)


def _has_parameter(module: nn.Module, name: str) -> bool:
    try:
        module.get_parameter(name)
    except AttributeError:
        return False
    return True


def _only_child(module: nn.Module) -> nn.Module | None:
    """The module inside that has all parameters of this one, as in a wrapper; None if there is none."""
    own = [*module.parameters(recurse=False)]
    children = [child for child in module.children() if next(child.parameters(), None) is not None]
    return children[0] if len(children) == 1 and not own else None


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Held:
    """A weight and its gradient, both zero where the mask removes, whatever stood there.

    The bits of what is removed are cleared by a logical and: as fast as a multiplication, and NaN and
    infinite values become zero as well. Only a weak reference to this object stands in the gradient's hook.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor, gradients: bool) -> None:
        self.weight, self.mask, self._gradients = weight, mask, gradients
        self._address = self._gradient_version = -1
        self._handle: RemovableHandle | None = None
        self._watch()
        self.zero()

    def zero(self) -> None:
        """Clear what is removed of the weight."""
        self._look()
        self._integers.bitwise_and_(self._bits)
        self._version = self._values._version

    def zero_gradient(self) -> None:
        """Clear what is removed of the gradient."""
        gradient = self.weight.grad
        if gradient is None:
            return
        if gradient.is_sparse:
            kept = self.mask.to(gradient.device)[tuple(gradient._indices())]
            gradient._values().masked_fill_(~kept, 0)
        else:
            self._look()
            local_part(gradient).view(self._bits.dtype).bitwise_and_(self._bits)
        self._gradient_version = local_part(gradient)._version

    def settle(self) -> None:
        """Clear both where something has moved them since, which their versions tell in no time."""
        if local_part(self.weight)._version != self._version:
            self.zero()
        if self._gradients and self.weight.requires_grad:
            gradient = self.weight.grad
            if gradient is not None and local_part(gradient)._version != self._gradient_version:
                self.zero_gradient()
            self._watch()

    def release(self) -> None:
        """Let the gradient be."""
        if self._handle is not None:
            self._handle.remove()

    def _watch(self) -> None:
        if self._handle is not None or not (self._gradients and self.weight.requires_grad):
            return
        reference = weakref.ref(self)

        def hook(weight: Tensor) -> None:
            held = reference()
            if held is not None:
                held.zero_gradient()

        self._handle = self.weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def _look(self) -> None:
        """See where the values are: the model may have been moved to another device or precision."""
        values = local_part(self.weight)
        if values.data_ptr() == self._address:
            return
        self._values, self._address = values, values.data_ptr()
        self._integers = values.view(_INTEGERS[values.element_size()])
        # all bits of a value, or none
        self._bits = local_part(self.mask).to(values.device, self._integers.dtype).neg_()


class MaskedOptimizer:
    """Removed weights held at zero, with their gradients, while optimizers train a network.

    Momentum, weight decay and preconditioners can move a removed weight whatever its gradient is, so the
    masks act after every step. Norms, clipping, closures and optimizers that move weights along their
    gradients look at these first, so they act on gradients as soon as these are there. Before a step they act
    on what something else has moved, and find by their names parameters that were replaced. The moments of
    removed weights are cleared when the masks change. The model's modules are not touched: its state_dict
    keys, `copy.deepcopy`, `torch.compile` and DDP work as before.

    Args:
        model: the network.
        optimizers: of its training: one or several, also wrapped, or around others.
        masks: that act from now on.
        before: called before each step of the training.
        after: called after each step of the training, once the masks have acted; where there are several
            optimizers, after the steps of the last one.
        resume: whether the optimizers' moments belong to these masks already.
        gradients: whether the masks act on gradients, too. An optimizer that moves every weight by its own
            gradient alone does without, where nothing else looks at them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Any,
        masks: Masks,
        *,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
        resume: bool = False,
        gradients: bool = True,
    ) -> None:
        self._model, self._before, self._after = model, before, after
        self._gradients = gradients
        each = [hooked(optimizer) for optimizer in several(optimizers)]
        # an optimizer's hooks hold this object, not the other way round: it ends with its optimizers
        self._optimizers = [[weakref.ref(optimizer) for optimizer in found] for found in each]
        self._counted = {id(optimizer) for optimizer in each[-1]}
        self._stepping: int | None = None
        self._due = True
        self._held: list[_Held] = []
        (self.resume if resume else self.update)(masks)
        self._handles: list[RemovableHandle] = []
        for optimizer in self.optimizers:
            self._handles.append(optimizer.register_step_pre_hook(self._before_step))
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that are acted on; none once they are gone."""
        return _unique(chain(*self.groups))

    @property
    def groups(self) -> list[list[Optimizer]]:
        """The same by the ones that were given, each with those inside it."""
        return [[held for each in group if (held := each()) is not None] for group in self._optimizers]

    def update(self, masks: Masks) -> None:
        """Take new masks: zero what they remove, and clear its moments and those of what comes back."""
        before = {id(held.weight): held.mask for held in self._held}
        self.resume(masks)
        self._clear_moments(before)

    def resume(self, masks: Masks) -> None:
        """Take the masks of a checkpoint: the moments that belong to them are the optimizer's to load."""
        pairs = masks.parameters(self._model)
        check_whole(self._model, sharded=all(map(is_shared_out, masks.values())))
        for held in self._held:
            held.release()
        self._masks = masks
        self._path = _path(masks.network(self._model), masks)
        self._held = [_Held(parameter, mask, self._gradients) for parameter, mask in pairs]

    def forget(self) -> None:
        """Drop the moments, which are of other values than the network has now.

        Where several sessions prune a network, the masks of all act on these values at once.
        """
        for optimizer in self.optimizers:
            optimizer.state.clear()
            for masked in self.on(optimizer):
                for held in masked._held:
                    held.settle()

    def remove(self) -> None:
        """Stop acting on optimizers and gradients."""
        for each in self._handles:
            each.remove()
        for held in self._held:
            held.release()
        self._optimizers = []

    @staticmethod
    def on(optimizer: Optimizer) -> list[MaskedOptimizer]:
        """Those that act on an optimizer now; its hooks are where they are written down."""
        hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
        owners = (getattr(hook, "__self__", None) for hook in hooks)
        return [owner for owner in owners if isinstance(owner, MaskedOptimizer)]

    @staticmethod
    def put_last(optimizer: Optimizer) -> None:
        """Let those that act on an optimizer act after all else that does so after a step."""
        hooks = optimizer._optimizer_step_post_hooks
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), MaskedOptimizer):
                hooks[key] = hooks.pop(key)

    def shares(self, model: nn.Module, masks: Masks | None = None) -> str | None:
        """The first parameter of a network, or of those that masks of it are for, that is masked here."""
        own = {id(held.weight) for held in self._held}
        if masks is None:
            named = [*unwrap(model).named_parameters()]
        else:
            named = [(name, each) for name, (each, _) in zip(masks, masks.parameters(model), strict=True)]
        return next((name for name, parameter in named if id(parameter) in own), None)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if any(place.get(key) is not value for place, key, value in self._path):
            _check_trained(self._model, self.optimizers, self._masks)
            self.resume(self._masks)
        for held in self._held:
            held.settle()
        if self._stepping is None:
            self._stepping = id(optimizer)
            if self._before is not None and self._due and not skips(optimizer):
                self._due = False
                unscale(optimizer)
                self._before()

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # once per step of the training, so it does no more than it must
        for held in self._held:
            held.zero()
        if self._stepping != id(optimizer):
            return  # inside the step of another one
        self._stepping = None
        if id(optimizer) in self._counted and not skips(optimizer):
            self._due = True
            if self._after is not None:
                self._after()

    @torch.no_grad()
    def _clear_moments(self, before: Mapping[int, Tensor]) -> None:
        kept = {id(held.weight): held.mask for held in self._held}
        kept = {key: mask & before.get(key, mask).to(mask.device) for key, mask in kept.items()}
        removed = {key: ~mask for key, mask in kept.items() if not bool(local_part(mask).all())}
        if not removed:
            return
        for optimizer in self.optimizers:
            for weight, state in list(optimizer.state.items()):
                gone = removed.get(id(weight))
                values = [value for value in state.values() if isinstance(value, Tensor)]
                # what is there of all weights together, or in codes, is cleared as a whole
                together = any(isinstance(value, list | tuple) for value in state.values())
                if together or (gone is not None and any(map(_coded, values))):
                    del optimizer.state[weight]
                elif gone is not None:
                    for value in values:
                        if value.shape == gone.shape:
                            value.masked_fill_(gone.to(value.device), 0)


def _coded(value: Tensor) -> bool:
    """Whether the values are not the numbers that are there, as in states of 8 bits."""
    value = local_part(value)
    plain = type(value) in (Tensor, nn.Parameter) and value.is_floating_point() and value.element_size() > 1
    return value.numel() > 1 and not plain


def skips(optimizer: Optimizer) -> bool:
    """Whether a `GradScaler` has found infinite gradients and lets a fused optimizer do nothing."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


@torch.no_grad()
def unscale(optimizer: Optimizer) -> None:
    """Let the gradients be those of the loss, where a `GradScaler` has left that to a fused optimizer."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for parameter in chain(*(group["params"] for group in optimizer.param_groups)):
        if parameter.grad is not None:
            parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def _path(network: nn.Module, names: Iterable[str]) -> list[tuple[Mapping[str, Any], str, Any]]:
    """All that leads to the parameters of these names: where it is kept, under which key, and what it is."""
    found: dict[tuple[int, str], tuple[Mapping[str, Any], str, Any]] = {}
    for name in names:
        *places, short = name.split(".")
        module = network
        for place in places:
            inner = getattr(module, place)
            found[id(module), place] = (module._modules, place, inner)
            module = inner
        found[id(module), short] = (module._parameters, short, getattr(module, short))
    return list(found.values())


def _unique(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    return list({id(optimizer): optimizer for optimizer in optimizers}.values())


def several(optimizers: Any) -> list[Any]:
    """One optimizer, or those of a sequence, as a list."""
    return list(optimizers) if isinstance(optimizers, Sequence) else [optimizers]


def hooked(optimizer: Any) -> list[Optimizer]:
    """Those that take hooks of an optimizer and all inside it: what wrappers wrap, and the base of SAM."""
    found, todo = [], several(optimizer)
    seen: set[int] = set()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        held = getattr(each, "__dict__", {})
        if isinstance(each, Optimizer) and "_optimizer_step_post_hooks" in held:
            found.append(each)
        lists = [value if isinstance(value, list | tuple) else [value] for value in held.values()]
        todo += [value for value in chain(*lists) if isinstance(value, Optimizer)]
    return found


def check_attachable(model: nn.Module, optimizers: Any, masks: Masks) -> None:
    """Refuse optimizers that do not train the pruned weights, or have masks of them already.

    Args:
        model: the network.
        optimizers: one, or a sequence of them.
        masks: of its weights.

    Raises:
        InputError: naming the first weight that is not theirs, or has masks.
    """
    given = several(optimizers)
    if not given:
        raise InputError("no optimizer is given: at least one is needed")
    for optimizer in given:
        known = isinstance(optimizer, Optimizer) or hasattr(optimizer, "param_groups")
        if not known or not hooked(optimizer):
            raise InputError(f"the optimizer must be a torch.optim.Optimizer, not {type(optimizer).__name__}")
    found = _unique(chain(*map(hooked, given)))
    for optimizer in found:
        for other in MaskedOptimizer.on(optimizer):
            shared = other.shares(model, masks)
            if shared is not None:
                raise InputError(
                    f"the optimizer ({type(optimizer).__name__}) carries the masks of another session "
                    f"already, of {shared}: detach() that session first, or prune other weights"
                )
    _check_trained(model, found, masks)


def _check_trained(model: nn.Module, optimizers: Sequence[Optimizer], masks: Masks) -> None:
    said = f"the optimizer ({', '.join(type(each).__name__ for each in optimizers)})"
    groups = chain(*(optimizer.param_groups for optimizer in optimizers))
    own = {id(parameter) for group in groups for parameter in group["params"]}
    pairs = zip(masks, (parameter for parameter, _ in masks.parameters(model)), strict=True)
    strange = [(name, parameter) for name, parameter in pairs if id(parameter) not in own]
    trainable = [name for name, parameter in strange if parameter.requires_grad]
    if trainable:
        raise InputError(
            f"{said} does not train {trainable[0]}, which the recipe prunes: give it the parameters of this "
            "network, give all optimizers, or freeze the weight or leave it out by 'ignore'"
        )
    if strange and not any(id(parameter) in own for parameter in model.parameters()):
        raise InputError(f"{said} trains no parameter of this network, such as {strange[0][0]}")
