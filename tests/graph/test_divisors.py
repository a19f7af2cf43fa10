"""What units are divided by is not zeroed with them, and goes with them."""

import pytest
import torch
from torch import nn

from prunekit.graph import groups, prune_groups, unit_masks

X = torch.randn(5, 6, dtype=torch.float64)


class Divided(nn.Module):
    def __init__(self, divide):
        super().__init__()
        self.divide = divide
        self.a, self.scale, self.b = nn.Linear(6, 8), nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.divide(torch.relu(self.a(x)), self.scale))


DIVISIONS = {
    "a quotient": lambda h, s: h / s,
    "in place": lambda h, s: h.clone().div_(s),
    "a reciprocal": lambda h, s: h * s.reciprocal(),
    "a root": lambda h, s: h * s.rsqrt(),
    "a logarithm": lambda h, s: h * s.log(),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_the_masked_network_is_finite_and_the_smaller_one_computes_the_same(name):
    model = Divided(DIVISIONS[name])
    masked = Divided(DIVISIONS[name])
    masked.load_state_dict(model.state_dict())
    plan = groups(model, X)
    (group,) = plan.prunable
    roles = {member.tensor: member.role for member in group.members}
    assert roles["scale"] == "divisor"
    result = prune_groups(model, X, 0.5)
    assert result.form == "modules"
    assert model.scale.shape == (4,)
    stays = result.axes["a.weight"][0]
    masks = unit_masks(masked, plan, {group.name: stays})
    assert "scale" not in masks
    masks.apply(masked)
    assert masked(X).isfinite().all()
    torch.testing.assert_close(model(X), masked(X))
