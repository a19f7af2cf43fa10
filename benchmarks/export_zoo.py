"""Which networks leave as ONNX files with a batch axis of any size, before and after half of their units go.

    python benchmarks/export_zoo.py --json FILE

All models that prunekit makes, the zoo that shrinking is tested on (tests/zoo: networks, and constructions
that are cut wrongly elsewhere), and large ones. Each file is compared with PyTorch by ONNX Runtime at two
batch sizes. Where that fails, PyTorch is asked whether it can do it by itself.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map, tree_map_only

sys.path.append(str(Path(__file__).parent.parent / "tests" / "zoo"))

from constructions import CONSTRUCTIONS

from prunekit.batches import arguments as call_arguments
from prunekit.errors import PrunekitError, brief, said
from prunekit.export import export_onnx
from prunekit.graph import prune_groups
from prunekit.models import create
from real_widths import NETWORKS
from side_by_side import arguments, finish
from zoo import ZOO, stirred

MADE: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "char_transformer": ("char_transformer", (16,), 65),
    "googlenet_small": ("googlenet_small", (3, 32, 32), 10),
    "lenet5": ("lenet5", (1, 28, 28), 10),
    "lenet_300_100": ("lenet_300_100", (1, 28, 28), 10),
    "maxout_lenet5": ("maxout_lenet5", (1, 28, 28), 10),
    "mlp": ({"name": "mlp", "hidden": [64, 32]}, (1, 28, 28), 10),
    "resnet20": ("resnet20", (3, 32, 32), 10),
    "vgg_small": ("vgg_small", (3, 32, 32), 10),
}
LARGE = ("resnet-50", "densenet-121", "llama-12")


def networks() -> Iterator[tuple[str, str, Callable[[], tuple[nn.Module, Any]]]]:
    """For each network its kind, its name and a function that makes it with example inputs."""

    def own(settings: Any, shape: tuple[int, ...], outputs: int) -> tuple[nn.Module, Any]:
        generator = torch.Generator().manual_seed(0)
        text = shape == (16,)
        inputs = (
            torch.randint(outputs, (2, *shape), generator=generator)
            if text
            else torch.randn(2, *shape, generator=generator)
        )
        return create(settings, shape, outputs, seed=0), inputs

    for name, entry in MADE.items():
        yield "models", name, lambda entry=entry: own(*entry)  # type: ignore[misc]
    for name, (make, inputs) in {**ZOO, **CONSTRUCTIONS}.items():
        kind = "zoo" if name in ZOO else "constructions"
        yield kind, name, lambda make=make, inputs=inputs: (stirred(make()), inputs)  # type: ignore[misc]
    for name in LARGE:
        yield "large", name, NETWORKS[name]


def outcome(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """What came of an export; where it failed, whether PyTorch's own exporter does better."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        try:
            done = export_onnx(model, Path(folder) / "net.onnx", inputs)
        except PrunekitError as error:
            reason = by_pytorch(model, inputs)
            found = {"error": brief(str(error), 240), "pytorch": reason}
            return {"outcome": "PyTorch cannot" if reason else "refused", **found}
        seconds, size = time.process_time() - start, done.path.stat().st_size
    return {
        "outcome": "exported",
        "batches": list(done.batches),
        "deviation": done.deviation,
        "bytes": size,
        "cpu_seconds": round(seconds, 2),
    }


def by_pytorch(model: nn.Module, inputs: Any) -> str:
    """Why PyTorch cannot export a network with a batch axis of any size by itself; empty where it can."""
    args, kwargs = call_arguments(inputs)
    more = tree_map_only(torch.Tensor, lambda each: torch.cat([each, each[:1]]), (args, kwargs))
    batch = torch.export.Dim("batch", min=1)
    try:
        model(*more[0], **more[1])
        program = torch.export.export(
            model, args, kwargs, dynamic_shapes=tree_map(lambda _: {0: batch}, kwargs or args), strict=True
        )
        torch.onnx.export(program, verbose=False)
    except Exception as error:  # of many kinds
        return said(error, 160)
    return ""


def case(make: Callable[[], tuple[nn.Module, Any]]) -> dict[str, Any]:
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    found: dict[str, Any] = {"before": outcome(model, inputs)}
    try:
        shrunk = prune_groups(model, inputs, 0.5)
    except PrunekitError as error:
        return {**found, "after": {"outcome": "not shrunk", "error": brief(str(error), 240)}}
    return {**found, "form": shrunk.form, "after": outcome(shrunk.model.eval(), inputs)}


def main() -> None:
    options = arguments(__doc__ or "", rounds=1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    rows = []
    for kind, name, make in networks():
        rows.append({"kind": kind, "network": name, **case(make)})
        row = rows[-1]
        print(kind, name, *(f"{way}: {row[way]['outcome']}" for way in ("before", "after")), flush=True)
    tally = {way: dict(Counter(row[way]["outcome"] for row in rows)) for way in ("before", "after")}
    finish(options, {"outcomes": tally, "networks": rows})


if __name__ == "__main__":
    main()
