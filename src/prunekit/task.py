"""A task: how a network is fed a batch of any kind, what its loss is, and what the loss is the mean of."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss
from torch.utils import _pytree as pytree

from prunekit.batches import TARGETS, Batch, Inputs, arguments, feed, read_batch
from prunekit.encoder_decoder import with_decoder_inputs
from prunekit.errors import DataError, InputError, shown
from prunekit.losses import (
    LOSSES,
    NO_GRADIENT,
    NOTHING,
    class_axis,
    default_loss,
    misfit,
    one_tensor,
    out_of_range,
)
from prunekit.targets import unwrap

__all__ = ["Task"]

LossFunction = Callable[[Any, Any], Any]
"""(outputs as the network gives them, targets) -> the mean over a batch: a scalar, or a mapping of them."""

PADDING = ("src_key_padding_mask", "key_padding_mask", "padding_mask")
"""The arguments by which torch's layers are told of padded positions: True for those that are padded."""


class Task:
    """How a network is fed a batch, what its loss is, and how many terms the loss is the mean of.

    Everything that sees data goes through it: statistics, scores, repairs, retraining, stops. For tensors,
    tuples, mappings and the outputs of transformers' models nothing has to be said; for other batches a
    subclass overrides one method, as

        class Segmentation(prunekit.Task):
            def read(self, batch, model):
                return prunekit.Batch(batch.image, batch.mask)

    Args:
        loss: what is minimised and scored by: a name in `prunekit.losses.LOSSES`, a loss of `torch.nn`, or
            any function (outputs, targets) -> the mean over a batch; a mapping of losses counts as their sum.
            By default the network's own loss where it gives one, else cross-entropy for class numbers and
            the squared error for real values.
        metrics: what the network is measured by besides, by names: functions (outputs, targets) -> the mean
            over a batch; one that is called `accuracy` stands in for the usual one. By default those of the
            class, which a subclass may have as its attribute. See `prunekit.measure.metrics`.

    Raises:
        InputError: if the loss is neither a name nor callable, or a metric is not, or is called `loss`.
    """

    own_loss: str | LossFunction | None = None  # of subclasses whose __init__ does not call this one
    metrics: Mapping[str, LossFunction] = MappingProxyType({})

    def __init__(
        self, loss: str | LossFunction | None = None, metrics: Mapping[str, LossFunction] | None = None
    ) -> None:
        if isinstance(loss, str) and loss not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)} or a function, not {shown(loss)}")
        if isinstance(loss, type):
            raise InputError(f"loss is the class {loss.__name__}: give one of it, {loss.__name__}()")
        if not (loss is None or isinstance(loss, str) or callable(loss)):
            raise InputError(f"loss must be a function (outputs, targets) -> a scalar, not {shown(loss)}")
        metrics = self.metrics if metrics is None else metrics
        if not isinstance(metrics, Mapping):
            raise InputError(
                f"metrics must be functions by their names, as {{'f1': f1}}, not {shown(metrics)}"
            )
        if "loss" in metrics:
            raise InputError("metrics: 'loss' is what the task's own loss is called: give it another name")
        for name, metric in metrics.items():
            if not callable(metric):
                raise InputError(
                    f"metrics: {name} must be a function (outputs, targets), not {shown(metric)}"
                )
        self.own_loss = loss
        self.metrics = dict(metrics)

    def read(self, batch: Any, model: nn.Module) -> Batch:
        """A batch as a loader yields it, taken apart: see `read_batch`.

        The targets of a causal language model that works out its own loss are each position's next token, as
        that loss has it: labels [5, 3, 8] become [3, 8, -100]. A decoder behind an encoder is given what it
        reads where a batch has labels alone (see `prunekit.encoder_decoder`).

        Raises:
            DataError: for a kind of batch that it does not know.
        """
        names = _arguments_of(model)
        needed = [each for each in names.values() if each.default is each.empty and each.kind in _POSITIONAL]
        found = with_decoder_inputs(model, read_batch(batch, names.__contains__, len(needed)))
        if (
            self.own_loss is None
            and found.fed
            and _predicts_next(model)
            and isinstance(found.targets, Tensor)
            and found.targets.dim() > 1
        ):
            return replace(found, targets=F.pad(found.targets[..., 1:], (0, 1), value=NOTHING))
        return found

    def unknown_argument(self, model: nn.Module, inputs: Inputs) -> str | None:
        """What is to be said of the first of named inputs that the network has no argument for, if any."""
        if not isinstance(inputs, Mapping):
            return None
        names = _arguments_of(model)
        if any(each.kind is each.VAR_KEYWORD for each in names.values()):
            return None
        unknown = next((name for name in inputs if name not in names), None)
        return unknown and (
            f"it has no argument {unknown!r}: leave that out of the batches, or give a prunekit.Task whose "
            f"read() does; its arguments are {', '.join(names)}, targets are called {', '.join(TARGETS)}"
        )

    def run(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs of the network, its own loss among them where it works one out from targets."""
        if not batch.fed or self.own_loss is not None:
            return feed(model, batch.inputs)
        args, kwargs = arguments(batch.inputs)
        return model(*args, **kwargs, **batch.fed)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The mean loss of a batch: a scalar.

        Raises:
            InputError: if no loss can be taken of these outputs and targets, or it has no gradient where the
                outputs have one.
        """
        given = self.own_loss
        if given is None:
            own = _own_loss(outputs)
            if own is not None:
                return own
            if not isinstance(targets, Tensor):
                raise InputError(
                    f"no loss is known for targets that are {_kind(targets)}: give loss=, a function "
                    "(outputs, targets) -> a scalar"
                )
            given = default_loss(targets)
        if isinstance(given, str):
            return LOSSES[given](self.tensor(outputs, "the loss"), targets)
        if isinstance(given, _Loss):
            outputs = self.tensor(outputs, "the loss")
            if isinstance(given, _OF_NUMBERS) and isinstance(targets, Tensor):
                targets = targets.to(outputs.dtype)  # yes and no as whole numbers or booleans
                if targets.shape != outputs.shape:  # torch pairs (n, 1) with all of (n,), and warns
                    raise InputError(str(misfit("squared_error", outputs, targets)))
        elif given in _FUNCTIONS_OF_NUMBERS and getattr(targets, "shape", 0) != getattr(outputs, "shape", 0):
            raise InputError(str(misfit("squared_error", outputs, targets)))
        value = given(outputs, targets)
        if isinstance(value, Mapping):
            return torch.stack([torch.as_tensor(each) for each in value.values()]).sum()
        differentiable = isinstance(outputs, Tensor) and outputs.requires_grad and torch.is_grad_enabled()
        if differentiable and isinstance(value, Tensor) and not value.requires_grad:
            raise InputError(NO_GRADIENT)
        return cast(Tensor, value)

    def loss_name(self, targets: Any) -> str:
        """What the loss is called, for targets of this kind."""
        if self.own_loss is None:
            return default_loss(targets) if isinstance(targets, Tensor) else "the network's own"
        return self.own_loss if isinstance(self.own_loss, str) else _named(self.own_loss)

    def out_of_range(self, outputs: Any, targets: Any) -> str | None:
        """Which class number none of the outputs stands for, where that is known; None if all have one."""
        given = self.own_loss
        logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
        if not (isinstance(targets, Tensor) and isinstance(logits, Tensor)) or logits.dim() < 2:
            return None
        if given is None and _own_loss(outputs) is not None:
            return None
        if isinstance(given, nn.CrossEntropyLoss | nn.NLLLoss):
            targets = self.marked(targets)
            given = "cross_entropy"
        elif not (given is None or isinstance(given, str)):
            return None
        name = given or default_loss(targets)
        axis = 1 if name == "squared_error" else class_axis(logits, targets[: len(logits)])
        return out_of_range(name, targets, logits.shape[axis])

    def marked(self, targets: Any) -> Any:
        """The targets, with -100 for the class number that a loss of `torch.nn` ignores in its place."""
        ignored = getattr(self.own_loss, "ignore_index", NOTHING)
        if ignored == NOTHING or not isinstance(targets, Tensor) or targets.is_floating_point():
            return targets
        return targets.masked_fill(targets == ignored, NOTHING)

    def terms(self, outputs: Any, targets: Any) -> float:
        """How many terms the mean loss of a batch was taken over, by which batches are weighted.

        The class numbers that are not ignored, by their classes' weights if there are any; all numbers for a
        loss of `torch.nn` that is a mean over numbers; examples for the squared error, and for a function of
        the user's.
        """
        given = self.own_loss
        if not isinstance(targets, Tensor):
            return float(_examples(outputs, targets))
        if isinstance(given, _Loss):
            return _terms_of(given, targets)
        name = given or default_loss(targets)
        if name == "cross_entropy" and not targets.is_floating_point():
            return float(targets.ne(NOTHING).sum())
        if name == "cross_entropy":  # probabilities of classes along dimension 1
            return float(targets.numel() // max(1, targets.shape[1])) if targets.dim() > 1 else 1.0
        return float(len(targets)) if targets.dim() else 1.0

    def tensor(self, outputs: Any, what: str) -> Tensor:
        """The one tensor of the outputs that is compared with targets.

        Raises:
            InputError: if there are several and none of them is called `logits`.
        """
        return one_tensor(outputs, what)

    def logits(self, model: nn.Module, batch: Batch, what: str) -> Tensor:
        """The one tensor of the outputs, of which `loss` is the mean loss of the batch, too.

        Raises:
            InputError: if the network's own loss is something else than that of this tensor.
        """
        outputs = self.run(model, batch)
        found, own = self.tensor(outputs, what), _own_loss(outputs)
        if self.own_loss is None and own is not None and self.terms(outputs, batch.targets):
            taken = self.loss(found.detach(), batch.targets)
            if not math.isclose(float(taken), float(own), rel_tol=1e-3, abs_tol=1e-5):
                raise InputError(
                    f"{what}: the network's own loss ({float(own):.4g}) is not that of its outputs and the "
                    f"targets ({self.loss_name(batch.targets)}: {float(taken):.4g}): give loss="
                )
        return found

    def real_positions(self, batch: Batch, model: nn.Module) -> Tensor | None:
        """(examples, positions) booleans, False where sequences are padded; None where nothing is padded.

        By the names that transformers' and torch's own models use: `attention_mask` (1 for real positions),
        or `src_key_padding_mask` and the like (True for padded ones). Inputs in order have the names of the
        arguments that they go to.

        Raises:
            DataError: where a translator's source is padded, and as long as its target, so that the rows of a
                layer may be of either.
        """
        inputs = batch.inputs
        if isinstance(inputs, tuple | list):
            names = [name for name, each in _arguments_of(model).items() if each.kind in _POSITIONAL]
            inputs = dict(zip(names, inputs, strict=False))
        if not isinstance(inputs, Mapping):
            return None
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and _are_flags(mask):
            _check_told_apart(model, mask, inputs.get("decoder_input_ids", batch.targets))
            return mask.bool()
        for name in PADDING:
            mask = inputs.get(name)
            if isinstance(mask, Tensor) and mask.dim() == 2 and mask.dtype == torch.bool:
                return ~mask
        return None


_OF_NUMBERS = (nn.BCEWithLogitsLoss, nn.BCELoss, nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)

_FUNCTIONS_OF_NUMBERS = (
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)

PLAIN = Task()
"""The task of whoever says nothing: it has no state, so one serves all."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ALL = [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]


def task_of(task: Task | None, loss: str | LossFunction | None) -> Task:
    """How the network is fed a batch and what its loss is.

    Raises:
        InputError: if both are given, or the task is none.
    """
    if task is None:
        return PLAIN if loss is None else Task(loss)
    if not isinstance(task, Task):
        raise InputError(f"task must be a prunekit.Task, not {type(task).__name__}")
    if loss is not None:
        raise InputError("give either 'loss' or 'task', which has a loss of its own")
    return task


def _are_flags(mask: Tensor) -> bool:
    """Whether a mask says 1 or 0; one of real values may be added to scores instead, as 0 or -inf."""
    if not mask.is_floating_point():
        return True
    return bool(mask.any()) and bool(((mask == 0) | (mask == 1)).all())


def _arguments_of(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    """The arguments of the network, or of the one inside wrappers that hand all on, as PEFT's do."""
    model = unwrap(model)
    try:
        names = inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # a scripted module has none
        return {}
    inside = list(model.children())
    hands_on = [each.kind for each in names.values()] == _ALL and len(inside) == 1
    return _arguments_of(inside[0]) if hands_on else names


def _check_told_apart(model: nn.Module, mask: Tensor, target: Any) -> None:
    translates = getattr(getattr(unwrap(model), "config", None), "is_encoder_decoder", False)
    if not translates or not isinstance(target, Tensor) or target.dim() < 2 or bool(mask.all()):
        return
    if target.shape[1] == mask.shape[1]:
        raise DataError(
            f"sources and targets are both padded to {mask.shape[1]} positions, so that the rows of a layer "
            "may be of either: pad one of them by a position more"
        )


_UNSHIFTED = (
    *("Bart", "MBart", "Pegasus", "BigBirdPegasus", "Marian", "Mvp", "Blenderbot", "BlenderbotSmall"),
    *("PLBart", "TrOCR", "Whisper", "Speech2Text2", "ProphetNet", "XLMProphetNet", "CpmAnt"),
    *("XLNetLMHeadModel", "XLMWithLMHeadModel"),
)
"""Models of transformers, `ForCausalLM` left out, whose loss compares a position with its own label though
their names say otherwise: decoders of translators, and models of permuted or masked words."""


def _predicts_next(model: nn.Module) -> bool:
    """Whether the network's own loss compares each position with the label of the next one.

    So do the causal language models of transformers, told by the names that they all have, and generators
    without an encoder; also as a subclass, or inside a network of the user's.
    """
    found = (_shifts(module) for module in unwrap(model).modules())  # the outermost first
    return next((each for each in found if each is not None), False)


def _shifts(module: nn.Module) -> bool | None:
    """The same of one module; None where its class says nothing."""
    names = [kind.__name__ for kind in type(module).__mro__]
    translates = getattr(getattr(module, "config", None), "is_encoder_decoder", None)
    if translates is True or any(name.removesuffix("ForCausalLM") in _UNSHIFTED for name in names):
        return False
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return True
    generates = any(name.endswith("ForConditionalGeneration") for name in names)
    return True if generates and translates is False else None


def _own_loss(outputs: Any) -> Tensor | None:
    """The loss that a network gives among its outputs."""
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    return found if isinstance(found, Tensor) and found.numel() == 1 else None


def _named(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _kind(targets: Any) -> str:
    return "missing" if targets is None else f"of the type {type(targets).__name__}"


def _examples(outputs: Any, targets: Any) -> int:
    for leaf in (*pytree.tree_leaves(targets), *pytree.tree_leaves(outputs)):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    return 1


def _terms_of(loss: _Loss, targets: Tensor) -> float:
    """What a loss of `torch.nn` divides by: sums count as one, and so do batches then."""
    if loss.reduction == "sum":
        return 1.0
    ignored = getattr(loss, "ignore_index", None)
    if ignored is None or targets.is_floating_point():
        classes = targets.shape[1] if isinstance(loss, nn.CrossEntropyLoss) and targets.dim() > 1 else 1
        return targets.numel() / max(1, classes)
    counted = targets[targets != ignored]
    weight = getattr(loss, "weight", None)
    return float(counted.numel() if weight is None else weight[counted].sum())
