"""Prune every network of the zoo by half without hints: `python research/any_network.py [--peer DIR]`.

Writes docs/results/any-network: results.csv, a line for each network; stays.csv, a line for each group that
stays; and from these the pages README.md (its tables) and what-stays.md. The networks are those of
tests/zoo/wide_zoo.py. With `--peer` torch-pruning is run beside, from the folder that it is installed in.

Each network has a process of its own with a limit of time. The check beside the proof, which shares no code
with it (tests/zoo/independent.py), is made in double precision where the network can be run in it.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "zoo"), str(ROOT / "benchmarks"), str(ROOT / "research")]

import independent  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from wide_zoo import PART_OF, WIDE, halved, made_wide  # noqa: E402

import any_network_page  # noqa: E402
from prunekit.errors import PrunekitError  # noqa: E402
from prunekit.graph import GroupPlan, ShrinkResult, groups, prune_groups  # noqa: E402
from prunekit.graph.capture import tensors_of  # noqa: E402
from prunekit.graph.l1_pruning import smallest  # noqa: E402
from prunekit.graph.surgery import parameters_after  # noqa: E402

LIMIT, PEERS_LIMIT = 120, 10  # seconds of the processor for one network, with all checks, and for the peer
COLUMNS = [
    "network", "part", "form", "groups", "groups that stay", "parameters", "what can go", "parameters after",
    "difference", "independent difference", "bit-equal", "other batch", "other size", "seconds", "reason",
    "form with streams", "after with streams", "peer", "peer after", "peer seconds", "peer reason",
]  # fmt: skip
Row = dict[str, Any]


def first_line(error: object) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [""])[0][:300]


def unchanged(model: nn.Module, name: str) -> bool:
    """Whether state, attributes and outputs are exactly those of a network that nothing was done with."""
    fresh, inputs = made_wide(name)

    def plain(each: nn.Module) -> dict[str, Any]:
        return {
            key: value for key, value in vars(each).items() if isinstance(value, (int, float, str, tuple))
        }

    def outputs(each: nn.Module) -> list[torch.Tensor]:
        torch.manual_seed(0)  # ViLT takes its patches in random order, in evaluation, too
        return independent.call(each, inputs)

    state, wanted = model.state_dict(), fresh.state_dict()
    pairs = zip(model.modules(), fresh.modules(), strict=True)
    return (
        list(state) == list(wanted)
        and all(_equal(state[key], wanted[key]) for key in wanted)
        and all(
            type(one).__name__ == type(other).__name__ and plain(one) == plain(other) for one, other in pairs
        )
        and all(map(_equal, outputs(model), outputs(fresh)))
    )


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def checked(name: str, result: ShrinkResult, plan: GroupPlan) -> Row:
    """The result held against zeros in the original, on other inputs, other batches and other sizes."""
    original, inputs = made_wide(name)
    over_units = {each.name for each in plan.groups if each.normalised}
    if over_units & {each.name for each in result.lost}:
        # zeros are not what it computes without these: they stay, for the check
        other = halved(name, plan)
        if other is None:
            return {"independent difference": "norms over units"}
        result = other
    small, reference = result.model, independent.silenced(original, result.axes)
    inputs, _ = independent.sharpest(small, reference, inputs)
    torch.manual_seed(5)
    drawn = independent.mapped(inputs, lambda x: torch.randn_like(x) if x.is_floating_point() else x)

    def off(given: Any) -> str:
        try:
            wanted, given = independent.call(reference, given), independent.call(small, given)
            return f"{independent.difference(wanted, given):.1e}"
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"

    found = {"independent difference": off(inputs if "hf-mae" in name else drawn)}
    batch, size = independent.other_batch(inputs), independent.larger(reference, inputs)
    try:
        independent.call(reference, batch) if batch is not None else None
    except Exception:
        batch = None
    for key, given in (("other batch", batch), ("other size", size)):
        found[key] = "not taken by the original" if given is None else off(given)
    return found


def ours(name: str) -> Row:
    """What prunekit makes of a network."""
    model, inputs = made_wide(name)
    found: Row = {
        "network": name,
        "part": PART_OF[name],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    start = time.process_time()
    stays: list[list[Any]] = []
    try:
        plan = groups(model, inputs)
        stays = [[name, each.name, each.kind, each.units, each.frozen] for each in plan.groups if each.frozen]
        kept = {each.name: smallest(tensors_of(model), each, 0.5) for each in plan.prunable}
        found["what can go"] = found["parameters"] - parameters_after(model, plan, kept)
        found["groups"], found["groups that stay"] = len(plan.prunable), len(stays)
        found["bit-equal"] = unchanged(model, name)
        start = time.process_time()
        result = prune_groups(model, inputs, 0.5)
    except PrunekitError as error:
        found.update({"form": "refused", "reason": first_line(error), "seconds": time.process_time() - start})
        return {**found, "stays": stays}
    found.update(
        {
            "form": "own class" if result.form == "modules" else "graph", "reason": first_line(result.reason),
            "parameters after": result.parameters_after, "difference": f"{result.deviation.relative:.1e}",
            "seconds": time.process_time() - start,
        }
    )  # fmt: skip
    known = {each.name: (each.kind, each.units) for each in plan.groups}
    for group, why in result.stayed.items():
        kind, units = known.get(group, ("", ""))  # where it was analysed again, names may be others
        stays.append([name, group, kind, units, why])
    return {**found, **checked(name, result, plan), "stays": stays}


def with_streams(name: str) -> Row:
    """What prunekit makes of a network whose residual streams are to lose half, too."""
    model, inputs = made_wide(name)
    try:
        result = prune_groups(model, inputs, 0.5, residual=True)
    except PrunekitError:
        return {"form with streams": "refused"}
    form = "own class" if result.form == "modules" else "graph"
    return {"form with streams": form, "after with streams": result.parameters_after}


def theirs(name: str) -> Row:
    """What torch-pruning makes of a network."""
    from peer import outcome

    model, inputs = made_wide(name)
    found = outcome(model, inputs)
    seconds = found.get("analysis", 0.0) + found.get("surgery", 0.0)
    return {
        "peer": found["outcome"], "peer after": found.get("after", ""), "peer seconds": seconds,
        "peer reason": found.get("error", ""),
    }  # fmt: skip


def apart(task: Callable[[str], Row], name: str, limit: int) -> Row | str:
    """What a task gives in a process of its own; in words what ended it, if it did not get there."""
    here, there = multiprocessing.Pipe(False)

    def run() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            there.send(task(name))
        except BaseException as error:
            there.send(f"{type(error).__name__}: {first_line(error)}")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return f"not finished after {limit} s"
    finally:
        process.join()


def row(name: str, peer: bool) -> Row:
    """The line of a network, and under "stays" those of its groups that stay."""
    found = apart(ours, name, LIMIT)
    if isinstance(found, str):
        found = {"network": name, "part": PART_OF[name], "form": "failed", "reason": found, "seconds": 0.0}
    streams = apart(with_streams, name, LIMIT)
    found |= {"form with streams": "failed"} if isinstance(streams, str) else streams
    if peer:
        other = apart(theirs, name, PEERS_LIMIT)
        found |= (
            {"peer": "not finished" if "not finished" in other else "raises", "peer reason": other}
            if isinstance(other, str)
            else other
        )
    return found


def write(path: Path, columns: list[str], rows: Iterable[list[Any]]) -> None:
    """Write a table."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(columns)
        table.writerows(rows)


