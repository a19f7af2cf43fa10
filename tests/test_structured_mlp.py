"""The three ways of structured pruning beside a few lines of NumPy that work on slices of matrices."""

import numpy as np
import pytest
import torch

from prunekit import prune
from prunekit.errors import InputError
from prunekit.methods import structured_mlp
from prunekit.models import MLP

torch.set_num_threads(1)
INPUTS, HIDDEN, OUTPUTS = 6, (10, 8), 3


def network(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MLP((INPUTS,), OUTPUTS, hidden=HIDDEN)


def examples():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, INPUTS, generator=generator), torch.randint(0, OUTPUTS, (40,), generator=generator)


def kept_by_slices(model, share):
    """What stays of each hidden layer: drop the lost inputs, sum |w| by row, drop the int(p * out) lowest."""
    inputs = np.arange(INPUTS)
    found = {}
    for name in ("fc1", "fc2"):
        weight = getattr(model, name).weight.detach().double().numpy()
        norms = np.abs(weight[:, inputs]).sum(1)
        inputs = np.sort(np.argsort(norms, kind="stable")[int(share * len(norms)) :])
        found[name] = inputs.tolist()
    return found


def kept_by(pruned):
    return {
        name.removesuffix(".weight"): kept.nonzero().flatten().tolist() for name, kept in pruned.kept.items()
    }


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("start", ["fresh", "initial"])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_lowest_rows_of_the_trained_network_go_without_the_columns_lost_before(seed, start, share):
    trained, initial = network(seed), network(seed + 100).state_dict()
    want = kept_by_slices(trained, share)
    recipe = structured_mlp(share, start=start, epochs=0)
    pruned = prune(trained, recipe, data=examples(), checkpoints={0: initial})
    assert {name: kept for name, kept in kept_by(pruned).items() if name in want} == want
    assert "fc3" not in kept_by(pruned)


def test_from_initial_values_the_survivors_are_the_matching_slices():
    trained, initial = network(0), network(1).state_dict()
    pruned = prune(
        trained, structured_mlp(0.5, start="initial", epochs=0), data=examples(), checkpoints={0: initial}
    )
    first, second = kept_by(pruned).values()
    state = trained.state_dict()
    assert torch.equal(state["fc1.weight"][first], initial["fc1.weight"][first])
    assert torch.equal(state["fc2.weight"][second][:, first], initial["fc2.weight"][second][:, first])
    assert torch.equal(state["fc3.weight"][:, second], initial["fc3.weight"][:, second])
    assert torch.equal(state["fc3.bias"], initial["fc3.bias"])


def test_fresh_values_are_neither_the_trained_nor_the_initial_ones():
    trained, initial = network(0), network(1).state_dict()
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    pruned = prune(trained, structured_mlp(0.5, start="fresh", epochs=0), data=examples())
    first = kept_by(pruned)["fc1"]
    now = trained.state_dict()["fc1.weight"][first]
    assert not torch.isclose(now, before["fc1.weight"][first]).any()
    assert not torch.isclose(now, initial["fc1.weight"][first]).any()


def test_the_iterative_way_removes_equal_shares_and_keeps_what_was_learned():
    trained = network(0)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    pruned = prune(trained, structured_mlp(0.5, start="trained", rounds=2, epochs=0), data=examples())
    assert [record.kept for record in pruned.history] == [16, 14, 11, 9]  # 10 + 8 units; round(8 / 4) = 2 go
    first, second = kept_by(pruned).values()
    assert torch.equal(trained.fc2.weight[second][:, first], before["fc2.weight"][second][:, first])


def test_all_ways_train_as_long():
    lengths = []
    for start in ("fresh", "initial", "trained"):
        recipe = structured_mlp(0.5, start=start, rounds=5, epochs=10)
        plan = recipe.plan(network(0))
        often = len(plan.steps) // recipe.retrain_every
        lengths.append(often * recipe.retrain.plan.epochs)
    assert lengths == [10, 10, 10]


def test_an_unknown_start_is_refused():
    with pytest.raises(InputError, match="start 'nowhere' is none of fresh, initial, trained"):
        structured_mlp(0.5, start="nowhere")
