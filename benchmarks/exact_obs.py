"""Exact OBS of all weights of LeNet-300-100, Hessians of 60,000 MNIST images included, on one thread.

    python benchmarks/exact_obs.py --json FILE

CPU seconds of statistics, elimination and refit, and the memory above the loaded data, each case in a process
of its own; the distance from the arithmetic floor; how cost grows with the layer; float32 against float64;
and a plain rank-one implementation beside it, on some of the rows. Bars: at most 10 s and 400 MB, the plain
form at least 30 times slower. Needs the MNIST files (PRUNEKIT_DATA, or a download).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plain_obs import one_row, rows_together
from prunekit import Training, train
from prunekit.data import DataSettings, load
from prunekit.losses import LOSSES
from prunekit.masks import lowest
from prunekit.models import create
from prunekit.obs import (
    RowElimination,
    damped,
    eliminate,
    inverse_of,
    output_variance,
    refit,
    removal_scores,
)
from prunekit.statistics.collect import StatContext, collect
from prunekit.statistics.inputs import LayerHessian, LayerInputMean
from prunekit.task import Task
from side_by_side import finish

DAMP = 1e-2
BATCH = 1000
KEPT = (0.2, 0.1, 0.07, 0.05, 0.03)
PLAIN_ROWS = 12
PLAIN_LOT = 100  # as many rows as prunekit takes together here; their inverses are beyond any cache
GROWTH = ((256, 256), (512, 512), (1024, 1024), (4096, 1024), (16, 4096))


def network() -> nn.Module:
    return create("lenet_300_100", (1, 28, 28), 10, seed=0)


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All 60,000 training images and the test images, with their labels."""
    data = load(DataSettings(name="mnist", validation=0.001))
    inputs = torch.cat([data.train.inputs, data.validation.inputs])
    return (
        inputs,
        torch.cat([data.train.targets, data.validation.targets]),
        data.test.inputs,
        data.test.targets,
    )


