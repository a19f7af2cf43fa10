"""Filter shapes taken out of convolutions: the same function with fewer columns, saved and loaded."""

import copy
import itertools

import pytest
import torch
from torch import nn

from prunekit import Masks, Recipe, load_pretrained, prune, save_pretrained
from prunekit.errors import InputError, ModelError
from prunekit.graph import shrink_columns
from prunekit.measure import count
from prunekit.models import ColumnConv2d, ModelSettings
from prunekit.saving import Architecture
from small_nets import copied, mlp, same

HALF = Recipe.parse(
    {
        "granularity": "filter_shape",
        "allocation": "per_layer",
        "schedule": {"name": "one_shot", "sparsity": 0.6},
    }
)


def net(seed: int = 0, **settings) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, **settings), nn.BatchNorm2d(4), nn.ReLU()),
        *(
            nn.Conv2d(4, 5, (3, 2), bias=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(20, 3),
        ),
    )


def by_hand(conv: nn.Conv2d, columns: list[int], x: torch.Tensor) -> torch.Tensor:
    """The convolution as loops over output positions and columns, on an input that is padded by hand."""
    (up, left), (down, across), (far, wide) = conv.padding, conv.stride, conv.dilation
    height, width = conv.kernel_size
    rows = (x.shape[2] + 2 * up - far * (height - 1) - 1) // down + 1
    places = (x.shape[3] + 2 * left - wide * (width - 1) - 1) // across + 1
    padded = x.new_zeros(len(x), x.shape[1], x.shape[2] + 2 * up, x.shape[3] + 2 * left)
    padded[:, :, up : up + x.shape[2], left : left + x.shape[3]] = x
    found = x.new_zeros(len(x), conv.out_channels, rows, places)
    for row, place, column in itertools.product(range(rows), range(places), columns):
        channel, rest = divmod(column, height * width)
        i, j = divmod(rest, width)
        read = padded[:, channel, row * down + i * far, place * across + j * wide]
        found[:, :, row, place] += read[:, None] * conv.weight[:, channel, i, j]
    return found if conv.bias is None else found + conv.bias[:, None, None]


@pytest.mark.parametrize(
    "settings", [{}, {"stride": 2, "padding": (1, 2)}, {"dilation": (2, 1), "padding": 1, "bias": False}]
)
def test_some_columns_of_a_convolution_against_loops(settings):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, (3, 2), **settings).double()
    columns = [1, 4, 5, 11, 16]
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    few = ColumnConv2d(conv, torch.tensor(columns))
    assert few.kernel is None
    wanted = by_hand(conv, columns, x)
    torch.testing.assert_close(few(x), wanted)
    torch.testing.assert_close(few(x[0]), wanted[0])


def part(kernel: tuple[int, int], channels: list[int], rows: range, places: range) -> list[int]:
    """The columns of a rectangle of some channels."""
    height, width = kernel
    return [(c * height + i) * width + j for c in channels for i in rows for j in places]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": (1, 2), "padding": (2, 1)},
        {"dilation": (1, 2), "padding": 3, "bias": False},
        {"stride": 2, "dilation": 2, "padding": "valid"},
    ],
)
@pytest.mark.parametrize(
    ("channels", "rows", "places"),
    [([0, 1, 2], range(1, 3), range(2, 3)), ([0, 2], range(4), range(3)), ([1], range(3, 4), range(1))],
)
@pytest.mark.parametrize("gone", [(), (0, -1)])
def test_columns_that_fill_half_of_a_smaller_kernel_are_a_convolution_with_it(
    settings, channels, rows, places, gone
):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, (4, 3), **settings).double()
    whole = part((4, 3), channels, rows, places)
    columns = sorted(set(whole) - {whole[each] for each in gone}) or whole
    x = torch.randn(2, 3, 9, 8, dtype=torch.float64)
    few = ColumnConv2d(conv, torch.tensor(columns))
    assert few.kernel == (channels, rows, places)
    if settings.get("padding") == "valid":
        conv.padding = (0, 0)
    wanted = by_hand(conv, columns, x)
    torch.testing.assert_close(few(x), wanted)
    torch.testing.assert_close(few(x[0]), wanted[0])
    assert count(few, x).macs == len(whole) * 2 * wanted[0, 0].numel()


@pytest.mark.parametrize(
    ("columns", "channels", "rows", "places"),
    [
        ([0, 2], [0], range(1), range(3)),
        ([4, 13], [0, 1], range(1, 2), range(1, 2)),
        ([0, 1, 9, 10, 11], [0, 1], range(1), range(3)),
        ([0, 4, 8], None, None, None),  # the diagonal of nine
        ([0, 17], None, None, None),
        ([0, 4, 8, 9, 13, 17, 1, 10, 2], [0, 1], range(3), range(3)),
        ([0, 4, 8, 9, 13, 17, 1, 10], None, None, None),
    ],
)
def test_the_smallest_kernel_that_holds_the_columns(columns, channels, rows, places):
    few = ColumnConv2d(nn.Conv2d(2, 3, 3), torch.tensor(sorted(columns)))
    assert few.kernel == (None if channels is None else (channels, rows, places))


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_smaller_kernel_keeps_the_memory_format(form, channels):
    conv = nn.Conv2d(channels, 4, 3).to(memory_format=form)
    x = torch.randn(2, channels, 6, 6).contiguous(memory_format=form)
    few = copy.deepcopy(ColumnConv2d(conv, torch.arange(6)))
    assert few.kernel is not None
    assert few(x).is_contiguous(memory_format=form)
    assert few(x).stride() == conv(x).stride()


