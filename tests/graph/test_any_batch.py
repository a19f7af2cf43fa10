"""A graph that was captured with one number of examples gives what the network gives for any other number."""

import pytest
import torch
from constructions import Made
from torch import nn
from torch.nn import functional as F

from prunekit.errors import InputError, ModelError
from prunekit.graph import GraphModel, any_batch
from prunekit.graph.capture import captured_in


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
    return GraphModel(model, [captured_in(model, inputs, "eval")]).eval()


@pytest.mark.parametrize(
    "run", [token_and_mask, windows, examples_behind, two_of_everything, joined_with_zeros]
)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_other_batches_give_what_the_network_gives(run, count):
    model = network(run)
    freed = any_batch(graph_of(model, words(count)), words(count))
    assert dict(freed.named_parameters()).keys() == dict(model.named_parameters()).keys()
    for other in (1, 2, 5, 8):
        inputs = words(other)
        torch.testing.assert_close(freed(inputs), model(inputs), rtol=0, atol=1e-5)


def one_for_each(self, x):
    return self.last(x) * torch.arange(2.0)[:, None, None]


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda self, x: self.last(x - x.mean(0)), "give something else in a batch of another size"),
        (lambda self, x: self.last(x.flip(0)), "give something else in a batch of another size"),
        (lambda self, x: x.flatten(1) @ x.flatten(1).T, "batches of 2 only, to which 'matmul' holds it"),
        (one_for_each, "batches of 2 only, to which 'mul' holds it"),
    ],
)
def test_examples_that_act_on_each_other_are_refused(run, message):
    graph = graph_of(network(run), words(2))
    before = graph(words(2))
    with pytest.raises(ModelError, match=message):
        any_batch(graph, words(2))
    assert torch.equal(graph(words(2)), before)


def test_inputs_of_another_shape():
    with pytest.raises(InputError, match="of the shape that it was exported with"):
        any_batch(graph_of(network(windows), words(2)), words(1))
