"""Frankle and Carbin 2019: a sparse network that starts from its own initial values trains as well."""

import pytest
import torch

from prunekit.methods import recipe
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe


@pytest.mark.parametrize("step", [0, 20])
def test_right_after_rewinding_survivors_have_their_early_values(digits, step):
    model = digits.model()
    chosen = recipe("lottery_ticket", rounds=1, step=step).to_dict()
    chosen["retrain"]["training"] = {"iterations": step}  # nothing is left to train
    pruned = prune(model, Recipe.parse(chosen), digits.train, checkpoints=digits.checkpoints)
    early = digits.checkpoints[step]
    for name, value in model.state_dict().items():
        mask = pruned.masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, early[name] * mask)
    assert 0.19 < pruned.masks.sparsity < 0.2  # the output layer goes at half the rate


def test_masks_come_from_the_trained_values_of_each_round(digits):
    chosen = recipe("lottery_ticket", rounds=2, epochs=2)
    session = Session(digits.model(), chosen, data=digits.train, checkpoints=digits.checkpoints)
    before = {name: digits.network.get_parameter(name).detach().abs() for name in session.masks}
    for _ in session.run():
        for name, mask in session.masks.items():
            gone = before[name][~mask]
            assert float(gone.max()) <= float(before[name][mask].min())
        before = {name: session.model.get_parameter(name).detach().abs() for name in session.masks}


def test_winning_tickets_beat_the_same_masks_with_new_values(digits):
    """At 86 % removed the ticket is ahead of the control, which has the same masks at first."""
    errors = {}
    for name in ("lottery_ticket", "random_ticket"):
        chosen = recipe(name, rate=0.4, rounds=4, epochs=20)
        pruned = prune(digits.model(), chosen, digits.train, checkpoints=digits.checkpoints)
        assert pruned.masks.sparsity > 0.8
        errors[name] = digits.error(pruned.model)
    assert errors["lottery_ticket"] < 0.1
    assert errors["lottery_ticket"] < errors["random_ticket"] - 0.1


def test_linear_cycles_remove_equal_parts(digits):
    chosen = recipe("lottery_ticket_linear", sparsity=0.9, cycles=3, epochs=0.5)
    history = prune(digits.model(), chosen, digits.train, checkpoints=digits.checkpoints).history
    assert [record.sparsity for record in history] == pytest.approx([0.3, 0.6, 0.9], abs=1e-3)
