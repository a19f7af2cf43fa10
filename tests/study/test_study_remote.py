"""Studies whose folder lies on another file system; in memory, and in a folder that is named by a URL."""

import logging

import fsspec
import pytest

from prunekit.errors import InputError
from prunekit.study import StudySuite, run_study
from prunekit.study.jobs import Job, perform
from prunekit.study.layout import Layout
from prunekit.study.remote import RemoteFolder
from tiny_study import settings, table, tiny

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def url():
    yield "memory://studies/one"
    fsspec.filesystem("memory").rm("/studies", recursive=True)


def names(url):
    return RemoteFolder(url).files()


def test_a_study_elsewhere_has_the_same_results_and_goes_on_there(tmp_path, url, caplog):
    run_study(tiny(), tmp_path / "here", workers=1)
    report = run_study(tiny(), url, workers=1)
    for name in ("results.csv", "layers.csv"):
        assert table(report.parent / name) == table(tmp_path / "here" / name)
    files = (path for path in (tmp_path / "here").rglob("*") if path.is_file())
    here = {path.relative_to(tmp_path / "here").as_posix() for path in files}
    assert names(url) == here - {".lock"}
    assert not list((report.parent / "cells").rglob("*.safetensors"))  # only what was measured comes back

    system = fsspec.filesystem("memory")
    model = next(name for name in sorted(names(url)) if name.startswith("cells/random") and "/model/" in name)
    system.rm_file(f"/studies/one/{model}")
    with caplog.at_level(logging.WARNING):
        run_study(tiny(), url, workers=1)
    assert f"{model} is missing; done anew" in caplog.text
    assert model in names(url)
    assert table(report.parent / "results.csv") == table(tmp_path / "here" / "results.csv")


def test_workers_need_no_common_folder_with_this_process(tmp_path):
    url = (tmp_path / "there").as_uri()
    suite = StudySuite.parse(
        {
            **{key: value for key, value in settings().items() if key != "model"},
            "variants": {"small": {"model": {"name": "mlp", "hidden": [4]}}, "large": {"model": "mlp"}},
        }
    )
    run_study(suite.studies["small"], tmp_path / "here", workers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prunekit.report.write_suite_page", lambda out: out / "report.html")
        run_study(suite, url, workers=2)
    assert table(tmp_path / "there" / "small" / "results.csv") == table(tmp_path / "here" / "results.csv")
    assert (tmp_path / "there" / "suite.json").is_file()


def write_and_fail(layout, fails, progress):
    """Keep how far it is in a file, and fail the first time."""
    folder = layout.root / "cells" / "a" / "seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "state.safetensors"
    if fails:
        assert (layout.root / "networks" / "n" / "x").read_text() == "values"
        state.write_text("half")
        progress(0.5)
        raise ValueError("no")
    assert state.read_text() == "half"
    state.unlink()
    (folder / "result.json").write_text("{}")


def test_a_job_that_is_broken_off_finds_what_it_had_kept(tmp_path, url):
    remote = RemoteFolder(url)
    (tmp_path / "networks" / "n").mkdir(parents=True)
    (tmp_path / "networks" / "n" / "x").write_text("values")
    (tmp_path / "networks" / "other").write_text("not needed")
    remote.send(tmp_path, {"networks/n/x", "networks/other"})

    def job(fails):
        return Job(
            "a", write_and_fail, (Layout(tmp_path), fails), reads=("networks/n",), writes=("cells/a/seed-0",)
        )

    failure = perform(remote.job(job(True)), lambda fraction: None)
    assert failure is not None
    assert failure.message == "ValueError: no"
    assert names(url) == {"networks/n/x", "networks/other", "cells/a/seed-0/state.safetensors"}
    assert perform(remote.job(job(False)), lambda fraction: None) is None
    assert names(url) == {"networks/n/x", "networks/other", "cells/a/seed-0/result.json"}
    assert not (tmp_path / "cells").exists()


@pytest.mark.parametrize("url", ["nowhere://a/b", "file:///proc/nothing/study"])
def test_a_folder_that_cannot_be_written_is_refused_first(url):
    with pytest.raises(InputError, match="cannot be written to: "):
        run_study(tiny(), url, workers=1)
