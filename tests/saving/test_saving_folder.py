import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import DataError
from prunekit.saving.description import mask_of, with_zeros, without_zeros

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@given(
    st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple),
    st.floats(0, 1),
    st.sampled_from(DTYPES),
    st.integers(0, 99),
)
def test_unpack_is_the_inverse(shape, density, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(shape, generator=generator) < density
    weight = torch.randn(shape, generator=generator).to(dtype)
    bits, values = without_zeros(weight, mask)
    assert bits.numel() == (mask.numel() + 7) // 8
    assert values.numel() == int(mask.sum())
    again = with_zeros(bits, values, shape)
    assert again.dtype == dtype
    assert torch.equal(again, torch.where(mask, weight, torch.zeros((), dtype=dtype)))
    assert torch.equal(mask_of(bits, shape), mask)


def test_layout_in_memory_does_not_matter():
    weight, mask = torch.randn(4, 3, 5, 5), torch.rand(4, 3, 5, 5) > 0.5
    last = torch.channels_last
    for one in (weight, weight.to(memory_format=last)):
        for other in (mask, mask.to(memory_format=last)):
            bits, values = without_zeros(one, other)
            assert torch.equal(with_zeros(bits, values, (4, 3, 5, 5)), weight * mask)


def test_values_are_copies_and_without_gradients():
    weight = torch.randn(3, 3, requires_grad=True)
    _, values = without_zeros(weight, torch.ones(3, 3, dtype=torch.bool))
    values.zero_()
    assert bool((weight != 0).all())
    assert not values.requires_grad


@pytest.mark.parametrize("bits", [torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.int32)])
def test_bits_that_do_not_fit(bits):
    with pytest.raises(DataError, match=r"a mask of shape \(3, 4\) needs 2 bytes"):
        mask_of(bits, (3, 4))


def test_values_that_do_not_fit():
    bits, values = without_zeros(torch.ones(3, 3), torch.eye(3).bool())
    with pytest.raises(DataError, match="the mask keeps 3 weights, but 2 values are stored"):
        with_zeros(bits, values[:2], (3, 3))
