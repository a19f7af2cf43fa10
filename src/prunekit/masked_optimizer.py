"""Removed weights that stay zero while optimizers, of any kind and number, train the rest."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from prunekit.distributed import local_part
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.targets import check_whole, is_shared_out, unwrap

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Held:
    """A weight and its gradient, both zero where the mask removes, whatever stood there.

    The bits of what is removed are cleared by a logical and: as fast as a multiplication, and NaN and
    infinite values become zero as well. Only a weak reference to this object stands in the gradient's hook.
    """

    def __init__(self, weight: nn.Parameter, mask: Tensor, gradients: bool, owner: MaskedOptimizer) -> None:
        self.weight, self.mask, self._gradients = weight, mask, gradients
        self._owner = weakref.ref(owner)
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

    @property
    def trained(self) -> bool:
        """Whether there still is an optimizer that moves the weight."""
        owner = self._owner()
        return owner is not None and bool(owner.optimizers)

    def release(self) -> None:
        """Let the gradient be."""
        if self._handle is not None:
            self._handle.remove()

    def _watch(self) -> None:
        if self._handle is not None or not (self._gradients and self.weight.requires_grad):
            return
        self._handle = self.weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
            _ZeroGradient(weakref.ref(self))
        )

    def _look(self) -> None:
        """See where the values are: the model may have been moved to another device or precision."""
        values = local_part(self.weight)
        if values.data_ptr() == self._address:
            return
        self._values, self._address = values, values.data_ptr()
        self._integers = values.view(_INTEGERS[values.element_size()])
        # all bits of a value, or none
        self._bits = local_part(self.mask).to(values.device, self._integers.dtype).neg_()


@dataclass(frozen=True)
class _ZeroGradient:
    """The hook of a weight's gradient."""

    held: weakref.ref[_Held]

    def __call__(self, weight: Tensor) -> None:
        held = self.held()
        if held is not None:
            held.zero_gradient()


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
        self._held = [_Held(parameter, mask, self._gradients, self) for parameter, mask in pairs]

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


def check_detached(model: nn.Module) -> None:
    """Refuse a network of which optimizers train weights that are held at zero: they would go on with these
    weights when others are in their place.

    Not noticed is a `MaskedOptimizer` that leaves gradients alone.

    Raises:
        InputError: naming such a weight.
    """
    name = _held_at_zero(model)
    if name is not None:
        gc.collect()  # an optimizer that nobody has any more may be in a circle, with its learning rates
        name = _held_at_zero(model)
    if name is not None:
        raise InputError(
            f"{name} is held at zero in a training that is under way: detach() the session, or remove() the "
            "MaskedOptimizer, before units are taken out, and make a new optimizer afterwards"
        )


def _held_at_zero(model: nn.Module) -> str | None:
    """The first parameter of a network that a living optimizer's masks act on."""
    for name, parameter in model.named_parameters():
        hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
        held = [hook.held() for hook in hooks.values() if isinstance(hook, _ZeroGradient)]
        if any(each is not None and each.trained for each in held):
            return name
    return None


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
