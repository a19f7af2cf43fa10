import math
from itertools import chain, pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from prunekit.batches import LoaderBatches, TensorBatches
from prunekit.errors import DataError, InputError, ModelError
from prunekit.masks import Masks
from prunekit.parts.regularize import Dropout
from prunekit.task import Task
from prunekit.training import Training, TrainingError, copy_state, make_optimizer, train
from small_nets import blobs, convnet, copied, images, mlp, same

OPTIMIZERS = ("sgd", "adam", "adamw")


def by_hand(model, data, training, seed, steps):
    """The loop that anybody would write."""
    optimizer = make_optimizer(model, training)
    model.train()
    done, epoch = 0, 0
    while done < steps:
        for inputs, targets in data.epoch(epoch, training.batch_size, seed):
            if done == steps:
                return
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            done += 1
        epoch += 1


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "conv", "channels_last"])
def test_it_is_the_loop_anybody_would_write_bit_for_bit(optimizer, kind):
    def make():
        if kind == "mlp":
            return mlp(10, 16, 3)
        return convnet().to(memory_format=torch.channels_last) if kind == "channels_last" else convnet()

    data = TensorBatches(*(blobs(50) if kind == "mlp" else images(30)))
    training = Training(iterations=9, batch_size=8, optimizer=optimizer, lr=0.02, weight_decay=0.01)
    ours, theirs = make(), make()
    train(ours, data, training, seed=3)
    by_hand(theirs, data, training, 3, 9)
    assert same(copied(ours), copied(theirs))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_optimizer_is_torchs_own(optimizer):
    settings = {"sgd": {"momentum": 0.9}, "adam": {}, "adamw": {}}[optimizer]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]
    one, other = mlp(10, 16, 3, dtype=torch.float64), mlp(10, 16, 3, dtype=torch.float64)
    training = Training(optimizer=optimizer, lr=0.02, weight_decay=0.01)
    pairs = [
        (one, make_optimizer(one, training)),
        (other, kind(other.parameters(), lr=0.02, weight_decay=0.01, foreach=False, **settings)),
    ]
    inputs, targets = blobs(50, dtype=torch.float64)
    for model, stepper in pairs:
        for _ in range(10):
            stepper.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            stepper.step()
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-10)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_stay_zero(optimizer):
    model = mlp(10, 16, 3)
    masks = Masks({"0.weight": torch.rand(16, 10) > 0.7, "2.weight": torch.rand(3, 16) > 0.5})
    masks.apply(model)
    seen = []

    def look(step, state):
        seen.append(all(bool((state[name][~mask] == 0).all()) for name, mask in masks.items()))

    training = Training(iterations=20, batch_size=16, optimizer=optimizer, lr=0.05, weight_decay=0.1)
    before = copied(model)
    train(
        model, TensorBatches(*blobs()), training, seed=0, masks=masks,
        checkpoints=range(21), on_checkpoint=look,
    )  # fmt: skip
    assert seen == [True] * 21
    kept = masks["0.weight"]
    assert bool((model[0].weight[kept] != before["0.weight"][kept]).all())


def test_masks_that_keep_all_change_nothing():
    plain, masked = mlp(10, 16, 3), mlp(10, 16, 3)
    data, training = TensorBatches(*blobs()), Training(epochs=3, weight_decay=0.1)
    train(plain, data, training, seed=0)
    train(masked, data, training, seed=0, masks=Masks.ones(masked, ["0.weight", "2.weight"]))
    assert same(copied(plain), copied(masked))


