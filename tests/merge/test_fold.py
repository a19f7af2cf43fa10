"""Batch norms folded into the layers beside them, against the network as it was, in double precision."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit import load_pretrained, save_pretrained
from prunekit.errors import ModelError
from prunekit.merge import fold_batch_norms, restore_batch_norms
from prunekit.models import Absent, VGGSmall, resnet20
from small_nets import copied, same

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def alive(model, seed=0):
    """The network in double precision, with batch norms that are anything but the identity."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.3)
            if module.affine:
                with torch.no_grad():
                    module.weight.copy_(torch.randn(module.num_features, generator=generator))
                    module.bias.copy_(torch.randn(module.num_features, generator=generator))
    return model.double().eval()


def conv_net(*layers, pool=nn.AdaptiveAvgPool2d, last=6):
    return nn.Sequential(*layers, nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(last, 3))


BEHIND = {
    "bias": (lambda: (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), (3, 7, 7)),
    "no bias": (lambda: (nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)), (3, 7, 7)),
    "groups": (lambda: (nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.BatchNorm2d(6)), (4, 7, 7)),
    "depthwise": (lambda: (nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), (3, 7, 7)),
    "not affine": (lambda: (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), (3, 7, 7)),
    "momentum None": (lambda: (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None)), (3, 7, 7)),
    "eps": (lambda: (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, eps=0.5)), (3, 7, 7)),
    "transposed": (lambda: (nn.ConvTranspose2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)), (3, 5, 5)),
    "transposed in groups": (
        lambda: (nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)),
        (4, 5, 5),
    ),
    "two in a row": (lambda: (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), (3, 7, 7)),
}


@pytest.mark.parametrize("case", BEHIND)
def test_a_batch_norm_behind_a_convolution(case):
    torch.manual_seed(0)
    layers, shape = BEHIND[case]
    check(conv_net(*layers()), torch.randn(4, *shape), left=0)


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_dimensions(dims):
    torch.manual_seed(0)
    conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dims]
    pool = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}[dims]
    net = conv_net(conv(2, 6, 3, padding=1, bias=False), norm(6), pool=pool)
    check(net, torch.randn(3, 2, *[5] * dims), left=0)


def test_linear_layers_on_both_sides():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.BatchNorm1d(5), nn.Linear(5, 7, bias=False), nn.BatchNorm1d(7), nn.Tanh()),
        *(nn.BatchNorm1d(7, affine=False), nn.Linear(7, 2)),
    )
    result = check(net, torch.randn(9, 5), left=0)
    assert [(fold.norm, fold.layer, fold.behind) for fold in result.folds] == [
        ("0", "1", False),
        ("2", "1", True),
        ("4", "5", False),
    ]


BEFORE = {
    "no padding": lambda: nn.Conv2d(6, 6, 3),
    "groups": lambda: nn.Conv2d(6, 6, 3, groups=3, bias=False),
    "reflected": lambda: nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(6, 6, (3, 1), padding=(1, 0), padding_mode="circular"),
}


@pytest.mark.parametrize("case", BEFORE)
def test_a_batch_norm_before_a_convolution(case):
    torch.manual_seed(0)
    net = conv_net(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), BEFORE[case]())
    result = check(net, torch.randn(4, 3, 9, 9), left=0)
    assert [fold.behind for fold in result.folds] == [False]


def test_zeros_around_a_convolution_are_no_hindrance_without_a_shift():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, affine=False)
    net = conv_net(nn.Conv2d(3, 6, 3), nn.ReLU(), norm, nn.Conv2d(6, 6, 3, padding=1))
    net.double().eval()
    norm.running_var.mul_(3)
    before = net(x := torch.randn(4, 3, 9, 9, dtype=torch.float64))
    assert len(fold_batch_norms(net, x).folds) == 1
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: resnet20((3, 16, 16), 10), (3, 16, 16)),
        (lambda: VGGSmall((3, 16, 16), 10, widths=((8, 8), (12,))), (3, 16, 16)),
    ],
    ids=["resnet20", "vgg"],
)
def test_whole_networks(make, shape):
    torch.manual_seed(0)
    check(make(), torch.randn(4, *shape), left=0)


