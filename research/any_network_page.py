"""The tables in the pages of docs/results/any-network, from its csv files.

`python research/any_network_page.py` writes all of what-stays.md, and of README.md what is between its marks.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "any-network"
WRONG = 1e-4  # of the largest value of an output: far above what single precision leaves
RUNS = {"right", "runs"}
FORMS = {"own class", "graph"}
Line = Mapping[str, str]


def lines(path: Path) -> list[Line]:
    """The lines of a table."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def share(part: int, whole: int) -> str:
    """A part in per cent."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def gone(line: Line) -> float:
    """How much of the parameters that can go went with the own class, a share."""
    if line["form"] != "own class" or not int(line["what can go"]):
        return 0.0
    return (int(line["parameters"]) - int(line["parameters after"])) / int(line["what can go"])


def number(text: str) -> float | None:
    """A number, if it is one."""
    try:
        return float(text)
    except ValueError:
        return None


def wrong(line: Line) -> bool:
    """Whether outputs are not those of the original with zeros, at its own or another batch or size."""
    found = [number(line[key]) for key in ("independent difference", "other batch", "other size")]
    return any(each is not None and not each < WRONG for each in found)


def summary(networks: Sequence[Line]) -> Iterator[str]:
    """The rows of the headline, for each part of the zoo and for all."""
    parts = list(dict.fromkeys(line["part"] for line in networks))
    yield "| | " + " | ".join([*parts, "all"]) + " |"
    yield "|---|" + "---|" * (len(parts) + 1)
    rows = {
        "networks": lambda own: f"{len(own)}",
        "keep their own class": lambda own: share(sum(line["form"] == "own class" for line in own), len(own)),
        "and lose two thirds of what can go": lambda own: share(
            sum(gone(line) >= 2 / 3 for line in own), len(own)
        ),
        "become a graph": lambda own: share(sum(line["form"] == "graph" for line in own), len(own)),
        "refused": lambda own: share(sum(line["form"] in {"refused", "failed"} for line in own), len(own)),
        "bound to one batch": lambda own: f"{sum(_bound(line) for line in own)}",
        "wrong by the independent check": lambda own: f"{sum(map(wrong, own))}",
        "not as they were after the analysis": lambda own: (
            f"{sum(line['bit-equal'] == 'False' for line in own)}"
        ),
    }
    for name, row in rows.items():
        cells = [row([line for line in networks if line["part"] == part]) for part in parts]
        yield f"| {name} | " + " | ".join([*cells, row(list(networks))]) + " |"


def _bound(line: Line) -> bool:
    taken = line["other batch"] not in {"", "not taken by the original"}
    return taken and number(line["other batch"]) is None


def beside(networks: Sequence[Line]) -> Iterator[str]:
    """What became of the same networks in torch-pruning."""
    tried = [line for line in networks if line["peer"]]
    counts = {
        word: sum(line["peer"] == word for line in tried)
        for word in dict.fromkeys(line["peer"] for line in tried)
    }
    said = {
        "right": "right",
        "runs": "runs; norms over its units have no reference",
        "wrong": "runs, but computes something else than the network with zeros",
        "other outputs": "gives outputs of other shapes",
        "does not run": "cannot be run any more",
        "raises": "raises an error",
        "not finished": "was stopped after 10 s of the processor",
    }
    yield "| torch-pruning | networks |"
    yield "|---|---|"
    for word, text in said.items():
        if counts.get(word):
            yield f"| {text} | {counts[word]} |"
    text = removed([line for line in tried if line["peer"] in RUNS and line["peer after"]])
    if text:
        yield ""
        yield wrapped(text, indent="")


def removed(networks: Sequence[Line]) -> str:
    """What share of the parameters goes in the mean, with and without residual streams."""
    both = [
        line for line in networks
        if line["form"] in FORMS and (not line.get("form with streams") or line["after with streams"])
    ]  # fmt: skip
    if not both:
        return ""

    def mean(key: str) -> str:
        return f"{100 * statistics.mean(1 - int(line[key]) / int(line['parameters']) for line in both):.0f} %"

    text = (
        f"On the {len(both)} networks where both succeed, prunekit takes out {mean('parameters after')} of "
        f"the parameters in the mean and torch-pruning {mean('peer after')}, residual streams among them."
    )
    if all(line.get("after with streams") for line in both):
        own = share(sum(line["form with streams"] == "own class" for line in both), len(both))
        text += (
            " With residual streams, which are asked for by `residual=True`, prunekit takes out "
            f"{mean('after with streams')}; {own} of the networks keep their own class then."
        )
    return text


def table(networks: Iterable[Line]) -> Iterator[str]:
    """A row for each network."""
    titles = ["network", "form", "groups", "stay", "parameters", "after", "of what can go", "difference"]
    titles += ["any batch", "seconds", "peer"]
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for line in networks:
        after = line["parameters after"]
        off = line["independent difference"]
        cells = [*(line[key] for key in ("network", "form", "groups", "groups that stay"))]
        cells += [
            f"{int(line['parameters']):,}" if line["parameters"] else "",
            f"{int(after):,}" if after else "",
        ]
        cells += [f"{100 * gone(line):.0f} %" if line["form"] == "own class" else ""]
        cells += [off if number(off) is not None else "", _batch(line), line["seconds"], line["peer"]]
        yield "| " + " | ".join(cells) + " |"


def _batch(line: Line) -> str:
    if line["other batch"] in {"", "not taken by the original"}:
        return ""
    return "no" if _bound(line) else "yes"


def stays(networks: Sequence[Line], groups: Sequence[Line]) -> str:
    """The page of what stays and why."""
    text = [
        "# What stays and why", "",
        "Made by `python research/any_network.py`, as [the tables of the zoo](README.md) are: for each",
        "network the groups that stay, with the reason; where its class is lost, or it is refused, why.",
    ]  # fmt: skip
    for line in networks:
        own = [group for group in groups if group["network"] == line["network"]]
        text += ["", f"## {line['network']}", ""]
        if line["form"] != "own class":
            text.append(wrapped(f"- **{line['form']}**: {_plain(line['reason'])}"))
        reasons: dict[str, list[str]] = {}
        for group in own:
            reasons.setdefault(group["reason"], []).append(f"`{group['group']}`")
        for reason, names in reasons.items():
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            text.append(wrapped(f"- {shown}: {_plain(reason)}"))
        if line["form"] == "own class" and not own:
            text.append("Nothing.")
    return "\n".join(text) + "\n"


def _plain(reason: str) -> str:
    return re.sub(r"([*_<>\[\]|])", r"\\\1", reason.replace("\n", " "))


def wrapped(text: str, width: int = 118, indent: str = "  ") -> str:
    """An item of a list in lines of that width; a paragraph, without an indent."""
    rows, row = [], ""
    for word in text.split(" "):
        if row and len(row) + len(word) + 1 > width:
            rows.append(row)
            row = indent + word
        else:
            row = f"{row} {word}" if row else word
    return "\n".join([*rows, row])


def write(folder: Path = FOLDER) -> None:
    """Write the pages."""
    networks, groups = lines(folder / "results.csv"), lines(folder / "stays.csv")
    (folder / "what-stays.md").write_text(stays(networks, groups), encoding="utf-8")
    page = folder / "README.md"
    if not page.exists():
        return
    text = page.read_text(encoding="utf-8")
    for mark, rows in (
        ("summary", summary(networks)),
        ("peer", beside(networks)),
        ("networks", table(networks)),
    ):
        body = f"<!-- {mark} -->\n\n" + "\n".join(rows) + f"\n\n<!-- end of {mark} -->"
        text = re.sub(
            rf"<!-- {mark} -->.*?<!-- end of {mark} -->", lambda _, body=body: body, text, flags=re.DOTALL
        )
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
