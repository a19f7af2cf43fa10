"""Published positions by a worked example and a loop by hand; Huffman codes against their optimum."""

import heapq

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from prunekit.compress import decode_gaps, encode_gaps
from prunekit.compress.gaps import WIDTHS, codes_of, gaps_of
from prunekit.compress.huffman import huffman_decode, huffman_encode, read_varint, varint
from prunekit.errors import DataError, InputError

layers = arrays.arrays(
    np.int32,
    arrays.array_shapes(min_dims=1, min_side=0, max_side=40),
    elements=st.integers(-5, 5) | st.just(0),
)
streams = arrays.arrays(
    np.int64, st.integers(0, 200), elements=st.integers(-9, 9) | st.integers(-(2**30), 2**30)
)


def test_the_example_of_the_paper():
    codes = np.zeros(16, int)
    codes[[1, 4, 15]] = 34, 9, 17
    gaps, values = gaps_of(codes, 3)
    assert gaps.tolist() == [1, 2, 7, 2]
    assert values.tolist() == [34, 9, 0, 17]
    assert codes_of(gaps, values, (4, 4)).ravel().tolist() == codes.tolist()


@given(layers, st.sampled_from(WIDTHS))
@settings(deadline=None)
def test_gaps_are_those_of_a_loop_by_hand(codes, width):
    expected, zeros = [], 0
    for code in codes.ravel().tolist():
        if code:
            while zeros >= 2**width:
                expected.append((2**width - 1, 0))
                zeros -= 2**width
            expected.append((zeros, code))
            zeros = 0
        else:
            zeros += 1
    gaps, values = gaps_of(codes, width)
    assert list(zip(gaps.tolist(), values.tolist(), strict=True)) == expected


@given(layers)
@settings(deadline=None)
def test_decoding_is_inverse_and_the_best_width_is_taken(codes):
    data = encode_gaps(codes)
    found = decode_gaps(data, codes.shape)
    assert np.array_equal(found, codes)
    assert found.shape == codes.shape
    assert len(data) == min(len(encode_gaps(codes, width)) for width in WIDTHS)


@pytest.mark.parametrize("codes", [[-(1 << 31), (1 << 31) - 1], [(1 << 31) - 1], [-(1 << 31)]])
def test_the_extremes_of_32_bits(codes):
    assert decode_gaps(encode_gaps(np.array(codes)), (len(codes),)).tolist() == codes


def total_bits(symbols):
    """Of a Huffman code: the sum of all inner nodes of its tree."""
    heap = np.unique(symbols, return_counts=True)[1].tolist()
    heapq.heapify(heap)
    bits = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        bits += joined
        heapq.heappush(heap, joined)
    return bits


@given(streams)
@settings(deadline=None)
def test_huffman_codes_are_inverse_and_optimal(symbols):
    data = huffman_encode(symbols)
    assert np.array_equal(huffman_decode(data, len(symbols)), symbols)
    different = len(np.unique(symbols))
    if different > 1:  # the table: a byte or more for each length and each symbol
        table = len(data) - (total_bits(symbols) + 7) // 8
        assert different + 2 <= table <= 1 + 31 + 5 * different


def test_every_byte_of_a_small_code():
    # 5 is 0 with one bit, 7 and 8 are 10 and 11; lengths 1, 2: one and two symbols; 5, then +2, then +1
    assert huffman_encode(np.array([5, 5, 7, 5, 8])) == bytes([2, 1, 2, 9, 3, 1, 0b00100110])
    assert huffman_encode(np.array([5, 5, 5])) == bytes([0, 1, 9])
    assert huffman_encode(np.array([], int)) == bytes([0, 0])


def test_counts_like_fibonacci_numbers_do_not_make_codes_too_long():
    counts = [1, 1]
    while len(counts) < 30:
        counts.append(counts[-1] + counts[-2])
    symbols = np.repeat(np.arange(30), counts)
    assert np.array_equal(huffman_decode(huffman_encode(symbols), len(symbols)), symbols)


@given(st.integers(0, 2**35 - 1), st.binary(max_size=3))
def test_numbers_of_seven_bits_a_byte(number, rest):
    data = varint(number)
    assert read_varint(data + rest, 0) == (number, len(data))
    assert len(data) == max(-(-number.bit_length() // 7), 1)


@given(st.binary(max_size=60), st.data())
@settings(deadline=None, max_examples=300)
def test_damaged_bytes_are_a_layer_or_a_clean_error(noise, data):
    codes = np.where(np.random.default_rng(0).random((9, 30)) < 0.2, 3, 0).astype(np.int32)
    codes[2, 3:6] = 1, 2, -4
    good = bytearray(encode_gaps(codes))
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        good[place] = data.draw(st.integers(0, 255))
    for damaged in (noise, bytes(good), bytes(good[: data.draw(st.integers(0, len(good) - 1))])):
        try:
            found = decode_gaps(damaged, (9, 30))
        except DataError:
            continue
        assert found.shape == (9, 30)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"width = 13: .* at least 1 and at most 12"):
        encode_gaps(np.ones(3, int), 13)
    with pytest.raises(InputError, match="integers"):
        encode_gaps(np.ones(3))
    for code in (1 << 31, -(1 << 31) - 1):
        with pytest.raises(InputError, match="of 32 bits"):
            encode_gaps(np.array([0, code]))
    for shape in ((10**30,), (0, 10**30), (-1, 3), (2.5,)):
        with pytest.raises(DataError, match="there is no layer of shape"):
            decode_gaps(encode_gaps(np.zeros(0, int)), shape)
    with pytest.raises(DataError, match="999 codes in a layer of 4"):
        decode_gaps(bytes([4]) + varint(999) + varint(3) + bytes(9), (2, 2))
    for symbols in ([], [5], [5, 5, 7, 5, 8], [1, 2] * 8):
        data = huffman_encode(np.array(symbols, int))
        with pytest.raises(DataError, match="bytes behind the last code"):
            huffman_decode(data + b"\0", len(symbols))
    with pytest.raises(DataError, match="symbols cannot be in"):
        huffman_decode(huffman_encode(np.array([1, 2, 3])), 10**9)
