"""The errors that networks are trained and judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from prunekit.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> a scalar, the mean over the examples."""

NO_GRADIENT = (
    "the loss has no gradient, so that nothing is trained or scored by it: it must be made of the outputs by "
    "functions that torch differentiates"
)

NOTHING = -100
"""The class number that cross-entropy leaves out, as torch has it."""


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, averaged over the examples (and positions), of class numbers or probabilities.

    Class numbers of -100 do not count. The classes lie along dimension 1, or along the one that the shape of
    the class numbers leaves out; see `class_axis`.

    Raises:
        InputError: for targets that do not go with the outputs.
    """
    try:
        axis = class_axis(outputs, targets)
        if outputs.dim() > 1 and outputs.shape[axis] == 1 and not targets.is_floating_point():
            raise InputError(str(misfit("cross_entropy", outputs, targets)))
        return F.cross_entropy(outputs if axis == 1 else outputs.movedim(axis, 1), targets)
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        raise _explained("cross_entropy", outputs, targets, error) from None


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared error summed over the outputs, averaged over the examples; class numbers become one-hot.

    Raises:
        InputError: for targets that do not go with the outputs.
    """
    return _summed((outputs - real_targets(outputs, targets)).square())


def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The linear error sum |t - o| of the outputs, averaged over the examples; class numbers become one-hot.

    Raises:
        InputError: for targets that do not go with the outputs.
    """
    return _summed((outputs - real_targets(outputs, targets)).abs())


def probability_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The linear error, for class numbers that of the classes' probabilities.

    Outputs that leave [0, 1] are none, and go through a softmax first: against 0 and 1 their error would be
    the greater, the surer they are.

    Raises:
        InputError: for targets that do not go with the outputs.
    """
    if not targets.is_floating_point() and outputs.dim() > 1 and bool(((outputs < 0) | (outputs > 1)).any()):
        outputs = outputs.softmax(1)
    return absolute_error(outputs, targets)


def _summed(errors: Tensor) -> Tensor:
    return (errors.flatten(1).sum(1) if errors.dim() > 1 else errors).mean()


def real_targets(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets of the outputs' shape; class numbers become one-hot.

    Raises:
        InputError: if the shapes differ, nothing is broadcast; or if there is no output for a class.
    """
    if not targets.is_floating_point():
        try:
            targets = F.one_hot(targets, outputs.shape[1]).to(outputs.dtype)
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise _explained("squared_error", outputs, targets, error) from None
    if targets.shape != outputs.shape:
        raise InputError(misfit("squared_error", outputs, targets) or "outputs and targets differ in shape")
    return targets


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
    "absolute_error": absolute_error,
}
"""The errors by name; each is a mean over the examples."""


def default_loss(targets: Tensor) -> str:
    """Class numbers are judged by cross-entropy, real values by the squared error."""
    return "squared_error" if targets.is_floating_point() else "cross_entropy"


def class_axis(outputs: Tensor, targets: Tensor) -> int:
    """The dimension of the outputs along which the classes lie.

    For outputs (n, positions, classes) and class numbers (n, positions) that is the last one. Dimension 1, as
    PyTorch has it, where it fits, and for probabilities.

    Raises:
        InputError: for outputs (n, c, c), whose classes may lie along either.
    """
    if targets.is_floating_point() or outputs.dim() < 3:
        return 1
    if outputs.dim() == 3 and outputs.shape[1] == outputs.shape[2] and targets.shape == outputs.shape[:2]:
        raise InputError(
            f"the classes of outputs {tuple(outputs.shape)} may lie along dimension 1 or 2, as there are as "
            "many as positions: give a loss that says which, such as "
            "lambda outputs, targets: torch.nn.functional.cross_entropy(outputs.transpose(1, 2), targets)"
        )
    for axis in (1, outputs.dim() - 1, *range(2, outputs.dim() - 1)):
        if (*outputs.shape[:axis], *outputs.shape[axis + 1 :]) == targets.shape:
            return axis
    return 1


def right_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """(targets that are not ignored,) booleans: where the highest output is that of the target's class.

    Raises:
        InputError: for targets that are no class numbers, or do not go with the outputs; or a single class.
    """
    if targets.is_floating_point() or outputs.dim() != targets.dim() + 1:
        raise InputError(
            f"class numbers are needed as targets, one for each example (and position), but they are "
            f"{targets.dtype} of the shape {tuple(targets.shape)}, and the outputs {tuple(outputs.shape)}"
        )
    axis = class_axis(outputs, targets)
    if outputs.shape[axis] == 1:
        raise InputError(
            f"the outputs {tuple(outputs.shape)} have a single class, which is always the highest: what is "
            "right of yes and no is measured by a loss or a metric of your own"
        )
    right = outputs.argmax(axis) == targets
    return right[targets != NOTHING]


def one_tensor(outputs: Any, what: str) -> Tensor:
    """The outputs of a network, where what is taken of them needs a single tensor.

    That is the tensor itself, or the one among several that is called `logits`.

    Args:
        outputs: of the network.
        what: what is taken of them, for the message.

    Raises:
        InputError: if they are several, or a mapping.
    """
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise InputError(f"{what}: {_NO_TENSOR.format(type(outputs).__name__)}")


_NO_TENSOR = "the network gives a {}, where one tensor is needed"


def misfit(name: str, outputs: Any, targets: Tensor) -> str | None:
    """Why a loss cannot be taken of a batch, in a few words; None if it can."""
    if not isinstance(outputs, Tensor):
        return _NO_TENSOR.format(type(outputs).__name__)
    given = f"outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)} differ in shape"
    if targets.is_floating_point():
        if targets.shape == outputs.shape:
            return None
        return f"{given}: real values have one target for each output, classes are whole numbers (int64)"
    axis = class_axis(outputs, targets) if name == "cross_entropy" else 1
    outputs = outputs if axis == 1 else outputs.movedim(axis, 1)
    if name == "cross_entropy" and outputs.dim() > 1 and outputs.shape[1] == 1:
        return (
            f"the outputs {tuple(outputs.shape)} have a single class, so that nothing can be learned: for "
            "yes and no give loss=torch.nn.BCEWithLogitsLoss() and targets of the outputs' shape"
        )
    positions = outputs.shape[2:] if name == "cross_entropy" else ()
    if (
        outputs.dim() < 2
        or targets.shape != (len(outputs), *positions)
        or outputs.dim() != 2 + len(positions)
    ):
        return f"{given}: there is one class number for each example (and position)"
    return out_of_range(name, targets, outputs.shape[1])


def out_of_range(name: str, targets: Tensor, classes: int) -> str | None:
    """Which class number is none of so many; None if all are."""
    if targets.is_floating_point() or not targets.numel():
        return None
    least, most = (int(value) for value in targets.aminmax())
    if least >= 0 and most < classes:
        return None
    wrong = (targets < 0) | (targets >= classes)
    if name == "cross_entropy":
        wrong &= targets != NOTHING
    if not bool(wrong.any()):
        return None
    place = wrong.nonzero()[0]
    return (
        f"the class number {int(targets[tuple(place)])} of example {int(place[0])} is none of the network's "
        f"{classes} outputs: class numbers are 0 to {classes - 1}"
    )


def _explained(name: str, outputs: Tensor, targets: Tensor, error: Exception) -> Exception:
    wrong = misfit(name, outputs, targets)
    return error if wrong is None else InputError(wrong)
