"""A training loop from one step to another; as a process of its own it resumes what another one saved."""

import sys
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parent))
from small_nets import blobs, mlp, recipe


def run(first: int, last: int, target: str | Path, source: str | Path | None = None) -> dict:
    """Steps `first` to `last`, begun from the checkpoint `source` if there is one."""
    inputs, targets = blobs()
    model = mlp(10, 16, 3, seed=first)  # a resumed run must not depend on what it was built with
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=0.1)
    schedule = {"name": "linear", "sparsity": 0.6, "steps": 3}
    chosen = recipe(score="random", schedule=schedule, retrain={"name": "rewind", "step": 2})
    session = chosen.attach(model, optimizer, seed=4, every=3)
    states = {"model": model, "optimizer": optimizer, "session": session}
    if source is not None:
        saved = torch.load(source, weights_only=True)
        for name, part in states.items():
            part.load_state_dict(saved[name])
    for _ in range(first, last):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    torch.save({name: part.state_dict() for name, part in states.items()}, target)
    return torch.load(target, weights_only=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
