import operator
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from torch.nn.utils.parametrizations import weight_norm

from prunekit import prune
from prunekit.errors import InputError, ModelError
from prunekit.graph import groups, prune_groups
from prunekit.measure import count, latency
from prunekit.methods import magnitude
from prunekit.targets import find_targets, matches, uncompiled, unwrap
from small_nets import Tied, convnet, mlp, recipe


def names(model, targets=None, ignore=()):
    return [target.name for target in find_targets(model, targets, ignore)]


def test_linear_and_convolution_weights_by_default():
    found = find_targets(convnet())
    assert [target.name for target in found] == ["0.weight", "3.weight", "7.weight"]
    assert (found[0].layer, found[0].kind, found[0].shape, found[0].shape.numel()) == (
        "0",
        "Conv2d",
        (8, 4, 3, 3),
        288,
    )


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("Linear",), ["7.weight"]),
        (("Conv2d",), ["0.weight", "3.weight"]),
        (("3",), ["3.weight"]),
        (("3.weight",), ["3.weight"]),
        (("[03]",), ["0.weight", "3.weight"]),
        (("re:[0-4]",), ["0.weight", "3.weight"]),
        ((r"re:\d\.weight",), ["0.weight", "3.weight", "7.weight"]),
        (("7", "0"), ["0.weight", "7.weight"]),
    ],
)
def test_patterns(patterns, expected):
    assert names(convnet(), patterns) == expected


def test_ignore_takes_the_same_patterns():
    assert names(convnet(), ignore=("Conv2d",)) == ["7.weight"]
    assert names(convnet(), ("Conv2d",), ("3",)) == ["0.weight"]


@pytest.mark.parametrize("where", ["targets", "ignore"])
def test_a_pattern_without_a_match_is_refused(where):
    with pytest.raises(InputError, match=r"'fc9' matches no layer of the model; layers are: 0, 3, 7"):
        find_targets(convnet(), **{where: ["fc9"]})


def test_a_broken_expression_is_refused():
    with pytest.raises(InputError, match=r"'re:\(' is not a regular expression"):
        find_targets(convnet(), ["re:("])


def test_matches_is_case_sensitive_and_whole():
    assert matches("fc*", "fc1")
    assert not matches("FC*", "fc1")
    assert not matches("re:fc", "fc1")


def test_nothing_to_prune():
    with pytest.raises(ModelError, match=r"nothing to prune.*are: none"):
        find_targets(nn.Sequential(nn.ReLU()))
    with pytest.raises(ModelError, match="nothing to prune"):
        find_targets(mlp(3, 2), ignore=["0"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value):
    model = mlp(3, 4, 2)
    with torch.no_grad():
        model[2].weight[1, 1] = value
    with pytest.raises(ModelError, match=r"2\.weight holds NaN or infinite values"):
        find_targets(model)


def test_integer_weights_are_refused():
    model = mlp(3, 2)
    model[0].weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"0\.weight holds torch\.int8"):
        find_targets(model)


def parametrized(kind: str) -> nn.Module:
    model = mlp(3, 4, 2)
    if kind == "new":
        weight_norm(model[0])
    elif kind == "old":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model[0])
    elif kind == "spectral":
        nn.utils.spectral_norm(model[0])
    else:
        torch_prune.random_unstructured(model[0], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        ("new", "parametrize.remove_parametrizations"),
        ("old", "remove_weight_norm"),
        ("spectral", "remove_spectral_norm"),
        ("torch prune", "prune.remove"),
    ],
)
def test_parametrized_weights_are_refused_not_skipped(kind, call):
    model = parametrized(kind)
    with pytest.raises(ModelError, match=r"is part of a parametrization.*`ignore`") as error:
        find_targets(model)
    assert f"(torch.nn.utils.{call})" in str(error.value)
    named = [model[0]] if call in ("remove_weight_norm", "remove_spectral_norm") else [model[0], "weight"]
    operator.attrgetter(call)(nn.utils)(*named)
    assert names(model) == ["0.weight", "2.weight"]


