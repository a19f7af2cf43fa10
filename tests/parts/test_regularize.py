import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from prunekit import Recipe
from prunekit.batches import TensorBatches
from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.parts.regularize import L0, L1, L2, VIB, Dropout, GroupLasso, Regularizer
from prunekit.training import Training, train
from small_nets import blobs, copied, mlp, same


def explicit(kind: str, strength: float, weights: list[torch.Tensor]) -> torch.Tensor:
    if kind == "l1":
        return strength * sum(weight.abs().sum() for weight in weights)
    return strength / 2 * sum(weight.square().sum() for weight in weights)


@pytest.mark.parametrize(("kind", "part"), [("l1", L1), ("l2", L2)])
def test_a_penalty_is_the_same_as_adding_it_to_the_loss(kind, part):
    (inputs, targets), strength = blobs(40, dtype=torch.float64), 0.03
    ours, theirs = mlp(10, 8, 3, dtype=torch.float64), mlp(10, 8, 3, dtype=torch.float64)
    mine, other = SGD(ours.parameters(), 0.1, 0.9), SGD(theirs.parameters(), 0.1, 0.9)
    handles = part(strength=strength).attach(ours, mine, None)
    for _ in range(10):
        mine.zero_grad()
        cross_entropy(ours(inputs), targets).backward()
        mine.step()
        other.zero_grad()
        weights = [theirs[0].weight, theirs[2].weight]
        (cross_entropy(theirs(inputs), targets) + explicit(kind, strength, weights)).backward()
        other.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-12)
    for handle in handles:
        handle.remove()
    before = ours[0].weight.detach().clone()
    mine.param_groups[0]["momentum"] = 0.0
    for parameter in ours.parameters():
        parameter.grad = torch.zeros_like(parameter)
    mine.step()
    assert torch.equal(before, ours[0].weight)  # once removed it pulls no more


