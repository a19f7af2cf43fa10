"""count against hand counts, products counted one by one, and torch's own FLOP counter."""

import copy
import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from prunekit import models
from prunekit.errors import InputError, ModelError
from prunekit.measure import count, latency, peak_memory


def rows_of(counts):
    return {layer.name: layer for layer in counts.layers}


def half_of_flops(model, *inputs):
    counter = FlopCounterMode(display=False)
    model.eval()
    with torch.no_grad(), counter:
        model(*inputs)
    return counter.get_total_flops() // 2 // len(inputs[0])


def thin_out(model, keep=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=generator) < keep)
    return model


def products_one_by_one(conv, size):
    """Every product of a 2-D convolution, those with padding too: (all, with a non-zero weight)."""
    kernel, stride, padding, dilation = (
        [value] * 2 if isinstance(value, int) else list(value)
        for value in (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    )
    positions = [
        range(0, size[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1), stride[d]) for d in range(2)
    ]
    total = nonzero = 0
    for out, _, _ in itertools.product(range(conv.out_channels), *positions):
        for weight in conv.weight[out].flatten().tolist():
            total += 1
            nonzero += weight != 0
    return total, nonzero


def test_lenet_300_100_by_hand():
    model = models.create("lenet_300_100", (1, 28, 28), 10, seed=0)
    counts = count(model, torch.zeros(4, 1, 28, 28))
    assert [layer.name for layer in counts.layers] == ["fc1", "fc2", "fc3"]
    assert [layer.macs for layer in counts.layers] == [235_200, 30_000, 1_000]
    assert [layer.parameters for layer in counts.layers] == [235_500, 30_100, 1_010]
    assert [layer.shape for layer in counts.layers] == [(300, 784), (100, 300), (10, 100)]
    assert [layer.kind for layer in counts.layers] == ["Linear"] * 3
    assert counts.macs == counts.macs_nonzero == 266_200
    assert counts.parameters == 266_610
    assert counts.nonzeros == 266_200  # the biases start at zero
    assert counts.sparsity == pytest.approx(410 / 266_610)
    assert counts.compression_ratio == pytest.approx(266_610 / 266_200)
    assert counts.bytes == 4 * 266_610


def test_lenet5_by_hand():
    counts = count(models.create("lenet5", (1, 28, 28), 10, seed=0), torch.zeros(1, 1, 28, 28))
    assert {name: row.macs for name, row in rows_of(counts).items()} == {
        "conv1": 24 * 24 * 20 * 25,
        "conv2": 8 * 8 * 50 * 20 * 25,
        "fc1": 800 * 500,
        "fc2": 5000,
    }


@pytest.mark.parametrize("name", sorted(set(models.names()) - {"char_transformer"}))
def test_totals_against_torchs_counter(name):
    model, x = models.create(name, (3, 32, 32), 10, seed=0), torch.zeros(2, 3, 32, 32)
    counts = count(model, x)
    assert counts.macs == half_of_flops(model, x)
    assert counts.parameters == sum(p.numel() for p in model.parameters())
    assert counts.nonzeros == sum(int((p != 0).sum()) for p in model.parameters())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"padding": (2, 1), "stride": (1, 2), "dilation": 2},
        {"groups": 2},
        {"groups": 4, "padding": 1, "bias": False},
    ],
)
def test_convolutions_product_by_product(settings):
    conv = thin_out(nn.Conv2d(4, 8, 3, **settings))
    counts = count(conv, torch.zeros(3, 4, 9, 7))
    assert (counts.macs, counts.macs_nonzero) == products_one_by_one(conv, (9, 7))
    assert counts.macs == half_of_flops(conv, torch.zeros(3, 4, 9, 7))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (2, 5)),
        (nn.Linear(5, 3), (2, 4, 6, 5)),
        (nn.Conv1d(4, 6, 3, padding=1, groups=2), (2, 4, 11)),
        (nn.Conv3d(2, 3, (1, 2, 3), stride=2), (2, 2, 5, 6, 7)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5, 6)),
        (nn.ConvTranspose3d(2, 3, 2, dilation=2), (2, 2, 4, 4, 4)),
    ],
)
def test_layers_against_torchs_counter(layer, shape):
    x = torch.zeros(shape)
    dense = count(layer, x)
    assert dense.macs == dense.macs_nonzero == half_of_flops(layer, x) > 0
    thin = count(thin_out(layer), x)
    density = int((layer.weight != 0).sum()) / layer.weight.numel()
    assert thin.macs == dense.macs
    assert thin.macs_nonzero == pytest.approx(dense.macs * density)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_by_hand(kind):
    gates = {nn.RNN: 1, nn.LSTM: 4, nn.GRU: 3}[kind]
    layer = kind(5, 7, num_layers=2, bidirectional=True, batch_first=True)
    per_step = sum(2 * gates * (inputs * 7 + 7 * 7) for inputs in (5, 14))
    assert count(layer, torch.zeros(3, 6, 5)).macs == 6 * per_step


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_lstm_cell_and_bilinear_by_hand():
    lstm = nn.LSTM(5, 7, proj_size=2, batch_first=True)
    assert count(lstm, torch.zeros(3, 6, 5)).macs == 6 * (4 * (5 * 7 + 2 * 7) + 7 * 2)
    assert count(nn.GRUCell(5, 7), torch.zeros(3, 5)).macs == 3 * (35 + 49)
    assert count(nn.Bilinear(4, 5, 6), (torch.zeros(3, 4), torch.zeros(3, 5))).macs == 4 * 5 * 6


