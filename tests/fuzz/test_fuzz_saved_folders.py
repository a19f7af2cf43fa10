"""The short forms of the fuzz runs of saved folders and of graphs."""

import graphs
import harness
import saved_folders


def test_mutated_folders_are_loaded_equal_or_refused_in_one_line(tmp_path):
    found = harness.run(saved_folders.make_case(tmp_path), range(250), folder=tmp_path)
    assert found.failures == []
    assert found.counts["damaged and refused"] > 50
    assert found.counts["forged and refused"] > 50
    assert found.counts["forged and loaded"] > 5


def test_forged_graphs_are_run_within_limits_or_refused_in_one_line(tmp_path):
    found = harness.run(graphs.make_case(tmp_path), range(0, 20_000, 81), folder=tmp_path)
    assert found.failures == []
    assert found.counts["refused"] > 50
    assert found.counts["run"] > 20
