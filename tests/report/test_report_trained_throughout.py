"""Reports of networks that are trained while they are pruned, against the rows of the tables read by hand."""

import re
import shutil
from pathlib import Path

import pytest
from test_report_findings import point
from test_report_page import Page

from prunekit.digests import read_json_with_digest, write_json_with_digest
from prunekit.report import study_overview, write_report
from prunekit.report.best import asked_ratios
from prunekit.report.points import ACCURACY
from prunekit.study import Study, run_study
from tiny_study import table

TRAINING = {"iterations": 60, "batch_size": 32, "lr": 0.01}
UNPRUNED = {
    "summary": "Nothing is removed.",
    "recipe": {
        "allocation": "none",
        "schedule": "allocation_decides",
        "retrain": {"name": "fine_tune", "training": TRAINING},
    },
}


@pytest.fixture(scope="module")
def from_initial_values(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose networks have their initial values, pruned over four steps of their one training."""
    folder = tmp_path_factory.mktemp("untrained") / "study"
    gradual = {
        "warm_up": TRAINING | {"iterations": 4},
        "schedule": {"name": "cubic", "sparsity": 0.9, "steps": 4},
        "retrain": {"name": "continued", "rest": 0.5, "training": TRAINING | {"iterations": 7}},
    }
    study = {
        "name": "untrained",
        "dataset": {"name": "digits", "limit": 600},
        "model": {"name": "mlp", "hidden": [16]},
        "training": {"iterations": 0},
        "seeds": 2,
        "controls": {"dense_trained_as_long": "unpruned", "random": "random"},
        "methods": {
            "unpruned": UNPRUNED,
            "gradual": {"recipe": gradual},
            "random": {"recipe": gradual | {"score": "random"}},
        },
    }
    run_study(Study.parse(study), folder, workers=1)
    return folder


def changed(folder: Path, to: Path, **changes: object) -> Path:
    """The same tables, with a description in which something else is said."""
    shutil.copytree(folder, to)
    study = read_json_with_digest(to / "study.json")
    write_json_with_digest(to / "study.json", study | changes)
    return to


def accuracy(folder: Path, method: str, step: int) -> float:
    """The mean over seeds in percent."""
    rows = [r for r in table(folder / "results.csv") if (r["method"], int(r["step"])) == (method, step)]
    return 100 * sum(float(row["test_accuracy"]) for row in rows) / len(rows)


def test_the_reference_is_the_control_that_was_trained_as_long(from_initial_values):
    folder = from_initial_values
    untrained, trained = accuracy(folder, "dense", 0), accuracy(folder, "unpruned", 1)
    assert untrained < 30 < 80 < trained
    overview = study_overview(folder)
    said = [str(each) for each in overview.findings]
    assert said[0].startswith(f"The dense network has a test accuracy of {trained:.2f} ± ")
    assert "it is unpruned, trained for as long as the pruned ones" in said[0]
    assert not any("no results" in str(each) for each in overview.cautions)
    page = Page(folder / "report.html")
    assert (
        "bar; the full line without marks is the dense network, the grey dashes removal at random."
        in page.said
    )
    facts = page.said.split("dense test accuracy")[1]
    assert facts.split()[0] == f"{trained:.2f}"
    assert f"{untrained:.2f}" not in page.said.split("All numbers")[0]
    assert (
        "The network of unpruned, since the one before pruning is not trained. Nothing is removed."
        in page.said
    )
    end = accuracy(folder, "gradual", 4)
    best = page.said.split("Best method at each compression")[1].split("Curves")[0]
    assert f"{end - trained:+.2f}".replace("-", "\N{MINUS SIGN}") in best


def test_sizes_that_are_passed_half_trained_are_no_results(from_initial_values):
    page = Page(from_initial_values / "report.html")
    ratios = [
        (float(r["compression_ratio"]), int(r["step"]))
        for r in table(from_initial_values / "results.csv")
        if r["method"] == "gradual" and r["seed"] == "0"
    ]
    assert [ratio for ratio, step in ratios if 2 <= ratio <= 9 and step < 4]  # what would be read on the way
    assert ratios[-1] == (pytest.approx(10, rel=0.01), 4)
    best = page.said.split("Best method at each compression")[1].split("Curves")[0]
    assert re.findall(r"(\S+x) +2 of 2", best) == ["10x"]
    for name in ("accuracy-ratio", "error-ratio", "accuracy-sparsity"):
        tips = [a for tag, a in page.tags if (a.get("id") or "").startswith(f"{name}--point-")]
        assert len(tips) == 2, name
    numbers = page.said.split("All numbers")[1].split("Settings")[0]
    assert numbers.count("under way") == 6  # three of four steps of both
    assert "training is under way" in page.said.split("Best method")[0]


def test_without_such_a_control_nothing_is_compared_with_dense(from_initial_values, tmp_path):
    folder = changed(from_initial_values, tmp_path / "alone", controls={"random": "random"})
    untrained = accuracy(folder, "dense", 0)
    write_report(folder)
    said = " ".join(str(each) for each in study_overview(folder).findings)
    assert "no control says what a dense network has that is trained" in said
    assert "points of dense" not in said
    page = Page(folder / "report.html")
    assert f"{untrained:.2f}" not in page.said.split("All numbers")[0]
    assert "No dense network was trained as long" in page.said
    assert (folder / "figures" / "accuracy-ratio.svg").exists()
    assert "the full line without marks is the dense network" not in page.said
    assert "bar, a dotted line a control from which nothing was removed, the grey dashes" in page.said
    assert "reference" not in page.said.split("What was compared")[1].split("Best method")[0]


def test_of_a_trained_network_only_what_one_training_goes_through_is_read_at_its_end(
    from_initial_values, tmp_path
):
    folder = changed(from_initial_values, tmp_path / "trained", training=TRAINING)
    study = read_json_with_digest(folder / "study.json")
    study["methods"]["random"]["recipe"][0]["retrain"]["name"] = "fine_tune"
    write_json_with_digest(folder / "study.json", study)
    write_report(folder)
    page = Page(folder / "report.html")
    numbers = page.said.split("All numbers")[1].split("Settings")[0]
    assert numbers.count("under way") == 3
    said = str(study_overview(folder).findings[0])
    assert said.startswith(f"The dense network has a test accuracy of {accuracy(folder, 'dense', 0):.2f} ± ")


def test_a_method_that_ends_between_the_usual_sizes_is_compared_at_its_own():
    fine = [0.9, 0.9]
    points = [
        point("dense", 1.0, fine, fine),
        point("far", 12.0, fine, fine),
        *(point("between", ratio, fine, fine) for ratio in (1.001, 3.3, 28.4)),
        point("near it", 33.0, fine, fine),
        point("further", 37.1, fine, fine),
    ]
    assert asked_ratios(points, ACCURACY) == [12.0, 28.4, 37.1]
