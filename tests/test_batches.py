from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prunekit.batches import LoaderBatches, StreamBatches, TensorBatches, as_batches
from prunekit.errors import DataError, InputError
from prunekit.training import Training
from small_nets import blobs


def numbered(count: int) -> TensorBatches:
    return TensorBatches(torch.arange(count), torch.arange(count) * 10)


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 5), (10, 100), (1, 1)])
def test_an_epoch_is_every_example_once(count, size):
    batches = list(numbered(count).epoch(0, size, seed=1))
    assert len(batches) == numbered(count).length(size)
    inputs = torch.cat([inputs for inputs, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    assert sorted(inputs.tolist()) == list(range(count))
    assert torch.equal(targets, inputs * 10)


@pytest.mark.parametrize("skip", [0, 1, 3, 9])
def test_batches_that_are_passed_over_change_no_others(skip):
    rows = [(torch.tensor(float(number)), number) for number in range(20)]
    for data in (
        numbered(20),
        as_batches(rows),
        as_batches(DataLoader(rows, batch_size=3)),
        StreamBatches(rows),
    ):
        found, whole = list(data.epoch(2, 3, 5, skip)), list(data.epoch(2, 3, 5))
        assert len(found) == max(len(whole) - skip, 0)
        for one, other in zip(found, whole[skip:], strict=True):
            assert torch.equal(one.inputs, other.inputs)


def order(number: int, seed: int) -> list[int]:
    return torch.cat([inputs for inputs, _ in numbered(50).epoch(number, 7, seed)]).tolist()


def test_the_order_is_a_function_of_seed_and_epoch():
    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert order(1, 0) != first
    assert order(0, 1) != first


def test_a_sample_has_no_example_twice_and_does_not_depend_on_the_batch_size():
    one = torch.cat([inputs for inputs, _ in numbered(50).sample(20, 3, seed=4)])
    other = torch.cat([inputs for inputs, _ in numbered(50).sample(20, 50, seed=4)])
    assert torch.equal(one, other)
    assert len(set(one.tolist())) == 20
    assert len(torch.cat([inputs for inputs, _ in numbered(5).sample(20, 3, seed=4)])) == 5


def test_a_loader_keeps_its_own_order():
    loader = DataLoader(TensorDataset(*blobs(10)), batch_size=4)
    batches = as_batches(loader)
    assert batches.length(99) == 3
    assert [len(inputs) for inputs, _ in batches.epoch(0, 99, 0)] == [4, 4, 2]
    assert [len(inputs) for inputs, _ in batches.sample(5, 99, 0)] == [4, 4]
    assert [len(inputs) for inputs, _ in batches.sample(4, 99, 0)] == [4]


def test_everything_that_is_data():
    inputs, targets = blobs(8)
    split = SimpleNamespace(inputs=inputs, targets=targets)
    for data in ((inputs, targets), [inputs, targets], split, SimpleNamespace(train=split)):
        found = as_batches(data)
        assert isinstance(found, TensorBatches)
        assert found.all.inputs is inputs
        assert as_batches(found) is found
    assert isinstance(as_batches([(inputs, targets), (inputs, targets)]), LoaderBatches)


@pytest.mark.parametrize(
    "data",
    [
        3,
        "mnist",
        torch.zeros(3),
        iter([1]),
        SimpleNamespace(train=True),
        (torch.zeros(2),),
        (torch.zeros(2), torch.zeros(2), ["a", "b"]),
    ],
)
def test_what_is_no_data(data):
    with pytest.raises(InputError, match=r"data must be a pair of tensors \(inputs, targets\)"):
        as_batches(data)


def test_several_inputs_in_memory_are_for_a_network_of_as_many():
    with pytest.raises(DataError, match=r"a batch must be \(inputs, targets\), or .*, and is a tuple of 3"):
        as_batches((torch.zeros(2),) * 3)


def test_empty_data():
    with pytest.raises(DataError, match="the dataset is empty: there are no examples"):
        as_batches((torch.zeros(0, 3), torch.zeros(0)))
    with pytest.raises(DataError, match="the dataset is empty"):
        as_batches([])
    with pytest.raises(DataError, match="the dataset is empty"):
        as_batches(DataLoader(TensorDataset(torch.zeros(0, 3), torch.zeros(0))))


def test_lengths_that_differ():
    with pytest.raises(DataError, match="there are 3 inputs but 4 targets"):
        as_batches((torch.zeros(3, 2), torch.zeros(4)))


def test_a_loader_without_a_length():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield from [(torch.zeros(2), 0)] * 4

    for data in (DataLoader(Stream(), batch_size=2), Stream()):
        batches = as_batches(data)
        assert batches.length(2) is None
        assert [len(batch) for batch in batches.epoch(0, 2, 0)] == [2, 2]
        with pytest.raises(InputError, match="a stream without a length"):
            Training(epochs=1).length(batches)
        assert Training(iterations=7).length(batches) == 7


@pytest.mark.parametrize("batch", [3, "text", (1, 2, 3)])
def test_a_loader_of_other_things(batch):
    with pytest.raises(DataError, match=r"must be \(inputs, targets\), or a mapping with one of labels"):
        list(as_batches([batch, batch, batch]).epoch(0, 1, 0))
