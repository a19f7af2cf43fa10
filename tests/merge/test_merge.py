"""Blocks that become one convolution: what is found, fitted and refused, against networks run by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from prunekit import Training, load_pretrained, save_pretrained, train
from prunekit.errors import InputError, ModelError
from prunekit.merge import merge_layers
from prunekit.models import Absent, GoogLeNetSmall, MergedConv2d
from prunekit.training import TrainingError
from small_nets import copied, same

FIT_ONLY = {"epochs": 0}


def examples(count=48, side=12, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, side, side, generator=generator, dtype=torch.float64)
    return x + 0.3, torch.zeros(count, dtype=torch.long)


def streamline(*behind, conv=None, side=12):
    torch.manual_seed(0)
    conv = conv or nn.Conv2d(3, 4, 3, padding=1)
    net = nn.Sequential(conv, *behind)
    width = net(torch.zeros(1, 3, side, side)).flatten(1).shape[1]
    return net.append(nn.Flatten()).append(nn.Linear(width, 2)).double()


# ---- streamlines -------------------------------------------------------------------------------------------


def test_average_pooling_goes_into_a_whole_kernel_exactly():
    """An average of convolutions is a convolution: nothing may be left of the error."""
    net, data = streamline(nn.AvgPool2d(2), nn.ReLU()), examples()
    before = net(data[0]).detach()
    result = merge_layers(net, data, kernel="whole", training=FIT_ONLY)
    (block,) = result.blocks
    assert (block.kind, block.convolution, block.absorbed) == ("streamline", "0", ("1",))
    assert (net[0].kernel_size, net[0].stride, net[0].padding) == ((4, 4), (2, 2), (1, 1))
    assert isinstance(net[1], Absent)
    assert block.error == block.least_squares_error < 1e-6
    torch.testing.assert_close(net(data[0]).detach(), before, rtol=0, atol=1e-3)


def test_a_new_convolution_is_the_least_squares_one():
    """The error is that of numpy on patches of the input and the old block's outputs."""
    net, data = streamline(nn.MaxPool2d(3, 2, 1), nn.LocalResponseNorm(3)), examples()
    wanted = net[2](net[1](net[0](data[0]))).detach()
    (block,) = merge_layers(net, data, training=FIT_ONLY).blocks
    assert block.absorbed == ("1", "2")
    rows = F.unfold(data[0], 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1).numpy()
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    target = wanted.flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    missed = target - rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
    expected = np.square(missed).sum() / np.square(target - target.mean(0)).sum()
    assert block.least_squares_error == pytest.approx(expected, rel=1e-3)
    given = net[0](data[0]).detach()
    assert float((given - wanted).square().sum()) == pytest.approx(np.square(missed).sum(), rel=1e-3)


def test_a_relu_in_between_stays_and_is_fitted_through():
    net, data = streamline(nn.ReLU(), nn.MaxPool2d(2)), examples()
    wanted = net[:3](data[0]).detach()
    (block,) = merge_layers(net, data, training=FIT_ONLY).blocks
    assert isinstance(net[1], nn.ReLU)
    rows = F.unfold(data[0], 3, padding=net[0].padding, stride=2).transpose(1, 2).flatten(0, 1).numpy()
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    target = wanted.flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    given = np.maximum(rows @ np.linalg.lstsq(rows, target, rcond=None)[0], 0)
    spread = np.square(target - target.mean(0)).sum()
    plain = np.square(target - given).sum() / spread  # fitted without a thought of the ReLU
    assert block.error < plain


POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d((2, 3), (1, 2)),
    nn.AvgPool2d(3, 1, 1),
]
CONVS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 5},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "circular"},
]


@pytest.mark.parametrize(("settings", "pool"), list(itertools.product(CONVS, POOLS)))
@pytest.mark.parametrize("kernel", ["same", "whole"])
def test_the_extent_stays(settings, pool, kernel):
    net = streamline(pool, conv=nn.Conv2d(3, 4, **settings), side=15)
    data = examples(16, side=15)
    before = net[:2](data[0])
    result = merge_layers(net, data, kernel=kernel, training=FIT_ONLY)
    assert net[:2](data[0]).shape == before.shape
    stride = [a * b for a, b in zip(pairs(settings.get("stride", 1)), pairs(pool.stride), strict=True)]
    assert list(net[0].stride) == stride
    assert result.blocks[0].error < 1


