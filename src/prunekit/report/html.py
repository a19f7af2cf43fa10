"""The page: templates filled with strings, everything escaped, style and script inline."""

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prunekit.report.overview import Overview
from prunekit.report.view import View


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure on the page; ``svg`` is trusted markup, made by matplotlib, which escapes its texts.

    Figures that are not ``first`` are folded away until asked for.
    """

    name: str
    title: str
    caption: str
    svg: str
    first: bool = True

    @property
    def markup(self) -> Markup:
        """The SVG as markup that is not escaped again."""
        return Markup(self.svg)


def render(view: View, curves: list[Figure], layers: list[Figure]) -> str:
    """The whole page as text. It asks for nothing outside itself: its content policy forbids it."""
    script = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            view=view,
            curves=curves,
            layers=layers,
            style=Markup(_part("report.css")),
            script=Markup(script),
            script_digest=digest,
        )
    )


def render_series(series: dict[str, Any], found: list[tuple[str, Overview]]) -> str:
    """The page of a series: its words, and what was found for each problem."""
    return (
        _environment()
        .get_template("series.html.j2")
        .render(series=series, found=found, style=Markup(_part("report.css")))
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("prunekit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _part(name: str) -> str:
    return files("prunekit.report").joinpath("templates", name).read_text(encoding="utf-8")