def cell(value: Any) -> Any:
    """A value as the table has it."""
    return f"{value:.2f}" if isinstance(value, float) else value


def main() -> None:
    """All networks, in the order of the zoo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", help="folder that torch-pruning is installed in")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "any-network")
    parser.add_argument("--resume", type=Path, help="file that rows are kept in, and taken from")
    parser.add_argument("names", nargs="*", help="networks, all where none is given")
    given = parser.parse_args()
    if given.peer:
        sys.path.append(given.peer)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    kept = {}
    if given.resume and given.resume.exists():
        kept = {each["network"]: each for each in map(json.loads, given.resume.read_text().splitlines())}
    rows = []
    for name in given.names or WIDE:
        found = kept.get(name) or row(name, bool(given.peer))
        if given.resume and name not in kept:
            with given.resume.open("a") as file:
                file.write(json.dumps(found) + "\n")
        rows.append(found)
        print(
            *(cell(found.get(key, "")) for key in COLUMNS[:14]),
            str(found.get("peer", "")),
            sep="\t",
            flush=True,
        )
    write(given.out / "results.csv", COLUMNS, ([cell(each.get(key, "")) for key in COLUMNS] for each in rows))
    stays = [line for each in rows for line in each.get("stays", [])]
    write(given.out / "stays.csv", ["network", "group", "kind", "units", "reason"], stays)
    any_network_page.write(given.out)


if __name__ == "__main__":
    main()