def pairs(value):
    return (value, value) if isinstance(value, int) else value


def test_a_batch_norm_that_cannot_be_folded_is_absorbed():
    """Behind a pooling it is no scale of the convolution, but it can be fitted; behind a ReLU it stays."""
    net = streamline(nn.AvgPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.MaxPool2d(2))
    net[2].running_mean.add_(1)
    data = examples()
    before = net.eval()[:5](data[0]).detach()
    result = merge_layers(net, data, kernel="whole", training=FIT_ONLY)
    assert result.folds == ()
    assert "it reads '1', which is no linear or convolution layer" in result.refused["2"]
    assert result.blocks[0].absorbed == ("1", "2")
    torch.testing.assert_close(net[:5](data[0]).detach(), before, rtol=0, atol=1e-3)


# ---- branches ----------------------------------------------------------------------------------------------


class Branched(nn.Module):
    """A 1x1 and a pooling branch beside 3x3 and 5x5 ones that read the input itself."""

    order = ("one", "three", "five", "pooled")

    def __init__(self, relu=False):
        super().__init__()
        torch.manual_seed(0)
        self.relu = relu
        self.one, self.three, self.five = (nn.Conv2d(3, 2 + k, k, padding=k // 2) for k in (1, 3, 5))
        self.pool, self.project = nn.AvgPool2d(3, 1, 1), nn.Conv2d(3, 2, 1)
        self.stem, self.fc = nn.Conv2d(3, 3, 3), nn.Linear(3 + 5 + 7 + 2, 2)
        self.double()

    def concatenated(self, x):
        x = self.stem(x)
        found = {
            "one": self.one(x),
            "three": self.three(x),
            "five": self.five(x),
            "pooled": self.project(self.pool(x)),
        }
        return torch.cat([F.relu(found[name]) if self.relu else found[name] for name in self.order], 1)

    def forward(self, x):
        return self.fc(self.concatenated(x).mean((2, 3)))


def test_branches_without_products_go_into_their_neighbours_exactly():
    """1x1 lies within 3x3, and an average of 3x3 behind it within 5x5: the concatenation stays as it was."""
    net, data = Branched(), examples()
    before = net.concatenated(data[0]).detach()
    three = net.three.weight.detach().clone()
    result = merge_layers(net, data, training=FIT_ONLY)
    assert [(block.kind, block.convolution, block.absorbed) for block in result.blocks] == [
        ("branch", "three", ("one",)),
        ("branch", "five", ("pool", "project")),
    ]
    assert (net.three.out_channels, net.five.out_channels) == (8, 9)
    torch.testing.assert_close(net.three.weight.detach()[3:], three, rtol=0, atol=0)
    assert all(block.error < 1e-6 for block in result.blocks)
    torch.testing.assert_close(net.concatenated(data[0]).detach(), before, rtol=0, atol=2e-2)
    assert net.one(data[0]).shape[1] == 0
    assert result.new == ("three.weight", "three.bias", "five.weight", "five.bias")


@pytest.mark.parametrize("order", list(itertools.permutations(Branched.order)))
def test_the_channels_stay_where_they_are_in_any_order(order):
    net, data = Branched(), examples(24)
    net.order = order
    before = net.concatenated(data[0]).detach()
    result = merge_layers(net, data, training=FIT_ONLY)
    assert {name for block in result.blocks for name in block.absorbed} == {"one", "pool", "project"}
    found = net.concatenated(data[0]).detach()
    assert found.shape == before.shape
    # a 3x3 convolution has no room for the edges of 3x3 averages of zeros, all else is exact
    error = (found - before).square().mean((0, 2, 3)) / before.var((0, 2, 3))
    assert float(error.max()) < 1e-2


def test_branches_end_with_the_activation_that_they_had():
    net, data = Branched(relu=True), examples()
    before = net.concatenated(data[0]).detach()
    result = merge_layers(net, data, training=FIT_ONLY)
    assert len(result.blocks) == 2
    error = (net.concatenated(data[0]).detach() - before).square().sum() / before.square().sum()
    assert float(error) < 0.05


def test_a_branch_with_a_layer_in_between_is_fitted_behind_it():
    torch.manual_seed(0)
    net, data = Reduced(nn.Sigmoid()).double(), examples()
    before = net(data[0]).detach()
    read = net.between(net.reduce(F.tanh(data[0])))
    rows = F.unfold(read, 3, padding=1).transpose(1, 2).flatten(0, 1).detach().numpy()
    rows = np.hstack([rows, np.ones((len(rows), 1))])
    target = before[:, :2].flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    missed = target - rows @ np.linalg.lstsq(rows, target, rcond=None)[0]
    (block,) = merge_layers(net, data, training=FIT_ONLY).blocks
    found = net(data[0]).detach()
    torch.testing.assert_close(found[:, 2:], before[:, 2:], rtol=0, atol=1e-12)
    assert float((found - before).square().sum()) == pytest.approx(np.square(missed).sum(), rel=1e-2)
    spread = (before - before.mean((0, 2, 3), keepdim=True)).square().sum()
    assert block.error == pytest.approx(float((found - before).square().sum() / spread), rel=1e-6)


# ---- a whole network ---------------------------------------------------------------------------------------


def googlenet():
    torch.manual_seed(0)
    blocks = ((2, 3, 4, 2, 3, 2),) * 3
    net = GoogLeNetSmall((3, 16, 16), 4, stem=(4, 4, 6), blocks=blocks)
    x = torch.randn(64, 3, 16, 16)
    for _ in range(5):  # the batch norms get statistics
        net(x)
    return net.eval(), (x, torch.arange(64) % 4)


def test_a_googlenet_from_front_to_back():
    net, data = googlenet()
    before = copy.deepcopy(net)
    result = merge_layers(net, data, training={"epochs": 3}, examples=64)
    assert result.model is net
    assert type(net) is GoogLeNetSmall
    assert len(result.folds) == 21
    assert [(block.convolution, block.absorbed) for block in result.blocks] == [
        ("conv1.conv", ("pool1", "norm1")),
        ("conv3.conv", ("norm2", "pool2")),
        *(
            each
            for number in (1, 2, 3)
            for each in (
                (f"block{number}.three.1.conv", (f"block{number}.one.conv",)),
                (f"block{number}.five.1.conv", (f"block{number}.pool.0", f"block{number}.pool.1.conv")),
            )
        ),
    ]
    assert not result.refused
    for block in result.blocks:
        assert 0 < block.error <= block.least_squares_error < 1
    assert any(block.error < 0.99 * block.least_squares_error for block in result.blocks)
    layers = [type(module) for module in net.modules()]
    assert layers.count(nn.MaxPool2d) == 1  # the one behind a concatenation
    assert nn.BatchNorm2d not in layers
    assert nn.LocalResponseNorm not in layers
    assert result.before.macs == count_macs(before)
    assert result.after.macs == count_macs(net)
    assert "LocalResponseNorm" in result.before.times
    assert "LocalResponseNorm" not in result.after.times
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(result.block_table())
    console.print(result.time_table())
    text = console.export_text()
    for word in ("conv1.conv", "streamline", "block3.five.1.conv", "MaxPool2d", "MACs"):
        assert word in text


def count_macs(net):
    """By hooks: the numbers that a convolution or linear layer gives, times the weights of each."""
    found = []

    def see(layer, _, given):
        found.append(given[0].numel() // len(layer.weight) * layer.weight.numel())

    layers = [each for each in net.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    handles = [each.register_forward_hook(see) for each in layers]
    net(torch.zeros(1, 3, 16, 16))
    for handle in handles:
        handle.remove()
    return sum(found)


def test_the_rest_is_fine_tuned_at_a_tenth_of_the_rate():
    net, data = googlenet()
    result = merge_layers(net, data, training=FIT_ONLY, only=["conv1.conv"], examples=64)
    assert [block.convolution for block in result.blocks] == ["conv1.conv"]
    before = copied(net)
    train(net, data, Training(iterations=1, lr=1e-4, optimizer="adam"), loop=result.loop())
    moved = {name: float((value - before[name]).abs().max()) for name, value in copied(net).items()}
    assert moved["conv1.conv.weight"] == pytest.approx(1e-3, rel=1e-2)  # Adam's first step is the rate
    assert moved["conv2.conv.weight"] == pytest.approx(1e-4, rel=1e-2)


def test_a_merged_network_is_saved_and_loaded(tmp_path):
    """Into a freshly built one, which gets the stride of the new convolutions, and no other outputs."""
    net, data = googlenet()
    fresh = copy.deepcopy(net)
    merge_layers(net, data, training=FIT_ONLY, examples=64)
    save_pretrained(net, tmp_path / "merged")
    again = load_pretrained(tmp_path / "merged", fresh)
    assert type(again) is GoogLeNetSmall
    assert again.conv1.conv.stride == (2, 2)
    torch.testing.assert_close(again(data[0]), net(data[0]), rtol=0, atol=0)


@pytest.mark.parametrize(
    "geometry", [[0, 1, 1, 1, 1, 1], [1, 1, -1, 1, 1, 1], [1, 1, 0, 0, 1, 10**9], [1, 1]]
)
def test_a_geometry_out_of_range_is_refused(geometry):
    with pytest.raises(ModelError, match="stride, padding and dilation of a merged convolution are out of"):
        MergedConv2d(nn.Conv2d(3, 4, 3), (4, 3, 3, 3), torch.tensor(geometry))


# ---- what is refused ---------------------------------------------------------------------------------------


class ReadTwice(nn.Module):
    """A convolution that a pooling reads, and something else."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2), nn.Linear(4, 2)

    def forward(self, x):
        y = self.conv(x)
        return self.fc(self.pool(y).mean((2, 3)) + y.mean((2, 3)))


class PooledByFunction(ReadTwice):
    """The same with a pooling that is no layer."""

    def forward(self, x):
        return self.fc(F.max_pool2d(self.conv(x).relu(), 2).mean((2, 3)))


class HostReadTwice(Branched):
    """Branches of which the 3x3 one is read behind the concatenation, too."""

    def forward(self, x):
        x = self.stem(x)
        y = self.three(x)
        return self.fc(
            torch.cat([self.one(x), y, self.five(x)[:, :0]], 1).mean((2, 3)).repeat(1, 3)[:, :17]
        ) + (y.mean())


class StandsTwice(Branched):
    """The 3x3 branch is at two places of the concatenation."""

    def forward(self, x):
        y = F.relu(self.three(x))
        return torch.cat([y, F.relu(self.one(x)), y], 1)


class TiedWithin(Branched):
    """The layer within the 3x3 branch has the weight of another one."""

    def __init__(self):
        super().__init__()
        self.within, self.other = (nn.Conv2d(3, 3, 3, padding=1).double() for _ in range(2))
        self.other.weight = self.within.weight
        self.first = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.stem(x)
        wide = self.three(self.within(self.first(x)))
        return torch.cat([self.one(x), wide], 1) + self.other(x).mean()


class Reduced(nn.Module):
    """A 1x1 convolution beside a 1x1 and a 3x3 one, with something in between."""

    def __init__(self, between, first=None):
        super().__init__()
        self.between, self.first = between, first or nn.Identity()
        self.one, self.reduce, self.three = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 3, 1, 1)

    def forward(self, x):
        x = F.tanh(x)
        wide = self.three(self.between(self.reduce(F.relu(x) if isinstance(self.first, nn.ReLU) else x)))
        return torch.cat([self.one(x), wide], 1)


REFUSED = {
    "nothing": (lambda: streamline(nn.ReLU()), "looked for convolutions with pooling"),
    "read elsewhere": (ReadTwice, "conv: its output is read by 'pool' and mean()"),
    "host read elsewhere": (HostReadTwice, "three: its output is read by cat() and mean()"),
    "twice in a concatenation": (StandsTwice, "three: its output is read by cat() more than once"),
    "tied within a branch": (TiedWithin, "three: its branch has 'within' within: within.weight is tied"),
    "a function behind it": (
        PooledByFunction,
        "conv: max_pool2d() behind it is called as a function: a pooling that can go is a layer of its own",
    ),
    "groups": (
        lambda: streamline(nn.MaxPool2d(2), conv=nn.Conv2d(3, 6, 3, groups=3)),
        "0: it is a convolution in 3 groups",
    ),
    "a function in a branch": (
        lambda: Reduced(torch.sigmoid),
        "three: its branch calls sigmoid() as a function",
    ),
    "a function at the beginning": (
        lambda: Reduced(nn.Sigmoid(), nn.ReLU()),
        "three: its branch begins with relu(): it is called as a function",
    ),
    "only batch norms": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        "fold_batch_norms folds batch norms alone",
    ),
    "no statistics": (
        lambda: streamline(nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False)),
        "2: it keeps no running statistics",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_there_is_nothing_to_merge_it_says_what_was_looked_for(case):
    make, message = REFUSED[case]
    net = make().double()
    before = copied(net)
    with pytest.raises(ModelError, match="nothing to merge: looked for") as error:
        merge_layers(net, examples(8))
    assert message in str(error.value)
    assert same(copied(net), before)


def test_names_and_settings_that_there_are_not():
    net, data = streamline(nn.MaxPool2d(2)), examples(8)
    with pytest.raises(InputError, match="only: there is no block 'conv1'; blocks are: 0"):
        merge_layers(net, data, only=["conv1"])
    with pytest.raises(InputError, match="only: 'conv' is no convolution that a block can become"):
        merge_layers(ReadTwice().double(), data, only=["conv"])
    with pytest.raises(InputError, match="kinds: there is no 'stream'"):
        merge_layers(net, data, kinds=["stream"])
    for wrong in ("0", []):
        for name in ("only", "kinds"):
            with pytest.raises(InputError, match=f"{name} must be a list of one or more names, not"):
                merge_layers(net, data, **{name: wrong})
    with pytest.raises(InputError, match="kernel: there is no 'big'"):
        merge_layers(net, data, kernel="big")
    with pytest.raises(InputError, match="examples"):
        merge_layers(net, data, examples=0)
    assert type(net[0]) is nn.Conv2d


class Counting(Branched):
    """Its code knows how many channels a branch has."""

    def __init__(self, checked):
        super().__init__()
        self.checked = checked

    def forward(self, x):
        one = self.one(x)
        if self.checked and one.shape[1] != 3:
            raise KeyError(one.shape[1])
        return torch.cat([one, self.three(x)], 1)[:, : 4 * one.shape[1]]


@pytest.mark.parametrize(
    ("checked", "message"),
    [
        (True, "three: the network cannot be run with the new convolution: KeyError: 0"),
        (False, "the merged network would give outputs of [[1, 0, 12, 12]] in place of [[1, 8, 12, 12]]"),
    ],
)
def test_a_network_that_counts_the_channels_of_its_branches_is_refused_and_as_it_was(checked, message):
    net = Counting(checked)
    before, modules = copied(net), dict(net.named_modules())
    with pytest.raises(ModelError) as error:
        merge_layers(net, examples(8), training=FIT_ONLY)
    assert str(error.value) == message
    assert same(copied(net), before)
    assert dict(net.named_modules()) == modules


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_holds_no_sums_of_squares_and_is_fitted_in_single(dtype):
    net = streamline(nn.AvgPool2d(2)).to(dtype)
    x = (100 * examples()[0]).to(dtype)
    (block,) = merge_layers(net, (x, x), kernel="whole", training=FIT_ONLY).blocks
    assert block.error < 4 * torch.finfo(dtype).eps ** 2


def test_after_a_failure_the_network_is_as_it_was():
    net, data = googlenet()
    before, modules = copied(net), dict(net.named_modules())
    with pytest.raises(TrainingError, match=r"conv1\.conv: "):
        merge_layers(net, data, training={"epochs": 5, "lr": 1e30, "decay": "constant"}, examples=64)
    assert same(copied(net), before)
    assert dict(net.named_modules()) == modules
