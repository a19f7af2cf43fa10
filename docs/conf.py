"""The settings of the documentation site, which `make docs` builds from the pages of the repository.

The source folder is the root of the repository, so that links between pages are the same on a code host.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from functools import cache
from importlib.metadata import version as version_of
from itertools import pairwise
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

DOCS = Path(__file__).resolve().parent

project = "prunekit"
author = "the authors of prunekit"
version = release = version_of("prunekit")
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "docs/**.rst"]
exclude_patterns = [
    ".*",
    "build",
    "dist",
    "runs",
    "src",
    "tests",
    *(f"docs/{name}" for name in ("_build", "_templates", "gallery")),
]
suppress_warnings = ["config.cache"]  # the settings below hold functions, which are not kept between builds

myst_heading_anchors = 4

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "groupwise"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "pydata_sphinx_theme"
html_title = "prunekit"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_static/index.html"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "prunekit"},
    "header_links_before_dropdown": 8,
    "navbar_align": "left",
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"docs/index": []}
templates_path = [str(DOCS / "_templates")]

sphinx_gallery_conf = {
    "examples_dirs": "docs/gallery",
    "gallery_dirs": "docs/auto_gallery",
    "default_thumb_file": str(DOCS / "_static" / "thumbnail.svg"),
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"_network\.py$",
    "download_all_examples": False,
    "show_memory": False,
    "write_computation_times": False,
    "min_reported_time": 1e6,
    "plot_gallery": "True",
    "abort_on_example_error": True,
    "reset_modules": ("matplotlib",),
}

PUBLIC = re.findall(
    r"^   (prunekit[\w.]*)$", (DOCS / "sections" / "api.rst").read_text(encoding="utf-8"), re.M
)
"""The modules that have a page, in the order of the page that lists them."""


def exported(module: ModuleType) -> list[str]:
    """The names that a public module exports, without modules."""
    return [name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType)]


def page_of(module: ModuleType, name: str) -> str:
    """The module on whose page a name stands: the first of those that export the same object."""
    thing = getattr(module, name)
    if isinstance(thing, (str, tuple, int, float)) or not hasattr(thing, "__module__"):
        return module.__name__
    homes = (importlib.import_module(each) for each in PUBLIC)
    return next(each.__name__ for each in homes if any(getattr(each, it) is thing for it in exported(each)))


def own_names(fullname: str) -> list[str]:
    """What is described on the page of a module: functions, classes, values, and errors last."""
    module = importlib.import_module(fullname)
    own = [name for name in exported(module) if page_of(module, name) == fullname]
    return sorted(own, key=lambda name: (ORDER.index(directive_of(fullname, name)), name))


ORDER = ("autofunction", "autoclass", "autodata", "autoexception", "")
"""The directives that describe things, in the order of a page; none for values without a docstring."""


def directive_of(fullname: str, name: str) -> str:
    """The directive that describes what a module exports by a name."""
    thing = getattr(importlib.import_module(fullname), name)
    if isinstance(thing, type):
        return "autoexception" if issubclass(thing, BaseException) else "autoclass"
    if isinstance(thing, (FunctionType, BuiltinFunctionType)):
        return "autofunction"
    return "autodata" if name in values_with_docstrings(fullname) else ""


@cache
def values_with_docstrings(fullname: str) -> list[str]:
    """The names that a module gives to values, each with a text behind it."""
    lines = ast.parse(inspect.getsource(importlib.import_module(fullname))).body
    return [
        ast.unparse(line.target if isinstance(line, ast.AnnAssign) else line.targets[0])
        for line, text in pairwise(lines)
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(text, ast.Expr)
    ]


def other_names(fullname: str) -> list[str]:
    """What a module exports and another page describes, by its full name there."""
    module = importlib.import_module(fullname)
    pages = {name: page_of(module, name) for name in sorted(exported(module))}
    return [f"{page}.{name}" for name, page in pages.items() if page != fullname]


autosummary_context = {"own_names": own_names, "other_names": other_names, "directive_of": directive_of}


def plain_docstring(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Bars and stars of a docstring outside of code mean themselves, as in |w| and w*x."""
    for number, line in enumerate(lines):
        pieces = re.split(r"(`+[^`]*`+|^:[^:]*:|^\s*\* )", line)
        lines[number] = "".join(
            piece if place % 2 else re.sub(r"(?<!\\)([|*])", r"\\\1", piece)
            for place, piece in enumerate(pieces)
        )


def without_settings(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """What pydantic adds to every class is left out."""
    return True if name in {"model_config", "model_post_init"} else None


def with_gallery(app: Any, name: str, source: list[str]) -> None:
    """Links to the folder of the gallery's scripts lead to their pages."""
    source[0] = source[0].replace("gallery/GALLERY_HEADER.rst", "auto_gallery/index.rst")


def setup(app: Any) -> None:
    """Add the hooks to Sphinx."""
    app.connect("autodoc-process-docstring", plain_docstring, priority=400)  # before napoleon adds markup
    app.connect("source-read", with_gallery)
    app.connect("autodoc-skip-member", without_settings)
