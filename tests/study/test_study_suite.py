"""One comparison on several variants, and a split of its own for every seed."""

import json

import pytest
import yaml

from prunekit.cli import run
from prunekit.digests import write_json_with_digest
from prunekit.errors import DataError, InputError
from prunekit.report import overview
from prunekit.study import Study, StudyError, StudySuite, load_study, run_study
from prunekit.study.stages import dataset
from prunekit.study_files import FORMAT
from tiny_study import settings, stages, tables, tiny, write_study

GOOD = dict.fromkeys(("name", "title", "question", "expected", "command"), "words") | {"format": FORMAT}
VARIANTS = {
    "small": {"model": {"name": "mlp", "hidden": [4]}},
    "large": {"model": {"name": "mlp", "hidden": [8]}},
}


def several(variants=VARIANTS, **changes):
    values = settings(variants=variants, **changes)
    values.pop("model")
    return values


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a suite, not to be changed."""
    folder = tmp_path_factory.mktemp("suite") / "out"
    page = run_study(StudySuite.parse(several(title="Two sizes")), folder, workers=1)
    assert page == folder / "report.html"
    return folder


class TestWhatItIs:
    def test_each_variant_is_an_ordinary_study(self):
        suite = StudySuite.parse(several(title="Two sizes"))
        assert list(suite.studies) == ["small", "large"]
        small, large = suite.studies.values()
        assert (small.name, large.title) == ("tiny-small", "Two sizes: large")
        assert [cell.label for cell in small.cells] == [cell.label for cell in large.cells]
        assert len(suite.cells) == len(small.cells) + len(large.cells)

    def test_a_variant_has_the_hashes_of_the_study_that_it_is(self):
        suite = StudySuite.parse(several())
        alone = tiny()  # with 8 hidden units
        assert suite.studies["large"].network_key == alone.network_key
        assert [c.key for c in suite.studies["large"].cells] == [c.key for c in alone.cells]

    def test_a_file_with_variants_is_a_suite(self, tmp_path):
        path = tmp_path / "several.yaml"
        path.write_text(yaml.safe_dump(several(), sort_keys=False))
        assert isinstance(load_study(str(path)), StudySuite)
        assert load_study(str(path), ["seeds=1"]).seeds == 1
        changed = load_study(str(path), ["variants.small.model.hidden=[5]"])
        assert changed.studies["small"].model.own["hidden"] == (5,)

    def test_keys_of_a_variant_may_be_dotted(self):
        values = several({"one": {"model": "mlp", "methods.random.recipe.score": "magnitude"}})
        assert StudySuite.parse(values).studies["one"].cells[0].recipe.score.name == "magnitude"

    @pytest.mark.parametrize(
        ("variants", "message"),
        [
            ({}, "variants: expected labels"),
            ([], "variants: expected labels"),
            ({"a/b": {}}, "'a/b' cannot name a folder"),
            ({"..": {}}, "'..' cannot name a folder"),
            ({"con": {}}, "'con' cannot name a folder"),
            ({"": {}}, "'' cannot name a folder: it is empty"),
            ({"a" * 101: {}}, "cannot name a folder: it has more than 100"),
            ({"a": None}, "variants: a: expected a mapping"),
            ({"a": {"model": "mlp", "dataset": "iris"}}, "variants: a: 'dataset' is given for all variants"),
            ({"a": {}}, "variants: a: .*model"),
            ({"a": {"model": "mlp", "sets": 3}}, "variants: a: .*'sets'"),
        ],
    )
    def test_what_is_refused(self, variants, message):
        with pytest.raises(InputError, match=message):
            StudySuite.parse(several(variants))


class TestRunning:
    def test_every_variant_has_a_folder_as_a_study_alone_has(self, done, tmp_path, monkeypatch):
        monkeypatch.setattr("prunekit.study.run._report", lambda layout: layout.root)
        run_study(tiny(), tmp_path / "alone", workers=1)
        suite, alone = tables(done / "large"), tables(tmp_path / "alone")
        for row in suite[0]:
            row["study"] = "tiny"
        assert suite == alone

    def test_the_page_leads_to_all_reports(self, done):
        text = (done / "report.html").read_text()
        for label in VARIANTS:
            assert f'href="{label}/report.html"' in text
            assert (done / label / "report.html").is_file()
        assert "Two sizes" in text

    def test_the_findings_name_the_variant(self, done):
        found = overview(done)
        assert found.title == "Two sizes"
        assert {str(text).partition(":")[0] for text in (*found.findings, *found.cautions)} == set(VARIANTS)

    def test_nothing_is_repeated(self, done):
        before = [stages(done / label) for label in VARIANTS]
        run_study(StudySuite.parse(several(title="Two sizes")), done, workers=1)
        assert [stages(done / label) for label in VARIANTS] == before

    def test_reports_are_made_anew(self, done, capsys):
        text = (done / "report.html").read_text()
        (done / "report.html").unlink()
        assert run(["report", str(done), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["title"] == "Two sizes"
        assert (done / "report.html").read_text() == text

    def test_a_damaged_description_is_named(self, tmp_path):
        path = tmp_path / "suite.json"
        for values, said in (
            ({"format": FORMAT}, "suite.json: name"),
            ({"format": 1}, "suite.json: format is 1"),
            (GOOD | {"variants": ["../../home"]}, r"suite.json: variants.0: .*cannot name a folder"),
            (GOOD | {"variants": {"a": 1}}, "suite.json: variants"),
        ):
            write_json_with_digest(path, values)
            with pytest.raises(DataError, match=said):
                overview(tmp_path)
        path.write_text(json.dumps(GOOD | {"sha256": "0"}))
        with pytest.raises(DataError, match=r"suite.json is damaged or was changed"):
            overview(tmp_path)
        path.write_text("{")
        with pytest.raises(DataError, match=r"suite.json is damaged: not valid JSON"):
            overview(tmp_path)

    def test_the_last_variant_is_refused_before_the_first_is_run(self, tmp_path):
        values = several({"good": {"model": "mlp"}, "bad": {"model": "mlp", "dataset.name": "nothing"}})
        values.pop("dataset")
        values["variants"]["good"]["dataset"] = "iris"
        with pytest.raises(InputError, match=r"bad: .*nothing"):
            run_study(StudySuite.parse(values), tmp_path / "out", workers=1)
        assert not (tmp_path / "out").exists()

    def test_a_failure_in_one_does_not_stop_the_next(self, tmp_path, monkeypatch):
        monkeypatch.setattr("prunekit.study.run._report", lambda layout: layout.root)
        bad = {"model": "mlp", "methods.tickets.recipe.score": "own_parts:Fussy"}
        suite = StudySuite.parse(several({"bad": bad, "good": VARIANTS["small"]}), allow=["own_parts"])
        with pytest.raises(StudyError, match=r"^bad: "):
            run_study(suite, tmp_path, workers=1)
        assert len(tables(tmp_path / "good")[0]) > 2


class TestSplits:
    def test_one_split_is_what_it_was(self):
        study = tiny()
        assert study.network_key == Study.parse(settings(splits="one")).network_key
        assert dataset(study, None, 0).test.targets.equal(dataset(study, None, 1).test.targets)

    def test_every_seed_has_its_own(self):
        study = tiny(splits="per_seed")
        parts = [dataset(study, None, seed) for seed in range(3)]
        for part in ("train", "validation", "test"):
            first, second, third = (getattr(data, part).inputs for data in parts)
            assert first.shape == second.shape == third.shape
            assert not first.equal(second)
            assert not second.equal(third)

    def test_the_first_is_that_of_the_dataset(self):
        assert tiny(splits="per_seed").dataset_of(0) == tiny().dataset
        moved = tiny(splits="per_seed", dataset={"name": "iris", "seed": 5})
        assert [moved.dataset_of(seed).seed for seed in range(3)] == [5, 6, 7]

    def test_results_of_the_two_are_not_mixed(self):
        assert tiny(splits="per_seed").network_key != tiny().network_key
        assert {c.key for c in tiny(splits="per_seed").cells}.isdisjoint(c.key for c in tiny().cells)

    def test_networks_are_judged_on_the_split_of_their_seed(self, tmp_path, monkeypatch):
        monkeypatch.setattr("prunekit.study.run._report", lambda layout: layout.root)
        # without training the network of a seed is the same under both settings: only the split differs
        idle = {"epochs": 0}
        methods = {"random": settings()["methods"]["random"]}
        for splits in ("one", "per_seed"):
            run_study(tiny(splits=splits, training=idle, methods=methods), tmp_path / splits, workers=1)
        one, own = (tables(tmp_path / splits)[0] for splits in ("one", "per_seed"))
        same = [a["test_loss"] == b["test_loss"] for a, b in zip(one, own, strict=True)]
        assert [row["seed"] == "0" for row in one] == same

    def test_another_word_is_refused(self):
        with pytest.raises(InputError, match="splits"):
            tiny(splits="ten")


def test_the_command_line_runs_a_suite(tmp_path, capsys):
    path = write_study(tmp_path / "s.yaml")
    values = several(seeds=1, methods={"random": settings()["methods"]["random"]})
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    assert run(["compare", str(path), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
