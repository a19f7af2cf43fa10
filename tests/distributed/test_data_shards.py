"""Each process's part of the data: together they are what one process reads."""

import pytest
import torch

from prunekit.batches import as_batches
from prunekit.distributed import deal, shard
from prunekit.distributed.data_shards import ShardedBatches
from prunekit.errors import DataError, InputError

INPUTS = torch.arange(23.0).unsqueeze(1)
TARGETS = torch.arange(23) % 3


def parts(data, processes):
    return [ShardedBatches(as_batches(data), rank, processes) for rank in range(processes)]


def loader(*sizes):
    return list(zip(INPUTS.split(sizes), TARGETS.split(sizes), strict=True))


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("data", [(INPUTS, TARGETS), loader(8, 8, 7)], ids=["memory", "loader"])
def test_the_parts_of_a_sample_are_the_sample(data, processes):
    expected = torch.cat([batch.inputs for batch in as_batches(data).sample(16, 8, 5)])
    found = [torch.cat([batch.inputs for batch in each.sample(16, 8, 5)]) for each in parts(data, processes)]
    assert sorted(torch.cat(found).flatten().tolist()) == sorted(expected.flatten().tolist())
    sizes = [len(each) for each in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("data", [(INPUTS, TARGETS), loader(8, 8, 7)], ids=["memory", "loader"])
def test_every_process_has_its_part_of_every_batch(data, processes):
    whole = [set(batch.inputs.flatten().tolist()) for batch in as_batches(data).epoch(2, 8, 5)]
    found = [list(each.epoch(2, 8, 5)) for each in parts(data, processes)]
    assert {len(each) for each in found} == {len(whole)}
    for number, expected in enumerate(whole):
        together = torch.cat([each[number].inputs for each in found]).flatten().tolist()
        assert len(together) == len(expected)
        assert set(together) == expected
    assert all(each.length(8) == 3 for each in parts(data, processes))


def test_an_epoch_goes_on_behind_the_batches_that_are_skipped():
    one = parts((INPUTS, TARGETS), 2)[1]
    left = [batch.inputs for batch in one.epoch(0, 6, 1, skip=2)]
    assert all(map(torch.equal, left, [batch.inputs for batch in one.epoch(0, 6, 1)][2:]))
    assert len(left) == 2


def test_a_last_batch_that_is_too_small_is_left_out_by_all():
    for each in parts((INPUTS[:21], TARGETS[:21]), 3):  # 20 and 1
        assert each.length(20) == 1
        assert [len(batch) for batch in each.epoch(0, 20, 0)] in ([6], [7])
        assert each.smallest(20) == 6


def test_batches_that_cannot_be_shared_out_are_refused():
    with pytest.raises(InputError, match="batch_size: 2 examples cannot be shared out over 3 processes"):
        parts((INPUTS, TARGETS), 3)[0].length(2)
    for each in parts(loader(20, 3), 4):
        with pytest.raises(DataError, match="a batch of 3 examples cannot be shared out over 4"):
            list(each.epoch(0, 1, 0))


def test_batches_of_single_examples_go_to_the_processes_in_turn():
    found = [[float(batch.inputs) for batch in each.sample(6, 1, 0)] for each in parts(loader(*[1] * 23), 2)]
    assert found == [[0, 2, 4], [1, 3, 5]]


def test_alone_a_process_has_all():
    data = INPUTS, TARGETS
    assert shard(data) is data


def test_layers_are_dealt_out_by_cost():
    assert deal({"a": 5, "b": 3, "c": 3, "d": 1}, 2) == {"a": 0, "b": 1, "c": 1, "d": 0}
    assert deal({"a": 1, "b": 1, "c": 1}, 3) == {"a": 0, "b": 1, "c": 2}
    assert deal({}, 2) == {}
