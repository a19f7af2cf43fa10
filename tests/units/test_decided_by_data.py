"""Units of a network that asks for the values of its inputs: judged where these lead the same way."""

import pytest
import torch
from torch import Tensor, nn

from group_nets import all_groups, naive_changes
from prunekit.errors import ModelError
from prunekit.graph.reference_run import exact
from prunekit.losses import squared_error
from prunekit.units import oracle_changes


class Doubles(nn.Module):
    """Twice as much where the inputs' sum is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(self.first(x).relu())
        return y * 2 if x.sum() > 0 else y


def test_other_data_are_judged_as_they_are_or_refused():
    torch.manual_seed(0)
    model = Doubles().double().eval()
    x = torch.rand(4, 3, dtype=torch.float64)
    targets = torch.rand(4, 2, dtype=torch.float64)
    with exact():
        coupled = all_groups(model, x)
        found = oracle_changes(coupled, x.flip(0), targets, "squared_error")
        expected = naive_changes(coupled, x.flip(0), targets, squared_error)
        for name, changes in expected.items():
            torch.testing.assert_close(found[name], changes, rtol=1e-9, atol=1e-9)
        with pytest.raises(ModelError, match="values of its inputs decide what"):
            oracle_changes(coupled, -x, targets, "squared_error")
