"""The short form of the fuzz run of YAML files; `python tests/fuzz/yaml_files.py` is the long one."""

import harness
import yaml_files


def test_mutated_files_are_read_or_refused_in_one_line(tmp_path):
    found = harness.run(yaml_files.make_case(tmp_path), range(120), folder=tmp_path)
    assert found.failures == []
    assert sum(found.counts.values()) == 120
    assert all(found.counts[outcome] > 10 for outcome in ("recipe valid", "recipe refused", "study refused"))
