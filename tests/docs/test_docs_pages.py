"""The figures in the pages of docs/results are those of the CSV files beside them."""

import re
from pathlib import Path

import pytest
from test_docs_code import load_tool

import any_network_page
from prunekit.errors import DataError, InputError

tool = load_tool("results/make_pages")
PAGES = sorted(tool.RESULTS.glob("*/README.md"))
TABLES_OF_THEIR_OWN = {
    "any-network": "structures and times of single networks, which have no seeds; see the last test",
}


def name_of(page: Path) -> str:
    return page.parent.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_tables_of_a_page_are_those_of_its_csv_files(page: Path) -> None:
    assert tool.filled(page) == page.read_text(encoding="utf-8"), "run: python docs/results/make_pages.py"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_mean_with_its_spread_in_the_text_is_one_of_the_csv_files(page: Path) -> None:
    assert tool.unknown_spreads(page) == []


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name not in TABLES_OF_THEIR_OWN], ids=name_of
)
def test_a_figure_in_the_text_stands_in_a_table_or_says_where_it_is_from(page: Path) -> None:
    assert tool.unknown_figures(page) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_other_table_stands_in_a_page(page: Path) -> None:
    other = re.findall(r"^\|.*$", tool.unmarked(page), re.MULTILINE)
    assert bool(other) == (name_of(page) in TABLES_OF_THEIR_OWN), other[:1]


