"""The pages of the documentation site: each has its place, and links between them lead somewhere."""

import re
from pathlib import Path

import pytest
from test_docs_code import ROOT, load_tool

import prunekit

DOCS = ROOT / "docs"
OUTSIDE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = [*OUTSIDE, *sorted(DOCS.rglob("*.md"))]
SECTIONS = [DOCS / "index.md", *sorted((DOCS / "sections").glob("*.md"))]
GENERATED = DOCS / "auto_gallery" / "index"
CODE = re.compile(r"^```.*?^```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def entries(section: Path) -> list[Path]:
    """The pages, without suffix, that the tables of contents of a section name."""
    found: list[Path] = []
    for body in TABLE.findall(section.read_text("utf-8")):
        for line in body.splitlines():
            named = re.sub(r".*<(.+)>$", r"\1", line)
            target = (section.parent / named).resolve()
            if "*" in named:
                pages = sorted(DOCS.glob(f"{target.relative_to(DOCS)}.md"))
                found += [page.with_suffix("") for page in pages]
            elif named and not named.startswith(":"):
                found.append(target)
    return found


def test_every_page_is_in_one_table_of_contents() -> None:
    named = [entry for section in SECTIONS for entry in entries(section)]
    assert len(named) == len(set(named))
    pages = {page.with_suffix("") for page in PAGES if "_build" not in page.parts} - {DOCS / "index"}
    assert set(named) == pages | {GENERATED, DOCS / "sections" / "api"}


def anchors(page: Path) -> set[str]:
    """Those of a page's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def local_links() -> list[tuple[str, str]]:
    """The links of all pages that lead to files of the repository, and those to headings."""
    found = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", CODE.sub("", page.read_text("utf-8"))):
            if "://" not in target:
                found.append((page.relative_to(ROOT).as_posix(), target))
    return found


@pytest.mark.parametrize(("page", "target"), sorted(set(local_links())))
def test_links_lead_somewhere(page: str, target: str) -> None:
    file, _, anchor = target.partition("#")
    path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
    assert path.exists()
    assert not anchor or anchor in anchors(path)


def test_every_public_name_is_described_on_one_page() -> None:
    site = load_tool("conf")
    described = [(module, name) for module in site.PUBLIC for name in site.own_names(module)]
    assert set(prunekit.__all__) == set(site.own_names("prunekit"))
    for module in site.PUBLIC:
        for full in site.other_names(module):
            assert tuple(full.rsplit(".", 1)) in described
    rooms = Path(prunekit.__file__).parent.glob("*/__init__.py")
    packages = {f"prunekit.{room.parent.name}" for room in rooms} - {"prunekit.cli"}
    assert packages - set(site.PUBLIC) == {"prunekit.integrations", "prunekit.parts"}  # by their modules


def test_bars_and_stars_of_docstrings_mean_themselves() -> None:
    lines = ["|w| and w*x, but `a|b` and ``*c``"]
    load_tool("conf").plain_docstring(None, "", "", None, None, lines)
    assert lines == [r"\|w\| and w\*x, but `a|b` and ``*c``"]
