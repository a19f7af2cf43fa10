import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from prunekit.errors import InputError
from prunekit.masks import Masks, lowest, lowest_per_row
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


def test_apply_leaves_layers_whose_masks_have_acted(model):
    first = half(model)
    both = first.replace({"2.weight": torch.zeros_like(first["2.weight"])})
    before = copied(model)
    both.apply(model, unless_in=first)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert bool((model[2].weight == 0).all())


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


# ---- choosing the lowest -----------------------------------------------------------------------------------

FEW = st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf])  # many ties, and both zeros
VALUES = hnp.arrays(np.float64, hnp.array_shapes(max_dims=4, max_side=6), elements=FEW)


def by_sorting(values: np.ndarray, count: int) -> np.ndarray:
    marked = np.zeros(values.size, dtype=bool)
    marked[np.argsort(values.reshape(-1), kind="stable")[:count]] = True
    return marked.reshape(values.shape)


@given(VALUES, st.data())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_lowest_is_a_stable_sort(dtype, values, data):
    count = data.draw(st.integers(0, values.size))
    found = lowest(torch.from_numpy(values).to(dtype), count)
    assert np.array_equal(found.numpy(), by_sorting(values, count))


@given(st.integers(1, 200), st.data())
def test_constant_values_go_from_the_front(size, data):
    count = data.draw(st.integers(0, size))
    found = lowest(torch.full((size,), 3.0), count)
    assert int(found.sum()) == count
    assert bool(found[:count].all())


def test_layout_in_memory_does_not_matter():
    values = torch.randint(3, (4, 3, 5, 5)).float()
    last = values.to(memory_format=torch.channels_last)
    assert torch.equal(lowest(values, 60), lowest(last, 60))
    assert torch.equal(lowest(values.transpose(0, 1), 60), lowest(values.transpose(0, 1).contiguous(), 60))


def test_values_with_a_gradient_are_ranked():
    assert int(lowest(torch.randn(9, requires_grad=True), 4).sum()) == 4


@pytest.mark.parametrize("count", [-1, 7])
def test_impossible_counts_are_refused(count):
    with pytest.raises(ValueError, match=f"cannot choose {count} of 6"):
        lowest(torch.zeros(6), count)


@given(hnp.arrays(np.float64, (5, 7), elements=FEW), st.integers(0, 7))
def test_rows_are_sorted_each_for_itself(values, count):
    found = lowest_per_row(torch.from_numpy(values), count).numpy()
    expected = np.stack([by_sorting(row, count) for row in values])
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["random", "constant"])
def test_more_values_than_quantile_can_take(kind):
    size, count = 2**24 + 1, 15_000_001
    values = torch.rand(size) if kind == "random" else torch.ones(size)
    with pytest.raises(RuntimeError, match="too large"):
        values.quantile(0.9)
    found = lowest(values, count)
    assert int(found.count_nonzero()) == count
    assert float(values[found].max()) <= float(values[~found].min())
