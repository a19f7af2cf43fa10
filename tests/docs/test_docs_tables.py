"""The tables in the documentation are those of the code, and nothing that users can choose is left out."""

import re
from pathlib import Path

import pytest
from test_docs_code import load_tool
from test_docs_site import local_links

from prunekit import data, methods
from prunekit.models import names as model_names
from prunekit.parts.scores import Score
from prunekit.study import Method, Study
from prunekit.study.spec import Controls
from prunekit.study_files import FILE_COLUMNS, LAYER_COLUMNS, RESULT_COLUMNS
from prunekit.training import Training

ROOT = Path(__file__).resolve().parents[2]


tool = load_tool("make_tables")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", tool.PAGES)
def test_tables_are_current(page: str) -> None:
    assert tool.filled(read(page)) == read(page), "run: python docs/make_tables.py"


def test_a_stale_table_is_made_anew() -> None:
    stale = "<!-- table: parts -->\n| stale |\n<!-- end -->\nrest"
    fresh = tool.filled(stale)
    assert "stale" not in fresh
    assert fresh.endswith("<!-- end -->\nrest")
    assert tool.filled(fresh) == fresh


def rows_of(page: str, first_column: str) -> set[str]:
    """The names in back quotes in the first cells of the tables whose first heading is `first_column`."""
    found: set[str] = set()
    for table in re.findall(rf"\| {first_column} \|.*?(?=\n\n|\n<!--|\Z)", read(page), flags=re.DOTALL):
        found |= set(re.findall(r"^\| `([^`]+)`", table, flags=re.MULTILINE))
    return found


def test_pages_name_every_method_model_and_dataset() -> None:
    assert rows_of("docs/methods.md", "method") == set(methods.METHODS)
    assert rows_of("docs/models-and-data.md", "model") == set(model_names())
    assert rows_of("docs/models-and-data.md", "dataset") == set(data.names())


def test_the_readme_leads_to_every_page_and_is_short() -> None:
    text = read("README.md")
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {target.partition("#")[0] for page, target in local_links() if page == "README.md"}
    assert len(text.split()) < 920


def test_the_page_of_parts_names_every_part_of_the_package_and_no_other() -> None:
    class OfATest(Score):
        name = "of_a_test"

        def __call__(self, context: object) -> dict[str, object]:
            return {}

    shown = rows_of("docs/parts.md", "name")
    assert "of_a_test" not in shown
    for family, _ in tool.FAMILIES.values():
        assert set(tool.members(family)) <= shown
    assert set(Training.model_fields) == rows_of("docs/parts.md", "setting")


def test_the_page_of_studies_explains_every_key_and_column() -> None:
    assert rows_of("docs/studies.md", "key") == set(Study.model_fields) | {
        "variants"
    }  # which make it a suite
    assert rows_of("docs/studies.md", "key of a method") == set(Method.model_fields)
    assert rows_of("docs/studies.md", "key of controls") == set(Controls.model_fields)
    assert rows_of("docs/studies.md", "column") == set(RESULT_COLUMNS + FILE_COLUMNS)
    assert rows_of("docs/studies.md", "column of layers.csv") == set(LAYER_COLUMNS)
