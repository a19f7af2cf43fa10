"""Residual branches: found in the graph, and taken out, held against networks that skip them by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit import Masks, Recipe, load_pretrained, prune, save_pretrained
from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph import GraphModel, captured_blocks, shrink_branches
from prunekit.graph.record import NotRecordedError
from prunekit.measure import count
from prunekit.models import Absent, ModelSettings, ResNet, create, resnet20
from prunekit.saving import Architecture
from prunekit.saving.pretrained import SavedNetwork
from residual_nets import Inplace, Plain, names, skipping, without
from small_nets import copied, same
from zoo import stirred

IDENTITY = ["stage1.0", "stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2"]
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()


def resnet() -> ResNet:
    torch.manual_seed(0)
    return stirred(resnet20((3, 16, 16), 10)).eval()


def test_the_blocks_of_a_resnet_whose_shape_does_not_change():
    blocks = captured_blocks(resnet(), IMAGES)[1]
    assert [block.name for block in blocks] == IDENTITY
    layers = {tensor.rpartition(".")[0].removeprefix("stage2.1.") for tensor in blocks[3].tensors}
    assert layers == {"conv1", "bn1", "conv2", "bn2"}
    assert names(resnet(), IMAGES, whole=True) == IDENTITY


@pytest.mark.parametrize("removed", [["stage1.1"], ["stage1.0", "stage2.2", "stage3.1"], IDENTITY])
def test_a_resnet_without_blocks_against_a_forward_that_skips_them(removed):
    model = resnet()
    wanted = skipping(model, removed)(IMAGES)
    macs, parameters = count(model, IMAGES).macs, sum(each.numel() for each in model.parameters())
    result = shrink_branches(model, IMAGES[:2], without(model, IMAGES, *removed))
    assert result.model is model
    assert result.form == "modules"
    assert [group.name for group in result.groups] == removed
    torch.testing.assert_close(model(IMAGES), wanted)
    for name in removed:
        place = model.get_submodule(name)
        assert all(isinstance(each, Absent) for each in (place.conv1, place.bn1, place.conv2, place.bn2))
    # a 3x3 convolution of w to w channels at s positions costs 9 w^2 s, and there are two in a block
    size = {"stage1": (16, 256), "stage2": (32, 64), "stage3": (64, 16)}
    saved = [size[name.partition(".")[0]] for name in removed]
    assert macs - count(model, IMAGES).macs == sum(2 * 9 * width**2 * places for width, places in saved)
    lost = sum(2 * (9 * width**2 + 2 * width) for width, _ in saved)
    assert (result.parameters_before, result.parameters_after) == (parameters, parameters - lost)
    assert sum(each.numel() for each in model.parameters()) == parameters - lost


def test_a_resnet_without_blocks_trains_as_the_one_that_skips_them():
    model = resnet()
    other = skipping(copy.deepcopy(model), ["stage1.1", "stage3.2"])
    shrink_branches(model, IMAGES[:2], without(model, IMAGES, "stage1.1", "stage3.2"))
    for net in (model, other.model):
        net.train()
    model(IMAGES).square().sum().backward()
    other(IMAGES).square().sum().backward()
    gradients = {name: each.grad for name, each in other.model.named_parameters()}
    for name, each in model.named_parameters():
        torch.testing.assert_close(each.grad, gradients[name])
    torch.testing.assert_close(model.bn1.running_mean, other.model.bn1.running_mean)
    torch.testing.assert_close(copy.deepcopy(model).eval()(IMAGES), model.eval()(IMAGES))


@pytest.mark.parametrize("preactivated", [False, True])
def test_additions_and_activations_that_write_in_place(preactivated):
    torch.manual_seed(0)
    model = stirred(Inplace(preactivated=preactivated)).eval()
    assert names(model, IMAGES) == ["blocks.0", "blocks.1", "blocks.2"]
    masked = copy.deepcopy(model)
    masks = without(model, IMAGES, "blocks.0", "blocks.2")
    masks.apply(masked)
    result = shrink_branches(model, IMAGES[:2], masks)
    assert result.form == "modules"
    torch.testing.assert_close(model(IMAGES), masked(IMAGES))


def test_the_graph_of_a_network_that_writes_in_place(monkeypatch):
    torch.manual_seed(0)
    model = stirred(Inplace()).eval()
    masks = without(model, IMAGES[:2], "blocks.0", "blocks.2")
    masked = copy.deepcopy(model)
    masks.apply(masked)
    monkeypatch.setattr("prunekit.graph.depth.FORMS", ())
    result = shrink_branches(model, IMAGES[:2], masks)
    assert isinstance(result.model, GraphModel)
    for net in (result.model, masked):
        net.train()
    torch.testing.assert_close(result.model(IMAGES[:2]), masked(IMAGES[:2]))
    for images in (IMAGES, IMAGES[:1, :, :12, :14]):  # of other numbers and sizes
        torch.testing.assert_close(result.model(images), masked(images))
    assert not any(name.startswith("blocks.0.conv") for name, _ in result.model.named_parameters())


@pytest.mark.parametrize("forms", [(), ("passed", "zero", "zeros")])
def test_a_graph_that_is_exported(monkeypatch, forms):
    """It has checks of sizes, and the statistics of batch norms as outputs."""

    def refused(*_, **__):
        raise NotRecordedError("it is to be exported")

    monkeypatch.setattr("prunekit.graph.capture.recorded", refused)
    monkeypatch.setattr("prunekit.graph.depth.FORMS", forms)
    torch.manual_seed(0)
    model = stirred(Inplace()).eval()
    masks = without(model, IMAGES[:2], "blocks.0", "blocks.2")
    masked = copy.deepcopy(model)
    masks.apply(masked)
    result = shrink_branches(model, IMAGES[:2], masks)
    assert isinstance(result.model, GraphModel) == (not forms)
    for net in (result.model, masked):
        net.train()
    torch.testing.assert_close(result.model(IMAGES[:2]), masked(IMAGES[:2]))
    left, wanted = dict(result.model.named_buffers()), dict(masked.named_buffers())
    name = "blocks.1.bn1.running_mean"
    torch.testing.assert_close(left[name], wanted[name])
    assert not any(name.startswith("blocks.0.conv") for name, _ in result.model.named_parameters())


class Sum(nn.Module):
    """x + f(x) between two layers, for an f of any kind."""

    def __init__(self, f) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.f = nn.Linear(6, 6), nn.Linear(6, 6), f
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.f(self, x))


ONE, TWO = {"one.weight", "one.bias"}, {"two.weight", "two.bias"}


@pytest.mark.parametrize(
    ("f", "tensors"),
    [
        (lambda net, x: net.one(x), ONE),
        (lambda net, x: 0.5 * net.one(F.relu(x)).tanh(), ONE),
        (lambda net, x: net.one(x) * x.mean(), ONE),
        (lambda net, x: net.one(x) + net.two(x), ONE | TWO),
        (lambda net, x: net.one(x + net.two(x)), TWO),  # what has another within is none
        (lambda net, x: net.one(x).sigmoid(), None),  # zero would be a half
        (lambda net, x: F.gelu(x, approximate="tanh"), None),  # no parameters
        (lambda net, x: net.last(x), None),  # none of its own
        (lambda net, x: net.last(net.one(x)), None),  # the bias of another layer would stay
        (lambda net, x: net.one(x)[:, :1], None),  # added to every column
    ],
)
def test_what_is_a_residual_branch(f, tensors):
    model, x = Sum(f), torch.randn(4, 6)
    if tensors is None:
        with pytest.raises(ModelError, match="no residual branch"):
            captured_blocks(model, x)
    else:
        (block,) = captured_blocks(model, x)[1]
        assert set(block.tensors) == tensors


class Gated(nn.Module):
    """A branch with a scale and a buffer of the block's own, and a weight that two of its layers share."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.up, self.down = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.rand(6))
        self.register_buffer("shift", torch.rand(6, 6))
        if tied:
            self.down.weight = self.up.weight

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(x + self.scale * self.down(F.relu(self.up(x)) @ self.shift))


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_block_holds_beside_its_layers(tied):
    model, x = Gated(tied), torch.randn(5, 6)
    (block,) = captured_blocks(model, x)[1]
    assert {"scale", "shift", "up.weight"} <= set(block.tensors)
    wanted = model.last(F.relu(model.first(x)))
    result = shrink_branches(model, x, without(model, x, block.name))
    torch.testing.assert_close(result.model(x), wanted)
    assert not {"up.weight", "down.weight"} & {name for name, _ in result.model.named_parameters()}


