import dataclasses

import pytest
import torch

from prunekit.data import Dataset, Split
from prunekit.errors import DataError


def split(n=6, features=3, classes=2):
    return Split(torch.arange(n * features, dtype=torch.float32).view(n, features), torch.arange(n) % classes)


def test_a_split_has_a_length_and_a_head():
    head = split(6).head(2)
    assert len(split(6)) == 6
    assert len(head) == 2
    torch.testing.assert_close(head.inputs, split(6).inputs[:2])
    assert len(split(6).head(100)) == 6


@pytest.mark.parametrize("n", [0, -1])
def test_a_head_needs_an_example(n):
    with pytest.raises(DataError, match="at least one"):
        split().head(n)


def test_to_moves_every_tensor(monkeypatch):
    dataset = Dataset("x", "classification", split(), split(), split(), 2)
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device: moved.append(device) or tensor.clone())
    there = dataset.to("elsewhere")
    assert moved == ["elsewhere"] * 6
    assert there.name == "x"
    assert torch.equal(there.test.inputs, dataset.test.inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_to_moves_to_a_gpu():
    dataset = Dataset("x", "classification", split(), split(), split(), 2).to("cuda")
    for part in (dataset.train, dataset.validation, dataset.test):
        assert part.inputs.is_cuda
        assert part.targets.is_cuda


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), "empty"),
        (torch.zeros(4, 0), torch.zeros(4, dtype=torch.int64), "empty"),
        (torch.zeros(3, 3), torch.zeros(2, dtype=torch.int64), "3 inputs but 2 targets"),
        (torch.tensor([[1.0], [float("nan")]]), torch.zeros(2, dtype=torch.int64), "inputs .* NaN"),
        (torch.tensor([[1.0], [float("inf")]]), torch.zeros(2, dtype=torch.int64), "inputs .* infinite"),
        (torch.tensor([[1.0], [-float("inf")]]), torch.zeros(2, dtype=torch.int64), "inputs .* infinite"),
        (torch.zeros(2, 1), torch.tensor([[1.0], [float("nan")]]), "targets .* NaN"),
        (torch.tensor(1.0), torch.tensor(1), "first dimension"),
    ],
)
def test_a_split_refuses(inputs, targets, message):
    with pytest.raises(DataError, match=message):
        Split(inputs, targets)


def test_the_input_shape_is_without_the_batch():
    assert Dataset("x", "classification", split(), split(), split(), 2).input_shape == (3,)


def test_datasets_and_splits_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        split().inputs = torch.zeros(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ranking"}, "none of classification, regression"),
        ({"test": split(features=4)}, r"test inputs have the shape \(4,\), train \(3,\)"),
        ({"validation": split(classes=3)}, "validation targets run from 0 to 2, .* 0 to 1"),
        ({"train": Split(torch.zeros(2, 3), torch.tensor([-1, 0]))}, "run from -1 to 0"),
        ({"test": Split(torch.zeros(2, 3), torch.zeros(2))}, "must be int64"),
        ({"task": "regression"}, "must be floating point"),
        ({"task": "regression", "train": Split(torch.zeros(2, 3), torch.zeros(2, 1))}, r"shape \(N, 2\)"),
    ],
)
def test_a_dataset_refuses_parts_that_do_not_fit(changes, message):
    parts = {"task": "classification", "train": split(), "validation": split(), "test": split(), **changes}
    with pytest.raises(DataError, match=message):
        Dataset(name="x", outputs=2, **parts)