class Recorded(nn.Module):
    """Notes which examples come by: each input is its own number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 3))
        self.seen: list[list[int]] = []

    def forward(self, inputs):
        self.seen.append([int(number) for number in inputs[:, 0]])
        return inputs * 0 @ self.weight


def order(start=0, seed=5, iterations=11):
    model = Recorded()
    data = TensorBatches(torch.arange(14.0).view(-1, 1), torch.zeros(14, dtype=torch.long))
    train(model, data, Training(iterations=iterations, batch_size=4), seed=seed, start=start)
    return model.seen


@pytest.mark.parametrize("start", range(12))
def test_starting_at_a_step_is_the_tail_of_the_whole_run(start):
    assert order(start) == order()[start:]


def test_every_epoch_is_every_example_once():
    seen = order()
    assert sorted(chain(*seen[:4])) == sorted(chain(*seen[4:8])) == list(range(14))
    assert seen[:4] != seen[4:8]
    assert [len(batch) for batch in seen[:4]] == [4, 4, 4, 2]


def test_the_seed_decides():
    assert order(seed=5) == order(seed=5)
    assert order(seed=5) != order(seed=6)


def with_dropout(seed, disturb):
    torch.manual_seed(disturb)
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    model.load_state_dict({k.replace("2.", "3."): v for k, v in mlp(10, 16, 3).state_dict().items()})
    torch.manual_seed(disturb)
    train(model, TensorBatches(*blobs()), Training(epochs=2, regularize=(Dropout(p=0.2),)), seed=seed)
    return copied(model)


def test_dropout_is_random_by_the_seed_too():
    assert same(with_dropout(0, disturb=1), with_dropout(0, disturb=2))
    assert not same(with_dropout(0, disturb=1), with_dropout(1, disturb=1))


def test_the_global_generator_is_left_alone():
    model, data = mlp(10, 8, 3), TensorBatches(*blobs())
    before = torch.get_rng_state()
    train(model, data, Training(epochs=1, regularize=(Dropout(),)), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_shuffling_loader_is_repeatable():
    results = []
    for disturb in (1, 2):
        model = mlp(10, 8, 3)
        torch.manual_seed(disturb)
        loader = DataLoader(TensorDataset(*blobs()), batch_size=16, shuffle=True)
        train(model, LoaderBatches(loader), Training(epochs=2), seed=0)
        results.append(copied(model))
    assert same(*results)


def test_checkpoints_are_the_states_after_so_many_steps():
    data, saved = TensorBatches(*blobs()), {}
    model = mlp(10, 8, 3)
    initial = copied(model)
    train(
        model,
        data,
        Training(iterations=6),
        seed=0,
        checkpoints=(0, 4, 6, 99),
        on_checkpoint=saved.__setitem__,
    )
    assert sorted(saved) == [0, 4, 6]
    assert same(saved[0], initial)
    assert same(saved[6], copied(model))
    shorter = mlp(10, 8, 3)
    train(shorter, data, Training(iterations=4), seed=0)
    assert same(saved[4], copied(shorter))


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("constant", lambda t: 1.0),
        ("cosine", lambda t: 0.5 * (1 + math.cos(math.pi * t))),
        ("steps", lambda t: 1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01),
    ],
)
def test_learning_rates(decay, expected):
    """Plain SGD on (1 - p)^2 moves by the learning rate times 2 (1 - p)."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))

        def forward(self, inputs):
            return self.at.expand(len(inputs), 1)

    positions = []
    training = Training(iterations=20, optimizer="sgd", momentum=0, lr=0.1, decay=decay, loss="squared_error")
    model = Constant()
    data = TensorBatches(torch.zeros(4, 1), torch.ones(4, 1, dtype=torch.float64))
    train(
        model, data, training, seed=0, checkpoints=range(21),
        on_checkpoint=lambda step, state: positions.append(float(state["at"])),
    )  # fmt: skip
    rates = [(b - a) / (2 * (1 - a)) / 0.1 for a, b in pairwise(positions)]
    assert rates == pytest.approx([expected(k / 20) for k in range(20)], rel=1e-6)


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (0.5, 2), (1, 4), (2.25, 9), (None, 40)])
def test_lengths(epochs, steps):
    assert Training(epochs=epochs, batch_size=4).length(TensorBatches(*blobs(14))) == steps
    assert Training(iterations=7).length(TensorBatches(*blobs(14))) == 7


