from pathlib import Path

import pytest
from report_fixture import LAYERS, RESULTS, Method, make_study

from prunekit.digests import SUMS, read_json_with_digest, write_json_with_digest, write_sums
from prunekit.errors import DataError
from prunekit.report import study_overview, write_report
from prunekit.report.read_tables import read_layers, read_results

GOOD = {
    **dict.fromkeys(RESULTS, ""),
    **{"study": "s", "dataset": "d", "model": "m", "method": "dense", "cell": "c", "seed": "0", "step": "0"},
    **{"sparsity": "0", "compression_ratio": "1", "prunable": "100", "kept": "100", "test_accuracy": "0.9"},
}


def results(folder: Path, *changes: dict[str, str], columns: list[str] = RESULTS) -> Path:
    path = folder / "results.csv"
    lines = [",".join(columns), *(",".join((GOOD | change)[c] for c in columns) for change in changes)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_reads_typed_rows(tmp_path: Path) -> None:
    pruned = {
        "method": "x",
        "seed": "3",
        "step": "2",
        "sparsity": "0.75",
        "compression_ratio": "4",
        "kept": "25",
    }
    dense, row = read_results(results(tmp_path, {}, pruned))
    assert (dense.method, dense.kept, dense.test_accuracy, dense.test_mse) == (
        "dense",
        100,
        0.9,
        None,
    )
    assert (row.method, row.seed, row.step, row.sparsity, row.compression_ratio, row.kept, row.line) == (
        "x",
        3,
        2,
        0.75,
        4.0,
        25,
        3,
    )


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    (row,) = read_results(results(tmp_path, {"test_loss": "inf"}))
    assert row.test_loss == float("inf")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": "one"}, "line 3: seed = 'one': Input should be a valid integer"),
        ({"step": "-1"}, "line 3: step = '-1': Input should be greater than or equal to 0"),
        ({"sparsity": "40"}, "line 3: sparsity = '40': Input should be less than or equal to 1"),
        ({"sparsity": "0.5"}, "line 3: sparsity must be 1 - kept / prunable = 0,"),
        ({"compression_ratio": "2"}, "line 3: compression_ratio must be prunable / kept = 1,"),
        ({"kept": "101"}, "line 3: kept must be at most prunable = 100"),
        ({"test_accuracy": "91.2"}, "line 3: test_accuracy = '91.2': Input should be less than"),
        ({"test_accuracy": "nan"}, "line 3: test_accuracy = 'nan': Input should be a finite number"),
        ({"test_loss": "low"}, "line 3: test_loss = 'low': Input should be a valid number"),
        ({"bytes": "-5"}, "line 3: bytes = '-5': Input should be greater than or equal to 0"),
        ({"method": ""}, "line 3: method = '': String should have at least 1 character"),
        ({"seed": "0"}, "line 3: method 'dense', cell 'c', seed 0, step 0 is already on line 2"),
        ({"dataset": "e"}, "line 3: e / m, but line 2 is d / m"),
        ({"test_loss": "1,2"}, "line 3: 26 cells where the header has 25"),
    ],
)  # fmt: skip
def test_names_file_and_line(tmp_path: Path, change: dict[str, str], said: str) -> None:
    path = results(tmp_path, {}, {"seed": "1"} | change)
    with pytest.raises(DataError) as caught:
        read_results(path)
    assert str(caught.value).startswith(f"{path} {said}")
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    with pytest.raises(DataError, match="cannot be read"):
        read_results(path)
    path.write_text("")
    with pytest.raises(DataError, match="line 1: the file is empty"):
        read_results(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="UTF-8"):
        read_results(path)
    with pytest.raises(DataError, match="line 1: missing columns: seconds"):
        read_results(results(tmp_path, {}, columns=RESULTS[:-1]))
    with pytest.raises(DataError, match="line 2: no rows after the header"):
        read_results(results(tmp_path))
    with pytest.raises(DataError, match="no row of the method 'dense'"):
        read_results(results(tmp_path, {"method": "x"}))


def test_layers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    path.write_text(",".join(LAYERS) + "\n")
    assert read_layers(path) == []
    line = 'x,c,0,1,conv,"8x1x3x3",72,80,0.5\n'
    path.write_text(",".join(LAYERS) + "\n" + line)
    with pytest.raises(DataError, match="line 2: kept must be at most parameters = 72"):
        read_layers(path)
    path.write_text(",".join(LAYERS) + "\n" + 2 * line.replace("80", "36"))
    with pytest.raises(
        DataError, match="line 3: method 'x', cell 'c', seed 0, step 1, layer 'conv' is already on line 2"
    ):
        read_layers(path)


class TestDigestsOfTables:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = make_study(tmp_path, {"x": Method(10, (2,))}, seeds=1)
        write_sums(folder, ("results.csv", "layers.csv"))
        return folder

    def test_tables_as_they_were_written_are_reported(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        write_report(folder)
        assert not caplog.records

    @pytest.mark.parametrize("name", ["results.csv", "layers.csv"])
    def test_a_changed_digit_is_refused(self, folder: Path, name: str) -> None:
        path = folder / name
        path.write_text(path.read_text().rstrip() + "1\n")
        for read in (write_report, study_overview):
            with pytest.raises(DataError, match=rf"{path} is damaged or was changed.*; run compare again"):
                read(folder)
        assert not (folder / "report.html").exists()

    @pytest.mark.parametrize("text", ["", "0123\n", "x  results.csv"])
    def test_damaged_digests_are_refused(self, folder: Path, text: str) -> None:
        (folder / SUMS).write_text(text)
        with pytest.raises(DataError, match=r"run compare again"):
            write_report(folder)

    def test_tables_without_digests_are_reported_with_one_warning(
        self, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / SUMS).unlink()
        write_report(folder)
        study_overview(folder)
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{folder} has no SHA256SUMS")


def test_nothing_is_written_for_a_study_without_its_primary_metric(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"x": Method(10, (2,))}, seeds=1)
    study = read_json_with_digest(folder / "study.json")
    write_json_with_digest(folder / "study.json", study | {"primary": "test_mse"})
    with pytest.raises(DataError, match=r"results\.csv line 2: test_mse is empty"):
        write_report(folder)
    assert not (folder / "report.html").exists()
    assert not (folder / "figures").exists()
