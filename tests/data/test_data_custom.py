import pytest
import torch

from prunekit.data import from_tensors
from prunekit.errors import DataError, InputError


def pair(n=50, classes=5):
    return torch.arange(n * 2, dtype=torch.float64).view(n, 2), torch.arange(n) % classes


def test_integer_targets_make_a_stratified_classification():
    dataset = from_tensors(pair())
    assert (dataset.name, dataset.task, dataset.outputs) == ("custom", "classification", 5)
    assert dataset.test.targets.bincount().tolist() == [2] * 5
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (36, 4, 10)


def test_the_parts_do_not_overlap_and_inputs_stay_as_they_are():
    dataset = from_tensors(pair())
    every = torch.cat([dataset.train.inputs, dataset.validation.inputs, dataset.test.inputs])
    assert every.dtype == torch.float32
    assert torch.equal(every[every[:, 0].argsort()].double(), pair()[0])


def test_floating_point_targets_make_a_regression():
    inputs, _ = pair()
    dataset = from_tensors((inputs, inputs.sum(1)))
    assert (dataset.task, dataset.outputs) == ("regression", 1)
    assert dataset.test.targets.shape == (10, 1)
    assert torch.equal(dataset.train.targets[:, 0], dataset.train.inputs.sum(1))
    assert from_tensors((inputs, inputs)).outputs == 2


def test_given_parts_are_used_as_they_are():
    dataset = from_tensors(pair(), validation=pair(7), test=pair(9, classes=7), name="mine")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (50, 7, 9)
    assert (dataset.name, dataset.outputs) == ("mine", 7)
    assert torch.equal(dataset.train.targets, pair()[1])


def test_the_seed_decides_the_split():
    first, same, other = (from_tensors(pair(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.test.inputs, same.test.inputs)
    assert not torch.equal(first.test.inputs, other.test.inputs)


def test_boolean_targets_are_two_classes():
    inputs, targets = pair()
    assert from_tensors((inputs, targets > 1)).outputs == 2


def test_fractions_decide_the_sizes():
    dataset = from_tensors(pair(), validation_fraction=0.25, test_fraction=0.4)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (22, 8, 20)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 40])
@pytest.mark.parametrize("argument", ["validation_fraction", "test_fraction"])
def test_fractions_lie_between_0_and_1(argument, fraction):
    with pytest.raises(InputError, match=f"{argument} = {fraction}"):
        from_tensors(pair(), **{argument: fraction})


@pytest.mark.parametrize(
    ("train", "test", "error", "message"),
    [
        (pair(), (torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)), DataError, "shape"),
        (pair(), (torch.zeros(4, 2), torch.zeros(4)), DataError, "one kind"),
        ((torch.zeros(4, 2), torch.zeros(4, 1, dtype=torch.int64)), None, DataError, r"shape \(N,\)"),
        ((torch.zeros(16, 2), torch.arange(16) % 2 - 1), None, DataError, "run from -1 to 0"),
        ((torch.zeros(4, 2), torch.zeros(3, dtype=torch.int64)), None, DataError, "4 inputs but 3"),
        ((torch.zeros(4, 2, dtype=torch.complex64), torch.zeros(4)), None, InputError, "complex"),
        ((torch.full((4, 2), torch.nan), torch.zeros(4)), None, DataError, "NaN"),
    ],
)
def test_from_tensors_refuses(train, test, error, message):
    with pytest.raises(error, match=message):
        from_tensors(train, test=test, test_fraction=0.5, validation_fraction=0.5)
