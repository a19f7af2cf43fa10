"""Finding what is coupled and taking half of it out, beside torch-pruning, on one thread.

    pip install --no-deps --target DIR torch-pruning
    python benchmarks/coupling.py --peer DIR --json FILE

CPU seconds of analysis and surgery, the choice of units included, each case in a process of its own after a
network of two layers, which loads what PyTorch loads on first use; those seconds are given, too ("first").
The proof, which torch-pruning has not, is given apart, and so is the memory that the whole call takes at its
peak, beside that of a forward and a backward pass (Linux only). Bars: at most 0.8 of torch-pruning's time in
the median where it finishes within the limit and takes something out, with the proof at most four times,
linear in depth, and at most three times the memory of the passes. The networks are those of `real_widths.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "zoo"))

import zoo_convnets as nets

from real_widths import NETWORKS
from side_by_side import machine, resident

LIMIT = 60  # seconds for one case
REPEATS = 5


def tiny() -> tuple[nn.Module, Any]:
    return nets.Head(nets.Bottleneck(8, 4, 8, 1), 8, 10), torch.randn(2, 8, 8, 8)


def peak(run: Callable[[], Any]) -> int:
    """Bytes that a call takes at its peak, beyond what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def passes(model: nn.Module, inputs: Any) -> None:
    """A forward and a backward pass."""
    outputs = model(**inputs)[0] if isinstance(inputs, dict) else model(inputs)
    outputs.square().sum().backward()
    model.zero_grad()


def ours(name: str) -> dict[str, Any]:
    from prunekit.graph import ShrinkResult, prune_groups

    start = time.process_time()
    prune_groups(*tiny(), 0.5)
    first = time.process_time() - start
    model, inputs = NETWORKS[name]()
    of_passes = peak(lambda: passes(model, inputs))
    found: list[ShrinkResult] = []
    start = time.process_time()
    memory = peak(lambda: found.append(prune_groups(model.eval(), inputs, 0.5)))
    whole = time.process_time() - start
    (result,) = found
    analysis, _, proof = result.seconds
    return {
        "first": first, "analysis": analysis, "surgery": whole - analysis - proof, "proof": proof,
        "peak": memory, "peak of both passes": of_passes, "form": result.form,
        "before": result.parameters_before, "after": result.parameters_after,
    }  # fmt: skip


def theirs(name: str) -> dict[str, Any]:
    import torch_pruning

    start = time.process_time()
    torch_pruning.pruner.MagnitudePruner(
        *tiny(), importance=torch_pruning.importance.MagnitudeImportance(p=1), pruning_ratio=0.5
    ).step()
    first = time.process_time() - start
    model, inputs = NETWORKS[name]()
    model.eval()
    layers = (nn.Linear, nn.Conv2d)
    last = [module for module in model.modules() if isinstance(module, layers)][-1]
    before = sum(parameter.numel() for parameter in model.parameters())
    start = time.process_time()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model, inputs, importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5, ignored_layers=[last],
        output_transform=lambda out: out if isinstance(out, torch.Tensor) else out[0],
    )  # fmt: skip
    analysis = time.process_time() - start
    pruner.step()
    found = {
        "first": first,
        "analysis": analysis,
        "surgery": time.process_time() - start - analysis,
        "before": before,
    }
    found["after"] = sum(parameter.numel() for parameter in model.parameters())
    try:
        model(**inputs) if isinstance(inputs, dict) else model(inputs)
        found["runs"] = True
    except Exception as error:  # what it leaves need not run
        found["runs"], found["error"] = False, f"{type(error).__name__}: {error}"[:200]
    return found


def one(kind: str, name: str, peer: str | None) -> dict[str, Any]:
    """A case in a process of its own; what went wrong, if something did."""
    command = [sys.executable, __file__, "--case", kind, name, *(["--peer", peer] if peer else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {LIMIT} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def middle(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The run whose analysis and surgery together took the median time, with the median of each memory."""
    chosen = sorted(found, key=lambda run: run["analysis"] + run["surgery"])[len(found) // 2]
    memories = [key for key in ("peak", "peak of both passes") if key in chosen]
    return chosen | {key: statistics.median(run[key] for run in found) for key in memories}


def in_turn(name: str, peer: str | None) -> dict[str, dict[str, Any]]:
    """The middle one of a few runs of each, which take turns; what went wrong, if something did."""
    runs: dict[str, list[dict[str, Any]]] = {"prunekit": [], **({"torch-pruning": []} if peer else {})}
    for _ in range(REPEATS):
        for kind, found in runs.items():
            if not found or "analysis" in found[-1]:
                found.append(one(kind, name, peer if kind == "torch-pruning" else None))
    return {kind: middle(found) if "analysis" in found[-1] else found[-1] for kind, found in runs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peer", help="folder that torch-pruning is installed in")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        warnings.simplefilter("ignore")
        if given.peer:
            sys.path.append(given.peer)
        kind, name = given.case
        print(json.dumps(ours(name) if kind == "prunekit" else theirs(name)))
        return
    found: dict[str, Any] = {"machine": machine(), "repeats": REPEATS}
    totals = {"prunekit": 0.0, "torch-pruning": 0.0}
    ratios, whole = list[float](), list[float]()
    for name in given.networks:
        found[name] = in_turn(name, given.peer)
        if all(run.get("after", 0) < run.get("before", 0) for run in found[name].values()):
            taken = {kind: run["analysis"] + run["surgery"] for kind, run in found[name].items()}
            for kind, seconds in taken.items():
                totals[kind] += seconds
            if given.peer:
                ratios.append(taken["prunekit"] / taken["torch-pruning"])
                whole.append(ratios[-1] + found[name]["prunekit"]["proof"] / taken["torch-pruning"])
        print(name, json.dumps(found[name]), flush=True)
    if given.peer:
        ratio = totals["prunekit"] / totals["torch-pruning"]
        found["total where both finish"] = {
            **totals, "prunekit to torch-pruning": ratio,
            "median of the networks": statistics.median(ratios),
            "median with the proof": statistics.median(whole),
        }  # fmt: skip
        print(found["total where both finish"])
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
