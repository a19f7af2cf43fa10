"""Distillation: the loss against its formula, whole trainings against loops by hand."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit.batches import Batch
from prunekit.errors import InputError
from prunekit.methods import distilled_magnitude
from prunekit.parts.retrain import Distill
from prunekit.parts.teacher import Distillation, divergence
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from prunekit.task import Task
from small_nets import blobs, mlp

SGD = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "batch_size": 1000}


def recipe(steps=2, **settings):
    return Recipe.parse(
        {
            "schedule": {"name": "linear", "sparsity": 0.5, "steps": steps},
            "retrain": {"name": "distill", "training": {"iterations": 3, **SGD}, **settings},
        }
    )


def softened(row, temperature):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence_by_hand(outputs, wanted, temperature):
    """Over the rows (one an example and position) of plain numbers."""
    total = 0.0
    for student, teacher in zip(outputs, wanted, strict=True):
        q, p = softened(student, temperature), softened(teacher, temperature)
        total += sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True))
    return total / len(outputs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_by_hand(temperature):
    generator = torch.Generator().manual_seed(0)
    outputs, wanted = (torch.randn(7, 4, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
    found = divergence(outputs, wanted, temperature)
    assert float(found) == pytest.approx(divergence_by_hand(outputs.tolist(), wanted.tolist(), temperature))
    assert float(divergence(wanted, wanted, temperature)) == pytest.approx(0, abs=1e-12)


def test_ignored_positions_have_no_teacher():
    """What is at positions whose targets are ignored does not count, however large it is."""
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(3, 5, 2, dtype=torch.float64, generator=generator)
    teacher = nn.Linear(2, 4, dtype=torch.float64)
    outputs = torch.randn(3, 5, 4, dtype=torch.float64, generator=generator)
    targets = torch.randint(4, (3, 5), generator=generator)
    targets[0, 2:] = targets[2, 4] = -100
    outputs[0, 2:] *= 50
    places = [(i, j) for i in range(3) for j in range(5) if (i, j) not in [(0, 2), (0, 3), (0, 4), (2, 4)]]
    rows = [[each[place].tolist() for place in places] for each in (outputs, teacher(inputs).detach())]
    found = Distillation(teacher, 2.0, 1.0)(
        Batch(inputs, targets), outputs, targets, torch.zeros((), dtype=torch.float64)
    )
    assert float(found) == pytest.approx(4 * divergence_by_hand(*rows, 2.0))


def test_positions_that_the_loss_ignores_by_a_number_of_its_own_have_no_teacher():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(20, 2, dtype=torch.float64, generator=generator)
    outputs = torch.randn(20, 4, dtype=torch.float64, generator=generator)
    targets = torch.randint(4, (20,), generator=generator)
    teacher = nn.Linear(2, 4, dtype=torch.float64)
    task, marked = Task(nn.CrossEntropyLoss(ignore_index=3)), targets.masked_fill(targets == 3, -100)
    none = torch.zeros((), dtype=torch.float64)
    found = Distillation(teacher, 2.0, 1.0, task=task)(Batch(inputs, targets), outputs, targets, none)
    wanted = Distillation(teacher, 2.0, 1.0)(Batch(inputs, marked), outputs, marked, none)
    assert torch.equal(found, wanted)


def test_divergence_over_positions():
    """(examples, classes, positions) is as if each position were an example."""
    generator = torch.Generator().manual_seed(1)
    outputs, wanted = (torch.randn(3, 4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    rows = [each.movedim(1, 2).flatten(0, 1).tolist() for each in (outputs, wanted)]
    assert float(divergence(outputs, wanted, 2.0)) == pytest.approx(divergence_by_hand(*rows, 2.0))


def distilled_by_hand(model, teacher, data, masks, *, steps, temperature, share):
    """Gradient descent on all examples, in plain torch; the masks act after each step."""
    inputs, targets = data
    with torch.no_grad():
        p = torch.softmax(teacher(inputs) / temperature, 1)
    for _ in range(steps):
        outputs = model(inputs)
        q = torch.softmax(outputs / temperature, 1)
        apart = (p * (p.log() - q.log())).sum() / len(inputs)
        loss = (1 - share) * cross_entropy(outputs, targets) + share * temperature**2 * apart
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
                weight -= 0.05 * gradient
                if name in masks:
                    weight *= masks[name]


@pytest.mark.parametrize(("temperature", "share"), [(2.0, 0.5), (5.0, 1.0)])
def test_retraining_against_a_loop_by_hand(temperature, share):
    inputs, targets = blobs()
    data = (inputs.double(), targets)
    model = mlp(10, 12, 3, dtype=torch.float64)
    teacher, twin = copy.deepcopy(model), copy.deepcopy(model)
    session = Session(model, recipe(temperature=temperature, share=share), data=data)
    for _ in session.run():
        with torch.no_grad():
            for name, mask in session.masks.items():
                twin.get_parameter(name).mul_(mask)
        settings = {"temperature": temperature, "share": share}
        distilled_by_hand(twin, teacher, data, session.masks, steps=3, **settings)
        for name, weight in twin.named_parameters():
            assert torch.allclose(model.get_parameter(name), weight, rtol=1e-9, atol=1e-13)
    plain = copy.deepcopy(teacher)
    other = {**recipe().to_dict(), "retrain": {"name": "fine_tune", "training": {"iterations": 3, **SGD}}}
    prune(plain, Recipe.parse(other), data)
    assert not torch.allclose(plain[0].weight, model[0].weight)


class Noisy(nn.Module):
    """Dropout and batch norm, which a teacher must not have in training mode."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(10, 12), nn.BatchNorm1d(12), nn.Dropout(0.5)
        self.last = nn.Linear(12, 3)

    def forward(self, inputs):
        return self.last(self.drop(torch.relu(self.norm(self.first(inputs)))))


