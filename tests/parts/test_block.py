"""Whole blocks as units: their scores by hand, their masks, and how a training brings them to zero."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit import Recipe, Task, methods, prune
from prunekit.batches import Batch
from prunekit.errors import InputError, ModelError
from prunekit.measure import count
from prunekit.models import CharTransformer, ResNet
from prunekit.parts.context import StepContext
from prunekit.parts.granularity import Block
from prunekit.parts.regularize import GroupLasso
from prunekit.parts.scores import Score
from prunekit.pruning import Session
from prunekit.statistics import CosineDistance, StatContext, collect
from prunekit.study import run_study
from prunekit.training import Training, train
from residual_nets import Plain, Residual, Skipping, skipping
from small_nets import copied, mlp, same
from tiny_study import table, tiny
from zoo import made, stirred

NAMES = ["stage1.0", "stage1.1", "stage1.2", "stage2.1", "stage2.2", "stage3.1", "stage3.2"]
IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(24) % 5
DATA = (IMAGES, CLASSES)
HALF = {"name": "one_shot", "sparsity": 0.5}


def resnet() -> ResNet:
    torch.manual_seed(0)
    return stirred(ResNet((3, 8, 8), 5, width=4)).eval()


def scores_of(model: nn.Module, score: str | dict, data=DATA, **settings) -> Tensor:
    """(blocks,) scores by some examples."""
    (inputs, targets), granularity, part = data, Block(**settings), Score.build(score)
    elements = granularity.elements(model, example_inputs=inputs[:2])
    kept = elements.all_kept()
    subject = StatContext(model, elements.parameters, kept=kept, coupled=elements.coupled)
    found = collect(
        subject, [(inputs[each], targets[each]) for each in (slice(10), slice(10, None))], part.needs
    )
    context = StepContext.of(elements, granularity, kept, statistics=found)
    return granularity.gather(part(context), elements)["blocks"]


@pytest.mark.parametrize("error", ["cross_entropy", "squared_error"])
def test_the_oracle_against_a_loop(error):
    model = resnet()

    def measured(removed: list[str]) -> float:
        outputs = skipping(model, removed)(IMAGES)
        if error == "cross_entropy":
            return float(F.cross_entropy(outputs, CLASSES))
        return float((outputs - F.one_hot(CLASSES, 5)).square().sum(1).mean())

    with torch.no_grad():
        wanted = torch.tensor([measured([name]) - measured([]) for name in NAMES], dtype=torch.float64)
    found = scores_of(model, {"name": "oracle", "error": error})
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_the_taylor_series_in_the_gains_of_blocks(order):
    model = resnet()

    def loss(gains: Tensor) -> Tensor:
        outputs = Skipping(model, dict(zip(NAMES, gains, strict=True)))(IMAGES)
        return F.cross_entropy(outputs, CLASSES)

    ones = torch.ones(len(NAMES))
    wanted = -torch.autograd.functional.jacobian(loss, ones)
    if order == 2:
        wanted = wanted + torch.autograd.functional.hessian(loss, ones).diagonal() / 2
    found = scores_of(model, {"name": "unit_taylor", "order": order, "error": "cross_entropy"})
    torch.testing.assert_close(found, wanted.double(), rtol=1e-3, atol=1e-5)


def cosines(before: Tensor, after: Tensor, axis: int) -> Tensor:
    """One for each position, from products and roots."""
    products = (before * after).sum(axis)
    return products / (before.square().sum(axis).sqrt() * after.square().sum(axis).sqrt())


def test_block_influence_against_hooks():
    model = resnet().double()
    seen = {}
    for name in NAMES:
        block = model.get_submodule(name)
        block.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__((name, 0), args[0].clone())
        )
        block.act2.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__((name, 1), args[0].clone())
        )
    model(IMAGES.double())
    wanted = []
    for name in NAMES:
        each = cosines(seen[name, 0], seen[name, 1], 1)
        each[(seen[name, 0] == 0).all(1)] = 0.0  # behind a ReLU all channels may be zero
        wanted.append(1 - each.mean())
    for module in model.modules():
        module._forward_pre_hooks.clear()
    found = scores_of(model, "block_influence", (IMAGES.double(), CLASSES))
    torch.testing.assert_close(found, torch.stack(wanted).double())


def test_block_influence_of_whole_blocks_and_of_branches():
    torch.manual_seed(0)
    model = stirred(CharTransformer((7,), 11, width=8, heads=2, layers=3)).eval()
    tokens = torch.arange(35).reshape(5, 7) % 11
    seen = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, given, key=number: seen.update({key: (args[0], given)}))
    model.blocks[0].norm2.register_forward_pre_hook(lambda _, args: seen.update(middle=args[0]))
    model(tokens)
    for module in model.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    whole = torch.stack([1 - cosines(*seen[number], -1).mean() for number in range(3)])
    found = scores_of(model, "block_influence", (tokens, tokens), whole=True)
    torch.testing.assert_close(found.float(), whole, rtol=1e-4, atol=1e-6)
    ends = [(seen[0][0], seen["middle"]), (seen["middle"], seen[0][1])]
    found = scores_of(model, "block_influence", (tokens, tokens))
    assert found.shape == (6,)
    halves = torch.stack([1 - cosines(*each, -1).mean() for each in ends])
    torch.testing.assert_close(found[:2].float(), halves, rtol=1e-4, atol=1e-6)


def test_padded_positions_have_no_influence():
    pytest.importorskip("transformers")
    model, inputs = made("hf-bert")
    task = Task("cross_entropy")
    elements = Block().elements(model, example_inputs=inputs)

    def influence(tokens: Tensor, mask: Tensor) -> Tensor:
        subject = StatContext(
            model, elements.parameters, kept=elements.all_kept(), coupled=elements.coupled, task=task
        )
        batch = Batch({"input_ids": tokens, "attention_mask": mask}, torch.zeros(len(tokens)).long())
        return collect(subject, [batch], [CosineDistance()])[CosineDistance()]["blocks"]

    tokens, mask = inputs["input_ids"], torch.ones(2, 6, dtype=torch.long)
    mask[:, 4:] = 0
    other = tokens.clone()
    other[:, 4:] = 29
    torch.testing.assert_close(influence(tokens, mask), influence(other, mask))
    assert not torch.allclose(influence(tokens, mask), influence(tokens, torch.ones_like(mask)))


def test_a_block_that_does_nothing_has_no_influence():
    model = resnet()
    with torch.no_grad():
        for parameter in model.stage2[1].parameters():
            parameter.zero_()
    found = scores_of(model, "block_influence")
    assert found[NAMES.index("stage2.1")] == 0
    assert (found[[each for each in range(7) if each != 3]] > 0).all()


@pytest.mark.parametrize(("pool", "combine"), [("sum", "sum"), ("mean", "mean"), ("l2", "max")])
def test_scores_of_weights_are_taken_over_a_block(pool, combine):
    model = resnet()
    wanted = []
    for name in NAMES:
        weights = [model.get_parameter(f"{name}.{conv}.weight").detach().abs() for conv in ("conv1", "conv2")]
        each = {"sum": Tensor.sum, "mean": Tensor.mean, "l2": Tensor.norm}[pool]
        both = torch.stack([each(weight.double()) for weight in weights])
        wanted.append({"sum": both.sum(), "mean": both.mean(), "max": both.max()}[combine])
    found = scores_of(model, "magnitude", pool=pool, combine=combine)
    torch.testing.assert_close(found, torch.stack(wanted))


def test_a_removed_block_is_all_zeros_and_the_others_are_as_they_were():
    model = resnet()
    before = copied(model)
    recipe = {"granularity": "block", "score": "magnitude", "schedule": HALF, "allocation": "global"}
    pruned = prune(model, Recipe.parse(recipe), example_inputs=IMAGES[:2])
    kept = pruned.kept["blocks"].tolist()
    assert kept == [False, False, False, False, True, True, True]  # the narrow ones
    for name, parameter in model.named_parameters():
        block = next((each for each in NAMES if name.startswith(f"{each}.")), None)
        gone = block is not None and not kept[NAMES.index(block)]
        assert torch.equal(parameter, torch.zeros_like(parameter) if gone else before[name])
    assert pruned.history[-1].layers == {"blocks": 3}
    whole = sum(each.numel() for each in model.parameters())
    lost = sum(each.numel() for name in NAMES[:4] for each in model.get_submodule(name).parameters())
    assert pruned.history[-1].compression_ratio == pytest.approx(whole / (whole - lost))


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"targets": ["stage2.*"]}, NAMES[3:5]),
        ({"targets": ["stage1.1"]}, NAMES[1:2]),
        ({"ignore": ["stage1.*", "stage3.2.conv1"]}, NAMES[3:6]),
        ({"targets": ["ResidualBlock"]}, NAMES),
    ],
)
def test_blocks_are_chosen_by_patterns(settings, chosen):
    elements = Block().elements(resnet(), **settings, example_inputs=IMAGES[:2])
    assert [block.name for block in elements.blocks] == chosen
    assert elements.targets[0].shape == (len(chosen),)


@pytest.mark.parametrize(
    ("model", "recipe", "error", "said"),
    [
        (Plain(), {}, ModelError, "the model has no residual branch"),
        (resnet(), {"targets": ["conv1"]}, InputError, "'conv1' matches no block; blocks are: stage1.0"),
        (resnet(), {"ignore": ["stage*"]}, ModelError, "`ignore` leaves all of them out"),
        (resnet(), {"schedule": {"name": "one_shot", "sparsity": 0.95}}, InputError, "floor of 0.001"),
    ],
)
def test_what_has_no_blocks_is_refused_before_anything_is_changed(model, recipe, error, said):
    before = copied(model)
    chosen = Recipe.parse({"granularity": "block", "score": "magnitude", "schedule": HALF, **recipe})
    with pytest.raises(error, match=said):
        prune(model, chosen, example_inputs=IMAGES[:2])
    assert same(copied(model), before)


@pytest.mark.parametrize(
    ("granularity", "score"), [("unit", "block_influence"), ("block", "n2ps"), ("block", "feature_taylor")]
)
def test_scores_that_do_not_fit_are_refused_by_name(granularity, score):
    with pytest.raises(InputError, match=f"the score '{score}' works on"):
        Recipe.parse({"granularity": granularity, "score": score, "schedule": HALF})


def test_all_blocks_go_where_the_floor_allows_it():
    model = resnet()
    recipe = {
        "granularity": "block",
        "score": "random",
        "allocation": {"name": "global", "floor": 0},
        "schedule": {"name": "one_shot", "sparsity": 1.0},
    }
    with pytest.raises(InputError):
        Recipe.parse(recipe)
    recipe["schedule"]["sparsity"] = 0.99
    pruned = prune(model, Recipe.parse(recipe), example_inputs=IMAGES[:2])
    assert pruned.kept.kept == 0
    torch.testing.assert_close(model(IMAGES), skipping(resnet(), NAMES)(IMAGES))


def test_a_budget_of_operations_is_met_by_blocks():
    model = resnet()
    dense = count(model, IMAGES).macs
    allocation = {"name": "budget", "of": "macs"}
    recipe = {"granularity": "block", "score": "oracle", "allocation": allocation, "schedule": HALF}
    pruned = prune(model, Recipe.parse(recipe), DATA, example_inputs=IMAGES[:2])
    pruned.shrink(IMAGES[:2])
    assert dense / 3 < count(pruned.model, IMAGES).macs <= dense / 2


# ---- learned in training -----------------------------------------------------------------------------------


def residual_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), *(Residual(8, 6) for _ in range(4)), nn.Linear(8, 3)).double()


def test_a_proximal_step_over_a_branch_by_hand():
    model = residual_mlp()
    with torch.no_grad():
        for parameter in model[2].parameters():
            parameter *= 0.05
    before = copied(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    GroupLasso(strength=2.0, groups="blocks").attach(
        model, optimizer, example_inputs=torch.zeros(2, 10).double()
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for number in range(6):
        own = [f"{number}.{name}" for name, _ in model[number].named_parameters()]
        norm = torch.cat([before[name].flatten() for name in own]).norm()
        factor = float((1 - 0.1 * 2.0 / norm).clamp(min=0)) if 1 <= number <= 4 else 1.0
        assert (factor == 0) == (number == 2)
        for name in own:
            torch.testing.assert_close(model.get_parameter(name).detach(), before[name] * factor)


def blobs_of_ten() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    centres = torch.randn(3, 10, generator=generator)
    return (centres[targets] + 0.3 * torch.randn(60, 10, generator=generator)).double(), targets


TRAINING = {"batch_size": 20, "lr": 0.05, "optimizer": "sgd"}


def test_depth_is_learned_removed_and_taken_out():
    model, data = residual_mlp(), blobs_of_ten()
    recipe = methods.recipe("ssl_depth", strength=1.0, epochs=30, fine_tune=10, training=TRAINING)
    pruned = prune(model, recipe, data)
    gone = [number for number, kept in enumerate(pruned.kept["blocks"].tolist(), 1) if not kept]
    assert 0 < len(gone) < 4
    for number in range(1, 5):
        assert all(not each.any() for each in model[number].parameters()) == (number in gone)
    outputs = model(data[0])
    assert float((outputs.argmax(1) == data[1]).double().mean()) > 0.9
    result = pruned.shrink(data[0][:2])
    assert [group.name for group in result.groups] == [str(number) for number in gone]
    torch.testing.assert_close(pruned.model(data[0]), outputs)


def test_an_interrupted_training_goes_on_bit_for_bit():
    data = blobs_of_ten()
    lasso = {"name": "group_lasso", "strength": 0.1, "groups": "blocks"}
    recipe = Recipe.parse(
        {
            "granularity": "block",
            "score": "magnitude",
            "schedule": {"name": "linear", "sparsity": 0.75, "steps": 3},
            "retrain": {"name": "fine_tune", "training": {**TRAINING, "epochs": 2}},
            "warm_up": {
                **TRAINING,
                "epochs": 2,
                "regularize": [lasso],
            },
        }
    )
    once = residual_mlp()
    prune(once, recipe, data, seed=5)
    first = residual_mlp()
    session = Session(first, recipe, data=data, seed=5)
    next(iter(session.run()))
    other = residual_mlp()
    other.load_state_dict(first.state_dict())
    again = Session(copy.deepcopy(other), recipe, data=data, seed=5)
    again.load_state_dict(copy.deepcopy(session.state_dict()))
    for _ in again.run():
        pass
    assert same(copied(again.model), copied(once))
    twin = copy.deepcopy(session)
    for each in (session, twin):
        for _ in each.run():
            pass
        assert same(copied(each.model), copied(once))


def test_a_loop_of_ones_own_loses_blocks_as_it_goes():
    model, (inputs, targets) = residual_mlp(), blobs_of_ten()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    recipe = Recipe.parse(
        {
            "granularity": "block",
            "score": "random",
            "schedule": {"name": "linear", "sparsity": 0.5, "steps": 2},
        }
    )
    session = recipe.attach(model, optimizer, every=3, seed=1)
    for _ in range(9):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert session.done
    kept = session.kept["blocks"].tolist()
    assert kept.count(False) == 2
    for number, stays in enumerate(kept, 1):
        assert stays == any(bool(each.any()) for each in model[number].parameters())


def test_branches_of_a_network_without_shortcuts_are_refused_by_the_lasso():
    model = mlp(4, 5, 3)
    before = copied(model)
    training = Training(iterations=1, regularize=(GroupLasso(strength=0.1, groups="blocks"),))
    with pytest.raises(ModelError, match="no residual branch"):
        train(model, (torch.randn(4, 4), torch.zeros(4).long()), training)
    assert same(copied(model), before)


def test_shortgpt_takes_the_blocks_of_least_influence():
    torch.manual_seed(0)
    model = CharTransformer((7,), 11, width=8, heads=2, layers=4).eval()
    with torch.no_grad():
        for name, scale in (("1", 1e-3), ("3", 1e-2)):
            for parameter in model.blocks.get_submodule(name).parameters():
                parameter *= scale
    tokens = torch.arange(35).reshape(5, 7) % 11
    pruned = prune(model, methods.recipe("shortgpt", sparsity=0.5), (tokens, tokens))
    assert pruned.kept["blocks"].tolist() == [True, False, True, False]
    wanted = model(tokens)
    result = pruned.shrink(tokens[:2])
    assert result.form == "modules"
    assert [group.name for group in result.groups[::2]] == ["blocks.1.project", "blocks.3.project"]
    torch.testing.assert_close(pruned.model(tokens), wanted)
    blocks = [model.blocks[0], model.blocks[2]]
    x = model.embed(tokens) + model.position
    for block in blocks:
        x = block(x)
    torch.testing.assert_close(wanted, model.output(model.norm(x)).transpose(1, 2))


def test_a_score_of_a_users_own_works_on_blocks():
    class Late(Score):
        """The later it stands the less it matters."""

        name = "late"

        def __call__(self, context: StepContext) -> dict[str, Tensor]:
            return {name: -torch.arange(float(len(each))) for name, each in context.kept.items()}

    pruned = prune(
        residual_mlp(),
        Recipe.parse({"granularity": "block", "schedule": HALF}).model_copy(update={"score": Late()}),
        example_inputs=torch.zeros(2, 10).double(),
    )
    assert pruned.kept["blocks"].tolist() == [True, True, False, False]


def test_a_study_of_depth_with_its_controls(tmp_path):
    own = {
        "recipe": {
            "granularity": "block",
            "score": {"name": "oracle", "error": "cross_entropy"},
            "schedule": HALF,
            "retrain": {"name": "fine_tune", "training": {"iterations": 3}},
        },
        "from_scratch": True,
    }
    model = {"name": "resnet", "width": 2, "depth": 14}
    training = {"epochs": 1, "batch_size": 64, "lr": 0.01}
    study = tiny(
        methods={"oracle": own, "random": {"random_of": "oracle"}},
        controls={"random": "random"},
        dataset="digits",
        model=model,
        training=training,
        seeds=1,
    )
    run_study(study, tmp_path, workers=1)
    rows = {row["method"]: row for row in table(tmp_path / "results.csv")}
    assert {row["kept"] for name, row in rows.items() if name != "dense"} == {"2"}
    assert {"oracle", "random", "oracle, from scratch", "oracle, from scratch, whole budget"} < rows.keys()
