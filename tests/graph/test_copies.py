"""A network's copy is what `copy.deepcopy` gives."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from prunekit.errors import ModelError
from prunekit.graph.copies import copy_of, sharing_copy


class Holder(nn.Module):
    """Attributes of all kinds, some of them at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(3, 4)
        self.b.weight = self.a.weight
        self.register_buffer("steps", torch.arange(3), persistent=False)
        self.empty: list[int] = []
        self.same = self.empty
        self.table = {"sizes": [1, 2], "layer": [self.a]}
        self.plain = torch.ones(2)
        self.given = OrderedDict(one=1)


def modules():
    again = nn.Linear(2, 2)
    return {
        "attributes": Holder(),
        "a module at two places": nn.Sequential(again, nn.ReLU(), again),
        "recurrent": nn.LSTM(3, 4, 2),
        "attention": nn.MultiheadAttention(4, 2),
        "parametrized": nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3)), nn.Dropout(0.3)),
        "captured": torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU())),
    }


@pytest.mark.parametrize("name", modules())
def test_a_copy_is_a_deep_copy(name):
    model = modules()[name]
    found, wanted = copy_of(model), copy.deepcopy(model)
    assert str(found) == str(wanted)
    every = [dict(each.named_modules(remove_duplicate=False)) for each in (model, found, wanted)]
    assert list(every[1]) == list(every[2])
    for key, module in every[1].items():
        assert type(module) is type(every[2][key]) or name in ("parametrized", "captured")
        assert vars(module).keys() == vars(every[2][key]).keys()
        assert module is not every[0][key]
        assert not {id(each) for each in vars(module).values() if isinstance(each, dict)} & {
            id(each) for each in vars(every[0][key]).values() if isinstance(each, dict)
        }
    given = model.state_dict()
    for key, tensor in found.state_dict().items():
        assert torch.equal(tensor, given[key])
        assert tensor.data_ptr() != given[key].data_ptr()
    assert len(list(found.parameters())) == len(list(model.parameters()))


def test_what_stands_at_two_places_is_one_thing_in_the_copy():
    found = copy_of(Holder())
    assert found.a.weight is found.b.weight
    assert found.empty is found.same
    assert found.table["layer"][0] is found.a
    twice = copy_of(nn.Sequential(*[nn.Linear(2, 2)] * 2))
    assert twice[0] is twice[1]


def test_what_a_class_says_of_its_copies_holds():
    class Counted(nn.Linear):
        def __deepcopy__(self, memo):
            made = Counted(2, 2)
            made.copies = 1
            return made

    class Reduced(nn.Linear):
        def __reduce_ex__(self, protocol):
            return Reduced, (2, 2)

    class Kept(nn.Linear):
        def __getstate__(self):
            return {**super().__getstate__(), "kept": True}

    found = copy_of(nn.Sequential(Counted(2, 2), nn.Sequential(Reduced(2, 2)), Kept(2, 2)))
    assert found[0].copies == 1
    assert type(found[1][0]) is Reduced
    assert found[2].kept


def test_what_a_call_has_left_is_copied_without_its_history():
    model = nn.Linear(3, 2)
    model.last = [model(torch.ones(1, 3))]
    found = copy_of(model)
    assert torch.equal(found.last[0], model.last[0])
    assert found.last[0].is_leaf
    model.open = (each for each in ())
    with pytest.raises(ModelError, match="cannot be copied"):
        copy_of(model)


def test_a_sharing_copy_has_the_memory_of_the_network():
    model = Holder()
    found = sharing_copy(model, ["b.bias"])
    assert found.a.weight is not model.a.weight
    assert found.a.weight.data_ptr() == model.a.weight.data_ptr()
    assert found.b.bias.data_ptr() != model.b.bias.data_ptr()
    assert found.steps.data_ptr() != model.steps.data_ptr()
