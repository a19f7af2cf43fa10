"""study.json and units.json that are damaged are refused in one line."""

import json
from pathlib import Path

import pytest
from report_fixture import UNITS, Method, make_study

from prunekit.digests import read_json_with_digest, write_json_with_digest
from prunekit.errors import DataError
from prunekit.study_files import UnitData, read_checked, read_study


def test_study_file_is_checked(tmp_path: Path) -> None:
    path = make_study(tmp_path, {"x": Method(10, (2,))}, seeds=1) / "study.json"
    good = read_json_with_digest(path)
    assert read_study(path).methods["x"].paper.startswith("Nobody")
    for change, said in (
        ({"format": 1}, "format is 1, but this version of prunekit reads format 2"),
        ({"format": list(range(99))}, "format is [0, 1, 2"),
        ({"primary": "speed"}, "primary: "),
        ({"seeds": 0}, "seeds: "),
        ({"methods": {"x": {}}}, "methods.x.recipe: "),
        ({"methods": []}, "methods: "),
        ({"dataset": "iris"}, "dataset: "),
    ):
        write_json_with_digest(path, good | change)
        with pytest.raises(DataError) as caught:
            read_study(path)
        assert str(caught.value).startswith(f"{path}: {said}")
    for text, said in (
        ('{"format": 2,\n oops}', "is damaged: not valid JSON .*line 2"),
        ("[]", "must be an object"),
        ("[" * 99_999, "nested more than"),
        (json.dumps(good), "has no 'sha256'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_study(path)


def test_a_changed_title_is_damage(tmp_path: Path) -> None:
    path = make_study(tmp_path, {"x": Method(10, (2,))}, seeds=1) / "study.json"
    path.write_text(path.read_text().replace("nobody", "somebody").replace("Nobody", "Somebody"))
    with pytest.raises(DataError, match="damaged or was changed"):
        read_study(path)


def test_units_that_are_damaged_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "units.json"
    for changes, message in [
        ({"gains": [0.0, 0.5, 2.0, 3.0]}, "gains: 0 and 1 must be among them"),
        ({"gains": [0.0, 1.0]}, "4 errors for 2 gains"),
        ({"sweeps": []}, "sweeps: List should have at least 1 item"),
        ({"correlations": {"fc1": [[1.0, 0.0]]}}, "fc1: must be a square matrix"),
        ({"correlations": {"fc1": [["x"]]}}, r"correlations\.fc1\.0\.0: "),
    ]:
        write_json_with_digest(path, UNITS | changes)
        with pytest.raises(DataError, match=message) as refused:
            read_checked(path, UnitData)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    path.write_text(json.dumps(UNITS | {"sha256": "0"}))
    with pytest.raises(DataError, match="damaged or was changed"):
        read_checked(path, UnitData)
