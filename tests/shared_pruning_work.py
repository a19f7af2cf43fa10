"""What the processes of `test_shared_pruning` do, alone or together."""

import torch
from torch import Tensor, nn

from group_nets import all_groups
from prunekit.distributed import shard
from prunekit.methods import recipe as method
from prunekit.pruning import prune
from prunekit.statistics import InputSquares, LayerHessian, StatContext, collect
from prunekit.units import eliminate, oracle_changes
from small_nets import blobs, convnet, copied, images, mlp, recipe

METHODS = {
    "wanda": {},
    "ria": {},
    "owl_wanda": {},
    "sparsegpt": {},
    "exact_layer_obs": {"sparsity": 0.5},
    "masked_least_squares": {"sparsity": 0.5},
    "layer_obs": {"sparsity": 0.5, "every": 30},
    "alps": {},
    "block_fisher": {"sparsity": 0.5},
    "oracle_units": {"steps": 2},
    "taylor_units": {},
}
SETTINGS = {"calibration": 75}
"""A sample of some of the 97 examples, of which two processes have 38 and 37."""


def data() -> tuple[Tensor, Tensor]:
    return blobs(97, dtype=torch.float64)


def two_batches() -> list[tuple[Tensor, Tensor]]:
    inputs, targets = data()
    return [(inputs[:41], targets[:41]), (inputs[41:], targets[41:])]


def network() -> nn.Module:
    return mlp(10, 16, 12, 3, dtype=torch.float64)


def pruned(name: str, given: object) -> dict[str, dict[str, Tensor]]:
    model = network()
    found = prune(model, method(name, **METHODS[name]).model_copy(update=SETTINGS), given)
    return {"masks": dict(found.masks), "model": copied(model)}


def mixed(given: object) -> dict[str, Tensor]:
    """A score whose rows are divided, with a selection that could be its layer's owner's."""
    model = network()
    parts = {"score": "layer_obs", "selection": "sparsegpt", "repair": "sparsegpt", "allocation": "per_layer"}
    prune(model, recipe(**parts), given)
    return copied(model)


def convolutions(given: object) -> dict[str, Tensor]:
    model = convnet().double()
    prune(model, method("exact_layer_obs", sparsity=0.5), given)
    return copied(model)


def convolution_data() -> tuple[Tensor, Tensor]:
    inputs, targets = images(33)
    return inputs.double(), targets


def statistics(batch: tuple[Tensor, Tensor], owners: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    model = mlp(10, 16, 3)
    names = ["0.weight", "2.weight"]
    found = collect(StatContext(model, names, owners=owners), [batch], [LayerHessian(), InputSquares()])
    return {"hessian": dict(found[LayerHessian()]), "squares": dict(found[InputSquares()])}


def work(rank: int) -> dict[str, object]:
    inputs, targets = blobs(97)
    part = inputs[rank::2], targets[rank::2]
    found: dict[str, object] = {name: pruned(name, shard(data())) for name in METHODS}
    found["whole on each"] = pruned("sparsegpt", data())
    found["loader"] = pruned("wanda", shard(two_batches()))
    found["mixed"] = mixed(shard(data()))
    found["convolutions"] = convolutions(shard(convolution_data()))
    found["oracle"] = oracle(together=True)
    found["owned"] = statistics(part, {"0.weight": 1, "2.weight": 0})
    found["everywhere"] = statistics(part, {})
    return found


def oracle(together: bool) -> dict[str, object]:
    """Changes of a chain's units, of a convolution's with a budget for many chunks, and an elimination."""
    inputs, targets = data()
    chain = all_groups(network().eval(), inputs[:2])
    pictures, classes = convolution_data()
    groups = all_groups(convnet().double().eval(), pictures[:2])
    off = {groups.groups[0].name: torch.arange(groups.groups[0].units) % 3 != 1}
    course = eliminate(chain.chain or chain, inputs, targets, "cross_entropy", count=9, together=together)
    found = oracle_changes(groups, pictures, classes, "cross_entropy", kept=off, together=together)
    return {
        "chain": oracle_changes(chain.chain or chain, inputs, targets, "cross_entropy", together=together),
        "any": found,
        "chunks": oracle_changes(
            groups, pictures, classes, "cross_entropy", kept=off, budget_bytes=2**16, together=together
        ),
        "order": [f"{name} {unit}" for name, unit in course.order],
        "errors": course.errors,
    }
