"""What filters and filter shapes that are gone are worth: the time of LeNet-5's convolutions on one thread.

    python benchmarks/filter_shapes.py --json FILE

Untrained networks of the shapes that `docs/results/ssl` shows: the time does not ask for the values. Timed
are the two convolutions with their poolings, after the proof of `shrink`, in two memory formats. Then single
layers with some of their columns, drawn at random: where a convolution with zeros in the places of the others
overtakes copying.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import Masks
from prunekit.graph import shrink, shrink_columns
from prunekit.measure import count
from prunekit.models import ColumnConv2d, create
from prunekit.models.column_conv import Kernel
from side_by_side import arguments, finish, measure, ratio

BATCHES = (1, 64, 256)
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
FILTERS = {"conv1": 3, "conv2": 12}
LAYERS = ((20, 50, 5, 12), (256, 256, 3, 8))
"""Input and output channels, kernel and size of the image."""
DENSITIES = (0.1, 0.25, 0.5, 0.75)


SHAPES = {
    "SSL, filter shapes": (18, 3, 55),
    "brain damage": (5, 4, 81),
    "as many as SSL, at random": (18, 20, 55),
}
"""Filter shapes of conv1, and channels and filter shapes of conv2."""


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def some(count: int, *shape: int) -> Tensor:
    """Flags, so many of them true, at random places."""
    flags = torch.zeros(torch.Size(shape).numel(), dtype=torch.bool)
    flags[drawn(len(flags)).argsort()[:count]] = True
    return flags.view(shape)


def middle(*shape: int) -> Tensor:
    """Flags that are true in the middle 3 x 3 of 5 x 5."""
    flags = torch.zeros(shape, dtype=torch.bool)
    flags[:, 1:4, 1:4] = True
    return flags


def of_channels(channels: int, count: int) -> Tensor:
    """Flags of conv2, so many of them true, all in the first channels."""
    flags = torch.zeros(20, 5, 5, dtype=torch.bool)
    flags[:channels] = some(count, channels, 5, 5)
    return flags


def networks(form: torch.memory_format) -> dict[str, nn.Module]:
    """LeNet-5 dense, with fewer filters and with fewer filter shapes."""
    dense = create("lenet5", (1, 28, 28), 10, seed=0).eval().to(memory_format=form)  # type: ignore[call-overload]
    inputs = drawn(2, 1, 28, 28).contiguous(memory_format=form)
    found = {"dense": dense, "filters": copy.deepcopy(dense)}
    kept = {
        name: torch.arange(len(dense.get_submodule(name).weight)) < left for name, left in FILTERS.items()
    }
    shrink(found["filters"], inputs, kept)
    ways = {name: (some(first, 1, 5, 5), of_channels(*second)) for name, (first, *second) in SHAPES.items()}
    ways["3 x 3 kernels"] = middle(1, 5, 5), middle(20, 5, 5)
    for name, flags in ways.items():
        found[name] = small = copy.deepcopy(dense)
        weights = {f"conv{number}.weight": each for number, each in enumerate(flags, 1)}
        masks = {place: each.expand_as(small.get_parameter(place)) for place, each in weights.items()}
        shrink_columns(small, inputs, Masks(masks))
    return found


def convolutions(model: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(model.get_submodule(name) for name in ("conv1", "pool1", "conv2", "pool2")))


def described(layer: nn.Module) -> str:
    if not isinstance(layer, ColumnConv2d):
        return str(layer)
    kernel = layer.kernel
    size = None if kernel is None else [len(each) for each in kernel]
    return f"{layer}, copied" if size is None else f"{layer}, kernel {size}"


def of_network(form: str, rounds: int) -> dict[str, Any]:
    found = networks(FORMATS[form])
    inputs = drawn(1, 1, 28, 28)
    case: dict[str, Any] = {
        "memory_format": form,
        "layers": {name: [described(model.conv1), described(model.conv2)] for name, model in found.items()},
        "macs": {name: count(model, inputs).macs for name, model in found.items()},
        "bytes": {name: count(model, inputs).bytes for name, model in found.items()},
        "batches": [],
    }
    for batch in BATCHES:
        given = drawn(batch, 1, 28, 28).contiguous(memory_format=FORMATS[form])
        parts = {name: convolutions(model) for name, model in found.items()}
        case["batches"].append({"batch": batch, **timed(parts, given, "dense", rounds)})
        print(form, case["batches"][-1], flush=True)
    return case


def of_layer(channels: int, filters: int, kernel: int, side: int, batch: int, rounds: int) -> dict[str, Any]:
    """A convolution against its own columns: copied, and as a kernel with zeros."""
    conv = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
    ways: dict[str, nn.Module] = {"dense": conv}
    for density in DENSITIES:
        kept = some(round(density * conv.weight[0].numel()), conv.weight[0].numel()).nonzero().flatten()
        copying, filled = ColumnConv2d(conv, kept), ColumnConv2d(conv, kept)
        copying.kernel = None
        filled.kernel = Kernel(list(range(channels)), range(kernel), range(kernel))
        ways |= {f"{density} copied": copying, f"{density} with zeros": filled}
    found = timed(ways, drawn(batch, channels, side, side), "dense", rounds)
    case = {"layer": [channels, filters, kernel, side], "batch": batch, **found}
    print(case, flush=True)
    return case


def timed(ways: dict[str, nn.Module], given: Tensor, reference: str, rounds: int) -> dict[str, Any]:
    """Median times of each way on a batch, and the ratios of the reference's to them."""
    runs = max(1, 64 // len(given))  # so that a clock of the processor sees the smallest
    with torch.no_grad():
        seconds = measure(
            {name: lambda part=part: [part(given) for _ in range(runs)] for name, part in ways.items()},
            rounds,
        )
    return {
        "milliseconds": {name: 1e3 * statistics.median(each) / runs for name, each in seconds.items()},
        "dense_to": {name: ratio(seconds, reference, name) for name in ways if name != reference},
    }


def main() -> None:
    options = arguments(__doc__ or "", rounds=15)
    torch.set_num_threads(1)
    finish(
        options,
        {
            "lenet5": [of_network(form, options.rounds) for form in FORMATS],
            "layers": [of_layer(*layer, batch, options.rounds) for layer in LAYERS for batch in BATCHES[:2]],
        },
    )


if __name__ == "__main__":
    main()