class SelfAttention(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **settings)

    def forward(self, x):
        return self.attention(x, key=x, value=x)[0]


def test_attention_by_hand():
    projection, between = 8 * 8 * 6, 2 * 6 * 6 * 8
    net = SelfAttention(batch_first=True)
    found = rows_of(count(net, torch.zeros(3, 6, 8)))
    assert found["attention"].macs == 3 * projection + between
    assert found["attention.out_proj"].macs == projection
    with torch.no_grad():
        net.attention.in_proj_weight[8:16].zero_()  # all of the key's projection
    found = rows_of(count(net, torch.zeros(3, 6, 8)))
    assert found["attention"].macs_nonzero == 2 * projection + between

    # A key that is added, and the other order of the dimensions (6 positions, batch 3).
    seq_first = SelfAttention(add_bias_kv=True, add_zero_attn=True)
    whole = count(seq_first, torch.zeros(6, 3, 8)).macs * 6
    assert whole == 3 * (4 * projection + 2 * 6 * (6 + 2) * 8)


def test_attention_with_other_key_and_value_sizes():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=3, vdim=5, batch_first=True)

        def forward(self, query, key, value):
            return self.attention(query, key, value)[0]

    counts = count(Cross(), (torch.zeros(2, 6, 8), torch.zeros(2, 4, 3), torch.zeros(2, 4, 5)))
    assert counts.macs == 2 * 6 * 64 + 4 * 3 * 8 + 4 * 5 * 8 + 2 * 6 * 4 * 8


def test_a_transformer_layer_takes_no_shortcut_past_its_children():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    counts = count(nn.TransformerEncoder(layer, 2), torch.zeros(3, 6, 8))
    assert counts.macs == 2 * (4 * 6 * 64 + 2 * 6 * 6 * 8 + 2 * 6 * 8 * 16)


