"""What is cut wrongly elsewhere: half of it goes with the proof, or it is refused with its reason."""

from __future__ import annotations

import copy

import pytest
import torch
from constructions import CONSTRUCTIONS, WORDS, frozen_weights

from prunekit.errors import InputError, ModelError
from prunekit.graph import prune_groups, shrink, traced
from prunekit.graph.coupling_graph import CouplingGraph, GroupPlan
from prunekit.graph.reference_run import VerificationError
from zoo import stirred

REFUSED = {
    "frozen producer": "meets an axis that cannot change at 'add'",
}


@pytest.mark.parametrize("name", list(CONSTRUCTIONS))
def test_pruned_with_proof_or_refused_with_reason(name: str) -> None:
    if name == "Conv1D":
        pytest.importorskip("transformers")
    make, inputs = CONSTRUCTIONS[name]
    model = stirred(make()).eval()
    before = copy.deepcopy(model.state_dict())
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            prune_groups(model, inputs, 0.5)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        return
    result = prune_groups(model, inputs, 0.5)
    assert result.deviation.accepted
    assert all(group.after <= (group.before + 1) // 2 for group in result.groups)
    assert result.parameters_after < 0.8 * result.parameters_before
    outputs = result.model(inputs)
    assert torch.isfinite(outputs).all()


def test_what_was_frozen_stays_frozen() -> None:
    model = frozen_weights()
    result = prune_groups(model, WORDS, 0.5)
    assert not any(parameter.requires_grad for parameter in result.model.parameters())


def _wrong(found: CouplingGraph) -> CouplingGraph:
    """A plan whose first consumer gives up other entries than its producer."""
    first, *rest = found.plan.groups
    members = tuple(
        member if member.role != "consumer" else type(member)(
            member.tensor, member.dim, member.indices[1:] + member.indices[:1], member.role
        )
        for member in first.members
    )  # fmt: skip
    changed = type(first)(first.name, first.kind, first.units, members, first.frozen, first.normalised)
    return CouplingGraph(GroupPlan((changed, *rest)), found.graphs, found.labellings)


def test_a_wrong_plan_is_found_out_and_nothing_is_changed() -> None:
    model = stirred(CONSTRUCTIONS["GLU"][0]()).eval()
    before = copy.deepcopy(model.state_dict())
    found = traced(model, WORDS)
    flags = torch.tensor([True, False, True, True, False, True])
    with pytest.raises(VerificationError, match="something else than the masked one"):
        shrink(model, WORDS, {"a": flags}, found=_wrong(found))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert shrink(model, WORDS, {"a": flags}, found=found).deviation.accepted


def test_flags_that_do_not_fit() -> None:
    model = stirred(CONSTRUCTIONS["GLU"][0]()).eval()
    for kept, message in [
        ({"a": torch.ones(5, dtype=torch.bool)}, r"has shape \(5,\), the group has 6 units"),
        ({"a": torch.zeros(6, dtype=torch.bool)}, "removes all 6 units"),
        ({"a": torch.ones(6)}, "must be a boolean tensor"),
        ({"z": torch.ones(6, dtype=torch.bool)}, "no group is named 'z'"),
    ]:
        with pytest.raises(InputError, match=message):
            shrink(model, WORDS, kept)
    with pytest.raises(ModelError, match="the units of 'b' cannot be taken out: is the network's output"):
        shrink(model, WORDS, {"b": torch.tensor([True, False, True])})


def test_all_units_of_one_part() -> None:
    model = stirred(CONSTRUCTIONS["static split sizes"][0]()).eval()
    flags = torch.tensor([False] * 4 + [True] * 8)
    with pytest.raises(InputError, match="at least one must stay"):
        shrink(model, WORDS, {"up": flags})