def test_the_teacher_is_the_network_before_pruning_and_stays_it():
    torch.manual_seed(0)
    model = Noisy()
    dense = copy.deepcopy(model.state_dict())
    session = Session(model, recipe(), data=blobs())
    list(session.run())
    teacher = session.state_dict()["parts"]["retrain"]
    assert set(teacher) == set(dense)
    assert all(torch.equal(teacher[name], dense[name]) for name in dense)
    assert set(model.state_dict()) == set(dense)
    assert int(model.norm.num_batches_tracked) == 6  # two retrainings of three steps, none by the teacher


def test_a_warm_up_comes_before_the_teacher():
    model = mlp(10, 12, 3)
    dense = copy.deepcopy(model.state_dict())
    warmed = {**recipe().to_dict(), "score": {"name": "movement", "training": {"iterations": 2, **SGD}}}
    session = Session(model, Recipe.parse(warmed), data=blobs())
    next(session.run())
    teacher = session.state_dict()["parts"]["retrain"]
    assert not torch.equal(teacher["0.weight"], dense["0.weight"])
    assert bool((teacher["0.weight"] != 0).all())


class TestInALoopOfOnesOwn:
    def begun(self, seed=0):
        model = mlp(10, 12, 3, seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        return model, optimizer, recipe(temperature=3.0).attach(model, optimizer)

    def step(self, model, optimizer, session):
        inputs, targets = blobs()
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = session.training_loss(inputs, outputs, targets)
        loss.backward()
        optimizer.step()
        return outputs.detach(), loss.detach()

    def test_the_loss_before_and_after_the_first_removal(self):
        model, optimizer, session = self.begun()
        _, targets = blobs()
        outputs, loss = self.step(model, optimizer, session)
        assert torch.equal(loss, cross_entropy(outputs, targets))
        teacher = copy.deepcopy(model)
        session.advance()
        for _ in range(2):
            outputs, loss = self.step(model, optimizer, session)
            with torch.no_grad():
                wanted = teacher(blobs()[0])
            apart = divergence_by_hand(outputs.tolist(), wanted.tolist(), 3.0)
            expected = 0.5 * float(cross_entropy(outputs, targets)) + 0.5 * 9 * apart
            assert float(loss) == pytest.approx(expected, rel=1e-5)

    def test_resumed_it_ends_with_the_same_bits(self, tmp_path):
        whole, optimizer, session = self.begun()
        session.advance()
        for _ in range(4):
            self.step(whole, optimizer, session)

        model, optimizer, session = self.begun()
        session.advance()
        for _ in range(2):
            self.step(model, optimizer, session)
        states = {"model": model.state_dict(), "session": session.state_dict()}
        torch.save(states, tmp_path / "state.pt")
        model, optimizer, session = self.begun(seed=5)
        read = torch.load(tmp_path / "state.pt", weights_only=True)
        model.load_state_dict(read["model"])
        session.load_state_dict(read["session"])
        for _ in range(2):
            self.step(model, optimizer, session)
        assert all(torch.equal(value, whole.state_dict()[name]) for name, value in model.state_dict().items())

    def test_other_recipes_have_the_loss_of_the_task(self):
        model = mlp(10, 12, 3)
        plain = Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}})
        session = plain.attach(model, torch.optim.SGD(model.parameters(), 0.1))
        session.advance()
        inputs, targets = blobs()
        outputs = model(inputs)
        assert torch.equal(session.training_loss(inputs, outputs, targets), cross_entropy(outputs, targets))

    def test_outputs_without_classes(self):
        model, _, session = self.begun()
        session.advance()
        inputs, _ = blobs()
        with pytest.raises(InputError, match=r"distill: softens .* classes, but the loss is squared"):
            session.training_loss(inputs, model(inputs), torch.rand(len(inputs), 3))


def test_a_copy_goes_on_to_the_same():
    session = Session(mlp(10, 12, 3), recipe(), data=blobs())
    next(session.run())
    twin = copy.deepcopy(session)
    for each in (session, twin):
        list(each.run())
    one, other = session.model.state_dict(), twin.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_refused():
    inputs, _ = blobs()
    model = mlp(10, 12, 3)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        InputError, match=r"distill: softens the logits of classes, but the loss is squared_error"
    ):
        prune(model, recipe(), (inputs, torch.rand(len(inputs), 3)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for settings, message in (
        ({"temperature": 0}, "temperature = 0"),
        ({"share": 0}, "share = 0"),
        ({"share": 1.5}, "share = 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            Distill(**settings)


def test_the_named_method():
    chosen = distilled_magnitude(steps=3, epochs=2, temperature=4.0, share=0.7)
    assert (chosen.retrain.temperature, chosen.retrain.share) == (4.0, 0.7)
    assert chosen.retrain.plan.epochs == 2
    pruned = prune(mlp(10, 12, 3), distilled_magnitude(sparsity=0.5, steps=2, epochs=1), blobs())
    assert pruned.masks.sparsity == pytest.approx(0.5, abs=0.01)
