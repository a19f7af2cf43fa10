"""On networks of the zoo a recording leads to the plan that an export leads to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from prunekit.graph import plan as plans
from prunekit.graph.capture import captured
from prunekit.graph.coupling_graph import GroupPlan
from zoo import OWN, ZOO, made


@pytest.mark.parametrize("name", list(ZOO)[::2])  # every second: exports take long
def test_the_plan_is_that_of_an_export(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in OWN:
        pytest.importorskip("transformers")
    model, inputs = made(name)
    found = plans.groups(model, inputs, residual=True)
    exporting: Callable[..., object] = lambda *args, **named: captured(  # noqa: E731
        *args, record=False, **named
    )
    monkeypatch.setattr(plans, "captured", exporting)
    expected = plans.groups(model, inputs, residual=True)
    assert _by_name(found) == _by_name(expected)


def _by_name(plan: GroupPlan) -> dict[str, object]:
    """The groups without what an export sees otherwise: their order, and the names of shared modules."""
    return {
        group.name: (replace(group, members=(), frozen=None), group.frozen is None, set(group.members))
        for group in plan.groups
    }
