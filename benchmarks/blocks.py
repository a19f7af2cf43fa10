"""What residual branches that are gone are worth: bytes, operations and time of ResNet-20 on one thread.

    python benchmarks/blocks.py --json FILE

Untrained networks: the time does not ask for the values. Of the seven branches beside an identity the first
ones are taken out, and the last ones, as `shrink` does it, after its proof.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch
from torch import nn

from prunekit import Masks
from prunekit.graph import captured_blocks, shrink_branches
from prunekit.measure import count
from prunekit.models import create
from side_by_side import arguments, finish, measure, ratio

BATCHES = (1, 64)
REMOVED = (2, 4, 6)


def networks() -> dict[str, nn.Module]:
    """ResNet-20 dense and without branches."""
    dense = create("resnet20", (3, 32, 32), 10, seed=0).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.rand(2, 3, 32, 32)
    blocks = captured_blocks(dense, inputs)[1]
    own = dict(dense.named_parameters())
    found = {"dense": dense}
    for number in REMOVED:
        for end, chosen in (("first", blocks[:number]), ("last", blocks[-number:])):
            tensors = [name for block in chosen for name in block.tensors if name in own]
            masks = Masks({name: torch.zeros_like(own[name], dtype=torch.bool) for name in tensors})
            small = copy.deepcopy(dense)
            shrink_branches(small, inputs, masks)
            found[f"without the {end} {number}"] = small
    return found


def main() -> None:
    options = arguments(__doc__ or "", rounds=15)
    torch.set_num_threads(1)
    found = networks()
    image = torch.rand(1, 3, 32, 32)
    case: dict[str, Any] = {
        "parameters": {name: count(model, image).parameters for name, model in found.items()},
        "bytes": {name: count(model, image).bytes for name, model in found.items()},
        "macs": {name: count(model, image).macs for name, model in found.items()},
    }
    for batch in BATCHES:
        given = torch.rand(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            seconds = measure(
                {name: lambda model=model: model(given) for name, model in found.items()},  # noqa: B023
                options.rounds,
            )
        case[f"milliseconds, batch {batch}"] = {
            name: 1e3 * statistics.median(each) for name, each in seconds.items()
        }
        case[f"dense to, batch {batch}"] = {
            name: ratio(seconds, "dense", name) for name in found if name != "dense"
        }
    finish(options, {"resnet20": case})


if __name__ == "__main__":
    main()
