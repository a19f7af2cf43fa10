"""Prune every network of the zoo by half without hints: `python research/any_network.py`.

Writes docs/results/any-network/results.csv; the networks are in tests/zoo/zoo.py.
"""

from __future__ import annotations

import csv
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "zoo"))

import torch  # noqa: E402

from prunekit.errors import PrunekitError  # noqa: E402
from prunekit.graph import GroupPlan, prune_groups, traced  # noqa: E402
from zoo import ZOO, made  # noqa: E402

COLUMNS = [
    "network", "prunable groups", "kinds", "frozen groups", "reasons", "parameters", "parameters after",
    "form", "largest relative difference", "tolerance", "seconds", "why a graph",
]  # fmt: skip


def _first(text: str) -> str:
    return text.split(", at node")[0].splitlines()[0][:200] if text else ""


def row(name: str) -> list[object]:
    """One line of the table."""
    model, inputs = made(name)
    plan: GroupPlan = traced(model, inputs).plan
    reasons = "; ".join(sorted(set(plan.frozen.values())))
    kinds = ", ".join(sorted({group.kind for group in plan.prunable}))
    start = time.process_time()
    head: list[object] = [name, len(plan.prunable), kinds, len(plan.frozen), reasons]
    try:
        result = prune_groups(model, inputs, 0.5)
    except PrunekitError as error:
        return [*head, "", "", "refused", "", "", f"{time.process_time() - start:.2f}", _first(str(error))]
    deviation = result.deviation
    return [
        *head, result.parameters_before, result.parameters_after, result.form,
        f"{deviation.relative:.1e}", f"{deviation.tolerance:.1e}", f"{time.process_time() - start:.2f}",
        _first(result.reason),
    ]  # fmt: skip


def main() -> None:
    """All networks, in the order of the zoo."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with (ROOT / "docs" / "results" / "any-network" / "results.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for name in ZOO:
            found = row(name)
            table.writerow(found)
            print(*(found[index] for index in (0, 1, 3, 5, 6, 7, 8, 10)), sep="\t", flush=True)


if __name__ == "__main__":
    main()
