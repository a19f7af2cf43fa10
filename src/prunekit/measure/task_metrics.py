"""The loss and the metrics of a task, on examples of any kind."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.batches import as_batches
from prunekit.errors import DataError, InputError, ModelError, explaining
from prunekit.losses import class_axis, right_classes
from prunekit.modes import evaluating
from prunekit.settings import WHOLE, whole
from prunekit.targets import device_of
from prunekit.task import PLAIN, Task, task_of


def metrics(
    model: nn.Module, data: Any, *, task: Task | None = None, batch_size: int = 256
) -> dict[str, float]:
    """The means of a task's loss, of the accuracy and of its own metrics, by their names.

    In evaluation mode and without gradients. Batches count by the terms of the loss (targets that are not
    ignored, class weights); for the metrics by the targets that are not ignored where they are class
    numbers, and by examples otherwise, so that it does not matter how the examples are cut into batches. The
    `accuracy` is there where targets are class numbers and the task finds one tensor of two classes or more
    among the outputs: the share of targets, not ignored, whose class has the highest output. A target is
    ignored by the number -100, or by the `ignore_index` of a loss of `torch.nn`.

    Args:
        model: the network.
        data: examples, as `prune` takes them.
        task: how the network is fed and judged; by default as `prunekit.Task` says.
        batch_size: of examples in memory and of datasets.

    Raises:
        DataError: if there are no examples.
        InputError: if no loss can be taken of the outputs and targets, or a metric is no number.
        ModelError: if the network, or a function of the user's, fails on a batch, with what it says.
    """
    batch_size = whole("batch_size", batch_size, 1, WHOLE)
    task = task_of(task, None)
    device = device_of(model)
    sums: dict[str, list[float]] = {}

    def add(name: str, mean: Any, count: float) -> None:
        if not isinstance(mean, Tensor | float | int) or (isinstance(mean, Tensor) and mean.numel() != 1):
            raise InputError(f"the metric {name!r} must be one number, the mean over a batch")
        total = sums.setdefault(name, [0.0, 0.0])
        if count:
            total[0] += float(mean) * count
            total[1] += count

    with evaluating(model), torch.no_grad():
        for number, batch in enumerate(
            as_batches(data, partial(task.read, model=model)).epoch(0, batch_size, 0)
        ):
            batch = batch.to(device)
            where = partial("batch {} of the data, {}".format, number, batch.described)
            with explaining(ModelError, where):
                outputs, targets = task.run(model, batch), batch.targets
                add("loss", task.loss(outputs, targets), task.terms(outputs, targets))
                marked = task.marked(targets)
                right = _right(task, outputs, marked)
                if right is not None and "accuracy" not in task.metrics:
                    add("accuracy", right.double().mean(), len(right))
                for name, metric in task.metrics.items():
                    add(name, metric(outputs, targets), PLAIN.terms(outputs, marked))
    if not sums:
        raise DataError("there are no examples to measure on")
    return {name: total / count if count else float("nan") for name, (total, count) in sums.items()}


def _right(task: Task, outputs: Any, targets: Any) -> Tensor | None:
    if not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    try:
        logits = task.tensor(outputs, "accuracy")
    except InputError:
        return None
    if logits.dim() != targets.dim() + 1 or logits.shape[class_axis(logits, targets)] == 1:
        return None  # a single output, as of yes and no, is compared with no other
    return right_classes(logits, targets)