class Functional(nn.Module):
    """Multiplies without any layer: an own parameter, and attention without one."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(5, 8))
        self.inner = nn.Linear(8, 8)

    def forward(self, x):
        x = F.scaled_dot_product_attention(x, x, x)
        return self.inner(x) @ self.kernel.T


def test_other_modules_are_counted_by_their_products():
    found = rows_of(count(nn.Sequential(Functional()), torch.zeros(3, 2, 6, 8)))
    positions = 2 * 6
    assert found["0.inner"].macs == positions * 64
    assert found["0"].macs == found["0"].macs_nonzero == positions * 8 * 5 + 2 * positions * 6 * 8
    assert found["0"].parameters == 40
    assert found["0"].shape == (5, 8)


class Scores(nn.Module):
    def forward(self, x):
        return x @ x.transpose(1, 2)


def test_what_a_subclass_multiplies_beside_its_base_class_is_counted():
    class LowRank(nn.Linear):
        def __init__(self):
            super().__init__(64, 48)
            self.down, self.up = nn.Parameter(torch.randn(16, 64)), nn.Parameter(torch.randn(48, 16))

        def forward(self, x):
            return super().forward(x) + x @ self.down.T @ self.up.T

    layer = LowRank()
    layer.weight.data[:, :32] = 0
    (found,) = count(layer, torch.ones(3, 64)).layers
    assert found.macs == 64 * 48 + 64 * 16 + 16 * 48
    assert found.macs_nonzero == 32 * 48 + 64 * 16 + 16 * 48


def test_a_module_that_multiplies_without_parameters_has_a_row():
    counts = count(nn.Sequential(nn.ReLU(), Scores()), torch.zeros(2, 3, 4))
    (row,) = counts.layers
    assert (row.name, row.kind, row.shape, row.parameters, row.macs) == ("1", "Scores", (), 0, 3 * 3 * 4)
    assert (counts.sparsity, counts.compression_ratio) == (0.0, 1.0)


def test_tied_weights_count_once_and_multiply_twice():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    first, second = count(net, torch.zeros(2, 6)).layers
    assert (first.parameters, first.macs, first.tied_to) == (42, 36, "")
    assert (second.parameters, second.nonzeros, second.bytes) == (6, 6, 24)
    assert (second.macs, second.shape, second.tied_to) == (36, (6, 6), "0")


def test_a_module_that_runs_twice_has_one_row_and_twice_the_macs():
    layer = nn.Linear(6, 6)
    (row,) = count(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(2, 6)).layers
    assert (row.name, row.parameters, row.macs) == ("0", 42, 72)


def test_norms_and_embeddings_have_rows_without_macs():
    net = nn.Sequential(nn.Embedding(10, 4), nn.LayerNorm(4), nn.PReLU())
    counts = count(net, torch.zeros(2, 3, dtype=torch.long))
    assert [layer.parameters for layer in counts.layers] == [40, 8, 1]
    assert counts.macs == 0


def test_a_computed_weight_counts_as_it_is_used():
    class Half(nn.Module):
        def forward(self, weight):
            return weight * (torch.arange(weight.shape[1]) % 2)

    net = nn.Sequential(nn.Linear(4, 3))
    parametrize.register_parametrization(net[0], "weight", Half())
    counts = count(net, torch.zeros(2, 4))
    assert (counts.macs, counts.macs_nonzero) == (12, 6)
    assert counts.parameters == counts.nonzeros == 15


def test_other_types_take_other_bytes():
    counts = count(nn.Linear(4, 3).to(torch.float64), torch.zeros(2, 4, dtype=torch.float64))
    assert counts.bytes == 8 * 15


def test_the_batch_does_not_matter():
    net = models.create("resnet20", (3, 16, 16), 10, seed=0)
    assert count(net, torch.zeros(1, 3, 16, 16)) == count(net, torch.randn(5, 3, 16, 16))


def test_the_model_is_left_as_it_was():
    net = models.create({"name": "vgg_small", "widths": [[4], [4]]}, (3, 8, 8), 5, seed=0)
    net.train()
    net.bn1.eval()
    net.conv1.register_forward_hook(lambda module, args, output: None)
    before = copy.deepcopy(net.state_dict())
    flags = {name: module.training for name, module in net.named_modules()}

    def hooks():
        return [
            (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._backward_hooks))
            for module in net.modules()
        ]

    hooks_before = hooks()
    count(net, torch.randn(2, 3, 8, 8))
    with pytest.raises(RuntimeError):
        count(net, torch.randn(2, 4, 8, 8))
    assert hooks() == hooks_before
    assert {name: module.training for name, module in net.named_modules()} == flags
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_json():
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight[0].zero_()
    values = json.loads(json.dumps(count(net, torch.zeros(1, 4)).to_dict(), allow_nan=False))
    row = {"name": "0", "kind": "Linear", "shape": [2, 4], "parameters": 8, "nonzeros": 4}
    row |= {"macs": 8, "macs_nonzero": 4, "bytes": 32, "tied_to": ""}
    assert values == {
        "parameters": 8,
        "nonzeros": 4,
        "sparsity": 0.5,
        "compression_ratio": 2.0,
        "macs": 8,
        "macs_nonzero": 4,
        "bytes": 32,
        "layers": [row],
    }


def test_an_emptied_model_has_no_finite_ratio():
    net = nn.Linear(3, 2)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    counts = count(net, torch.zeros(1, 3))
    assert (counts.sparsity, counts.compression_ratio) == (1.0, math.inf)
    assert counts.to_dict()["compression_ratio"] is None


@pytest.mark.parametrize("inputs", [(), ([1.0, 2.0],), torch.tensor(1.0), torch.zeros(0, 3)])
def test_refused_inputs(inputs):
    with pytest.raises(InputError, match="example_inputs"):
        count(nn.Linear(3, 2), inputs)


def test_lazy_layers_are_refused():
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet"):
        count(nn.Sequential(nn.LazyLinear(3)), torch.zeros(1, 3))


class Named(nn.Module):
    """Takes its inputs by name, one of them no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(3, 4, bias=False)

    def forward(self, *, left, right, scale=1.0):
        return self.first(left) * scale + self.second(right)


def test_named_inputs():
    inputs = {"left": torch.zeros(6, 5), "right": torch.zeros(6, 3), "scale": 2.0}
    assert [(each.name, each.macs) for each in count(Named(), inputs).layers] == [
        ("first", 20),
        ("second", 12),
    ]
    assert peak_memory(Named(), inputs) > 0
    assert latency(Named(), inputs, warmup=0, runs=1).batch == 6
    with pytest.raises(InputError, match="example_inputs"):
        count(Named(), {"scale": 2.0})