CSV = """\
method,cell,seed,step,sparsity,prunable,kept,validation_accuracy,test_accuracy,test_loss
dense,d,0,0,0.0,10,10,0.97,0.9700,0.10
dense,d,1,0,0.0,10,10,0.97,0.9500,0.20
even,a,0,1,0.2,10,8,0.96,0.9600,0.11
even,a,1,1,0.2,10,8,0.96,0.9400,0.21
even,a,0,2,0.4,10,6,0.97,0.9590,0.50
even,a,1,2,0.4,10,6,0.93,0.9450,0.70
odd,b,0,1,0.2,10,8,0.50,0.5000,2.00
odd,b,1,1,0.2,10,8,0.50,0.5500,2.50
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results.csv").write_text(CSV)
    return tmp_path


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_a_table_worked_out_by_hand(folder: Path) -> None:
    """95 % and its spread: 96 and 94 differ from their mean by 1, and the sample deviation is 2 ** 0.5."""
    table = tool.table(
        folder,
        "corner: dense {dense}\nas: '%'\nbold: column\n"
        "columns: {20 %: 0.2, 40 %: 0.4}\nrows:\n  A: even\n  B: odd\n",
    )
    assert rows_of(table) == [
        ["dense 96.00 ± 1.41", "20 %", "40 %"],
        ["---", "---", "---"],
        ["A", "**95.00 ± 1.41**", "95.20 ± 0.99"],
        ["B", "52.50 ± 3.54", ""],
    ]


def test_a_lead_within_the_spreads_is_not_bold(folder: Path) -> None:
    """Losses 0.16 ± 0.07 and 0.15 ± 0.07: the second is less, and both are one within their spreads."""
    spec = "metric: test_loss\nbold: column\ncolumns: {loss: {}}\nrows:\n  A: {method: even, step: 1}\n"
    assert rows_of(tool.table(folder, f"{spec}  B: dense\n"))[2:] == [
        ["A", "0.16 ± 0.07"],
        ["B", "0.15 ± 0.07"],
    ]
    assert rows_of(tool.table(folder, f"{spec}  B: odd\n"))[2:] == [
        ["A", "**0.16 ± 0.07**"],
        ["B", "2.25 ± 0.35"],
    ]


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("{method: even, step: last}", "95.20 ± 0.99"),
        ("{method: even, step: best}", "95.00 ± 1.41"),
        ("{method: even, step: best, minus: dense}", "-1.00 ± 0.00"),
        ("{method: even, step: 1, show: mean}", "95.00"),
        ("{method: even, step: 1, show: each, digits: 1}", "96.0, 94.0"),
        ("{method: even, step: 1, seed: 1}", "94.00"),
        ("{method: even, step: 1, minus: dense}", "-1.00 ± 0.00"),
        ("{method: even, step: 1, as: error in %, significant: 2}", "5.0 ± 1.4"),
        ("{method: even, step: 1, metric: kept, as: x, show: mean, digits: 0}", "8x"),
        ("{method: dense, metric: sparsity, show: zeros}", "2"),
        ("{method: even, show: removed at loss, loss: 0.01}", "2, 4"),
        ("{method: odd, show: removed at loss, loss: 0.01}", "0, 0"),
        ("{method: even, metric: test_loss, show: least, of: kept, at_most: 0.5}", "6, 8"),
        ("{method: even, metric: test_loss, show: least, of: kept, at_most: 0.2}", "8, -"),
    ],
)
def test_every_form_of_a_figure_by_hand(folder: Path, asked: str, shown: str) -> None:
    """Step 1 of `even` is best on validation, 0.96 against 0.95, and step 2 on test and for seed 0.

    A loss of just 0.01 is none of more; seed 0 has lost 0.011 at step 2, seed 1 never more than 0.01.
    """
    table = tool.table(folder, f"as: '%'\ncolumns: {{it: {asked}}}\nrows: {{A: {{}}}}\n")
    assert rows_of(table)[2] == ["A", shown]


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ("evn", "{step: 1}", "the row 'A' is empty"),
        ("even", "0.3", "the row 'A' is empty"),
        ("evn", "{show: removed at loss, loss: 0.01}", "the row 'A' is empty"),
        ("evn", "{show: least, of: kept, at_most: 1}", "the row 'A' is empty"),
        ("even", "{layer: fc1}", "'layer' is no column of the table; it has method, cell, seed"),
        ("even", "{metric: test_top5}", "metric: 'test_top5' is no column"),
        ("even", "{}", "more than one line of seed 0"),
        ("even", "{method: odd}", "'method' is said by a row and by a column"),
        ("even", "{step: 1, show: median}", "show: 'median' is not one of mean ± sd, mean"),
        ("even", "{step: 1, as: percent}", "as: 'percent' is not one of value, x, %"),
    ],
)
def test_a_table_that_leads_to_nothing_is_refused(folder: Path, row: str, column: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        tool.table(folder, f"columns: {{it: {column}}}\nrows: {{A: {row}}}\n")


def test_a_seed_that_is_missing_is_not_averaged_away(folder: Path) -> None:
    path = folder / "results.csv"
    path.write_text("".join(line for line in CSV.splitlines(keepends=True) if not line.startswith("odd,b,1")))
    with pytest.raises(InputError, match=r"the seeds \['1'\] are not in the table"):
        tool.table(folder, "columns: {it: 0.2}\nrows: {A: odd}\n")


def test_a_cell_that_is_empty_is_no_number_and_is_shown_among_others(folder: Path) -> None:
    (folder / "early.csv").write_text("method,seed,goal_step\neven,0,700\neven,1,\n")
    spec = "table: early.csv\nmetric: goal_step\ndigits: 0\nrows: {A: even}\n"
    table = tool.table(folder, f"{spec}columns: {{it: {{show: each}}}}\n")
    assert rows_of(table)[2] == ["A", "700, -"]
    with pytest.raises(InputError, match="goal_step of even, seed 1, is '', no number"):
        tool.table(folder, f"{spec}columns: {{it: {{}}}}\n")


def test_a_table_without_its_file_and_an_unknown_key_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"there is no table lost\.csv"):
        tool.table(folder, "table: lost.csv\ncolumns: {it: 0.2}\nrows: {A: odd}\n")
    with pytest.raises(InputError, match="unknown key 'colums'"):
        tool.table(folder, "colums: {it: 0.2}\nrows: {A: odd}\n")


def test_a_changed_cell_and_a_figure_in_the_text_are_found(folder: Path) -> None:
    page = folder / "README.md"
    spec = "<!-- figures\nas: '%'\ncolumns: {it: 0.2}\nrows: {A: odd}\n-->\n"
    page.write_text(f"{spec}| old |\n<!-- end -->\nDense 96.0 ±\n1.4, and 95.3 ± 1.0 at 40 %.\n")
    assert "| A | 52.50 ± 3.54 |" in tool.filled(page)
    assert tool.unknown_spreads(page) == ["95.3 ± 1.0"]


def test_a_number_in_the_text_that_no_table_has_is_found(folder: Path) -> None:
    """B loses 95.0 - 52.5 = 42.5 points against A, which 42.4 would not say."""
    page = folder / "README.md"
    table = "<!-- figures\nas: '%'\ncolumns: {it: 0.2}\nrows: {A: even, B: odd}\n-->\n<!-- end -->\n"
    said = "7.7\n## What was seen\n{}A has 95.0, B 52.5; 0.25 is set, arXiv 1701.04465.\nThat is {}.\n"
    also = (
        "<!-- also said\nas: '%'\nfigures:\n  '{}': [{{method: even, step: 1}}, {{method: odd}}]\n"
        "others:\n  '0.25': a setting\n-->\n"
    )
    page.write_text(table)
    page.write_text(tool.filled(page) + said.format("", "42.5 less"))
    assert tool.unknown_figures(page) == ["0.25", "42.5"]
    page.write_text(table)
    page.write_text(tool.filled(page) + said.format(also.format("42.5"), "42.5 less"))
    assert tool.unknown_figures(page) == []
    page.write_text(page.read_text().replace("42.5", "42.4"))
    assert tool.unknown_figures(page) == ["42.4 is 42.5"]
    page.write_text(page.read_text().replace("That is 42.4", "That is much"))
    assert tool.unknown_figures(page) == ["42.4 is not in the text"]


def test_the_pages_of_any_network_are_those_of_its_csv_files(tmp_path: Path) -> None:
    folder = tool.RESULTS / "any-network"
    for each in folder.iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    any_network_page.write(tmp_path)
    for name in ("README.md", "what-stays.md"):
        written, there = ((place / name).read_text(encoding="utf-8") for place in (tmp_path, folder))
        assert written == there, "run: python research/any_network_page.py"
