"""The coder: inverse to the bit, near what its model promises, and calm with damaged bytes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from prunekit.compress import coder, decode_levels, encode_levels
from prunekit.compress.logistic import ONE
from prunekit.compress.range_coder import BitDecoder, BitEncoder
from prunekit.errors import DataError, InputError, PrunekitError

shapes = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12)


def sparse(rng, shape, density, lowest=-8, highest=8):
    """Levels at random, of which about so many are not 0."""
    values = rng.integers(lowest, highest + 1, shape).astype(np.int32)
    return np.where(rng.random(shape) < density, values, 0).astype(np.int32)


def entropy(levels):
    """Bytes of the levels if each is coded by its frequency, which costs nothing to tell."""
    counts = np.unique(levels, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum() / 8)


def back(data, layers, planes=None):
    return list(decode_levels(data, [layer.shape for layer in layers], planes))


@given(st.lists(shapes, max_size=4), st.data())
@settings(deadline=None, max_examples=60)
def test_decoding_is_inverse_to_the_bit(sizes, data):
    layers = []
    for shape in sizes:
        density = data.draw(st.sampled_from([0.0, 0.03, 0.3, 1.0]))
        lowest, highest = data.draw(
            st.sampled_from([(0, 1), (-1, 0), (-4095, 4095), (-3, 9), (7, 7), (-5, -5)])
        )
        layers.append(
            sparse(np.random.default_rng(data.draw(st.integers(0, 99))), shape, density, lowest, highest)
        )
    found = back(encode_levels(layers), layers)
    assert all(
        np.array_equal(one, other) and one.shape == other.shape
        for one, other in zip(found, layers, strict=True)
    )


def test_bits_one_by_one_are_the_bits_at_once():
    rng = np.random.default_rng(12)
    probabilities, bits = rng.integers(1, ONE, 3000), rng.integers(0, 2, 3000)
    ends = np.array([1, ONE - 1] * 2), np.array([0, 1, 1, 0])
    probabilities, bits = (np.concatenate(each) for each in zip((probabilities, bits), ends, strict=True))
    at_once, one_by_one = BitEncoder(), BitEncoder()
    at_once.code(probabilities, bits)
    for each in zip(probabilities.tolist(), bits.tolist(), strict=True):
        assert one_by_one.code_one(*each) == each[1]
    data = at_once.finish()
    assert one_by_one.finish() == data
    decoder = BitDecoder(data)
    assert [decoder.code_one(each, 0) for each in probabilities.tolist()] == bits.tolist()
    decoder.finish()


@pytest.mark.parametrize("density", [0.0, 0.004, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("plane", [None, (28, 28), (7, 112), (784, 1)])
def test_planes_and_densities(density, plane):
    layers = [
        sparse(np.random.default_rng(1), (30, 784), density),
        sparse(np.random.default_rng(2), (5, 784), density),
    ]
    assert all(map(np.array_equal, back(encode_levels(layers, [plane] * 2), layers, [plane] * 2), layers))


@pytest.mark.parametrize(
    "shape", [(40, 3), (3, 40), (500, 2), (2, 500), (1, 900), (900, 1), (1000,), (30, 40)]
)
def test_sides_that_are_long_or_narrow(shape, monkeypatch):
    monkeypatch.setattr(coder, "_LONG", 100)
    layer = sparse(np.random.default_rng(3), shape, 0.2)
    assert np.array_equal(back(encode_levels([layer]), [layer])[0], layer)


@pytest.mark.parametrize("density", [0.01, 0.05, 0.3])
def test_levels_without_any_structure_come_near_their_entropy(density):
    layer = sparse(np.random.default_rng(4), (300, 400), density)
    assert len(encode_levels([layer])) < 1.03 * entropy(layer) + 60


def test_empty_rows_and_columns_cost_almost_nothing():
    rng = np.random.default_rng(5)
    small = sparse(rng, (40, 50), 0.3)
    large = np.zeros((400, 500), np.int32)
    large[np.ix_(np.sort(rng.choice(400, 40, False)), np.sort(rng.choice(500, 50, False)))] = small
    # telling which 40 of 400 and 50 of 500 there are takes (184 + 230) / 8 = 52 bytes
    assert len(encode_levels([large])) < len(encode_levels([small])) + 2 * 52


def test_structure_is_found():
    rng = np.random.default_rng(6)
    y, x = np.divmod(np.arange(784), 28)
    centres = rng.integers(5, 23, (200, 2))
    near = (abs(y - centres[:, :1]) < 3) & (abs(x - centres[:, 1:]) < 3)
    local = np.where((rng.random((200, 784)) < 0.5) & near, 1, 0).astype(np.int32)
    shuffled = rng.permuted(local, axis=1)
    plain, plane = len(encode_levels([local])), len(encode_levels([local], [(28, 28)]))
    assert plane < 0.75 * plain < 0.75 * 1.05 * len(encode_levels([shuffled]))

    sizes = rng.integers(1, 9, 300)[:, None]  # each row has weights of one magnitude, each column one sign
    signs = rng.choice([-1, 1], 200)
    alike = np.where(rng.random((300, 200)) < 0.1, sizes * signs, 0).astype(np.int32)
    mixed = alike.copy()
    mixed[mixed != 0] = rng.permutation(mixed[mixed != 0])
    assert len(encode_levels([alike])) < 0.75 * len(encode_levels([mixed]))


def test_a_layer_is_there_before_the_next_is_read():
    layers = [sparse(np.random.default_rng(number), (20, 20), 0.3) for number in range(2)]
    stream = decode_levels(encode_levels(layers), [(20, 20), (20, 20)])
    assert np.array_equal(next(stream), layers[0])
    assert np.array_equal(next(stream), layers[1])


@pytest.mark.parametrize("behind", [b"\0", b"\1", bytes(4), b"more", bytes(50)])
@pytest.mark.parametrize("keep", [0, 0.3, 1])
def test_bytes_behind_the_last_one_are_refused(behind, keep):
    layer = sparse(np.random.default_rng(0), (20, 20), keep)
    with pytest.raises(DataError, match="cannot have been written by this coder"):
        list(decode_levels(encode_levels([layer]) + behind, [(20, 20)]))


def test_the_bytes_are_the_same_on_every_machine():
    layers = [
        sparse(np.random.default_rng(7), (20, 5, 3, 3), 0.3),
        sparse(np.random.default_rng(8), (10, 64), 0.2),
    ]
    data = encode_levels(layers, [None, (8, 8)])
    assert (len(data), data[:8].hex(), data[-8:].hex()) == KNOWN


KNOWN = (368, "4f33623d1d34ce34", "65dabd7660e9417b")


@given(st.binary(max_size=300), st.data())
@settings(deadline=None, max_examples=60)
def test_bytes_of_any_kind_end_in_levels_or_a_clean_error(noise, data):
    shapes = [(12, 30), (8, 3, 3, 3), (0, 4), (9,)]
    layers = [sparse(np.random.default_rng(9), shape, 0.3) for shape in shapes]
    good = bytearray(encode_levels(layers))
    for place in data.draw(st.lists(st.integers(0, len(good) - 1), max_size=5)):
        good[place] = data.draw(st.integers(0, 255))
    for damaged in (noise, bytes(good), bytes(good[: data.draw(st.integers(0, len(good)))])):
        try:
            found = list(decode_levels(damaged, shapes, [(5, 6), None, None, None]))
        except PrunekitError:
            continue
        assert [one.shape for one in found] == shapes


def test_declared_sizes_are_checked_before_anything_is_allocated():
    tracemalloc.start()
    with pytest.raises(DataError, match="more than 1,073,741,824 weights"):
        decode_levels(b"\1\2", [(10, 10), (1 << 20, 1 << 20)])
    with pytest.raises(DataError, match="more than 99 weights"):
        decode_levels(b"\1\2", [(10, 10)], max_weights=99)
    for shape in ((-10, 10), (1 << 40, 1 << 40), (0, 10**30), (1,) * 33, (2.7,), "ab", 3):
        with pytest.raises(DataError, match="there is no layer of shape"):
            decode_levels(b"\1\2", [shape])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(InputError, match="layer 1: levels must be integers, not float64"):
        encode_levels([np.ones(2, int), np.ones(2)])
    with pytest.raises(InputError, match="from -4,095 to 4,095"):
        encode_levels([np.array([4096])])
    with pytest.raises(InputError, match="1 layers and 2 planes"):
        encode_levels([np.ones(2, int)], [None, None])
    for plane in (784, (784,), (28, 28, 1), (28.0, 28.0)):
        with pytest.raises(InputError, match=r"layer 0: a plane is \(height, width\), not"):
            encode_levels([np.zeros((3, 784), int)], [plane])
    with pytest.raises(InputError, match="does not hold 784 inputs"):
        encode_levels([np.zeros((3, 784), int)], [(28, 27)])
