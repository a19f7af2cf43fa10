"""Neurons taken out during a training against a loop over the network of full size, with torch's own Adam."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunekit.data.dataset import Split
from prunekit.parts.schedule import Linear
from prunekit.training import initial_optimizer_state
from structured_training import PART, PARTS, ROUNDS, Course, inside, left_of, ways, widths

EXAMPLES = PART.batch_size  # one batch an epoch: the order of the data makes no difference


def task(seed=0):
    torch.manual_seed(seed)
    inputs = torch.randn(EXAMPLES, 6, dtype=torch.float64)
    targets = torch.randint(0, 3, (EXAMPLES,))
    model = nn.Sequential(
        nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3)
    ).double()
    return model, SimpleNamespace(train=Split(inputs, targets))


def start_of(model):
    return Course(model, initial_optimizer_state(model, PART))


class Naive:
    """The network of full size; neurons that are gone are held at zero."""

    def __init__(self, model, data):
        self.layers = [module for module in model if isinstance(module, nn.Linear)]
        self.model, split = model, data.train
        self.inputs, self.targets = split.inputs, split.targets
        self.gone = [set(), set()]
        self.optimizer = torch.optim.Adam(model.parameters(), lr=PART.lr)

    def train(self, epochs):
        for _ in range(epochs):
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(self.inputs), self.targets).backward()
            self.optimizer.step()
            self.hold()

    @torch.no_grad()
    def hold(self):
        for number, gone in enumerate(self.gone):
            for unit in gone:
                self.layers[number].weight[unit] = 0
                self.layers[number].bias[unit] = 0
                self.layers[number + 1].weight[:, unit] = 0

    def remove(self, share):
        """So much of every layer in all, first layer first, the least sum of |w| of what still comes in."""
        for layer, gone in zip(self.layers, self.gone, strict=False):
            norms = [sum(map(abs, row)) for row in layer.weight.tolist()]
            order = sorted(range(len(norms)), key=norms.__getitem__)
            wanted = int(share * len(norms) + 1e-9) - len(gone)
            gone.update([unit for unit in order if unit not in gone][:wanted])
            self.hold()


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_inside_the_training_is_that_of_the_full_network_with_neurons_held_at_zero(share):
    model, data = task()
    naive = Naive(task()[0], data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    course = inside(start_of(model), data, 0, Linear(sparsity=share, steps=ROUNDS))
    for number in range(1, ROUNDS + 1):
        naive.train(PARTS // ROUNDS * int(PART.epochs))
        naive.remove(share * number / ROUNDS)  # nothing is trained after the last
    assert list(widths(course.model).values()) == [20 - len(naive.gone[0]), 10 - len(naive.gone[1])]
    assert list(widths(course.model).values()) == list(left_of(widths(model), share).values())
    x = torch.randn(50, 6, dtype=torch.float64)
    torch.testing.assert_close(course.model(x), naive.model(x), rtol=0, atol=1e-9)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())  # others start here


def test_a_new_optimizer_and_random_neurons_are_other_trainings():
    schedule = Linear(sparsity=0.5, steps=ROUNDS)
    model, data = task()
    weights = [
        next(inside(start_of(model), data, 0, schedule, **how).model.parameters())
        for how in ({}, {"new": True}, {"score": "random"})
    ]
    assert not weights[0].allclose(weights[1], atol=1e-4)
    assert not weights[0].allclose(weights[2], atol=1e-4)


def test_every_form_starts_from_the_values_that_it_names():
    model, data = task()
    named = nn.Sequential(*model)  # `new` draws by the layers' own distribution
    naive = Naive(task()[0], data)
    naive.train(PARTS // 2 * int(PART.epochs))
    halfway = [layer.weight.detach().clone() for layer in naive.layers]
    naive.remove(0.5)
    stays = [unit for unit in range(20) if unit not in naive.gone[0]]
    found = {
        (name, share): course for name, share, course in ways(start_of(named), data, 0, looked_into=False)
    }
    unpruned = found["unpruned", 0.0].model
    assert halfway[0].allclose(found["unpruned, half as long", 0.0].model[0].weight, atol=1e-10)
    naive.train(PARTS // 2 * int(PART.epochs))
    kept = found["at once, trained values", 0.5].model
    torch.testing.assert_close(kept[0].weight, naive.layers[0].weight[stays], rtol=0, atol=1e-9)
    # the initial values of the same neurons, trained by the plain loop
    again = Naive(task()[0], data)
    again.gone = naive.gone
    again.hold()
    again.train(PARTS // 2 * int(PART.epochs))
    initial = found["at once, initial values", 0.5].model
    torch.testing.assert_close(initial[0].weight, again.layers[0].weight[stays], rtol=0, atol=1e-9)
    new = found["at once, new values", 0.5].model
    assert new[0].weight.shape == initial[0].weight.shape
    assert not new[0].weight.allclose(initial[0].weight, atol=1e-2)
    assert list(widths(unpruned).values()) == [20, 10]
