"""How good a network is on a dataset's test part, in the figures that suit the task."""

from __future__ import annotations

from torch import nn

from prunekit.data import Dataset
from prunekit.graph import GraphModel
from prunekit.measure import evaluate


def quality(model: nn.Module, data: Dataset | None) -> dict[str, float]:
    """Accuracy, top-5 accuracy where there are more than five classes, and loss; or the squared error.

    Empty without data, and for an exported graph, which takes batches of one size only.
    """
    if data is None or isinstance(model, GraphModel):
        return {}
    found = evaluate(model, data.test.inputs, data.test.targets, task=data.task)
    figures = (
        {"test_mse": found.mse}
        if data.task == "regression"
        else {"test_accuracy": found.accuracy, "test_top5": found.top5, "test_loss": found.loss}
    )
    return {name: value for name, value in figures.items() if value is not None}
