"""The rooms of docs/architecture.md are those of the package, and imports point down its table."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import prunekit

PACKAGE = Path(prunekit.__file__).parent
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
DOORS = {("recipe", "pruning"), ("saving", "packing"), ("worker", "study")}
FACES = {"__init__", "__main__"}  # of the package: they hand on what others have


def rows():
    """The rooms of each row of the table, from above to below."""
    table = PAGE.split("| rooms |")[1].split("\n\n")[0].splitlines()[2:]
    return [line.split("|")[1].replace("`", "").split() for line in table]


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """The rooms that a file imports anywhere, in functions and for types alone, too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "prunekit":
            names = [f"prunekit.{alias.name}" for alias in node.names if alias.name != "__version__"]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("prunekit."))


def test_the_table_has_every_room_once():
    rooms = [room for row in rows() for room in row]
    there = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/*.py")
    }
    assert sorted(rooms) == sorted(there - FACES)


def test_imports_point_down_but_for_three_doors():
    height = {room: number for number, row in enumerate(rows()) for room in row}
    files = [path for path in PACKAGE.rglob("*.py") if room_of(path) not in FACES]
    assert len(files) > 100
    upwards = {
        (room_of(path), room)
        for path in files
        for room in imported(path)
        if height[room] < height[room_of(path)]
    }
    assert upwards == DOORS


def imported_at_once(body):
    """The modules that are imported when a file is, as (module, name) pairs."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") != "TYPE_CHECKING":
            yield from imported_at_once([*node.body, *node.orelse])
        elif isinstance(node, ast.Try):
            yield from imported_at_once(node.body)


def test_no_file_is_imported_in_a_circle():
    files = {
        ".".join(("prunekit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): path
        for path in PACKAGE.rglob("*.py")
    }
    arrows = {
        name: {
            each
            for pair in imported_at_once(ast.parse(path.read_text(encoding="utf-8")).body)
            for each in (pair[0], ".".join(pair))
            if each in files and each != name
        }
        for name, path in files.items()
    }
    assert sum(map(len, arrows.values())) > 500
    TopologicalSorter(arrows).prepare()  # raises CycleError
