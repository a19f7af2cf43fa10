"""Writes the tables that come from the code into the pages: methods, parts, models, datasets.

`python docs/make_tables.py` writes them, `--check` only says whether they are current. A page holds a table
between the lines `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from prunekit import data, methods
from prunekit.data import LOADERS
from prunekit.models import names as model_names
from prunekit.models.create import find_factory
from prunekit.parts.allocation import Allocation
from prunekit.parts.augment import Augment
from prunekit.parts.base import Part
from prunekit.parts.granularity import Granularity
from prunekit.parts.grow import Grow
from prunekit.parts.quantize import Quantizer
from prunekit.parts.regularize import Regularizer
from prunekit.parts.repair import Repair
from prunekit.parts.retrain import Retrain
from prunekit.parts.schedule import Schedule
from prunekit.parts.scores import Score
from prunekit.parts.selection import Selection
from prunekit.parts.stopping import Stop
from prunekit.parts.teacher import Teacher

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/methods.md", "docs/models-and-data.md", "docs/parts.md")
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

FAMILIES: Mapping[str, tuple[type[Part], str]] = {
    "score": (Score, "one number per weight; the lowest go first"),
    "granularity": (Granularity, "what goes together"),
    "allocation": (Allocation, "how the amount is shared over the layers"),
    "schedule": (Schedule, "the sparsity at each step, as a fraction of the original count"),
    "selection": (Selection, "which of a layer's weights go, once their number is known"),
    "repair": (Repair, "what is done to the survivors at once"),
    "retrain": (Retrain, "what follows each step"),
    "teacher": (Teacher, "what the survivors learn from beside the task, in any retraining"),
    "grow": (Grow, "which removed weights come back, in place of kept ones"),
    "quantize": (Quantizer, "few values for the weights that are left, behind the last step"),
    "stop": (Stop, "what ends the pruning before its last step"),
    "regularize": (Regularizer, "what acts during a training"),
    "augment": (Augment, "how the inputs of a training are changed at random"),
}


def methods_table() -> str:
    """Every named method: what it does, its paper, granularity and needs."""
    rows = []
    for name in methods.METHODS:
        info = methods.describe(name)
        rows.append(
            (
                f"`{name}`",
                info.summary.replace("\n", " "),
                _linked(info.paper.replace("\n", " ")) or "control",
                info.granularity,
                ", ".join(info.needs) or "nothing",
            )
        )
    return _table(("method", "what it does", "paper", "granularity", "needs besides the weights"), rows)


def parts_table() -> str:
    """The families and the names in each."""
    rows = [
        (f"**{family}**", words, ", ".join(f"`{name}`" for name in members(base)))
        for family, (base, words) in FAMILIES.items()
    ]
    return _table(("part", "what it decides", "choices"), rows)


def family_table(family: str) -> str:
    """One family: each member with its settings and their defaults."""
    base, _ = FAMILIES[family]
    rows = [
        (f"`{name}`", member.summary(), _settings(member), _linked(member.paper) or "")
        for name, member in members(base).items()
    ]
    return _table(("name", "what it does", "settings", "paper"), rows)


def datasets_table() -> str:
    """Every dataset in one line."""
    rows = [(f"`{name}`", _first_sentence(LOADERS[name])) for name in data.names()]
    return _table(("dataset", "what it is"), rows)


def models_table() -> str:
    """Every built-in model in one line, with its settings."""
    rows = []
    for name in model_names():
        factory = find_factory(name)
        own = [
            f"`{key}` = {_plain(parameter.default)}"
            for key, parameter in inspect.signature(factory).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        ]
        rows.append((f"`{name}`", _linked(_first_sentence(factory)), ", ".join(own) or "none"))
    return _table(("model", "what it is", "settings"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "methods": methods_table,
    "parts": parts_table,
    "datasets": datasets_table,
    "models": models_table,
    **{family: (lambda family=family: family_table(family)) for family in FAMILIES},  # type: ignore[misc]
}


def members(family: type[Part]) -> dict[str, type[Part]]:
    """The parts of a family that come with the package, in the order of the source."""
    own = {name: part for name, part in family.members().items() if part.__module__.startswith("prunekit.")}
    return dict(sorted(own.items()))


def filled(text: str) -> str:
    """A page's text with every marked table made anew.

    Raises:
        KeyError: if a table is marked that does not exist.
    """
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _linked(text: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def _first_sentence(thing: Callable[..., Any]) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def _settings(part: type[Part]) -> str:
    shown = []
    for key, field in part.model_fields.items():
        if field.is_required():
            shown.append(f"`{key}`")
        elif key == "training":
            shown.append("`training` (see below)")
        else:
            shown.append(f"`{key}` = {_plain(field.get_default(call_default_factory=True))}")
    return ", ".join(shown) or "none"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_plain(item) for item in value) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def main(arguments: list[str]) -> int:
    """Write the tables, or with --check exit with 1 if one is not current."""
    stale = []
    for name in PAGES:
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            stale.append(name)
            if "--check" not in arguments:
                page.write_text(new, encoding="utf-8")
    for name in stale:
        print(f"{name}: {'not current' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
