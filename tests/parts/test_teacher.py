"""A teacher beside any retraining: against a loop by hand, given ones, and what is refused."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from prunekit.errors import InputError
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from prunekit.task import Task
from small_nets import blobs, mlp

SGD = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "batch_size": 1000, "iterations": 3}
TEACHER = {"name": "logits", "temperature": 3.0, "share": 0.7}


def recipe(retrain="fine_tune", teacher=TEACHER, steps=2, **more):
    values = {
        "schedule": {"name": "linear", "sparsity": 0.5, "steps": steps},
        "retrain": {"name": retrain, "training": SGD},
    }
    return Recipe.parse({**values, **({} if teacher is None else {"teacher": teacher}), **more})


def test_it_is_the_retraining_distill_beside_fine_tune():
    """The same bits: one code."""
    own = {"name": "distill", "training": SGD, "temperature": 3.0, "share": 0.7}
    one, other = mlp(10, 12, 3), mlp(10, 12, 3)
    prune(one, recipe(), blobs())
    prune(other, Recipe.parse({**recipe(teacher=None).to_dict(), "retrain": own}), blobs())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("retrain", ["fine_tune", "continued", "rewind", "reinitialize"])
@pytest.mark.parametrize("of", ["before", "given"])
def test_every_retraining_against_a_loop_by_hand(retrain, of):
    inputs, targets = blobs()
    data = (inputs.double(), targets)
    model, start = (mlp(10, 12, 3, dtype=torch.float64, seed=seed) for seed in (0, 1))
    teacher = mlp(10, 30, 3, dtype=torch.float64, seed=2) if of == "given" else copy.deepcopy(model)
    chosen = recipe(retrain, {**TEACHER, "of": of}, steps=1)
    given = teacher if of == "given" else None
    session = Session(model, chosen, data=data, checkpoints={0: start.state_dict()}, teacher=given)
    begun = []
    first = next(iter(model.parameters()))
    first.register_hook(lambda _: begun.append(copy.deepcopy(model.state_dict())) if not begun else None)
    list(session.run())
    twin = copy.deepcopy(start)
    twin.load_state_dict(begun[0])  # the values from which the retraining starts, masks on
    for _ in range(3):
        outputs = twin(data[0])
        with torch.no_grad():
            wanted = log_softmax(teacher(data[0]) / 3, 1)
        apart = kl_div(log_softmax(outputs / 3, 1), wanted, reduction="batchmean", log_target=True)
        twin.zero_grad()
        (0.3 * cross_entropy(outputs, targets) + 0.7 * 9 * apart).backward()
        with torch.no_grad():
            for name, weight in twin.named_parameters():
                weight -= 0.05 * weight.grad
                if name in session.masks:
                    weight *= session.masks[name]
    for name, weight in twin.named_parameters():
        assert torch.allclose(model.get_parameter(name), weight, rtol=1e-9, atol=1e-13)


def test_a_given_teacher_is_left_alone_and_not_saved():
    teacher = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    before = copy.deepcopy(teacher.state_dict())
    session = Session(mlp(10, 12, 3), recipe(teacher={"name": "logits", "of": "given"}), data=blobs(),
                      teacher=teacher)  # fmt: skip
    list(session.run())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert teacher.training
    assert all(each.requires_grad for each in teacher.parameters())
    assert "parts" not in session.state_dict()


@pytest.mark.parametrize("part", [TEACHER, {"name": "features", "layers": ["2"]}])
@pytest.mark.parametrize("of", ["before", "given"])
def test_a_copy_and_a_resumed_session_go_on_to_the_same_bits(of, part):
    teacher = mlp(10, 4, 3, seed=3) if of == "given" else None
    chosen = recipe("continued", {**part, "of": of}, steps=3)

    def begun(seed=0):
        return Session(mlp(10, 12, 3, seed=seed), chosen, data=blobs(), teacher=teacher)

    whole = begun()
    next(whole.run())
    twin, resumed = copy.deepcopy(whole), begun(seed=7)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for session in (whole, twin, resumed):
        list(session.run())
    for other in (twin, resumed):
        pairs = zip(whole.model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_in_a_loop_of_ones_own():
    inputs, targets = blobs()
    model, teacher = mlp(10, 12, 3), mlp(10, 6, 3, seed=4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    session = recipe(teacher={**TEACHER, "of": "given"}).attach(model, optimizer, teacher=teacher)
    session.advance()
    outputs = model(inputs)
    found = session.training_loss(inputs, outputs, targets)
    with torch.no_grad():
        wanted = log_softmax(teacher(inputs) / 3, 1)
    apart = kl_div(log_softmax(outputs / 3, 1), wanted, reduction="batchmean", log_target=True)
    assert torch.allclose(found, 0.3 * cross_entropy(outputs, targets) + 0.7 * 9 * apart)


def test_what_is_refused():
    given = {"name": "logits", "of": "given"}
    model = mlp(10, 12, 3)
    before = copy.deepcopy(model.state_dict())
    for chosen, teacher, message in (
        (recipe(teacher=given), mlp(10, 12, 4), r"teacher's outputs are of the shape \(2, 4\).* \(2, 3\)"),
        (recipe(teacher=given), mlp(9, 12, 3), "teacher cannot be run on the data"),
        (recipe(teacher=given), None, "none is given"),
        (recipe(teacher=given), "resnet", "must be a torch.nn.Module"),
        (recipe(teacher=given), model, "is the network that is pruned"),
        (recipe(), mlp(10, 12, 3), "learns from none"),
        (recipe(teacher=None), mlp(10, 12, 3), "learns from none"),
    ):
        with pytest.raises(Exception, match=message):
            prune(model, chosen, blobs(), teacher=teacher)
    inputs, _ = blobs()
    with pytest.raises(InputError, match=r"teacher logits: softens .* the loss is squared_error"):
        prune(model, recipe(), (inputs, torch.rand(len(inputs), 3)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # without data it is seen at the first batch
    session = recipe(teacher=given).attach(model, torch.optim.SGD(model.parameters(), 0.1),
                                           teacher=mlp(10, 12, 4))  # fmt: skip
    session.advance()
    with pytest.raises(InputError, match="teacher needs the same classes"):
        session.training_loss(inputs, model(inputs), blobs()[1])
    for more, message in (
        ({"retrain": "none"}, "acts on a retraining"),
        ({"retrain": "distill"}, "has a teacher of its own"),
        ({"teacher": {"name": "logits", "of": "x"}}, "of"),
        ({"teacher": "oracle"}, "names are: features, logits"),
    ):
        with pytest.raises(InputError, match=message):
            Recipe.parse({**recipe().to_dict(), **more})


def test_recipes_without_a_teacher_stay_what_they_were():
    assert "teacher" not in recipe(teacher=None).identity()


def test_a_teacher_is_run_as_the_task_says():
    """At ten times the inputs, as the network is: the same as a plain task on such inputs."""

    class Scaled(Task):
        def run(self, model, batch):
            return model(10 * batch.inputs)

    inputs, targets = blobs()
    chosen = Recipe.parse(
        {
            "schedule": {"name": "one_shot", "sparsity": 0.5},
            "retrain": {"name": "distill", "training": {"iterations": 5, "batch_size": 8}},
        }
    )
    wanted = prune(mlp(10, 8, 3), chosen, (10 * inputs, targets)).model.state_dict()
    found = prune(mlp(10, 8, 3), chosen, (inputs, targets), task=Scaled()).model.state_dict()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])


def test_a_given_teacher_is_tried_as_the_task_runs_it():
    """Both take inputs that only the task's own run makes for them."""

    class Doubled(Task):
        def run(self, model, batch):
            return {"rows": model(torch.cat([batch.inputs, batch.inputs], 1))}

        def tensor(self, outputs, what):
            return outputs["rows"]

        def loss(self, outputs, targets):
            return cross_entropy(outputs["rows"], targets)

        def loss_name(self, targets):
            return "cross_entropy"

    inputs, targets = blobs()
    chosen = recipe(teacher={**TEACHER, "of": "given"})
    Session(mlp(20, 12, 3), chosen, data=(inputs, targets), teacher=mlp(20, 30, 3), task=Doubled())
    with pytest.raises(
        InputError, match=r"outputs are of the shape \(2, 4\), those of the network of \(2, 3\)"
    ):
        Session(mlp(20, 12, 3), chosen, data=(inputs, targets), teacher=mlp(20, 30, 4), task=Doubled())


