"""The table of a packed file, counted by hand."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from prunekit.compress import encode_levels, measure_levels
from prunekit.masks import Masks
from prunekit.packing import pack
from prunekit.packing.costs import costs_of
from small_nets import mlp


def sparse_model():
    """Layers whose weights are 0 or one of five values."""
    model = mlp(60, 40, 10)
    values = torch.tensor([-1.5, -0.3, 0.2, 0.7, 2.0]).half().float()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            chosen = values[torch.randint(5, parameter.shape, generator=generator)]
            kept = torch.rand(parameter.shape, generator=generator) < 0.06
            parameter.copy_(torch.where(kept, chosen, torch.zeros(())))  # a product would be -0.0 at places
    return model


def by_hand(weight, gap_bits):
    """Entries with fillers, and how often each gap and each value is there, one weight after the other."""
    gaps, values, gap = Counter(), Counter(), 0
    for value in weight.flatten().tolist():
        if value == 0:
            gap += 1
            continue
        while gap >= 2**gap_bits:
            gaps[2**gap_bits - 1] += 1
            values[0.0] += 1
            gap -= 2**gap_bits
        gaps[gap] += 1
        values[value] += 1
        gap = 0
    return gaps, values


def huffman_bits(counts):
    """The bits of a Huffman code, by joining the two rarest again and again."""
    left, bits = sorted(counts.values()), 0
    while len(left) > 1:
        joined = left[0] + left[1]
        bits += joined
        left = sorted([*left[2:], joined])
    return bits


@pytest.mark.parametrize("gap_bits", [2, 5])
def test_the_published_stages(gap_bits, tmp_path):
    model = sparse_model()
    costs = costs_of(pack(model, tmp_path / "net.pk", coding="published", gap_bits=gap_bits))
    layers = {layer.name: layer for layer in costs.layers}
    for name in ("0.weight", "2.weight"):
        weight, layer = model.state_dict()[name], layers[name]
        gaps, values = by_hand(weight, gap_bits)
        entries = gaps.total()
        assert layer.weights == weight.numel()
        assert layer.kept == int((weight != 0).sum())
        assert layer.shared == 5
        assert (layer.pruned.values, layer.pruned.positions) == (32 * entries, gap_bits * entries)
        code = math.ceil(math.log2(len(values)))
        assert (layer.quantized.values, layer.quantized.positions) == (code * entries, gap_bits * entries)
        for bits, counts in ((layer.huffman.values, values), (layer.huffman.positions, gaps)):
            table = 8 * (2 * len(counts) + 10)  # lengths, and a byte or two for each symbol
            assert huffman_bits(counts) <= bits <= huffman_bits(counts) + table
        assert layer.stored == layer.huffman
    assert costs.ratio == pytest.approx(4 * costs.numbers / costs.size)
    assert 0 < costs.overhead < 700  # names and sizes of a network of no known architecture


def test_what_the_adaptive_model_spends_adds_up_to_the_file(tmp_path):
    model = sparse_model()
    kept = Masks({"0.weight": torch.arange(2400).view(40, 60) % 7 != 0})  # not where the zeros are
    with torch.no_grad():
        kept.apply(model)
    path = pack(model, tmp_path / "net.pk", masks=kept)
    costs = costs_of(path)
    assert costs.size == path.stat().st_size
    accounted = costs.values + costs.overhead + sum(layer.bytes for layer in costs.layers)
    assert accounted == pytest.approx(costs.size)
    assert all(layer.stored.values > 0 and layer.stored.positions > 0 for layer in costs.layers)
    as_json = costs.to_dict()
    assert as_json["layers"][0]["stored"]["values"] == costs.layers[0].stored.values
    assert as_json["bytes_of_stages"]["huffman"] < as_json["bytes_of_stages"]["pruned"]


def test_counted_bits_are_those_of_the_coder():
    rng = np.random.default_rng(0)
    layers = [rng.integers(-5, 6, (50, 70)) * (rng.random((50, 70)) < density) for density in (0.05, 0.4)]
    spent = measure_levels(layers)
    total = sum(values + positions for values, positions in spent) / 8
    assert total <= len(encode_levels(layers)) <= total * 1.005 + 8
    only = measure_levels([np.sign(layers[0]) ** 2])
    assert only[0][0] < 40  # where all weights are equal values cost next to nothing
