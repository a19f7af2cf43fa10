"""The oracle over several processes: the same as in one."""

import pytest
import torch

from prunekit.errors import InputError
from prunekit.graph import chain_of
from prunekit.units import oracle_changes
from unit_recipes import conv_net, data, net


@pytest.mark.parametrize("processes", [2, 3, 50])
@pytest.mark.parametrize(("model", "shape"), [(net(6, 7, 5, 4), (6,)), (conv_net(), (1, 8, 8))])
def test_the_same_as_in_one_process(model, shape, processes):
    torch.set_num_threads(1)
    inputs, targets = data(*shape, count=25)
    chain = chain_of(model)
    kept = {chain.groups[0].name: torch.arange(chain.groups[0].units) != 1}
    one, several = (
        oracle_changes(chain, inputs, targets, "cross_entropy", kept=kept, processes=number)
        for number in (1, processes)
    )
    assert list(one) == list(several)
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-10, atol=1e-14, equal_nan=True)


def test_no_process():
    model, (inputs, targets) = net(6, 7, 4), data(6)
    with pytest.raises(InputError, match="processes = 0: at least one is needed"):
        oracle_changes(chain_of(model), inputs, targets, "cross_entropy", processes=0)
