"""A graph that was captured with inputs of one shape gives what the network gives for any other shape."""

import copy
import pickle

import pytest
import torch
from constructions import Made
from torch import nn
from torch.nn import functional as F

from prunekit.errors import InputError
from prunekit.graph import GraphModel, any_size
from prunekit.graph.capture import captured
from prunekit.saving import load_pretrained, save_pretrained


def words(count):
    return torch.randn(count, 6, 8, generator=torch.Generator().manual_seed(0))


def token_and_mask(self, x):
    """As in vision transformers: a token before each sequence, and a mask with an axis of the examples."""
    x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
    q, k, v = self.qkv(x).reshape(len(x), 7, 3, 2, 4).permute(2, 0, 3, 1, 4)
    mask = torch.ones(len(x), 1, 7, 7).tril() == 0
    shares = (q @ k.transpose(-1, -2)).masked_fill(mask, -1e9).softmax(-1)
    return self.last((shares @ v).transpose(1, 2).reshape(len(x), 7, 8))[:, 0]


def windows(self, x):
    """As in Swin: more windows than examples along the first axis, shifted."""
    x = x.roll(1, 1).view(len(x), 3, 2, 8).flatten(0, 1)
    return self.last(self.qkv(x)[..., :8].view(-1, 6, 8)).mean(1)


def examples_behind(self, x):
    """As in recurrent networks: steps before examples, joined with them and parted again."""
    steps = x.transpose(0, 1).reshape(6 * len(x), 8)
    steps = torch.relu(self.qkv(steps)[:, :8]).view(6, len(x), 8)
    return self.last(steps.permute(1, 0, 2).unflatten(2, (2, 4)).flatten(2))


def two_of_everything(self, x):
    """As many heads and parts as the graph has examples."""
    x = self.qkv(x).view(len(x), 6, 2, 12).transpose(1, 2)
    x = torch.stack([x, 2 * x], 2).reshape(len(x), 2, 2 * 6, 12)
    return self.last(x.transpose(1, 2).reshape(len(x), -1, 2, 12)[..., :4].flatten(2)), x


def joined_with_zeros(self, x):
    """A tensor of the examples' number, made for them."""
    return self.last(F.relu(torch.cat([x, torch.zeros(len(x), 6, 8), torch.ones(len(x), 1, 8)], 1)))


def network(run):
    torch.manual_seed(0)
    layers = {"qkv": nn.Linear(8, 24), "last": nn.Linear(8, 3), "token": nn.Parameter(torch.randn(1, 1, 8))}
    return Made(run, **layers).eval()


def graph_of(model, inputs):
    return any_size(
        GraphModel(model, captured(model, inputs)), model, inputs, lambda other: captured(model, other)
    ).eval()


