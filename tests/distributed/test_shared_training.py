"""Two and four processes train and prune one network as one process does with the same batches."""

import pytest
import torch

from prunekit.masks import Masks
from ranks import needs_gloo, on_ranks
from shared_training_work import METHODS, killed, pruned, raising, refusals, trainings, work
from small_nets import same

pytestmark = needs_gloo


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request):
    return on_ranks(work, request.param)


@pytest.fixture(scope="module")
def alone():
    return {name: pruned(name) for name in METHODS} | {"trainings": trainings()}


def close(one, other):
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], atol=1e-9) for name in one
    )


@pytest.mark.parametrize("name", METHODS)
def test_masks_are_the_same_everywhere_and_those_of_one_process(ranks, alone, name):
    for rank in ranks:
        assert same(rank[name]["masks"], alone[name]["masks"])
        assert same(rank[name]["model"], ranks[0][name]["model"])
        assert close(rank[name]["model"], alone[name]["model"])
        assert rank[name]["losses"] == pytest.approx(alone[name]["losses"])
    assert 0 < Masks(alone[name]["masks"]).sparsity < 1


@pytest.mark.parametrize("name", ["plain", "ignored", "accumulated", "momentum"])
def test_a_step_is_that_of_one_process_with_all_terms(ranks, alone, name):
    expected = alone["trainings"][name]
    for rank in ranks:
        found = rank["trainings"][name]
        assert close(found["model"], expected["model"])
        assert found["loss"] == pytest.approx(expected["loss"])
        assert same(found["model"], ranks[0]["trainings"][name]["model"])


def test_processes_refuse_together_what_would_not_end_or_not_agree():
    for unequal, alone, weights, after in on_ranks(refusals):
        assert "the processes' parts of the data make 3, 4 steps of the training" in unequal
        assert "trains in 2 processes, each of which would go its own way" in alone
        assert "0.weight differs between the 2 processes: load the same weights everywhere" in weights
        assert after == "fine"


def test_an_error_of_one_process_ends_the_others_with_its_words():
    (other, other_is_back), (own, own_is_back) = on_ranks(raising)
    assert own == "OSError: the disk of this process is gone"
    assert other == "PrunekitError: process 1 of 2 has failed: OSError: the disk of this process is gone"
    assert (own_is_back, other_is_back) == ("True", "True")


def test_a_process_that_is_killed_ends_the_others():
    assert "another process has ended, or does not answer" in on_ranks(killed, returning=[0])[0][0]
