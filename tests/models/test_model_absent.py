"""What stands in the place of modules that were taken out."""

import pytest
import torch

from prunekit.errors import ModelError
from prunekit.models import Absent
from prunekit.models.absent import EMPTY, PASSED, ZERO, ZEROS


def test_what_an_absent_module_gives():
    x = torch.randn(2, 3, 4, 5)
    assert Absent(torch.tensor(PASSED, dtype=torch.uint8))(x) is x
    assert Absent(torch.tensor(ZERO, dtype=torch.uint8))(x).shape == ()
    assert torch.equal(Absent(torch.tensor(ZEROS, dtype=torch.uint8))(x), torch.zeros_like(x))
    empty = Absent(torch.tensor(EMPTY, dtype=torch.uint8))(x)
    assert empty.shape == (2, 0, 4, 5)
    assert torch.equal(torch.cat([empty, x], 1), x)


def test_other_codes_are_refused():
    with pytest.raises(ModelError, match="from 0 to 4"):
        Absent(torch.tensor(EMPTY + 1, dtype=torch.uint8))
