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


def pruned_by(digits, name, **settings):
    chosen = recipe(name, **{"rate": 0.4, "rounds": 4, "epochs": 20, **settings})
    return prune(digits.model(), chosen, digits.train, checkpoints=digits.checkpoints)


def test_winning_tickets_beat_the_same_masks_with_new_values(digits):
    """At 86 % removed it errs less than half as often as any of three draws behind its masks."""
    ticket = pruned_by(digits, "lottery_ticket")
    assert ticket.masks.sparsity > 0.8
    assert digits.error(ticket.model) < 0.1
    for draw in range(3):
        control = pruned_by(digits, "random_ticket", draw=draw)
        assert all(torch.equal(mask, ticket.masks[name]) for name, mask in control.masks.items())
        assert 2 * digits.error(ticket.model) < digits.error(control.model)


def test_the_control_has_the_tickets_masks_in_every_round_and_other_values_from_draw_to_draw(digits):
    """Case M01: the masks of the old control shared 100, 81, 66, 52 and 43 % with the ticket's."""
    for rounds in (1, 2, 5):
        settings = {"rate": 0.2, "rounds": rounds, "epochs": 1}
        ticket, one, other = (
            pruned_by(digits, name, **settings, **draw)
            for name, draw in (("lottery_ticket", {}), ("random_ticket", {}), ("random_ticket", {"draw": 1}))
        )
        for name, mask in ticket.masks.items():
            assert torch.equal(one.masks[name], mask)
            assert torch.equal(other.masks[name], mask)
        values = [each.model.state_dict() for each in (ticket, one, other)]
        name = next(iter(ticket.masks))
        assert not torch.equal(values[0][name], values[1][name])
        assert not torch.equal(values[1][name], values[2][name])


def test_winning_tickets_beat_rounds_with_new_values_by_more(digits):
    ticket, redrawn = (pruned_by(digits, name) for name in ("lottery_ticket", "reinitialized_magnitude"))
    assert digits.error(ticket.model) < digits.error(redrawn.model) - 0.1


def test_masks_of_redrawn_networks_leave_those_of_the_ticket(digits):
    settings = {"rate": 0.2, "rounds": 5, "epochs": 2}
    ticket, redrawn = (
        pruned_by(digits, name, **settings) for name in ("lottery_ticket", "reinitialized_magnitude")
    )
    both = sum(int((mask & redrawn.masks[name]).sum()) for name, mask in ticket.masks.items())
    assert both < 0.7 * ticket.masks.kept


def test_linear_cycles_remove_equal_parts(digits):
    chosen = recipe("lottery_ticket_linear", sparsity=0.9, cycles=3, epochs=0.5)
    history = prune(digits.model(), chosen, digits.train, checkpoints=digits.checkpoints).history
    assert [record.sparsity for record in history] == pytest.approx([0.3, 0.6, 0.9], abs=1e-3)