def test_features_against_a_loop_by_hand():
    """Hints of two layers, one of another name, with gradients by autograd on functions of the weights."""
    inputs, targets = blobs()
    data = (inputs.double(), targets)
    model = mlp(10, 12, 3, dtype=torch.float64)
    teacher = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)).double()
    features = {"name": "features", "of": "given", "layers": {"0": "0", "2": "3"}, "strength": 0.3}
    session = Session(model, recipe(teacher=features, steps=1), data=data, teacher=teacher)
    begun = []
    next(iter(model.parameters())).register_hook(
        lambda _: begun.append(copy.deepcopy(model.state_dict())) if not begun else None
    )
    list(session.run())
    w1, b1, w2, b2 = (value.requires_grad_() for value in begun[0].values())
    teacher.eval()
    with torch.no_grad():
        t1, t2 = teacher[0](data[0]), teacher(data[0])
    for _ in range(3):
        s1 = data[0] @ w1.T + b1
        s2 = s1.relu() @ w2.T + b2
        apart = [((s - t) ** 2).sum() / (t**2).sum() for s, t in ((s1, t1), (s2, t2))]
        loss = cross_entropy(s2, targets) + 0.3 * sum(apart) / 2
        for value, grad in zip((w1, b1, w2, b2), torch.autograd.grad(loss, (w1, b1, w2, b2)), strict=True):
            value.data -= (
                SGD["lr"]
                * grad
                * (session.masks.get("0.weight" if value is w1 else "2.weight") if value.dim() > 1 else 1)
            )
    for found, wanted in zip(model.parameters(), (w1, b1, w2, b2), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_features_of_the_network_before_are_those_of_all_layers_that_fit_and_leave_no_hooks():
    inputs, targets = blobs()
    model = mlp(10, 12, 3)
    features = {"name": "features", "layers": ["*"], "strength": 1.0}
    with_hints = prune(model, recipe(teacher=features), (inputs, targets)).model
    without = prune(mlp(10, 12, 3), recipe(teacher=None), (inputs, targets)).model
    dense = mlp(10, 12, 3)
    with torch.no_grad():
        closer, further = (
            float((each(inputs) - dense(inputs)).square().mean()) for each in (with_hints, without)
        )
    assert closer < 0.7 * further
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("of", ["before", "given"])
def test_features_in_a_loop_of_ones_own_a_copy_and_a_resumed_one(of):
    """All learn from the same hints, bit for bit, and run each batch once, which a batch norm counts."""
    inputs, targets = blobs()
    features = {"name": "features", "of": of, "layers": ["0"]}

    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))

    teacher = {"teacher": net(3)} if of == "given" else {}

    def begun(seed=0):
        model = net(seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        session = recipe(teacher=features, steps=3).attach(model, optimizer, every=2, **teacher)
        return session, model, optimizer

    def steps(run, count):
        session, model, optimizer = run
        for _ in range(count):
            optimizer.zero_grad()
            session.training_loss(inputs, model(inputs), targets).backward()
            optimizer.step()

    for at in (2, 3):  # just after a step of the pruning, and between two
        whole, resumed = begun(), begun(seed=7)
        steps(whole, at)
        twin = copy.deepcopy(whole)
        for own, saved in zip(resumed[::-1], whole[::-1], strict=True):  # the session last
            own.load_state_dict(copy.deepcopy(saved.state_dict()))
        for run in (whole, twin, resumed):
            steps(run, 8 - at)
            assert int(run[1][1].num_batches_tracked) == 8
        for _, other, _ in (twin, resumed):
            wanted = whole[1].state_dict()
            assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())


