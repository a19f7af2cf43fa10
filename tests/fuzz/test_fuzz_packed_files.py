"""The short form of the fuzz run of packed files."""

import harness
import packed_files


def test_mutated_files_are_refused_in_one_line_or_load_within_limits(tmp_path):
    found = harness.run(packed_files.make_case(tmp_path), range(300), folder=tmp_path)
    assert found.failures == []
    assert found.counts["damaged and refused"] > 50
    assert found.counts["resealed and refused"] > 50
    assert found.counts["forged and refused"] > 20
    assert found.counts["resealed and loaded, other"] > 5
