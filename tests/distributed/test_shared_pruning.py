"""Statistics in shards and layers solved by their owners give what one process finds with all examples."""

import pytest
import torch

from group_nets import all_groups
from prunekit.errors import InputError
from prunekit.units import oracle_changes
from prunekit.units.gains import runner_of
from prunekit.units.runner import error_of
from ranks import needs_gloo, on_ranks
from shared_pruning_work import (
    METHODS,
    convolution_data,
    convolutions,
    data,
    mixed,
    network,
    oracle,
    pruned,
    statistics,
    two_batches,
    work,
)
from small_nets import blobs, same

pytestmark = needs_gloo


@pytest.fixture(scope="module")
def ranks():
    return on_ranks(work)


def close(one, other, within=1e-6):
    return one.keys() == other.keys() and all(
        torch.allclose(one[name], other[name], rtol=within, atol=within) for name in one
    )


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_find_what_one_does(ranks, name):
    expected = pruned(name, data())
    assert same(ranks[0][name]["masks"], expected["masks"])
    assert close(ranks[0][name]["model"], expected["model"])
    assert not all(bool(mask.all()) for mask in expected["masks"].values())


@pytest.mark.parametrize("name", [*METHODS, "whole on each", "loader"])
def test_both_have_the_same_bits(ranks, name):
    assert same(ranks[0][name]["masks"], ranks[1][name]["masks"])
    assert same(ranks[0][name]["model"], ranks[1][name]["model"])


def test_the_same_data_on_each_changes_nothing(ranks):
    expected = pruned("sparsegpt", data())
    assert same(ranks[0]["whole on each"]["masks"], expected["masks"])
    assert close(ranks[0]["whole on each"]["model"], expected["model"])


def test_batches_of_a_loader_are_divided(ranks):
    assert same(ranks[0]["loader"]["masks"], pruned("wanda", two_batches())["masks"])


def test_rows_that_are_divided_go_with_a_selection_by_owners(ranks):
    assert close(ranks[0]["mixed"], mixed(data()))
    assert close(ranks[0]["mixed"], ranks[1]["mixed"], 0)


def test_rows_of_grouped_convolutions_are_divided(ranks):
    assert close(ranks[0]["convolutions"], convolutions(convolution_data()))
    assert close(ranks[0]["convolutions"], ranks[1]["convolutions"], 0)


def test_sums_of_float32_agree_to_rounding(ranks):
    expected = statistics(blobs(97), {})
    for kind, found in ranks[1]["everywhere"].items():
        assert close(found, expected[kind])


def test_products_of_pairs_are_with_the_owner_alone(ranks):
    expected = statistics(blobs(97), {})
    assert [list(rank["owned"]["hessian"]) for rank in ranks] == [["2.weight"], ["0.weight"]]
    both = {name: rank["owned"]["hessian"][name] for rank in ranks for name in rank["owned"]["hessian"]}
    assert close(both, expected["hessian"])
    for rank in ranks:
        assert close(rank["owned"]["squares"], expected["squares"])


def test_the_shards_are_not_all_there_is_to_know():
    """One process's part alone leads to other weights, so that the comparison above can fail."""
    inputs, targets = data()
    alone = pruned("sparsegpt", (inputs[::2], targets[::2]))
    assert not close(alone["model"], pruned("sparsegpt", data())["model"], 1e-3)


@pytest.mark.parametrize("name", ["chain", "any", "chunks"])
def test_the_oracle_judges_the_same_units(ranks, name):
    expected = oracle(together=False)[name]
    for rank in ranks:
        found = rank["oracle"][name]
        assert all(torch.equal(found[group].isnan(), expected[group].isnan()) for group in expected)
        assert close(
            {g: v.nan_to_num(7) for g, v in found.items()}, {g: v.nan_to_num(7) for g, v in expected.items()}
        )
    assert any(bool(each.isnan().any()) for each in expected.values()) == (name != "chain")


def test_an_elimination_takes_the_same_course(ranks):
    expected = oracle(together=False)
    for rank in ranks:
        assert rank["oracle"]["order"] == expected["order"]
        assert torch.allclose(rank["oracle"]["errors"], expected["errors"])
    assert len(expected["order"]) == 9


def test_units_are_shared_out_in_one_way():
    with pytest.raises(InputError, match="processes = 2: where units are shared out, each process is one"):
        oracle_changes(network(), *data(), "cross_entropy", processes=2, together=True)


def test_a_process_judges_its_own_units_alone():
    chain = all_groups(network().eval(), data()[0][:2])
    expected = oracle_changes(chain, *data(), "cross_entropy")
    runner = runner_of(chain, data()[0], None, 2**28)
    with runner.evaluating(), torch.no_grad():
        run = runner.run(*data(), error_of("cross_entropy"), {})
        for name in run.names:
            one, other = (run.changes(name, slice(number, None, 2)) for number in (0, 1))
            assert bool((one[1::2] == 0).all())
            assert bool((other[::2] == 0).all())
            assert torch.allclose(one + other, expected[name] * len(data()[1]))