def trained(folder: Path) -> dict[str, Any]:
    """Train the network for the other cases."""
    inputs, targets, test_inputs, test_targets = images()
    model = network()
    training = Training(epochs=12, weight_decay=3e-4, decay="cosine")
    train(model, (inputs, targets), training, seed=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    return {
        "training": training.model_dump(mode="json"),
        "test_error": wrong(model, test_inputs, test_targets),
    }


def wrong(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Error in percent."""
    with torch.no_grad():
        return 100 * float((model(inputs).argmax(1) != targets).double().mean())


def begun(folder: Path) -> tuple[nn.Module, list[str], tuple[Tensor, Tensor, Tensor, Tensor]]:
    model = network()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model, [name for name, each in model.named_parameters() if each.dim() == 2], images()


def moments(model: nn.Module, names: list[str], inputs: Tensor, targets: Tensor) -> tuple[Any, Any]:
    batches = zip(inputs.split(BATCH), targets.split(BATCH), strict=True)
    needs = [LayerHessian(), LayerInputMean()]
    found = collect(StatContext(model, names), batches, needs, task=Task(LOSSES["cross_entropy"]))
    return found[needs[0]], found[needs[1]]


def whole(folder: Path) -> dict[str, Any]:
    """The main case: every weight, once."""
    model, names, (inputs, targets, test_inputs, test_targets) = begun(folder)
    loaded = memory(reset=True)
    clock = time.process_time
    began = clock()
    hessians, means = moments(model, names, inputs, targets)
    seconds = {"statistics": clock() - began}
    courses: dict[str, RowElimination] = {}
    matrices, layers = {}, {}
    for name in names:
        at = clock()
        matrices[name], _ = damped(hessians[name][0], DAMP)
        courses[name] = eliminate(matrices[name], model.get_parameter(name).detach())
        layers[name] = clock() - at
    seconds["elimination"] = sum(layers.values())
    at = clock()
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    cut(model, dense, courses, matrices, means, KEPT[0])
    seconds["refit"] = clock() - at
    seconds["all"] = clock() - began
    above = memory() - loaded
    errors = {}
    for kept in KEPT:
        cut(model, dense, courses, matrices, means, kept)
        errors[str(kept)] = wrong(model, test_inputs, test_targets)
    return {
        "cpu_seconds": seconds,
        "cpu_seconds_by_layer": layers,
        "megabytes_above_data": above / 1e6,
        "megabytes_with_data": loaded / 1e6,
        "live_inputs": {name: int((each.diagonal() > 0).sum()) for name, each in matrices.items()},
        "test_error_at_kept": errors,
    }


def cut(
    model: nn.Module,
    dense: dict[str, Tensor],
    courses: dict[str, RowElimination],
    matrices: dict[str, Tensor],
    means: dict[str, Tensor],
    kept: float,
) -> None:
    """The network at one global cut of the eliminations, survivors and biases refitted."""
    scores = {}
    for name, course in courses.items():
        scores[name] = removal_scores(course, output_variance(matrices[name], dense[name]))
    merged = torch.cat([each.flatten() for each in scores.values()])
    gone = lowest(merged, round((1 - kept) * len(merged)))
    for name, part in zip(scores, gone.split([each.numel() for each in scores.values()]), strict=True):
        weight = refit(matrices[name], dense[name], ~part.view(dense[name].shape))
        model.get_parameter(name).data.copy_(weight)
        bias = name.replace("weight", "bias")
        shift = (dense[name] - weight).double() @ means[name][0]
        model.get_parameter(bias).data.copy_(dense[bias] + shift)


def beside(folder: Path) -> dict[str, Any]:
    """The first layer: the plain forms on some rows, and float32 against float64 on all."""
    model, names, (inputs, targets, *_) = begun(folder)
    matrix, live = damped(moments(model, names[:1], inputs, targets)[0][names[0]][0], DAMP)
    weights = model.get_parameter(names[0]).detach()
    inverse = inverse_of(matrix)[live][:, live].float()  # the plain forms are given no dead inputs either
    few, many = weights[:PLAIN_ROWS, live], weights[:PLAIN_LOT, live]
    seconds = {
        f"plain, {PLAIN_ROWS} rows one by one": timed(lambda: [one_row(inverse, row) for row in few])
        / PLAIN_ROWS,
        f"plain, {PLAIN_ROWS} rows together": timed(lambda: rows_together(inverse, few)) / PLAIN_ROWS,
        f"plain, {PLAIN_LOT} rows together": timed(lambda: rows_together(inverse, many)) / PLAIN_LOT,
        "prunekit": timed(lambda: eliminate(matrix, weights)) / len(weights),
    }
    plain = live.nonzero().flatten()[torch.stack([one_row(inverse, row) for row in few])]
    single = eliminate(matrix, weights)
    at = time.process_time()
    double = eliminate(matrix, weights, dtype=torch.float64)
    dead = int((~live).sum())
    return {
        "layer": list(weights.shape),
        "cpu_seconds_per_row": seconds,
        "times_slower": {name: each / seconds["prunekit"] for name, each in seconds.items()},
        "cpu_seconds_float64": time.process_time() - at,
        "same_place_in_the_order_as_float64": {
            "prunekit": float((single.order == double.order).double().mean()),
            "plain": float((plain == double.order[:PLAIN_ROWS, dead:]).double().mean()),
        },
        "same_survivors_as_float64": {
            str(kept): agreement(single, double, round(weights.shape[1] * (1 - kept))) for kept in KEPT
        },
    }


def agreement(one: RowElimination, other: RowElimination, removed: int) -> float:
    """The fraction of one's survivors that the other keeps, too, after as many removals in every row."""
    mine, theirs = one.after(removed), other.after(removed)
    return float((mine & theirs).sum() / mine.sum())


def growth(folder: Path) -> list[dict[str, Any]]:
    """Layers of random weights behind correlated random inputs, (rows, columns)."""
    drawn = torch.Generator().manual_seed(0)
    rate, found = gemm_rate(), []
    for rows, columns in GROWTH:
        mixing = torch.randn((columns, columns), generator=drawn)
        x = torch.randn((2 * columns, columns), generator=drawn) @ mixing
        matrix, _ = damped((x.T @ x).double() / len(x), DAMP)
        weights = torch.randn((rows, columns), generator=drawn)
        del x, mixing
        loaded = memory(reset=True)
        seconds = timed(lambda matrix=matrix, weights=weights: eliminate(matrix, weights))
        floor = rows * columns**3 / 3 / rate
        found.append(
            {
                "rows": rows,
                "columns": columns,
                "cpu_seconds": seconds,
                "cpu_seconds_per_row": seconds / rows,
                "times_the_floor": seconds / floor,
                "megabytes_above_data": (memory() - loaded) / 1e6,
            }
        )
        if len(found) > 1 and found[-2]["columns"] != columns:
            grown = found[-1]["cpu_seconds_per_row"] / found[-2]["cpu_seconds_per_row"]
            found[-1]["exponent_of_columns"] = math.log(grown) / math.log(columns / found[-2]["columns"])
    return found


def gemm_rate() -> float:
    """Floating-point operations a second of a large float32 matrix product."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: a @ a) for _ in range(5))


def floor(live: list[int], rows: list[int], images: int, rate: float) -> dict[str, float]:
    """CPU seconds of the arithmetic alone: x x^T below the diagonal, and a Cholesky factorisation per row."""
    parts = {
        "statistics": sum(images * columns**2 for columns in live) / rate,
        "elimination": sum(each * columns**3 / 3 for each, columns in zip(rows, live, strict=True)) / rate,
    }
    return {**parts, "all": sum(parts.values())}


def timed(way: Callable[[], Any]) -> float:
    began = time.process_time()
    way()
    return time.process_time() - began


def memory(*, reset: bool = False) -> int:
    """The greatest resident memory so far in bytes; `reset` starts again from what there is now."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


CASES: dict[str, Callable[[Path], Any]] = {
    "trained": trained,
    "whole": whole,
    "beside": beside,
    "growth": growth,
}


def fresh(case: str, folder: Path) -> Any:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--case", case, "--folder", str(folder)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the main case (3)")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case:
        print(json.dumps(CASES[options.case](options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {"network": fresh("trained", folder)}
        rounds = [fresh("whole", folder) for _ in range(options.rounds)]
        rate = gemm_rate()
        live = list(rounds[0]["live_inputs"].values())
        lowest_possible = floor(live, [300, 100, 10], 60_000, rate)
        seconds = {
            part: statistics.median(each["cpu_seconds"][part] for each in rounds)
            for part in rounds[0]["cpu_seconds"]
        }
        figures["lenet_300_100"] = {
            "weights": 266_200,
            "images": 60_000,
            "damp": DAMP,
            "median_cpu_seconds": seconds,
            "floor_cpu_seconds": lowest_possible,
            "times_the_floor": {part: seconds[part] / each for part, each in lowest_possible.items()},
            "gemm_gflops": rate / 1e9,
            "rounds": rounds,
        }
        figures["first_layer"] = fresh("beside", folder)
        figures["growth"] = fresh("growth", folder)
    finish(options, figures)


if __name__ == "__main__":
    main()
