"""What the processes of `test_sharded_weights` do with weights that are shared out over them."""

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.functional import cross_entropy

from prunekit.distributed.sharded_ranking import lowest_of_all
from prunekit.errors import PrunekitError
from prunekit.masked_optimizer import MaskedOptimizer
from prunekit.masks import Masks
from prunekit.pruning import prune_sharded
from small_nets import blobs, mlp, recipe

RECIPES = {
    "global": {},
    "most": {
        "schedule": {"name": "one_shot", "sparsity": 0.85},
        "allocation": {"name": "global", "floor": 0.1},
    },
    "no floor": {"allocation": {"name": "global", "floor": 0}},
    "per layer": {"allocation": "per_layer"},
    "one layer": {"targets": ["4"]},
}
"""Of layers with 17, 12 and 3 rows, which two processes have unequal parts of."""


def network(*, ties: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """With many equal magnitudes of both signs, and zeros, some of them negative."""
    model = mlp(10, 17, 12, 3, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters() if ties else ():
            parameter.copy_((parameter * 10).round() / 10)
    return model


def sharded(model: nn.Sequential) -> nn.Sequential:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.full_tensor() if isinstance(each, DTensor) else each for name, each in tensors.items()}


def pruned(settings: dict[str, object]) -> dict[str, object]:
    model = sharded(network())
    with CommDebugMode() as exchanged:
        masks = prune_sharded(model, recipe(**settings))
    return {
        "masks": whole(dict(masks)),
        "shards": [isinstance(each, DTensor) for each in masks.values()],
        "held": [each.to_local().shape[0] for each in masks.values()],
        "kept": masks.kept,
        "model": whole(dict(model.state_dict())),
        "exchanged": sorted(str(kind) for kind in exchanged.get_comm_counts()),
    }


def masked_steps(model: nn.Module, masks: Masks, data: tuple[Tensor, Tensor]) -> None:
    """Steps in which momentum and weight decay would move what is removed."""
    optimizer = torch.optim.AdamW(model.parameters(), 0.02, weight_decay=0.1)
    MaskedOptimizer(model, optimizer, masks)
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


def trained(rank: int) -> dict[str, object]:
    model = sharded(network(ties=False, dtype=torch.float64))
    inputs, targets = blobs(32, dtype=torch.float64)
    masks = prune_sharded(model, recipe())
    masked_steps(model, masks, (inputs[rank::2], targets[rank::2]))
    again = prune_sharded(model, recipe(schedule={"name": "one_shot", "sparsity": 0.7}))
    return {
        "masks": whole(dict(masks)),
        "model": whole(dict(model.state_dict())),
        "again": whole(dict(again)),
    }


def by_own_scores() -> dict[str, Tensor]:
    model = sharded(network(ties=False))
    scores = {name: (each * each).detach() for name, each in model.named_parameters() if each.dim() > 1}
    return whole(dict(prune_sharded(model, recipe(score="magnitude"), scores=scores)))


def refused() -> list[str]:
    found = []
    model = sharded(network())
    bad = network()
    with torch.no_grad():
        bad[4].weight[2, 1] = torch.inf  # in the last row, of the second process
    scores = {name: torch.zeros(1) for name in ("0.weight", "2.weight", "4.weight")}
    for network_, made, more in (
        (model, recipe(score="random"), {}),
        (model, recipe(schedule={"name": "linear", "sparsity": 0.5, "steps": 2}), {}),
        (model, recipe(order="forward"), {}),
        (sharded(bad), recipe(), {}),
        (model, recipe(), {"scores": scores}),
    ):
        try:
            prune_sharded(network_, made, **more)
            found.append("fine")
        except PrunekitError as error:
            found.append(str(error))
    return found


def work(rank: int) -> dict[str, object]:
    found: dict[str, object] = {name: pruned(settings) for name, settings in RECIPES.items()}
    found["trained"] = trained(rank)
    found["own scores"] = by_own_scores()
    found["refused"] = refused()
    return found


def values() -> dict[str, Tensor]:
    torch.manual_seed(3)
    found = {
        "a": torch.randn(7, 6),
        "b": torch.randint(-3, 4, (5, 4, 3)).float(),
        "c": torch.tensor([0.0, -0.0, -torch.inf, torch.inf, 1e-45, -1e-45, 3e38, -3e38]),
    }
    return found | {"d": found["b"].flatten()[:9].clone()}


PLACEMENTS = {
    "rows": (Replicate(), Shard(0)),
    "columns": (Shard(0), Shard(-1)),
    "mixed": (Shard(0), Shard(0)),
    "copies": (Replicate(), Replicate()),
}
COUNTS = (0, 1, 20, 57, 60, 118, 119)


def ranked(rank: int) -> dict[str, dict[str, list[Tensor]]]:
    mesh = init_device_mesh("cpu", (2, 2))
    found: dict[str, dict[str, list[Tensor]]] = {}
    for kind, placements in PLACEMENTS.items():
        for dtype in (torch.float32, torch.float64):
            given = {
                name: distribute_tensor(
                    each.to(dtype), mesh, placements if each.dim() > 1 else (placements[0], Replicate())
                )
                for name, each in values().items()
            }
            given["d"] = values()["d"].to(dtype)  # that all processes have
            found[f"{kind} {dtype}"] = {
                str(count): list(whole(lowest_of_all(given, count)).values()) for count in COUNTS
            }
    return found
