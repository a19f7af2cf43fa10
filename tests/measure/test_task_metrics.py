"""Loss, accuracy and metrics of a task, against loops by hand over all examples at once."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset, TensorDataset

from prunekit import Task
from prunekit.errors import DataError, InputError, ModelError
from prunekit.measure import evaluate, metrics
from small_nets import blobs, mlp

transformers = pytest.importorskip("transformers")


def ragged(inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
    sizes = (1, 20, 3, len(inputs) - 24)
    return list(zip(inputs.split(sizes), targets.split(sizes), strict=True))


def test_plain_classes_are_as_evaluate_has_them_however_they_are_cut() -> None:
    inputs, targets = blobs(60)
    net = mlp(10, 8, 3)
    wanted = evaluate(net, inputs, targets, task="classification")
    for data in ((inputs, targets), ragged(inputs, targets), TensorDataset(inputs, targets)):
        found = metrics(net, data, batch_size=7)
        assert found == pytest.approx({"loss": wanted.loss, "accuracy": wanted.accuracy}, rel=1e-5)


def test_ignored_targets_and_class_weights() -> None:
    inputs, targets = blobs(60)
    targets[::4] = -100
    weights = torch.tensor([1.0, 5.0, 0.2])
    net, real = mlp(10, 8, 3), targets >= 0
    task = Task(nn.CrossEntropyLoss(weights))
    found = metrics(net, ragged(inputs, targets), task=task)
    outputs = net(inputs)
    assert found["loss"] == pytest.approx(
        float(F.cross_entropy(outputs, targets, weights).detach()), rel=1e-5
    )
    assert found["accuracy"] == pytest.approx(float((outputs.argmax(1) == targets)[real].float().mean()))


def test_metrics_of_ones_own_count_by_real_targets() -> None:
    inputs, targets = blobs(60)
    targets[:21] = -100

    def of_class_one(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == 1)[targets >= 0].double().mean()

    net = mlp(10, 8, 3)
    found = metrics(net, ragged(inputs, targets), task=Task(metrics={"ones": of_class_one}))
    assert found["ones"] == pytest.approx(float((net(inputs).argmax(1) == 1)[21:].double().mean()))


def test_batches_of_transformers_by_their_own_loss() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        num_labels=4,
    )
    net = transformers.BertForTokenClassification(config).eval()
    words, tags = torch.randint(30, (9, 6)), torch.randint(4, (9, 6))
    mask = torch.ones_like(words)
    mask[2:, 4:], tags[2:, 4:] = 0, -100
    batches = [
        {"input_ids": words[part], "attention_mask": mask[part], "labels": tags[part]}
        for part in (slice(0, 2), slice(2, 9))
    ]
    found = metrics(net, batches)
    outputs = net(input_ids=words, attention_mask=mask, labels=tags)
    right = (outputs.logits.argmax(2) == tags)[tags >= 0].float().mean()
    assert found == pytest.approx({"loss": float(outputs.loss), "accuracy": float(right)}, rel=1e-4)


def test_several_outputs_and_real_values() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(10, 1), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.one(x), "b": self.other(x)}

    def loss(outputs: Any, targets: Any) -> Tensor:
        return F.mse_loss(outputs["a"], targets[0]) + F.l1_loss(outputs["b"], targets[1])

    def worst(outputs: Any, targets: Any) -> float:
        return float((outputs["a"] - targets[0]).abs().mean())

    inputs, first, second = torch.randn(30, 10), torch.randn(30, 1), torch.randn(30, 2)
    net = Two()
    batches = [(inputs[:7], (first[:7], second[:7])), (inputs[7:], (first[7:], second[7:]))]
    found = metrics(net, batches, task=Task(loss, metrics={"worst": worst}))
    outputs = net(inputs)
    wanted = {
        "loss": float(loss(outputs, (first, second)).detach()),
        "worst": worst(outputs, (first, second)),
    }
    assert found == pytest.approx(wanted, rel=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    metrics(net, blobs(20))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


class Empty(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())


def test_what_is_refused() -> None:
    net = mlp(10, 8, 3)
    with pytest.raises(InputError, match=r"metrics: mine must be a function \(outputs, targets\), not 3"):
        Task(metrics={"mine": 3})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="the metric 'all' must be one number"):
        metrics(net, blobs(20), task=Task(metrics={"all": lambda outputs, targets: outputs}))
    with pytest.raises(DataError, match="no examples to measure on"):
        metrics(net, Empty())
    with pytest.raises(ModelError, match=r"batch 0 of the data, 20 inputs of the shape \(7,\)"):
        metrics(net, (blobs(20)[0][:, :7], blobs(20)[1]))


def test_targets_that_the_loss_ignores_by_a_number_of_its_own_are_neither_right_nor_wrong() -> None:
    """Padding of class 0, which without a look at the loss is a class as any other."""
    inputs, targets = blobs(60)
    targets[:21] = 0
    net, real = mlp(10, 8, 3), targets != 0

    def of_class_one(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == 1)[targets != 0].double().mean()

    task = Task(nn.CrossEntropyLoss(ignore_index=0), {"ones": of_class_one})
    found = metrics(net, ragged(inputs, targets), task=task)
    chosen = net(inputs).argmax(1)
    assert found["accuracy"] == pytest.approx(float((chosen == targets)[real].double().mean()))
    assert found["ones"] == pytest.approx(float((chosen == 1)[real].double().mean()))


def test_the_accuracy_of_what_the_task_finds_in_the_outputs() -> None:
    inputs, targets = blobs(60)
    net = mlp(10, 8, 3)
    wanted = metrics(net, (inputs, targets))

    class InMapping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"hidden": x, "logits": self.net(x)}

    class InPair(InMapping):
        def forward(self, x: Tensor) -> Any:
            return x, self.net(x)

    class Second(Task):
        def tensor(self, outputs: Any, what: str) -> Tensor:
            return outputs[1]

    assert metrics(InMapping(), (inputs, targets)) == wanted
    assert metrics(InPair(), (inputs, targets), task=Second()) == wanted


def test_yes_and_no_by_one_output_have_no_accuracy() -> None:
    inputs, targets = blobs(40)
    task = Task(lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs[:, 0], targets.double()))
    assert set(metrics(mlp(10, 8, 1), (inputs, targets % 2), task=task)) == {"loss"}


def test_a_metric_may_stand_in_for_the_accuracy_but_not_for_the_loss() -> None:
    inputs, targets = blobs(40)
    found = metrics(
        mlp(10, 8, 3), (inputs, targets), task=Task(metrics={"accuracy": lambda outputs, targets: 7.0})
    )
    assert found["accuracy"] == 7.0
    with pytest.raises(InputError, match="metrics: 'loss' is what the task's own loss is called"):
        Task(metrics={"loss": lambda outputs, targets: 7.0})


def test_what_is_no_task_is_told():
    with pytest.raises(InputError, match=r"task must be a prunekit\.Task, not dict"):
        metrics(nn.Linear(4, 3), (torch.randn(5, 4), torch.arange(5) % 3), task={"loss": "cross_entropy"})
