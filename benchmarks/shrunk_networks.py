"""What half of the units of any network are worth: parameters, bytes of the file, and time on one thread.

    python benchmarks/shrunk_networks.py --json FILE

Half of the units of every group that can lose some go, least L1 norm first, without hints; the proof has to
pass. Untrained networks: neither size nor time asks for the values. Images of 64 x 64, 16 tokens.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from prunekit.batches import arguments as call_arguments
from prunekit.graph import prune_groups
from prunekit.models import create
from real_widths import NETWORKS
from shrinking import saved_bytes
from side_by_side import arguments, finish, measure, ratio


def networks() -> dict[str, tuple[nn.Module, Any]]:
    pictures = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    text = torch.randint(0, 65, (4, 64), generator=torch.Generator().manual_seed(0))
    return {
        "resnet20": (create("resnet20", (3, 32, 32), 10, seed=0), pictures),
        "vgg_small": (create("vgg_small", (3, 32, 32), 10, seed=0), pictures),
        "char_transformer": (create("char_transformer", (64,), 65, seed=0), text),
        **{name: NETWORKS[name]() for name in ("resnet-50", "densenet-121", "vit-b-16", "llama-12")},
    }


def case(name: str, dense: nn.Module, inputs: Any, rounds: int) -> dict[str, Any]:
    dense.eval()
    done = prune_groups(copy.deepcopy(dense), inputs, 0.5)
    small = done.model.eval()
    args, kwargs = call_arguments(inputs)
    with torch.no_grad():
        seconds = measure(
            {"dense": lambda: dense(*args, **kwargs), "shrunk": lambda: small(*args, **kwargs)}, rounds
        )
    found = {
        "network": name,
        "form": done.form,
        "groups": len(done.groups),
        "greatest_relative_difference": done.deviation.relative,
        "parameters": {"dense": done.parameters_before, "shrunk": done.parameters_after},
        "file_bytes": {"dense": saved_bytes(dense), "shrunk": saved_bytes(done)},
        "median_cpu_seconds": {way: sorted(each)[len(each) // 2] for way, each in seconds.items()},
        "dense_to_shrunk": ratio(seconds, "dense", "shrunk"),
    }
    print(name, found["dense_to_shrunk"], flush=True)
    return found


def main() -> None:
    options = arguments(__doc__ or "", rounds=15)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    finish(options, {"networks": [case(name, *each, options.rounds) for name, each in networks().items()]})


if __name__ == "__main__":
    main()