@pytest.mark.parametrize(
    "run", [token_and_mask, windows, examples_behind, two_of_everything, joined_with_zeros]
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_other_batches_give_what_the_network_gives(run, count):
    model = network(run)
    graph = graph_of(model, words(count))
    assert graph.only_batch is None
    assert list(graph.state_dict()) == list(model.state_dict())
    for other in (1, 2, 5, 8):
        inputs = words(other)
        torch.testing.assert_close(graph(inputs), model(inputs), rtol=0, atol=1e-5)


def examples_of_each_other(self, x):
    """Products of all examples: as many columns as examples."""
    return x.flatten(1) @ x.flatten(1).T


@pytest.mark.parametrize(
    "run",
    [lambda self, x: self.last(x - x.mean(0)), lambda self, x: self.last(x.flip(0)), examples_of_each_other],
)
def test_examples_may_act_on_each_other(run):
    model = network(run)
    graph = graph_of(model, words(2))
    for other in (1, 5):
        assert torch.equal(graph(words(other)), model(words(other)))


def a_loop(self, x):
    """As many operators as examples."""
    total = self.last(x)
    for number in range(len(x)):
        total = total + number
    return total


def a_mean_by_hand(self, x):
    """A number that is no whole one."""
    return self.last(x).sum(0) * (1 / len(x))


@pytest.mark.parametrize(
    ("run", "message"),
    [(a_loop, "the network does something else for another size"), (a_mean_by_hand, "mul takes 0.3")],
)
def test_what_another_size_changes_holds_the_batch(run, message):
    model = network(run)
    graph = graph_of(model, words(2))
    assert graph.only_batch == 2
    assert torch.equal(graph(words(2)), model(words(2)))
    with pytest.raises(InputError, match=rf"\(2, any, 8\), the batch included; got \(3, 6, 8\): .*{message}"):
        graph(words(3))


class Cropped(nn.Module):
    """Does without what is beyond twenty words, and with one example something else."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        if x.shape[1] > 20:
            x = x[:, :20]
        if x.size(0) == 1:
            x = 2 * x
        return self.last(x)


def test_sizes_for_which_the_code_takes_another_way_are_refused(tmp_path):
    torch.manual_seed(0)
    model = Cropped().eval()
    graph = graph_of(model, words(2))
    save_pretrained(graph, tmp_path / "net")
    for each in (graph, pickle.loads(pickle.dumps(graph)), load_pretrained(tmp_path / "net")):
        given = torch.randn(3, 20, 8)
        assert torch.equal(each(given), model(given))
        with pytest.raises(InputError, match=r"code goes another: 21 > 20 is True, at .*test_any_size.py"):
            each(torch.randn(3, 21, 8))
        with pytest.raises(InputError, match="1 == 1 is True"):
            each(words(1))


def images(count, high, wide):
    return torch.randn(count, 3, high, wide, generator=torch.Generator().manual_seed(1))


class Convolutions(nn.Module):
    """Strides, a view by the sizes behind them, an interpolation, and a position for each place."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        wide = self.norm(self.first(x)).relu()
        small = self.second(wide)
        batch, channels, high, _ = small.shape
        seen = small.view(batch, channels, -1).transpose(1, 2)
        places = torch.arange(high * small.shape[3], dtype=x.dtype)[:, None]
        seen = (seen + places / 100).transpose(1, 2).reshape(small.shape)
        wide = wide + F.interpolate(seen, size=wide.shape[2:])
        return self.last(wide.mean((2, 3)))


def test_images_of_any_size():
    torch.manual_seed(0)
    model = Convolutions().eval()
    graph = graph_of(model, images(2, 12, 16))
    assert graph.graphs[0].free == ((0, 2, 3),)
    for shape in ((1, 12, 16), (3, 13, 16), (2, 5, 30), (4, 31, 7)):
        assert torch.equal(graph(images(*shape)), model(images(*shape)))
    graph.train()
    model.train()
    torch.testing.assert_close(graph(images(3, 9, 9)), model(images(3, 9, 9)))
    assert torch.equal(graph.norm.running_mean, model.norm.running_mean)
    assert dict(graph.named_modules()).keys() >= dict(model.named_modules()).keys()


def test_a_copy_and_a_pickle_have_all_of_it():
    torch.manual_seed(0)
    model = Convolutions().eval()
    graph = graph_of(model, images(2, 12, 16))
    inputs = images(3, 9, 11)
    wanted = model(inputs)
    copied, read = copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))
    with torch.no_grad():
        graph.last.weight.zero_()
        for each in (copied, read):
            assert torch.equal(each(inputs), wanted)
    read.train()(inputs)
    assert torch.equal(copied.norm.running_mean, graph.norm.running_mean)
    assert not torch.equal(read.norm.running_mean, graph.norm.running_mean)


class Named(nn.Module):
    """Arguments by position and by name, one of them with a default."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8, 3)

    def forward(self, words, scale=None, *, shift, times=2):
        words = self.last(words) * times + shift
        return words if scale is None else words * scale


def test_arguments_are_given_by_position_and_by_name():
    torch.manual_seed(0)
    model = Named().eval()
    x, scale, shift = torch.randn(2, 8), torch.rand(2, 3), torch.rand(2, 3)
    graph = graph_of(model, {"words": x, "shift": shift, "scale": scale})
    wanted = model(x, scale, shift=shift)
    assert torch.equal(graph(x, scale, shift=shift), wanted)
    assert torch.equal(graph(shift=shift, words=x, scale=scale, times=2), wanted)
    with pytest.raises(InputError, match="'times'"):
        graph(x, scale, shift=shift, times=3)
    with pytest.raises(InputError, match="got NoneType"):
        graph(x, shift=shift)
    without = graph_of(model, {"words": x, "shift": shift})
    assert torch.equal(without(x, None, shift=shift), model(x, shift=shift))
    with pytest.raises(InputError, match="got 'scale'"):
        without(x, scale, shift=shift)