def test_zero_steps_change_nothing():
    model = mlp(10, 3).eval()
    before = copied(model)
    done = train(model, TensorBatches(*blobs()), Training(epochs=0), seed=0)
    assert done.iterations == 0
    assert same(before, copied(model))


def test_flags_and_reports():
    model = convnet()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    reports = []
    done = train(
        model, TensorBatches(*images(20)), Training(iterations=5, batch_size=10), seed=0,
        report=lambda *progress: reports.append(progress),
    )  # fmt: skip
    assert [module.training for module in model.modules()] == modes
    assert reports == [(2, 5), (4, 5), (5, 5)]
    assert done.iterations == 5
    assert math.isfinite(done.loss)


def test_frozen_parameters_do_not_move():
    model = mlp(10, 8, 3)
    model[0].requires_grad_(False)
    before = copied(model)
    train(model, TensorBatches(*blobs()), Training(epochs=1, weight_decay=0.1), seed=0)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


def test_all_frozen_is_refused():
    with pytest.raises(ModelError, match="no trainable parameters: all are frozen"):
        train(mlp(10, 3).requires_grad_(False), TensorBatches(*blobs()), Training(), seed=0)


def test_a_loss_that_explodes_is_an_error():
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+: lower the learning rate"):
        train(mlp(10, 8, 3), TensorBatches(*blobs()), Training(optimizer="sgd", lr=1e30), seed=0)


class Short(LoaderBatches):
    """Promises more batches than it has."""

    def length(self, batch_size):
        return 5


def test_a_loader_that_promises_too_much_ends_in_an_error():
    data = Short([blobs(8), blobs(8, seed=1)])
    with pytest.raises(DataError, match="an epoch should have 5 batches, but none came after 2"):
        train(mlp(10, 3), data, Training(iterations=20), seed=0)


def test_regression_and_classification_losses():
    inputs, targets = blobs()
    assert Training().task_of(Task()).loss_name(targets) == "cross_entropy"
    assert Training(loss="squared_error").task_of(Task()).loss_name(targets) == "squared_error"
    model = mlp(10, 1)
    done = train(model, TensorBatches(inputs, inputs[:, :1]), Training(epochs=60, lr=0.05), seed=0)
    assert done.loss < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 1, "iterations": 1}, "training: give either 'epochs' or 'iterations', not both"),
        ({"epochs": -1}, "training: epochs = -1"),
        ({"batch_size": 0}, "training: batch_size = 0"),
        ({"optimizer": "lamb"}, "training: optimizer = 'lamb': .*'sgd', 'adam' or 'adamw'"),
        ({"lr": -1}, "training: lr = -1"),
        ({"lr": float("inf")}, "training: lr = inf: .*finite"),
        ({"momentum": 1}, "training: momentum = 1"),
        ({"learning_rate": 1}, "training: unknown key 'learning_rate'; allowed keys are: augment, batch"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(InputError, match=message):
        Training(**settings)


def test_copied_states_are_copies():
    model = mlp(3, 2)
    state = copy_state(model)
    with torch.no_grad():
        model[0].weight.zero_()
    assert bool((state["0.weight"] != 0).all())


def test_settings_may_be_a_mapping_and_what_is_no_loop_is_told():
    one, other = mlp(10, 8, 3), mlp(10, 8, 3)
    other.load_state_dict(one.state_dict())
    train(one, blobs(24), Training(epochs=2, lr=0.01))
    train(other, blobs(24), {"epochs": 2, "lr": 0.01})
    assert same(copied(one), copied(other))
    with pytest.raises(InputError, match="training: unknown key 'epoch'; did you mean 'epochs'"):
        train(one, blobs(24), {"epoch": 2})
    with pytest.raises(InputError, match=r"loop must be a prunekit\.Loop, not 3"):
        train(one, blobs(24), Training(epochs=1), loop=3)
