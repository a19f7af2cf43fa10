import pytest
import torch
from torch import nn

from prunekit.errors import InputError, ModelError
from prunekit.parts.context import StepContext
from prunekit.parts.retrain import FineTune, NoRetraining, Reinitialize, Retrain, Rewind, TrainedOn
from prunekit.pruning import prune
from prunekit.training import Training
from small_nets import blobs, convnet, copied, images, mlp, recipe, same


def test_what_keeps_the_values():
    model = mlp(4, 3)
    before = copied(model)
    assert not NoRetraining().restart(StepContext(model=model), {}, seed=0)
    assert not FineTune().restart(StepContext(model=model), {}, seed=0)
    assert same(before, copied(model))


def test_rewinding_puts_everything_back():
    model = convnet()
    saved = copied(model)
    model.train()(images()[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    parameters = list(model.parameters())
    assert Rewind(step=3).restart(StepContext(model=model), {3: saved}, seed=0)
    assert same(saved, copied(model))  # running statistics as well
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_survivors_equal_their_initial_values_right_after_rewinding():
    model = mlp(10, 16, 3)
    initial = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    pruned = prune(
        model,
        recipe(retrain={"name": "rewind", "training": {"iterations": 0}}),
        blobs(),
        checkpoints={0: initial},
    )
    for name, mask in pruned.masks.items():
        assert torch.equal(model.get_parameter(name), initial[name] * mask)
    assert torch.equal(model[0].bias, initial["0.bias"])


def test_late_rewinding_trains_only_what_is_left_of_the_run():
    seen = []
    model = mlp(10, 16, 3)

    def see(module, *_):
        if torch.is_grad_enabled():  # before that the data is tried on the network, without gradients
            seen.append(module.training)

    model.register_forward_hook(see)
    prune(
        model,
        recipe(retrain={"name": "rewind", "step": 7, "training": {"iterations": 10}}),
        blobs(),
        checkpoints={7: copied(model)},
    )
    assert seen == [True] * 3


class TestReinitialize:
    def test_values_are_new_and_from_the_seed(self):
        def drawn(seed):
            model = mlp(10, 16, 3)
            assert Reinitialize().restart(StepContext(model=model), {}, seed=seed)
            return copied(model)

        assert same(drawn(1), drawn(1))
        assert not same(drawn(1), drawn(2))
        assert not same(drawn(1), copied(mlp(10, 16, 3)))

    def test_they_come_from_the_layers_own_distribution(self):
        model = nn.Sequential(nn.Linear(100, 400))
        with torch.no_grad():
            model[0].weight.fill_(7)
        Reinitialize().restart(StepContext(model=model), {}, seed=0)
        weight = model[0].weight.detach()
        assert float(weight.abs().max()) <= 0.1  # U(-1/sqrt(100), 1/sqrt(100))
        assert float(weight.std()) == pytest.approx(0.1 / 3**0.5, rel=0.02)

    def test_the_global_generator_is_left_alone(self):
        model = mlp(4, 3)
        before = torch.get_rng_state()
        Reinitialize().restart(StepContext(model=model), {}, seed=0)
        assert torch.equal(before, torch.get_rng_state())

    def test_a_models_own_way_is_taken(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.raw = nn.Parameter(torch.zeros(2, 2))

            def reset_parameters(self):
                nn.init.constant_(self.raw, 5)

        model = Own()
        Reinitialize().restart(StepContext(model=model), {}, seed=0)
        assert bool((model.raw == 5).all())

    @pytest.mark.parametrize("affine", [True, False])
    def test_running_statistics_start_anew(self, affine):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, affine=affine))
        model(torch.randn(20, 4) + 3)
        Reinitialize().restart(StepContext(model=model), {}, seed=0)
        assert bool((model[1].running_mean == 0).all())
        assert bool((model[1].running_var == 1).all())

    def test_what_cannot_be_drawn_again_is_refused_at_first(self):
        class Raw(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(10, 3)
                self.scale = nn.Parameter(torch.ones(3))

            def forward(self, inputs):
                return self.fc(inputs) * self.scale

        model = Raw()
        before = copied(model)
        with pytest.raises(ModelError, match=r"new random values: the model \(Raw\) has no reset_parameters"):
            prune(model, recipe(retrain="reinitialize"), blobs())
        assert same(before, copied(model))


def test_steps_that_rewinding_lacks():
    with pytest.raises(
        InputError, match=r"needs the values at step 5 .*checkpoints=\{5: state_dict\} \(given: 0, 9\)"
    ):
        Rewind(step=5).check(mlp(3, 2), {0: {}, 9: {}})


def test_plans():
    training = Training(epochs=3)
    assert NoRetraining().plan is None
    assert FineTune(training=training).plan == Reinitialize(training=training).plan == training
    assert (Rewind(step=4).start, Rewind(step=4).checkpoint, FineTune().start) == (4, 4, 0)


class TestPartsOfTheUsersOwn:
    def test_a_training_that_nothing_uses_is_refused(self):
        class Idle(Retrain):
            name = "idle"
            training: Training = Training()

        with pytest.raises(
            ValueError, match=r"'training', but no `plan` that uses it: derive it from .*TrainedOn"
        ):
            Idle()

        class Busy(TrainedOn):
            name = "busy"

        assert Busy(training=Training(epochs=2)).plan == Training(epochs=2)

    def test_the_name_of_one_that_comes_with_the_package_is_refused(self):
        with pytest.raises(InputError, match="a retrain named 'fine_tune' comes with prunekit"):

            class Mine(Retrain):
                name = "fine_tune"

        assert Retrain.build("fine_tune").training == Training()

    def test_a_part_without_a_name_is_refused(self):
        class Nameless(Retrain):
            pass

        with pytest.raises(InputError, match="the retrain Nameless has no `name`"):
            recipe(retrain=Nameless())