def test_the_kernel_is_that_of_the_columns_that_are_loaded():
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 3, 3), torch.randn(2, 2, 6, 6)
    small = ColumnConv2d(conv, torch.tensor([4, 5, 13, 14]))
    scattered = ColumnConv2d(conv, torch.tensor([0, 5, 9, 16]))
    for one, other in itertools.permutations((small, scattered)):
        one = copy.deepcopy(one)
        one.load_state_dict(other.state_dict())
        assert one.kernel == other.kernel
        torch.testing.assert_close(one(x), other(x))


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_of_other_kinds(mode):
    conv = nn.Conv2d(2, 3, 3, padding="same", padding_mode=mode)
    x = torch.randn(2, 2, 6, 5)
    torch.testing.assert_close(ColumnConv2d(conv, torch.arange(18))(x), conv(x))
    columns = part((3, 3), [1], range(1, 3), range(2))
    few = ColumnConv2d(conv, torch.tensor(columns))
    with torch.no_grad():
        gone = torch.ones(18, dtype=torch.bool)
        gone[columns] = False
        conv.weight.flatten(1)[:, gone] = 0.0
    torch.testing.assert_close(few(x), conv(x))


@pytest.mark.parametrize("columns", [[0, 3, 10, 17], [4, 5, 13, 14], [9, 11, 13, 15, 17]])
def test_the_gradients_are_those_of_the_columns_that_are_left(columns):
    torch.manual_seed(0)
    conv, x = nn.Conv2d(2, 3, 3).double(), torch.randn(2, 2, 5, 5, dtype=torch.float64)
    columns = torch.tensor(columns)
    few = ColumnConv2d(conv, columns)
    with torch.no_grad():
        gone = torch.ones(18, dtype=torch.bool)
        gone[columns] = False
        conv.weight.flatten(1)[:, gone] = 0.0
    both = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    for layer, given in zip((conv, few), both, strict=True):
        layer(given).square().sum().backward()
    torch.testing.assert_close(few.weight.grad, conv.weight.grad.flatten(1)[:, columns])
    torch.testing.assert_close(both[0].grad, both[1].grad)


def test_shrinking_takes_the_columns_out_and_the_function_stays():
    model, x = net(padding=1), torch.randn(6, 2, 8, 7)
    dense = count(model, x)
    pruned = prune(model, HALF)
    masked, before = copy.deepcopy(model).eval(), count(model, x)
    result = pruned.shrink(x)
    assert isinstance(model[0], ColumnConv2d)
    assert isinstance(model[3], ColumnConv2d)
    left = {"0.weight": 18 - 10, "3.weight": 24 - 14}  # whole columns of 43.2 of 72 and 72 of 120 weights
    assert {group.name: group.after for group in result.groups} == left
    torch.testing.assert_close(model.eval()(x), masked(x))
    after = count(model, x)
    assert after.macs == before.macs_nonzero < dense.macs
    assert after.parameters == dense.parameters - 10 * 4 - 14 * 5 == result.parameters_after
    assert {name: tuple(mask.shape) for name, mask in pruned.masks.items()} == {
        "0.weight": (4, 8),
        "3.weight": (5, 10),
    }
    with pytest.raises(InputError, match="taken out already"):
        pruned.shrink(x)


def test_a_network_with_smaller_kernels_is_proven_saved_loaded_and_exported(tmp_path):
    model, x = net(padding=1), torch.randn(6, 2, 8, 7)
    with torch.no_grad():
        model[0].weight[:, 0] = 0.0
        model[0].weight[:, :, 0] = 0.0
        model[0].weight[:, :, :, 2] = 0.0
        model[3].weight[:, [0, 2]] = 0.0
        model[3].weight[:, 1, 0, 0] = 0.0
    recipe = {"granularity": "filter_shape", "allocation": "zeros"}
    pruned = prune(model, Recipe.parse({**recipe, "schedule": {"name": "allocation_decides"}}))
    masked = copy.deepcopy(model).eval()
    pruned.shrink(x)
    assert model[0].kernel == ([1], range(1, 3), range(2))
    assert model[3].kernel == ([0, 1], range(3), range(2))  # of those that are left
    torch.testing.assert_close(model.eval()(x), masked(x))
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), masked(x))
    save_pretrained(pruned, tmp_path / "net")
    fresh = net(seed=1, padding=1)
    load_pretrained(tmp_path / "net", fresh)
    assert [fresh[each].kernel for each in (0, 3)] == [model[each].kernel for each in (0, 3)]
    assert torch.equal(fresh.eval()(x), model(x))


