"""What the processes of `test_shared_training` do, alone or together."""

import math
import os

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from prunekit.distributed import failure, processes, shard
from prunekit.errors import PrunekitError
from prunekit.masks import Masks
from prunekit.methods import recipe as method
from prunekit.pruning import prune
from prunekit.training import Loop, Training, train
from small_nets import blobs, copied, mlp, recipe

TRAINING = {"iterations": 9, "lr": 0.05, "batch_size": 15, "optimizer": "sgd"}
METHODS = {
    "iterative_magnitude": {"sparsity": 0.8, "steps": 3},
    "gradual_magnitude": {"sparsity": 0.8, "steps": 3},
    "movement": {"sparsity": 0.5, "steps": 3},
    "lottery_ticket": {"rate": 0.3, "rounds": 2},
    "rigl": {"sparsity": 0.6, "steps": 3},
}
FIXED = Masks({"0.weight": torch.arange(160).view(16, 10) % 3 > 0})


def data() -> tuple[Tensor, Tensor]:
    """83 examples: batches of 15 and a last one of 8, of which 2 and 4 processes have unequal shares."""
    return blobs(83, dtype=torch.float64)


def network() -> nn.Module:
    model = mlp(10, 16, 12, 3, dtype=torch.float64)
    return model if processes() == 1 else DistributedDataParallel(model)


def pruned(name: str) -> dict[str, object]:
    model = network()
    settings = METHODS[name] | {"training": TRAINING}
    start = {0: copied(mlp(10, 16, 12, 3, seed=4, dtype=torch.float64))}
    checkpoints = start if name == "lottery_ticket" else None
    found = prune(model, method(name, **settings), shard(data()), checkpoints=checkpoints)
    return {
        "masks": dict(found.masks),
        "model": copied(found.model.module if processes() > 1 else found.model),
        "losses": [record.train_loss for record in found.history if record.train_loss is not None],
    }


def trained(loop: Loop | None = None, ignored: int = 0, **settings: object) -> dict[str, object]:
    """The same steps on the same batches; of the targets, the first `ignored` count nothing."""
    model = network()
    inputs, targets = data()
    targets = targets.masked_fill(torch.arange(len(targets)) < ignored, -100)
    training = Training.parse({**TRAINING, "iterations": 14, **settings})
    done = train(model, shard((inputs, targets)), training, loop=loop, masks=FIXED)
    return {"model": copied(model.module if processes() > 1 else model), "loss": done.loss}


def trainings() -> dict[str, object]:
    return {
        "plain": trained(),
        "ignored": trained(ignored=60),
        "accumulated": trained(Loop(accumulate=3, clip=0.1), ignored=30),
        "momentum": trained(optimizer="adamw", lr=0.01, weight_decay=0.1),
    }


def work(rank: int) -> dict[str, object]:
    found: dict[str, object] = {name: pruned(name) for name in METHODS}
    found["trainings"] = trainings()
    return found


# ---- what is refused, and what ends ------------------------------------------------------------------------


def said(action: object, *args: object, **more: object) -> str:
    try:
        action(*args, **more)  # type: ignore[operator]
    except (PrunekitError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


def refusals(rank: int) -> list[str]:
    inputs, targets = blobs(64)
    own = inputs[: 48 + 16 * rank], targets[: 48 + 16 * rank]
    fine_tune = {"name": "fine_tune", "training": {"epochs": 1, "batch_size": 16}}
    model, other = mlp(10, 16, 3), mlp(10, 16, 3, seed=rank)
    return [
        said(train, DistributedDataParallel(model), own, Training(epochs=1, batch_size=16)),
        said(prune, model, recipe(retrain=fine_tune), (inputs, targets)),
        said(prune, other, recipe()),
        said(prune, mlp(10, 16, 3), recipe(score="gradient"), (inputs, targets)),
    ]


class Raising:
    """A loader that fails on the second process in the third batch."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __len__(self) -> int:
        return 5

    def __iter__(self):
        inputs, targets = blobs(80)
        for number in range(5):
            if self.rank == 1 and number == 2:
                raise OSError("the disk of this process is gone")
            yield inputs[16 * number : 16 * number + 16], targets[16 * number : 16 * number + 16]


def raising(rank: int) -> list[str]:
    failure.TOGETHER_SECONDS = 1.0  # in this process of the test alone, where the other raises nothing
    model = DistributedDataParallel(mlp(10, 16, 3))
    before = copied(model.module)
    fine_tune = {"name": "fine_tune", "training": {"epochs": 2, "batch_size": 16}}
    words = said(prune, model, recipe(retrain=fine_tune), Raising(rank))
    same = all(torch.equal(before[name], value) for name, value in copied(model.module).items())
    return [words, str(same)]


def killed(rank: int) -> list[str]:
    failure._TELLING_SECONDS = 1.0  # in this process of the test alone, where nobody is left to tell anything
    if rank == 1:
        torch.distributed.all_reduce(torch.ones(1))
        os._exit(0)  # as by a lack of memory, without a word
    torch.distributed.all_reduce(torch.ones(1))
    return [said(prune, mlp(10, 16, 3), recipe(score="gradient"), blobs(64)), str(math.inf)]
