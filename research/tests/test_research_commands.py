"""The experiments still fit the package: they import, and say what they are asked for."""

import importlib
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_imports_and_its_page_quotes_its_command(name, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = importlib.import_module(name)
    assert module.__doc__
    if hasattr(module, "main"):
        pages = (FOLDER.parent / "docs" / "results").glob("*/README.md")
        assert any(f"    python research/{name}.py" in page.read_text(encoding="utf-8") for page in pages)


def test_every_file_has_its_line_in_the_list():
    listed = re.findall(r"^\| `(\w+)\.py`", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == NAMES