def test_features_of_two_batches_that_are_run_before_their_losses():
    """Each is compared with the teacher on its own batch."""
    inputs, targets = blobs()
    halves = inputs[:20], inputs[20:50]
    model, teacher = mlp(10, 12, 3), mlp(10, 12, 3, seed=3)
    features = {"name": "features", "of": "given", "layers": ["0"]}
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    session = recipe(teacher=features, steps=1).attach(model, optimizer, teacher=teacher)
    session.advance()
    for _ in range(2):
        outputs = [model(half) for half in halves]
        for half, output, own in zip(halves, outputs, (targets[:20], targets[20:50]), strict=True):
            found = session.training_loss(half, output, own) - cross_entropy(output, own)
            wanted = teacher[0](half)
            apart = (model[0](half) - wanted).square().sum() / wanted.square().sum()
            torch.testing.assert_close(found, apart)


def test_features_that_do_not_fit_are_refused_before_a_weight_changes():
    inputs, targets = blobs()

    def refused(layers, match, teacher=None):
        model = mlp(10, 12, 3)
        before = copy.deepcopy(model.state_dict())
        features = {"name": "features", "layers": layers, "of": "given" if teacher else "before"}
        with pytest.raises(InputError, match=match):
            prune(model, recipe(teacher=features), (inputs, targets), teacher=teacher)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())

    refused(["fc*"], r"layers: 'fc\*' matches no module; modules are: 0, 1, 2")
    refused({"0": "7"}, "the teacher has no module '7'")
    refused({"7": "0"}, "the network has no module '7'")
    refused(["0"], r"'0' gives \(2, 12\), and '0' of the teacher \(2, 30\)", mlp(10, 30, 3))
