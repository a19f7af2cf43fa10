"""What each of two processes does in `test_distributed`: prunes a DDP model on data of its own."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

sys.path.insert(0, str(Path(__file__).parent))
from prunekit.pruning import prune
from small_nets import blobs, copied, mlp, recipe

LINEAR = {"name": "linear", "sparsity": 0.6, "steps": 2}
FINE_TUNE = {"name": "fine_tune", "training": {"iterations": 6, "lr": 0.05, "batch_size": 16}}
RECIPES = {
    "gradient": {"score": "gradient"},
    "weight gradient": {"score": "weight_gradient", "allocation": "per_layer"},
    "random": {"score": "random"},
    "least squares": {"shape": "unit", "repair": "least_squares"},
    "stand-ins": {"shape": "unit", "repair": "sietsma_dow"},
    "sensitivity": {"allocation": "sensitivity"},
    "fine tune": {"score": "gradient", "schedule": LINEAR, "retrain": FINE_TUNE},
}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    data = blobs(64, seed=rank)
    found: dict[str, object] = {}
    for name, settings in RECIPES.items():
        model = DistributedDataParallel(mlp(10, 16, 3))
        pruned = prune(model, recipe(**settings), data)
        found[name] = {"masks": pruned.masks.state_dict(), "model": copied(model.module)}
    found["attached"] = in_a_loop(data)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def in_a_loop(data: tuple[torch.Tensor, torch.Tensor]) -> dict[str, object]:
    model = DistributedDataParallel(mlp(10, 16, 3))
    keys = list(model.state_dict())
    optimizer = SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    session = recipe(score="gradient", schedule=LINEAR).attach(model, optimizer, data=data, every=3)
    zeros = []
    for _ in range(8):
        optimizer.zero_grad()
        cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
        zeros.append(sum(int((p == 0).sum()) for p, _ in session.masks.parameters(model)))
    assert list(model.state_dict()) == keys
    return {"masks": session.masks.state_dict(), "model": copied(model.module), "zeros": zeros}