def test_the_subgradient_of_l1_on_scales_is_its_strength_times_their_signs():
    """As network slimming trains (Liu et al. 2017): γ, and nothing else, moves by lr λ sign(γ) as well."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(64, 5), nn.BatchNorm1d(5), nn.LayerNorm(5), nn.BatchNorm1d(5, affine=False)),
    ).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.7, -0.2, 0.0, 1.5]))
    optimizer = SGD(model.parameters(), 0.1)
    L1(strength=0.03, of="norm_scales").attach(model, optimizer, None)
    inputs, targets = torch.randn(12, 1, 6, 6, dtype=torch.float64), torch.arange(12) % 5
    cross_entropy(model(inputs), targets).backward()
    before, gradients = copied(model), {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = gradients[name]
        if name in ("1.weight", "5.weight"):
            expected = expected + 0.03 * before[name].sign()
        assert torch.allclose(before[name] - parameter, 0.1 * expected, atol=1e-15), name


def test_scales_to_be_penalised_must_be_there_before_anything_is_changed():
    model = mlp(4, 3)
    before = copied(model)
    training = Training(iterations=1, regularize=(L1(strength=0.1, of="norm_scales"),))
    with pytest.raises(InputError, match="l1: the model has no batch norm with a scale"):
        train(model, TensorBatches(*blobs(8, 4, 3)), training, seed=0)
    assert same(copied(model), before)


def test_biases_and_frozen_weights_are_not_penalised():
    model = mlp(4, 3)
    model[0].weight.requires_grad_(False)
    before = copied(model)
    optimizer = SGD([model[0].bias], 0.1)
    L1(strength=1.0).attach(model, optimizer, None)
    model[0].bias.grad = torch.zeros(3)
    optimizer.step()
    assert torch.equal(model[0].bias, before["0.bias"])
    assert torch.equal(model[0].weight, before["0.weight"])


@pytest.mark.parametrize("part", [L1, L2])
@pytest.mark.parametrize("strength", [0, -1])
def test_the_strength_is_positive(part, strength):
    with pytest.raises(InputError, match=f"{part.name}: strength = {strength}"):
        part(strength=strength)


def test_l1_makes_weights_smaller_in_training():
    data = TensorBatches(*blobs())
    sums = []
    for regularize in ((), (L1(strength=0.05),)):
        model = mlp(10, 16, 3)
        train(model, data, Training(epochs=10, lr=0.01, regularize=regularize), seed=0)
        sums.append(float(model[0].weight.detach().abs().sum()))
    assert sums[1] < 0.5 * sums[0]


class TestDropout:
    def share(self, model: nn.Module, dropout: Dropout, masks: Masks | None = None) -> float:
        """The share of ReLU's outputs that is dropped."""
        handles = dropout.attach(model, SGD(model.parameters(), 0.1), masks)
        seen: list[torch.Tensor] = []
        seen_handle = model[1].register_forward_hook(lambda _, args, output: seen.extend((args[0], output)))
        model(torch.randn(500, 10))
        seen_handle.remove()
        for handle in handles:
            handle.remove()
        alive = seen[0] > 0
        return float((seen[1][alive] == 0).float().mean())

    def test_it_acts_in_training_only(self):
        model = mlp(10, 50, 3)
        assert self.share(model.train(), Dropout(p=0.3)) == pytest.approx(0.3, abs=0.02)
        assert self.share(model.eval(), Dropout(p=0.3)) == 0

    def test_what_is_kept_is_scaled_up(self):
        model = mlp(10, 50, 3).train()
        handles = Dropout(p=0.5).attach(model, SGD(model.parameters(), 0.1), None)
        inputs = torch.randn(20, 10)
        hidden = torch.relu(model[0](inputs))
        dropped = model[1](model[0](inputs))
        assert torch.allclose(dropped[dropped > 0], 2 * hidden[dropped > 0])
        assert len(handles) == 1

    def test_it_is_gone_afterwards(self):
        model = mlp(10, 8, 3)
        regularize = (Dropout(p=0.9),)
        train(model, TensorBatches(*blobs()), Training(epochs=1, regularize=regularize), seed=0)
        assert self.hooks(model) == 0

    def test_it_is_gone_after_an_error_as_well(self):
        model = mlp(10, 8, 3)

        def fail(step, state):
            raise RuntimeError("stop")

        training = Training(epochs=1, regularize=(Dropout(), L1(strength=1e-3)))
        with pytest.raises(RuntimeError, match="stop"):
            train(model, TensorBatches(*blobs()), training, seed=0, checkpoints=[0], on_checkpoint=fail)
        assert self.hooks(model) == 0

    @staticmethod
    def hooks(model: nn.Module) -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    @pytest.mark.parametrize(("scale", "expected"), [(True, 0.5 * math.sqrt(0.36)), (False, 0.5)])
    def test_it_is_weaker_on_a_sparse_network(self, scale, expected):
        model = mlp(10, 50, 3).train()
        masks = Masks({"0.weight": (torch.arange(500) < 180).view(50, 10)})
        found = self.share(model, Dropout(p=0.5, scale_with_density=scale), masks)
        assert found == pytest.approx(expected, abs=0.02)

    def test_each_layer_has_the_density_of_the_connections_that_lead_into_it(self):
        """Han et al. 2015, equation 2: D_r = D_o sqrt(C_ir / C_io), with C_i the connections of layer i."""
        model = mlp(10, 400, 400, 3).train()
        masks = Masks(
            {
                "0.weight": (torch.arange(4000) < 400).view(400, 10),
                "2.weight": (torch.arange(160_000) < 78_400).view(400, 400),
                "4.weight": torch.zeros(3, 400, dtype=torch.bool),
            }
        )
        handles = Dropout(p=0.8).attach(model, SGD(model.parameters(), 0.1), masks)
        seen: dict[int, torch.Tensor] = {}
        for place in (1, 3):
            model[place].register_forward_hook(
                lambda _, args, output, place=place: seen.__setitem__(
                    place, (output == 0)[args[0] > 0].float().mean()
                )
            )
        for _ in range(2):  # the last layer of a pass does not count for the first of the next
            model(torch.randn(300, 10))
            assert float(seen[1]) == pytest.approx(0.8 * math.sqrt(0.1), abs=0.02)
            assert float(seen[3]) == pytest.approx(0.8 * math.sqrt(0.49), abs=0.02)
        for handle in handles:
            handle.remove()
        model(torch.randn(300, 10))
        assert float(seen[1]) == float(seen[3]) == 0

    def test_what_comes_before_any_pruned_layer_is_dropped_as_on_the_whole_network(self):
        model = nn.Sequential(nn.ReLU(), nn.Linear(400, 3)).train()
        masks = Masks({"1.weight": torch.zeros(3, 400, dtype=torch.bool)})
        Dropout(p=0.5).attach(model, SGD(model.parameters(), 0.1), masks)
        seen: list[float] = []
        model[0].register_forward_hook(lambda *call: seen.append(float((call[2] == 0).float().mean())))
        for _ in range(2):
            model(torch.ones(50, 400))
        assert seen == pytest.approx([0.5, 0.5], abs=0.03)

    @pytest.mark.parametrize(
        ("on", "hooked"),
        [(("ReLU",), [1, 3]), (("1",), [1]), (("re:[34]",), [3, 4]), (("Linear", "1"), [0, 1, 2, 4])],
    )
    def test_where_it_acts(self, on, hooked):
        model = mlp(10, 8, 8, 3)
        Dropout(on=on).attach(model, SGD(model.parameters(), 0.1), None)
        assert [i for i, module in enumerate(model) if module._forward_hooks] == hooked

    def test_names_are_the_models_own_inside_wrappers(self):
        model = mlp(10, 8, 3)
        Dropout(on=("1",)).attach(nn.DataParallel(model), SGD(model.parameters(), 0.1), None)
        assert len(model[1]._forward_hooks) == 1

    def test_nothing_to_drop_is_refused(self):
        with pytest.raises(
            InputError, match="dropout: no module of the model is one of Swish: name the modules"
        ):
            Dropout(on=("Swish",)).check(mlp(10, 8, 3))

    @pytest.mark.parametrize("p", [0, 1, 40])
    def test_p_is_a_probability(self, p):
        with pytest.raises(InputError, match=f"dropout: p = {p}"):
            Dropout(p=p)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "part",
    [
        L1(strength=0.1),
        L2(strength=0.1),
        GroupLasso(strength=0.3, form="subgradient"),
        GroupLasso(strength=3.0),
        L0(density=0.5, ramp=3, lr=0.3),
        VIB(density=0.5, ramp=3, lr=0.3, noise="batch"),
    ],
    ids=["l1", "l2", "subgradient", "proximal", "l0", "vib"],
)
def test_a_scaler_changes_nothing_and_a_step_that_it_skips_is_none(part: Regularizer, fused: bool) -> None:
    """A fused optimizer has gradients that are scaled still, and is called where it is to do nothing."""
    inputs, targets = blobs(40)
    found = []
    for scaled in (False, True):
        model = mlp(10, 8, 3)
        optimizer = SGD(model.parameters(), 0.1, 0.9, fused=fused)
        torch.manual_seed(7)
        (handle,) = part.attach(model, optimizer, None)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, growth_interval=2, enabled=scaled)
        for step in range(8):
            optimizer.zero_grad()
            random = torch.get_rng_state()
            loss = cross_entropy(model(inputs), targets)
            if scaled and step % 3 == 1:  # overflows, and is taken anew
                scaler.scale(loss * 1e15).backward()
                scaler.step(optimizer)
                optimizer.zero_grad()
                torch.set_rng_state(random)
                loss = cross_entropy(model(inputs), targets)
                scaler.update(2.0**100)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update(2.0**100 if scaled else None)
        handle.remove()
        found.append(copied(model))
    assert same(*found)


def test_what_a_score_adds_up_is_not_scaled() -> None:
    inputs, targets = blobs(40)
    found = []
    for scaled in (False, True):
        model = mlp(10, 8, 3)
        optimizer = SGD(model.parameters(), 0.1, fused=True)
        recipe = Recipe.parse({"score": "movement", "schedule": {"name": "one_shot", "sparsity": 0.5}})
        session = recipe.attach(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2, enabled=scaled)
        for _ in range(8):
            optimizer.zero_grad()
            scaler.scale(cross_entropy(model(inputs), targets)).backward()
            scaler.step(optimizer)
            scaler.update()
        session.advance()
        found.append(session.masks)
    assert found[0] == found[1]
