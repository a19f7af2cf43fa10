"""Saving figures: SVG and PNG, the same bytes for the same numbers, and SVG that can stand inside a page."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prunekit.errors import DataError
from prunekit.files import replacing
from prunekit.report.style import drawing_style

PNG_DPI = 160
_GROUP = re.compile(r'<g id="(series|point)-(\d+)-([\w-]+)">')


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with what a page needs around it.

    ``tips`` maps the gid of a marker ('point-<method>-<k>') to the text shown when it is pointed at.
    Figures that are not ``first`` may be folded away.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    tips: Mapping[str, str]
    first: bool = True


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, with an Agg canvas and no global state."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader finds the old one or the new one, whole; DataError if that fails."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None


def svg_of(drawing: Drawing) -> str:
    """The figure as SVG text: text as text, no date, a tooltip at every marker."""
    buffer = io.BytesIO()
    with drawing_style():
        drawing.figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return _GROUP.sub(lambda found: _open_group(found, drawing.tips), buffer.getvalue().decode())


def _open_group(found: re.Match[str], tips: Mapping[str, str]) -> str:
    kind, series, rest = found.groups()
    if kind == "series":  # several parts of a method's line share the mark, and an id must be unique
        return f'<g data-series="{series}">'
    gid = f"{kind}-{series}-{rest}"
    return f'<g id="{gid}" data-series="{series}" class="point"><title>{escape(tips[gid])}</title>'


def inline(svg: str, drawing: Drawing) -> str:
    """The SVG for use within HTML.

    Without the XML head and fixed size; every id gets the figure's name in front, since ids must be unique
    in a page; role and label for those who do not see it.
    """
    head, body = svg[svg.index("<svg ") :].split(">", 1)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<style .*?</style>", "", body, count=1, flags=re.DOTALL)  # would act on the whole page
    # Text holds no raw "<", so that these match in tags only, whatever a method is called.
    body = re.sub(r'(<\w+ id=")', rf"\1{drawing.name}--", body)
    body = re.sub(r'(<[^<>]* xlink:href="#)', rf"\1{drawing.name}--", body)
    body = re.sub(r"(<[^<>]*\burl\(#)", rf"\1{drawing.name}--", body)
    box = re.search(r'viewBox="[^"]+"', head)
    if box is None:  # every matplotlib SVG has one
        raise ValueError("SVG without a viewBox")
    label = escape(f"{drawing.title}. {drawing.caption}".strip())
    style = "stroke-linejoin:round;stroke-linecap:butt"
    return f'<svg {box.group()} role="img" aria-label="{label}" style="{style}">{body}'


def save(drawing: Drawing, folder: Path) -> str:
    """Write folder/<name>.svg and .png; return the SVG text."""
    svg = svg_of(drawing)
    write_atomically(folder / f"{drawing.name}.svg", svg.encode())
    buffer = io.BytesIO()
    with drawing_style():
        drawing.figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    write_atomically(folder / f"{drawing.name}.png", buffer.getvalue())
    return svg
