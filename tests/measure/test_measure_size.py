"""Bytes of the stored state, and numbers as people read them."""

import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from prunekit.measure import human_bytes, human_count, human_seconds, state_bytes


def test_parameters_and_buffers():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert state_bytes(net) == 4 * (12 + 3 + 4 * 3) + 8  # num_batches_tracked is one int64
    assert state_bytes(net.half()) == 2 * (12 + 3 + 4 * 3) + 8
    assert state_bytes(nn.ReLU()) == 0


def test_tied_storages_count_once(tmp_path):
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    assert state_bytes(net) == 2 * 144
    net[1].weight = net[0].weight
    assert state_bytes(net) == 144
    # safetensors writes shared tensors once too: 8 bytes, a header, and the entries.
    save_model(net, str(tmp_path / "net.safetensors"))
    content = (tmp_path / "net.safetensors").read_bytes()
    assert len(content) - 8 - int.from_bytes(content[:8], "little") == state_bytes(net)


def test_views():
    class Views(nn.Module):
        def __init__(self, *views):
            super().__init__()
            for number, view in enumerate(views):
                self.register_buffer(f"view{number}", view)

    base = torch.zeros(100)
    assert state_bytes(Views(base[:10])) == 40
    assert state_bytes(Views(base[:10], base[50:60])) == 80
    assert state_bytes(Views(base, base.view(10, 10), base[:50])) == 400
    assert state_bytes(Views(torch.zeros(1).expand(1000))) == 4


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (torch.Tensor.to_sparse_coo, 2 * 3 * 8 + 3 * 4),
        (torch.Tensor.to_sparse_csr, (5 + 3) * 8 + 3 * 4),
        (torch.Tensor.to_sparse_csc, (6 + 3) * 8 + 3 * 4),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_count_indices_and_values(make, expected):
    dense = torch.zeros(4, 5)
    dense[0, 1] = dense[2, 2] = dense[3, 4] = 1.0
    net = nn.Module()
    net.register_buffer("weight", make(dense))
    assert state_bytes(net) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_066_440, "1.07 MB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (-2_500, "-2.50 kB"),
        (3.2e12, "3.20 TB"),
        (5e18, "5000 PB"),
        (12.5, "12.5 B"),
    ],
)
def test_human_bytes(value, text):
    assert human_bytes(value) == text


def test_human_counts_and_seconds():
    assert [human_count(n) for n in (0, 640, 266_200, 40_800_000)] == ["0", "640", "266 k", "40.8 M"]
    assert human_count(float("inf")) == "inf"
    times = [0.00125, 3.5e-6, 2.0, 75.0, 1234.0, 0.9999]
    assert [human_seconds(t) for t in times] == ["1.25 ms", "3.50 µs", "2 s", "75 s", "1234 s", "1.00 s"]