def test_filters_that_nothing_reads_any_more_go_too():
    model, x = net(padding=1), torch.randn(6, 2, 8, 7)
    mask = torch.ones(5, 4, 3, 2, dtype=torch.bool)
    mask[:, [0, 2]] = False
    mask[:, 1, 2] = False
    masks = Masks({"3.weight": mask})
    result = shrink_columns(model, x, masks)
    assert {group.name: (group.before, group.after) for group in result.groups} == {
        "0": (4, 2),
        "3.weight": (12, 10),
    }
    assert type(model[0]) is nn.Conv2d
    assert (model[0].out_channels, model[1].num_features, model[3].in_channels) == (2, 2, 2)
    assert result.parameters_after == count(model, x).parameters == 2 * 19 + 2 * 2 + 5 * 10 + 63
    whole = net(padding=1)
    masks.apply(whole)
    torch.testing.assert_close(model.eval()(x), whole.eval()(x))
    assert {name: tuple(left.shape) for name, left in result.masks.items()} == {"3.weight": (5, 10)}


def test_where_whole_channels_went_a_plain_convolution_is_left():
    model, x = net(), torch.randn(6, 2, 8, 7)
    mask = torch.ones(5, 4, 3, 2, dtype=torch.bool)
    mask[:, 3] = False
    result = shrink_columns(model, x, Masks({"3.weight": mask}))
    assert {group.name: group.after for group in result.groups} == {"0": 3}
    assert type(model[3]) is nn.Conv2d
    assert model[3].weight.shape == (5, 3, 3, 2)


class Branching(nn.Module):
    """Its way depends on values, so that PyTorch cannot export it, on all inputs alike."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x) if x.sum() > -1e9 else x)


def test_units_that_columns_leave_unread_go_from_a_network_that_asks_for_values():
    model, x = Branching(), torch.randn(2, 1, 8, 8)
    mask = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    mask[:, 1] = False
    masks = Masks({"two.weight": mask})
    masked = copy.deepcopy(model)
    masks.apply(masked)
    shrink_columns(model, x, masks)
    assert model.one.out_channels == 2
    torch.testing.assert_close(model(x), masked(x))


def test_a_shrunk_network_is_saved_and_loaded(tmp_path):
    model, x = net(), torch.randn(6, 2, 8, 7)
    pruned = prune(model, HALF)
    pruned.shrink(x)
    save_pretrained(pruned, tmp_path / "net")
    fresh = net(seed=1)
    load_pretrained(tmp_path / "net", fresh)
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    assert same(copied(fresh), copied(model))


def test_a_shrunk_network_of_ours_loads_without_a_model(tmp_path):
    lenet = Architecture(ModelSettings.parse("lenet5"), (1, 28, 28), 10)
    model, x = lenet.build(), torch.randn(2, 1, 28, 28)
    pruned = prune(model, HALF)
    pruned.shrink(x)
    save_pretrained(pruned, tmp_path / "net", architecture=lenet)
    assert torch.equal(load_pretrained(tmp_path / "net").eval()(x), model.eval()(x))


def test_a_network_that_the_file_does_not_fit_is_left_as_it_was(tmp_path):
    model, x = net(), torch.randn(6, 2, 8, 7)
    pruned = prune(model, HALF)
    pruned.shrink(x)
    save_pretrained(pruned, tmp_path / "net")
    other = net()
    other[7] = nn.Linear(20, 2)
    before = copied(other)
    with pytest.raises(ModelError, match="7"):
        load_pretrained(tmp_path / "net", other)
    assert type(other[0]) is nn.Conv2d
    assert same(copied(other), before)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x))


class Own(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("model", "mask", "error", "said"),
    [
        (net(), torch.ones(4, 2, 3, 3), InputError, "no filter shape was removed"),
        (net(), torch.zeros(4, 2, 3, 3), InputError, "0.weight has lost all its columns"),
        (nn.Sequential(Own(2, 4, 3)), torch.ones(4, 2, 3, 3).tril(), ModelError, "0 is a Own"),
    ],
)
def test_what_cannot_be_taken_out_is_refused(model, mask, error, said):
    before = copied(model)
    with pytest.raises(error, match=said):
        shrink_columns(model, torch.randn(2, 2, 8, 8), Masks({"0.weight": mask.bool()}))
    assert same(copied(model), before)


def test_a_weight_of_two_layers_stays_whole():
    model = Shared()
    mask = torch.ones(2, 2, 3, 3, dtype=torch.bool)
    mask[:, 1, 1, 1] = False
    with pytest.raises(ModelError, match="one shares its weight with another layer"):
        shrink_columns(model, torch.randn(2, 2, 6, 6), Masks({"one.weight": mask}))
    assert type(model.one) is nn.Conv2d


def test_a_network_of_other_layers_is_no_concern(tmp_path):
    model = mlp(4, 3)
    save_pretrained(model, tmp_path / "net")
    assert same(copied(load_pretrained(tmp_path / "net", mlp(4, 3, seed=1))), copied(model))
