"""Colours of figures on a page, whose theme is light or dark."""

import re

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray

GREY, INK, PALE, EDGE = "#7a7a7a", "#1d2129", "#dfe2e8", "#8b919c"
#: What these are on a page: variables of its style sheet.
THEME = {"#ffffff": "card", INK: "ink", GREY: "soft", EDGE: "soft", PALE: "line"}
#: What the style sheet has for the paper of figures where the theme is dark.
DARK_CARD = "#1d2127"
#: What they are in a file of its own where the theme is dark: those of the style sheet.
DARK = {"#ffffff": DARK_CARD, INK: "#e7e9ee", GREY: "#a3abb8", EDGE: "#a3abb8", PALE: "#343a44"}
_PAINT = re.compile("(fill|stroke): (#[0-9a-f]{6})")
#: The contrast that a line needs to be seen (WCAG 2, 1.4.11).
CONTRAST = 3.0


def of_page(color: str) -> str:
    """The colour of a line as CSS: a variable of the page, or two where one is not seen in both themes."""
    if color in THEME:
        return f"var(--{THEME[color]})"
    dark = lightened(color)
    return color if dark == color else f"light-dark({color}, {dark})"


def lightened(color: str) -> str:
    """The colour, mixed with as much white as it takes for it to be seen on the dark paper."""
    own = np.array(to_rgb(color))
    for white in np.linspace(0.0, 1.0, 41):
        mixed = str(to_hex(own + white * (1 - own)))
        if contrast(mixed, DARK_CARD) >= CONTRAST:
            return color if white == 0 else mixed
    return "#ffffff"


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, from 1 to 21 (WCAG 2)."""
    dark, light = sorted(_luminance(np.array(to_rgb(color))) + 0.05 for color in (one, other))
    return light / dark


def _luminance(rgb: NDArray[np.float64]) -> float:
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def themed(style: str) -> str:
    """The style of a part of an SVG figure, in the colours of the page.

    What is filled in another colour than those of THEME keeps it: it has it by a scale, or letters in it.
    """
    return _PAINT.sub(_of_part, style)


def _of_part(found: re.Match[str]) -> str:
    kind, color = found.groups()
    return f"{kind}: {of_page(color) if kind == 'stroke' or color in THEME else color}"


def for_both_themes(svg: str) -> str:
    """An SVG file with other colours where the theme is dark; to programs without themes it is as it was.

    What is filled in another colour than those of THEME keeps it, as in `themed`.
    """
    rules = "".join(
        f'[style*="{kind}: {color}"]{{{kind}:{dark} !important}}'
        for kind, color in sorted(set(_PAINT.findall(svg)))
        for dark in [DARK.get(color) or (lightened(color) if kind == "stroke" else color)]
        if dark != color
    )
    return svg.replace("</style>", f"@media (prefers-color-scheme: dark){{{rules}}}</style>", 1)
