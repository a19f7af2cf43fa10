import copy

import pytest
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.masks import Masks
from small_nets import Tied, copied, mlp, same


@pytest.fixture
def model():
    return mlp(4, 6, 3)


def half(model) -> Masks:
    masks = Masks.ones(model, ["0.weight", "2.weight"])
    mask = masks["0.weight"].clone()
    mask[:, :2] = False
    return masks.replace({"0.weight": mask})


def test_counts(model):
    masks = half(model)
    assert (masks.total, masks.kept) == (42, 30)
    assert masks.sparsity == pytest.approx(12 / 42)
    assert masks.compression_ratio == pytest.approx(42 / 30)
    assert repr(masks) == "Masks(2 layers, 30 of 42 kept)"


def test_nothing_at_all_has_figures():
    assert Masks({}).sparsity == 0
    assert Masks({"a": torch.zeros(3, 2, dtype=torch.bool)}).compression_ratio == float("inf")


def test_apply_zeroes_exactly_what_is_removed(model):
    before = copied(model)
    half(model).apply(model)
    assert bool((model[0].weight[:, :2] == 0).all())
    assert torch.equal(model[0].weight[:, 2:], before["0.weight"][:, 2:])
    assert torch.equal(model[2].weight, before["2.weight"])


def test_apply_overwrites_nan(model):
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    half(model).apply(model)
    assert model[0].weight[0, 0] == 0


def test_replace_leaves_the_old_masks(model):
    old = Masks.ones(model, ["0.weight"])
    new = old.replace({"0.weight": torch.zeros(6, 4, dtype=torch.bool)})
    assert (old.kept, new.kept) == (24, 0)
    assert old != new
    assert old == Masks.ones(model, ["0.weight"])


def test_only_booleans_are_masks():
    with pytest.raises(InputError, match=r"mask of fc\.weight must be a boolean tensor"):
        Masks({"fc.weight": torch.ones(2, 2)})


def test_masks_of_another_model_are_refused_whole(model):
    before = copied(model)
    with pytest.raises(InputError, match=r"no parameter '9\.weight'"):
        Masks.ones(model, ["0.weight"]).replace({"9.weight": torch.zeros(1, dtype=torch.bool)}).apply(model)
    wrong = Masks({"0.weight": torch.zeros(6, 4, dtype=torch.bool), "2.weight": torch.ones(2, 2).bool()})
    with pytest.raises(InputError, match=r"2\.weight has shape \(3, 6\), its mask \(2, 2\)"):
        wrong.apply(model)
    assert same(before, copied(model))


def test_a_tied_weight_counts_once():
    model = Tied()
    masks = Masks.ones(model, ["embed.weight"])
    masks.replace({"embed.weight": torch.zeros(11, 6, dtype=torch.bool)}).apply(model)
    assert masks.total == 66
    assert bool((model.out.weight == 0).all())
    assert model.out.weight is model.embed.weight


def test_wrappers_are_looked_through(model):
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    half(model).apply(wrapped)
    assert int((model[0].weight == 0).sum()) == 12


def test_masks_copy_and_state(model):
    masks = half(model)
    assert copy.deepcopy(masks) == masks
    assert Masks(masks.state_dict()) == masks
