"""What each of two processes does in `test_distributed`: prunes a DDP model on data of its own."""

from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from prunekit.errors import DataError
from prunekit.pruning import prune
from small_nets import blobs, copied, mlp, recipe

LINEAR = {"name": "linear", "sparsity": 0.6, "steps": 2}
FINE_TUNE = {"name": "fine_tune", "training": {"iterations": 6, "lr": 0.05, "batch_size": 16}}
RECIPES = {
    "gradient": {"score": "gradient"},
    "weight gradient": {"score": "weight_gradient", "allocation": "per_layer"},
    "random": {"score": "random"},
    "least squares": {"granularity": "unit", "repair": "least_squares"},
    "layer obs": {"score": "layer_obs", "repair": "masked_least_squares"},
    "correlation": {"score": "correlation", "allocation": "per_layer"},
    "stand-ins": {"granularity": "unit", "repair": "sietsma_dow"},
    "sensitivity": {"allocation": "sensitivity"},
    "continued": {"score": "gradient", "schedule": LINEAR, "retrain": FINE_TUNE | {"name": "continued"}},
    "fine tune": {"score": "gradient", "schedule": LINEAR, "retrain": FINE_TUNE},
    "rigl": {
        "grow": "gradient",
        "regrow": True,
        "allocation": "erk",
        "schedule": {"name": "constant", "sparsity": 0.6, "steps": 3},
        "retrain": FINE_TUNE | {"name": "continued"},
    },
}


def work(rank: int) -> dict[str, object]:
    data = blobs(64, seed=rank)
    found: dict[str, object] = {}
    for name, settings in RECIPES.items():
        model = DistributedDataParallel(mlp(10, 16, 3))
        pruned = prune(model, recipe(**settings), data)
        found[name] = {"masks": pruned.masks.state_dict(), "model": copied(model.module)}
    found["attached"] = in_a_loop(data)
    found["one without data"] = with_no_batch_on_the_second(rank, data)
    found["none with data"] = refusals(rank, data)
    return found


class Stream:
    """A loader that does not know its length, and may turn out to be empty."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return iter(self.batches)


def with_no_batch_on_the_second(rank: int, data: tuple[torch.Tensor, torch.Tensor]) -> dict[str, object]:
    model = mlp(10, 16, 3)
    pruned = prune(model, recipe(**RECIPES["layer obs"]), Stream([] if rank else [data]))
    return {"masks": pruned.masks.state_dict(), "model": copied(model)}


def refusals(rank: int, data: tuple[torch.Tensor, torch.Tensor]) -> list[str]:
    """What both say when only the second has something to complain about; neither may wait for ever."""
    bad = data[0].clone()
    bad[3, 4] = float("nan")
    found = []
    for settings, broken in (
        (RECIPES["layer obs"], Stream([])),
        (RECIPES["layer obs"], Stream([(bad, data[1])])),
        ({"granularity": "unit", "score": "oracle"}, Stream([])),
    ):
        try:
            prune(mlp(10, 16, 3), recipe(**settings), broken if rank else Stream([data]))
            found.append("fine")
        except DataError as error:
            found.append(str(error))
    return found


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