@pytest.mark.parametrize("kind", ["new", "old", "spectral", "torch prune"])
def test_and_the_advice_of_the_message_works(kind):
    assert names(parametrized(kind), ignore=["0"]) == ["2.weight"]


def test_lazy_layers_are_refused():
    with pytest.raises(ModelError, match=r"0\.weight has no shape yet: run the model once"):
        find_targets(nn.Sequential(nn.LazyLinear(3)))


def test_a_tied_weight_is_one_target_under_its_first_name():
    assert names(Tied()) == ["embed.weight", "middle.weight"]


@pytest.mark.parametrize("pattern", ["out", "out.weight", "embed", "Embedding"])
def test_a_tied_weight_is_found_by_every_name(pattern):
    assert names(Tied(), [pattern]) == ["embed.weight"]
    assert names(Tied(), ignore=[pattern]) == ["middle.weight"]


def test_a_module_that_is_used_twice_is_one_target():
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert names(model) == ["0.weight"]
    assert names(model, ["2"]) == ["0.weight"]


def test_subclasses_count_as_their_base():
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(Mine(3, 2))
    assert names(model) == names(model, ["Linear"]) == names(model, ["Mine"]) == ["0.weight"]


def test_wrappers():
    model = mlp(3, 2)
    compiled = torch.compile(model, backend="eager")
    parallel = nn.DataParallel(compiled)
    assert unwrap(compiled) is unwrap(parallel) is unwrap(model) is model
    assert uncompiled(compiled) is model
    assert uncompiled(torch.compile(parallel, backend="eager")) is parallel
    assert recipe().plan(parallel).names == names(model) == ["0.weight"]


def sharing(first, second):
    """Two layers whose weights are given."""
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[0].weight, model[2].weight = nn.Parameter(first), nn.Parameter(second)
    return model


def test_weights_that_share_memory_without_being_the_same_are_refused():
    square, flat = torch.randn(6, 6), torch.randn(60)
    for first, second in (
        (square, square),
        (square, square.t()),
        (flat[:36].view(6, 6), flat[24:].view(6, 6)),
    ):
        with pytest.raises(ModelError, match=r"[02]\.weight shares memory with [02]\.weight and is another"):
            find_targets(sharing(first, second))
    with pytest.raises(ModelError, match=r"2\.weight has entries that are one in memory"):
        find_targets(sharing(square, torch.randn(1, 6).expand(6, 6)))


def test_weights_that_lie_in_one_memory_beside_each_other_are_taken():
    flat, columns = torch.randn(72), torch.randn(6, 12)
    assert names(sharing(flat[:36].view(6, 6), flat[36:].view(6, 6))) == ["0.weight", "2.weight"]
    assert names(sharing(columns[:, :6], columns[:, 6:])) == ["0.weight", "2.weight"]


def test_a_network_made_in_inference_mode_is_refused():
    with torch.inference_mode():
        model = mlp(4, 3)
    with pytest.raises(ModelError, match=r"weight was made in inference mode and cannot be changed"):
        find_targets(model)


USES = (groups, count, latency, partial(prune_groups, sparsity=0.5))


@pytest.mark.parametrize("wrong", ["resnet20", nn.Linear, None])
@pytest.mark.parametrize(
    "use", [find_targets, *(partial(each, example_inputs=torch.ones(1, 2)) for each in USES)]
)
def test_what_is_no_network_is_refused(wrong, use):
    with pytest.raises(InputError, match=r"the model must be a torch\.nn\.Module, not "):
        use(wrong)


def test_what_has_the_network_inside_is_told_to_give_it():
    pruned = prune(nn.Linear(4, 4), magnitude(0.5))
    with pytest.raises(InputError, match=r"must be a torch.nn.Module, not <Pruned .*>: give its `model`$"):
        prune(pruned, magnitude(0.5))
    with pytest.raises(InputError, match=r"not 'net'$"):
        prune("net", magnitude(0.5))
