import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_fixture import LAYERS, MANY, RESULTS, Method, make_study, write_csv

from prunekit.report import write_report


class Page(HTMLParser):
    """What a browser would see: tags with attributes, visible text, ids, tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.text))

    def values(self, *names: str) -> list[str]:
        return [str(a[n]) for _, a in self.tags for n in names if n in a]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    methods = {**MANY, "<script>alert(1)</script>": Method(9, (2, 8), summary='<b>bold</b> & "quoted"')}
    folder = make_study(tmp_path_factory.mktemp("many"), methods, title="Is <em>it</em> safe?")
    assert write_report(folder) == folder / "report.html"
    return folder


def test_self_contained(many: Path) -> None:
    page = Page(many / "report.html")
    assert all(
        v.startswith("#") for v in page.values("href", "xlink:href", "action", "data", "poster", "srcset")
    )
    assert page.values("src") == []
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"link", "iframe", "img", "object", "embed", "base", "form"}
    )
    text = (many / "report.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_escapes_everything(many: Path) -> None:
    page = Page(many / "report.html")
    assert sum(tag == "script" for tag, _ in page.tags) == 4  # data, library, charts, tables
    assert {tag for tag, _ in page.tags}.isdisjoint({"em"})
    assert "<script>alert(1)</script>" in page.said  # as text
    assert '<b>bold</b> & "quoted"' in page.said
    assert "Is <em>it</em> safe?" in page.said


def test_ids_are_unique_and_links_lead_somewhere(many: Path) -> None:
    page = Page(many / "report.html")
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [v[1:] for v in page.values("href", "xlink:href")]
    clips = re.findall(r"url\(#([^)]+)\)", (many / "report.html").read_text(encoding="utf-8"))
    assert clips
    assert {*targets, *clips, *page.values("aria-labelledby")} <= set(ids)


def test_accessible(many: Path) -> None:
    page = Page(many / "report.html")
    assert all(a.get("scope") in {"col", "row"} for t, a in page.tags if t == "th")
    figures = [a for t, a in page.tags if t == "svg" and a.get("aria-hidden") != "true"]
    assert len(figures) == 7
    assert all(a.get("role") == "img" and a.get("aria-label") for a in figures)
    assert ("html", {"lang": "en"}) in page.tags


def test_sections_in_order_and_figures_on_disk(many: Path) -> None:
    page = Page(many / "report.html")
    sections = [a["id"] for t, a in page.tags if t == "section"]
    assert sections == ["findings", "compared", "best", "curves", "layers", "numbers", "settings", "again"]
    for words in ("Key findings", "prunekit compare digits-quick --seeds 3", "2.9.0", "kind: magnitude"):
        assert words in page.said
    names = {p.stem for p in (many / "figures").glob("*.svg")}
    assert names == {p.stem for p in (many / "figures").glob("*.png")}
    assert names == {
        *("accuracy-ratio", "error-ratio", "accuracy-sparsity", "accuracy-speedup", "loss-ratio"),
        *("loss-sparsity", "layers-sparsity", "layers-methods"),
    }
    assert all(p.stat().st_size > 5000 for p in (many / "figures").iterdir())
    assert not any(p.name.startswith(".") for p in [*many.iterdir(), *(many / "figures").iterdir()])


def test_same_files_same_page(many: Path, tmp_path: Path) -> None:
    for name in ("results.csv", "layers.csv", "study.json"):
        (tmp_path / name).write_bytes((many / name).read_bytes())
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (many / "report.html").read_bytes()
    for svg in (many / "figures").glob("*.svg"):
        assert (tmp_path / "figures" / svg.name).read_bytes() == svg.read_bytes()


def test_regression_study(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"a": MANY["SNIP"], "random": MANY["random"]}, regression=True)
    page = Page(write_report(folder))
    assert "test mean squared error" in page.said
    assert "test accuracy" not in page.said
    assert (folder / "figures" / "mse-log-ratio.svg").exists()
    assert not (folder / "figures" / "accuracy-ratio.svg").exists()


def test_one_method_one_seed_one_point(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"alone": Method(20, (1.3,))}, seeds=1, longer=False)
    page = Page(write_report(folder))
    assert "only method here" in page.said
    assert "±" not in page.said.split("All numbers")[1].split("Settings")[0].replace("mean ± sample", "")


def test_only_dense_and_no_layers(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {}, seeds=2, longer=False)
    page = Page(write_report(folder))
    assert "No method removed anything" in page.said
    assert "No pruned point has been measured yet." in page.said
    assert "Nothing was recorded per layer." in page.said


def test_a_run_that_diverged_is_said_and_breaks_nothing(tmp_path: Path) -> None:
    folder = make_study(tmp_path, {"a": Method(20), "b": Method(10)}, regression=True, seeds=2)
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    broken = [row for row in rows if row["method"] == "b"][:1]
    for row in broken:
        row |= {"test_mse": "nan", "validation_mse": "nan", "test_loss": "inf"}
    write_csv(folder / "results.csv", RESULTS, rows)
    page = Page(write_report(folder))
    assert "Some runs of b diverged" in page.said
    assert "diverged" in page.said.split("All numbers")[1]


def test_a_deep_network_and_many_methods(tmp_path: Path) -> None:
    methods = {f"method number {i} of a long name that goes on": Method(5 + 3 * i, (2, 8)) for i in range(9)}
    folder = make_study(tmp_path, methods, seeds=2)
    layers = [
        dict(zip(LAYERS, (m, f"{n:02x}00", 0, s, f"block{k}.conv", "8x8x3x3", 576, 288, 0.5), strict=True))
        for n, m in enumerate(methods)
        for s in (1, 2)
        for k in range(42)
    ]
    write_csv(folder / "layers.csv", LAYERS, layers)
    page = Page(write_report(folder))
    assert "block41.conv" in page.said
    study = json.loads((folder / "study.json").read_text())
    assert all(label in page.said for label in study["methods"])