def check(net, x, *, left):
    """The folded network, in the same module, computes what it did, in single precision, too."""
    net, x = alive(net), x.double()
    before, norms = net(x).detach(), sum(isinstance(module, NORMS) for module in net.modules())
    single = copy.deepcopy(net).float()
    result = fold_batch_norms(net, x)
    assert result.model is net
    assert len(result.folds) == norms - left
    assert sum(isinstance(module, NORMS) for module in net.modules()) == left
    torch.testing.assert_close(net(x), before, rtol=0, atol=1e-6 * float(before.abs().max()))
    expected = single(x.float()).detach()
    fold_batch_norms(single, x.float())
    torch.testing.assert_close(single(x.float()), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    return result


class Shared(nn.Module):
    """A convolution whose output is read beside its batch norm."""

    def __init__(self, track=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.bn = nn.BatchNorm2d(6, track_running_stats=track)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        y = self.conv(x)
        return self.fc((F.relu(self.bn(y)) + y).mean((2, 3)))


class Twice(nn.Module):
    """A batch norm that is called behind two convolutions."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.bn = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)

    def forward(self, x):
        return self.bn(self.conv2(self.bn(self.conv1(x)).relu())).mean((2, 3))


def tied():
    first, second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
    second.weight = first.weight
    return nn.Sequential(first, nn.BatchNorm2d(3), nn.ReLU(), second)


REFUSED = {
    "read elsewhere": (Shared, "bn: the output of 'conv' is also read by add"),
    "no statistics": (
        lambda: conv_net(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False)),
        "1: it keeps no running statistics",
    ),
    "called twice": (Twice, "bn: it is called more than once"),
    "tied": (tied, "weight is tied with another parameter"),
    "padded": (
        lambda: conv_net(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3, padding=1)),
        "'2' pads with zeros behind its shift",
    ),
    "before a transposed one": (
        lambda: conv_net(nn.ReLU(), nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 6, 3)),
        "'2' is transposed",
    ),
    "parametrized": (
        lambda: conv_net(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
        "its weight is no plain parameter",
    ),
    "behind something else": (
        lambda: conv_net(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)),
        "it reads '1', which is no linear or convolution layer",
    ),
    "none at all": (lambda: conv_net(nn.Conv2d(3, 6, 3)), "the network has no batch norm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_folded_is_refused_with_the_reason(case):
    make, message = REFUSED[case]
    torch.manual_seed(0)
    net = alive(make()).float()
    before, modules = copied(net), list(net.modules())
    with pytest.raises(ModelError, match="nothing to fold: looked for batch norms") as error:
        fold_batch_norms(net, torch.randn(2, 3, 8, 8))
    assert message in str(error.value)
    assert same(copied(net), before)
    assert list(map(id, net.modules())) == list(map(id, modules))


@pytest.mark.parametrize("behind", [True, False])
def test_half_precision_is_rounded_once(behind):
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(4, 4, 3), alive(nn.Sequential(nn.BatchNorm2d(4)))[0]
    net = nn.Sequential(*((layer, norm) if behind else (norm, layer))).half().eval()
    exact = copy.deepcopy(net).double()
    fold_batch_norms(exact, torch.randn(2, 4, 5, 5).double())
    fold_batch_norms(net, torch.randn(2, 4, 5, 5).half())
    assert same(copied(net), copied(exact.half()))


def test_weights_that_would_not_be_finite_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).half()
    with torch.no_grad():
        net[3].running_var.fill_(1e-7)
        net[3].weight.fill_(6e4)
    before = copied(net)
    with pytest.raises(ModelError, match="3 cannot go into 2: its weights would not be finite"):
        fold_batch_norms(net, torch.randn(2, 3, 7, 7).half())
    assert same(copied(net), before)


def test_another_axis_than_the_features():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(ModelError, match="another axis than the features of '0'"):
        fold_batch_norms(net, torch.randn(2, 4, 5))


@pytest.mark.parametrize("behind", [True, False])
def test_a_convolution_of_one_example_has_its_positions_normalised(behind):
    if behind:  # (4, 8) is one example of 4 channels to the convolution, and 4 examples to the norm
        net = alive(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(8)))
    else:
        net = alive(nn.Sequential(nn.BatchNorm1d(10), nn.Conv1d(3, 4, 3)))
    before = copied(net)
    with pytest.raises(ModelError, match="it normalises another axis than the features"):
        fold_batch_norms(net, torch.randn(3, 10, dtype=torch.float64))
    assert same(before, copied(net))


def test_some_stay_with_a_reason_while_others_go():
    torch.manual_seed(0)
    net = alive(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), Shared()))
    result = fold_batch_norms(net, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert [fold.norm for fold in result.folds] == ["1"]
    assert list(result.refused) == ["3.bn"]


def test_flags_and_modes_stay():
    net = alive(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())).float()
    net.train()
    net[0].weight.requires_grad_(False)
    weight = net[0].weight
    fold_batch_norms(net, torch.randn(2, 3, 5, 5))
    assert net[0].weight is weight
    assert not net[0].weight.requires_grad
    assert not net[0].bias.requires_grad
    assert net.training
    assert isinstance(net[1], Absent)


@pytest.mark.parametrize("bias", [True, False])
def test_a_folded_network_is_saved_and_loaded(tmp_path, bias):
    def make():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.ReLU())

    net, x = alive(make()).float(), torch.randn(2, 3, 5, 5)
    fold_batch_norms(net, x)
    save_pretrained(net, tmp_path / "folded")
    again = load_pretrained(tmp_path / "folded", make())
    torch.testing.assert_close(again.eval()(x), net(x), rtol=0, atol=0)
    other = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with pytest.raises(ModelError):
        load_pretrained(tmp_path / "folded", other)
    assert (other[0].bias is not None) == bias


# ---- batch norms put back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BEHIND)
def test_restored_batch_norms_normalise_and_change_nothing(case):
    """Outputs stay in evaluation mode; a layer's own outputs have means of 0 and variances of 1 behind it."""
    torch.manual_seed(0)
    layers, shape = BEHIND[case]
    net = alive(conv_net(*layers()))
    x = torch.randn(16, *shape, dtype=torch.float64)
    folds = fold_batch_norms(net, x).folds
    before = net(x).detach()
    assert restore_batch_norms(net, folds, x) == ("1",)
    torch.testing.assert_close(net(x).detach(), before, rtol=0, atol=1e-9)
    torch.testing.assert_close(net[1].running_mean, net[0](x).detach().mean((0, 2, 3)), rtol=0, atol=1e-9)
    given = net[0](x).detach()
    found = (
        copy.deepcopy(net[1]).train()(given).detach()
    )  # by the statistics of the batch, which are the same
    torch.testing.assert_close(found, given, rtol=0, atol=1e-9)
    assert len(fold_batch_norms(net, x).folds) == 1
    torch.testing.assert_close(net(x).detach(), before, rtol=0, atol=1e-6)


def test_restored_batch_norms_of_linear_layers_and_of_frozen_ones():
    torch.manual_seed(0)
    net = alive(
        nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.BatchNorm1d(7), nn.Linear(7, 2))
    )
    x = torch.randn(9, 5, dtype=torch.float64)
    folds = fold_batch_norms(net, x).folds
    net[0].weight.requires_grad_(False)
    net.train()
    assert restore_batch_norms(net, folds, x) == ("1",)  # the other went into the layer behind it
    assert isinstance(net[1], nn.BatchNorm1d)
    assert net[1].training
    assert not net[1].weight.requires_grad
    assert isinstance(net[3], Absent)


def test_without_a_place_nothing_is_restored():
    torch.manual_seed(0)
    net = alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    folds = fold_batch_norms(net, x).folds
    restore_batch_norms(net, folds, x)
    with pytest.raises(ModelError, match="there is no place where a batch norm was folded"):
        restore_batch_norms(net, folds, x)