def test_a_value_that_something_else_reads_is_no_branch():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x):
            x = torch.relu(x)
            inner = self.one(x)
            x = x + inner
            y = x + self.two(x)
            return self.out(torch.cat([y, inner], 1))

    (block,) = captured_blocks(Both(), torch.randn(3, 4))[1]
    assert set(block.tensors) == {"two.weight", "two.bias"}


def test_what_was_saved_without_blocks_is_loaded(tmp_path):
    settings = ModelSettings(name="resnet20")
    architecture = Architecture(settings, (3, 16, 16), 10)
    model = architecture.build()
    masks = without(model, IMAGES, "stage1.1", "stage3.1")
    result = shrink_branches(model, IMAGES[:2], masks)
    save_pretrained(result, tmp_path / "saved", architecture=architecture)
    loaded = load_pretrained(tmp_path / "saved")
    assert isinstance(loaded.stage1[1].conv2, Absent)
    torch.testing.assert_close(loaded.eval()(IMAGES), model.eval()(IMAGES), rtol=0, atol=0)
    fresh = create("resnet20", (3, 16, 16), 10, seed=1)
    load_pretrained(tmp_path / "saved", fresh)
    assert same(copied(fresh), copied(model))
    with pytest.raises(ModelError):
        load_pretrained(tmp_path / "saved", Plain())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("stage9.conv1.absent", torch.tensor(1, dtype=torch.uint8), "no module 'stage9.conv1'"),
        ("absent", torch.tensor(1, dtype=torch.uint8), "no module ''"),
        ("stage1.1.conv1.absent", torch.tensor(9, dtype=torch.uint8), "numbers from 0 to 4"),
        ("stage1.1.conv1.absent", torch.tensor([1.0]), "numbers from 0 to 4"),
        ("stage1.absent", torch.tensor(1, dtype=torch.uint8), "could be absent"),
    ],
)
def test_a_file_that_names_modules_wrongly(tmp_path, key, value, said):
    model = create("resnet20", (3, 16, 16), 10, seed=0)
    shrink_branches(model, IMAGES[:2], without(model, IMAGES, "stage1.1"))
    save_pretrained(model, tmp_path / "saved")
    saved = SavedNetwork(tmp_path / "saved")
    state = {**model.state_dict(), key: value}
    fresh = create("resnet20", (3, 16, 16), 10, seed=0)
    before = copied(fresh)
    with pytest.raises((ModelError, DataError), match=said):
        saved._fill(fresh, state, state)
    assert same(copied(fresh), before)


