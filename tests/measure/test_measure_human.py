"""The table fits a terminal of 80 columns and says what the counts say."""

import pytest
import torch
from rich.console import Console
from torch import nn

from prunekit import models
from prunekit.measure import Counts, LayerCount, count, layer_table


def lines(counts, width=80):
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        console.print(layer_table(counts))
    return captured.get().splitlines()


@pytest.mark.parametrize("name", sorted(set(models.names()) - {"char_transformer"}))
def test_every_row_is_one_line_of_80_columns(name):
    counts = count(models.create(name, (3, 32, 32), 10, seed=0), torch.zeros(1, 3, 32, 32))
    text = lines(counts)
    assert max(map(len, text)) <= 80
    for layer in counts.layers:
        (line,) = [line for line in text if line.split()[:1] == [layer.name]]
        shape = "x".join(map(str, layer.shape))
        assert line.split()[1:4] == [layer.kind, shape, f"{layer.parameters:,}"]


def test_totals_sparsity_and_ratio():
    net = nn.Sequential(nn.Linear(100, 40, bias=False), nn.ReLU(), nn.Linear(40, 25, bias=False))
    with torch.no_grad():
        net[0].weight[:30].zero_()
    text = [" ".join(line.split()) for line in lines(count(net, torch.zeros(1, 100)))]
    assert "0 Linear 40x100 4,000 25.0% 4.00 k 25.0%" in text
    assert "2 Linear 25x40 1,000 100.0% 1.00 k 100.0%" in text
    assert "total 5,000 40.0% 5.00 k 40.0%" in text
    assert "sparsity 60.00%, compression ratio 2.50x" in text
    assert "2,000 of 5,000 parameters are not zero" in text
    assert "20.0 kB stored densely" in text


def test_long_names_and_large_numbers_keep_their_figures():
    layer = LayerCount(
        name="encoder.layers.11.attention.self.output.projection",
        kind="NonDynamicallyQuantizableLinear",
        shape=(25088, 4096, 3, 3),
        parameters=924_844_032,
        nonzeros=92_484_403,
        macs=123_456_789_000,
        macs_nonzero=12_345_678_900,
        bytes=3_699_376_128,
    )
    text = lines(Counts((layer,)))
    assert max(map(len, text)) <= 80
    assert any(line.split()[-5:] == ["924,844,032", "10.0%", "123", "G", "10.0%"] for line in text)


def test_tied_layers_name_their_owner():
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    net[1].weight = net[0].weight
    assert any(
        line.split()[:5] == ["1", "Linear", "=", "0", "6"] for line in lines(count(net, torch.zeros(1, 6)))
    )


def test_a_layer_by_itself():
    assert any(line.split()[:1] == ["(model)"] for line in lines(count(nn.Linear(2, 3), torch.zeros(1, 2))))
    assert lines(Counts(()))
