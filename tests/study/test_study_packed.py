"""Cells whose weights have few values say what the network takes as one file."""

from pathlib import Path

import pytest
import torch

from prunekit.packing import unpack
from prunekit.saving import load_pretrained
from prunekit.study import run_study
from prunekit.study_files import FILE_COLUMNS
from tiny_study import one_shot, table, tiny


def test_the_sizes_of_packed_networks_are_in_the_table(tmp_path: Path) -> None:
    shared = one_shot("magnitude", 0.5, 0.8)
    shared["recipe"]["quantize"] = {"name": "kmeans", "bits": 2}
    study = tiny(methods={"random": one_shot("random", 0.5), "shared": shared})
    run_study(study, tmp_path, workers=1)
    rows = table(tmp_path / "results.csv")
    for row in rows:
        assert all(bool(row[column]) == (row["method"] == "shared") for column in FILE_COLUMNS)
    for cell in (cell for cell in study.cells if cell.label == "shared"):
        for seed in range(2):
            (folder,) = tmp_path.glob(f"cells/*{cell.key}/seed-{seed}")
            row = next(row for row in rows if (row["cell"], row["seed"]) == (cell.key, str(seed)))
            packed = folder / "model.packed"
            assert packed.stat().st_size == int(row["packed_bytes"])
            inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
            torch.testing.assert_close(
                unpack(packed).eval()(inputs), load_pretrained(folder / "model").eval()(inputs)
            )


@pytest.mark.usefixtures("no_report")
def test_studies_without_few_values_have_the_columns_that_they_had(tmp_path: Path) -> None:
    study = tiny(methods={"random": one_shot("random", 0.5)}, seeds=1)
    run_study(study, tmp_path, workers=1)
    assert not set(table(tmp_path / "results.csv")[0]) & set(FILE_COLUMNS)
