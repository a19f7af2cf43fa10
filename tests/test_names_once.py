"""One name for one thing: class names and file stems of the package are used once."""

import ast
from collections import Counter
from pathlib import Path

import prunekit

FILES = sorted(Path(prunekit.__file__).parent.rglob("*.py"))
APART = {"__init__", "__main__", "base"}

# Names that are still used for more than one thing. Take a name out once it is used once; put none in.
DOUBLE_CLASSES: set[str] = set()
DOUBLE_STEMS: set[str] = set()


def double(names):
    return {name for name, times in Counter(names).items() if times > 1}


def test_a_class_name_stands_for_one_class():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in FILES]
    classes = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert len(classes) > 100
    assert double(classes) == DOUBLE_CLASSES


def test_a_file_stem_stands_for_one_file():
    assert len(FILES) > 100
    assert double(path.stem for path in FILES if path.stem not in APART) == DOUBLE_STEMS