def test_what_cannot_be_taken_out_is_refused():
    model = resnet()
    before = copied(model)
    with pytest.raises(InputError, match="no residual branch was removed"):
        shrink_branches(model, IMAGES, Masks({"conv1.weight": model.conv1.weight != 0}))
    partly = without(model, IMAGES, "stage1.1").replace(
        {"stage1.1.conv1.weight": torch.ones_like(model.stage1[1].conv1.weight, dtype=torch.bool)}
    )
    with pytest.raises(InputError, match="no residual branch was removed"):
        shrink_branches(model, IMAGES, partly)
    with pytest.raises(ModelError, match="no residual branch"):
        captured_blocks(Plain(), IMAGES)
    assert same(copied(model), before)


class Recalls(nn.Module):
    """A residual block whose branch takes in what it saw at the call before, as a cache in modules does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen: torch.Tensor | float = 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.layer(x + self.seen)
        self.seen = x.detach()
        return x + branch


def test_blocks_of_a_network_that_keeps_state_between_calls_stay():
    model = nn.Sequential(nn.Linear(4, 4), Recalls(), Recalls(), nn.Linear(4, 2)).eval()
    gone = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in model[1].named_parameters()}
    masks = Masks({f"1.{name}": mask for name, mask in gone.items()})
    masks.apply(model)
    before = copied(model)
    with pytest.raises(
        ModelError, match=r"blocks cannot be taken out: the forward of .* changes what its next"
    ):
        shrink_branches(model, torch.randn(2, 4), masks)
    assert same(copied(model), before)


def test_a_pruning_to_the_end():
    model = resnet()
    recipe = Recipe.parse(
        {
            "granularity": "block",
            "score": "random",
            "schedule": {"name": "linear", "sparsity": 0.6, "steps": 2},
        }
    )
    pruned = prune(model, recipe, example_inputs=IMAGES, seed=3)
    gone = [name for name, kept in zip(IDENTITY, pruned.kept["blocks"].tolist(), strict=True) if not kept]
    assert len(gone) == 4
    wanted = skipping(resnet(), gone)(IMAGES)
    torch.testing.assert_close(model(IMAGES), wanted)
    result = pruned.shrink(IMAGES[:2])
    assert [group.name for group in result.groups] == gone
    torch.testing.assert_close(pruned.model(IMAGES), wanted)
    assert set(pruned.masks) <= {name for name, _ in model.named_parameters()}
